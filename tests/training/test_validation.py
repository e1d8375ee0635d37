"""Which checkpoint is the best, and when a training ends: by rules small enough to know the answer."""

import json
import math

import pytest

from ldm.config.settings import TrainOptions, VaeSettings
from ldm.training.optimizer import lr_factor
from ldm.training.validation import best_name, best_of, due, last_step, reason_to_stop, summary, wanted


def validated(*losses, every=100, copies=()):
    found = [{"step": every * i, "loss": loss} for i, loss in enumerate(losses, start=1)]
    for one, rate in zip(found, copies, strict=False):
        one["copies"] = rate
    return found


TRAIN = TrainOptions(num_steps=1000, save_every=100, patience=0.3)


def settings(schedule="constant", **train):
    return VaeSettings(train=TRAIN.model_copy(update=train), optim={"schedule": schedule, "decay_fraction": 0.4})


@pytest.mark.parametrize(
    "losses, step",
    [
        ((3, 2, 4), 200),
        ((3, 2, 1), 300),
        ((2, 1, 1), 300),
        ((1,), 100),
        ((5, 6, 7, 8), 100),
        ((math.nan, 2, math.nan), 200),
    ],
)
def test_the_lowest_loss_is_best_and_of_equal_ones_the_last(losses, step):
    assert best_of(validated(*losses), TRAIN)["step"] == step


def test_of_losses_within_the_error_of_the_lowest_the_last_is_best():
    done = validated(0.8, 0.77, 0.78, 0.83)
    assert best_of(done, TRAIN)["step"] == 200
    for one in done:
        one["error"] = 0.02
    assert best_of(done, TRAIN)["step"] == 300


def test_where_copies_are_known_the_last_weights_are_best_until_they_copy():
    rising = validated(1, 2, 3, 4, 5, copies=[0, 0.1, 0, 0.2, 0.1])
    assert best_of(rising, TRAIN)["step"] == 500 and last_step(rising, settings("wsd")) == 1000
    assert reason_to_stop(rising, settings()) is None
    assert best_of(validated(1, 2, 3, copies=[0, 0, 0.9]), TRAIN)["step"] == 200


def test_weights_that_copy_are_not_the_best_unless_all_do():
    assert best_of(validated(3, 2, 1, copies=[0, 0.1, 0.5]), TRAIN)["step"] == 200
    assert best_of(validated(3, 1, copies=[0.9, 0.9]), TRAIN)["step"] == 200
    assert best_of([], TRAIN) is None


@pytest.mark.parametrize(
    "losses, ends",
    [
        ((3, 2, 2.1, 2.2, 2.3), True),  # three tenths of the steps after the best
        ((3, 2, 2.1, 2.2), False),
        ((3, 2, 2.1, 2.2, 1.9), False),  # fell again
        ((5, 4, 3, 2, 1), False),
    ],
)
def test_a_training_ends_once_the_loss_has_not_fallen_for_its_patience(losses, ends):
    reason = reason_to_stop(validated(*losses), settings())
    assert (reason is not None) == ends
    if ends:
        assert "at step 500 the validation loss had not fallen since step 200: 2 then, 2.3 later" in reason
    assert last_step(validated(*losses), settings()) == (500 if ends else 1000)
    assert reason_to_stop(validated(*losses), settings(patience=0.0)) is None
    assert reason_to_stop(validated(*losses), settings(keep_best=False)) is None


def test_where_the_rate_is_to_fall_at_the_end_it_falls_from_the_step_that_patience_ends_at():
    stalled = validated(3, 2, 2.1, 2.2, 2.3)
    assert last_step(stalled[:4], settings("wsd")) == 1000
    assert last_step(stalled, settings("wsd")) == 834  # 500 steps are six tenths of them
    assert reason_to_stop(stalled, settings("wsd")) is None
    rates = [lr_factor(settings("wsd").optim, step, 834) for step in (499, 501, 833)]
    assert rates[0] == 1 > rates[1] > 0.99 and rates[2] < 0.01
    risen = stalled + [{"step": step, "loss": 1.5 + step / 1e4} for step in (600, 700, 834)]
    assert last_step(risen, settings("wsd")) == 834 and "had not fallen since step 200" in reason_to_stop(
        risen, settings("wsd")
    )


def test_a_loss_that_rises_only_while_the_rate_falls_ends_nothing():
    late = validated(9, 8, 7, 2, 2.1, 2.2, 2.3)
    assert last_step(late, settings()) == 700 and last_step(late, settings("wsd")) == 1000


def test_two_bad_validations_end_nothing_however_few_there_are():
    assert reason_to_stop(validated(1, 2, 2, every=300), settings()) is None


def test_copies_end_it_at_once():
    reason = reason_to_stop(validated(3, 2, copies=[0.0, 0.5]), settings("wsd"))
    assert "50% of the images that it generates are near copies" in reason
    assert reason_to_stop(validated(3, 2, copies=[0.0, 0.25]), settings()) is None
    assert reason_to_stop(validated(3, 2, copies=[0.0, 0.5]), settings(max_copies=1.0)) is None


def test_a_training_is_validated_about_ten_times_and_at_its_end():
    of, done = VaeSettings(train={"num_steps": 1003, "save_every": 25, "patience": 0}), []
    for step in range(1, 1004):
        if due(step, done, of):
            done.append({"step": step, "loss": 1.0})
    assert [one["step"] for one in done] == [*range(125, 1001, 125), 1003]
    assert not due(50, [], settings()) and due(100, [], settings())


def test_only_own_images_are_validated_unless_asked(tmp_path):
    def of(source, **train):
        return VaeSettings(data={"source": source}, train=TrainOptions(**train))

    assert wanted(of(str(tmp_path))) and not wanted(of("glyphs"))
    assert wanted(of("glyphs", keep_best=True)) and not wanted(of(str(tmp_path), keep_best=False))


def test_the_summary_says_what_is_exported_and_why_it_ended():
    assert summary([], settings()) is None
    assert summary(validated(3, 2), settings()) == (
        "The exported weights are those of step 200, with a validation loss of 2, the best of 2 checkpoints."
    )
    text = summary(validated(3, 2, 2.1, 2.2, 2.3), settings())
    assert text.startswith("The exported weights are those of step 200, with a validation loss of 2 (step 500: 2.3)")
    assert "Training ended at step 500 of 1000: at step 500 the validation loss had not fallen since step 200" in text


def test_the_newest_checkpoint_names_the_best(tmp_path):
    (tmp_path / "state.json").write_text(
        json.dumps({"validations": validated(2, 1, 3), "settings": {"train": TRAIN.model_dump(mode="json")}})
    )
    assert best_name(tmp_path) == "step-00000200"
    (tmp_path / "state.json").write_text("{}")
    assert best_name(tmp_path) is None
