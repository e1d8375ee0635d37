"""`ldm doctor RUN`: a run that learned has no fault; each of its broken copies is blamed on what was broken."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import (
    build,
    data_options,
    healthy_run,
    ldm_settings,
    train_clip,
    train_ldm,
    train_options,
    write_pictures,
)
from transformers import CLIPTokenizer

from ldm.cli import doctor
from ldm.config.settings import NoiseOptions
from ldm.data import Splits
from ldm.evaluation.diagnostics import sampling
from ldm.evaluation.diagnostics.findings import Finding, verdict
from ldm.evaluation.diagnostics.learning import loss_exponent
from ldm.evaluation.diagnostics.model import nearest_caption
from ldm.evaluation.diagnostics.run import checks, examine
from ldm.evaluation.run_loading import holding, network_weights, open_run, put_weights, saved_weights
from ldm.hub.export import export
from ldm.models.tokenizer import train_tokenizer
from ldm.pipelines.diffusers_schedulers import export_scheduler
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError

WEIGHTS = {"text_encoder": "model.safetensors"}  # others: the name diffusers gives
CASES, SLOW = {}, set()


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """pictures/, cache/, clip/, vae/ and ldm/ of runs that learned."""
    project = tmp_path_factory.mktemp("project")
    healthy_run(project)
    train_clip(project, build(data_options(project)))
    return project


@pytest.fixture(autouse=True)
def coarser_reference(monkeypatch):
    """Of the sampler's steps: still two and a half times as many as the tiny runs take."""
    monkeypatch.setattr(sampling, "FINE_STEPS", 50)


def breaks(cause: str, slow: bool = False):
    """The decorated function breaks a copy, fault(run, project), and `cause` is the check that must see it first."""

    def register(fault):
        CASES[fault.__name__] = (cause, fault)
        SLOW.update([fault.__name__] * slow)
        return fault

    return register


# ---- how to break ---------------------------------------------------------------------------------------------------


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_settings(run: Path, block: str, **values) -> None:
    """Of config.yaml; block is '' for the top, or dotted: 'ldm.sampling'."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    place = content
    for name in filter(None, block.split(".")):
        place = place[name]
    place.update(values)
    (run / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def change_weights(run: Path, part: str, change) -> None:
    file = run / "final" / part / WEIGHTS.get(part, "diffusion_pytorch_model.safetensors")
    save_file({name: change(name, value) for name, value in load_file(file).items()}, file, {"format": "pt"})


def noise_like(value: torch.Tensor) -> torch.Tensor:
    return 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))


def initial(value: torch.Tensor) -> torch.Tensor:
    """As layers begin: small matrices, no biases."""
    fan = max(1, value[0].numel()) if value.ndim > 1 else 1
    return noise_like(value) * 10 / fan**0.5 if value.ndim > 1 else torch.zeros_like(value)


def own_pictures(run: Path, project: Path, change) -> None:
    """The run reads a copy of the pictures, changed one by one: change(uint8 array) -> uint8 array."""
    pictures = run.parent / "pictures"
    shutil.copytree(project / "pictures", pictures)
    for path in pictures.glob("*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)
    change_settings(run, "data", source=str(pictures), cache_dir=str(run.parent / "cache"))


def own_captions(run: Path, project: Path, caption: str) -> None:
    pictures = run.parent / "pictures"
    shutil.copytree(project / "pictures", pictures)
    for path in pictures.glob("*.txt"):
        path.write_text(caption)
    change_settings(run, "data", source=str(pictures))


def train_anew(run: Path, project: Path, steps: int = 120, splits: Splits | None = None, **changes) -> None:
    shutil.rmtree(run)
    shutil.copytree(project / "vae", run.parent / "vae")
    settings = ldm_settings(project, steps, **{"output_dir": run, **changes})
    train_ldm(settings, splits or build(settings.data))


# ---- the faults -----------------------------------------------------------------------------------------------------


@breaks("files")
def a_part_is_missing(run, project):
    shutil.rmtree(run / "final" / "tokenizer")


@breaks("weights")
def the_unet_holds_a_nan(run, project):
    change_weights(run, "unet", lambda name, value: value.index_fill(0, torch.tensor([0]), torch.nan))


@breaks("data")
def every_picture_is_the_same(run, project):
    own_pictures(run, project, lambda picture: np.full_like(picture, 128))


@breaks("data")
def pictures_use_levels_0_and_1(run, project):
    own_pictures(run, project, lambda picture: (picture > 127).astype(np.uint8))


@breaks("channels")
def the_data_are_grey_and_the_vae_takes_colours(run, project):
    change_settings(run, "data", channels=1, cache_dir=str(run.parent / "cache"))


@breaks("channels")
def the_pictures_are_twice_as_large(run, project):
    change_settings(run, "data", resolution=32, cache_dir=str(run.parent / "cache"))


@breaks("captions")
def every_caption_is_the_same(run, project):
    own_captions(run, project, "a bar")


@breaks("captions")
def every_caption_is_empty(run, project):
    own_captions(run, project, "")


@breaks("dropout")
def every_caption_is_dropped(run, project):
    train_anew(run, project, steps=20, caption_dropout=1.0)


@breaks("vae")
def the_decoder_is_random(run, project):
    change_weights(run, "vae", lambda name, value: initial(value) if name.startswith("decoder") else value)


def blur(name, value):
    """The encoder sees means of 3 x 3 pixels: colours stay, edges go, as after too short a training."""
    if name != "encoder.conv_in.weight":
        return value
    return value[:, :, 1:2, 1:2].expand(-1, -1, 3, 3) / 9


def lose_green(name, value):
    """Green and magenta become grey."""
    axis = torch.tensor([-1.0, 2, -1]) / 6**0.5
    keep = torch.eye(3) - torch.outer(axis, axis)
    return torch.einsum("ij,j...->i...", keep, value).contiguous() if name.startswith("decoder.conv_out") else value


@breaks("vae", slow=True)  # as are these two of a VAE alone, below
def the_vae_is_worse_than_a_linear_map(run, project):
    change_weights(run, "vae", lambda name, value: blur(name, value).contiguous())


@breaks("vae", slow=True)
def the_vae_loses_a_colour(run, project):
    change_weights(run, "vae", lose_green)


@breaks("parts")
def the_vae_is_of_another_run(run, project):
    """It codes as well, but its latents are others: two of its channels are exchanged."""
    order = torch.tensor([1, 0, 2, 3, 5, 4, 6, 7])

    def exchange(name, value):
        if name.startswith("quant_conv"):
            return value[order].contiguous()
        return value[:, order[:4]].contiguous() if name == "post_quant_conv.weight" else value

    change_weights(run, "vae", exchange)


@breaks("latents")
def the_scaling_factor_is_half(run, project):
    change_json(run / "final/vae/config.json", scaling_factor=0.5)


@breaks("latents")
def the_latent_shift_is_wrong(run, project):
    change_json(run / "final/vae/config.json", shift_factor=1.0)


@breaks("tokenizer")
def the_tokenizer_has_another_vocabulary(run, project):
    train_tokenizer(["wholly other words"] * 5, 600, 32).save_pretrained(run / "final/tokenizer")


@breaks("parts")
def the_tokens_have_other_numbers(run, project):
    path = run / "final/tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    letters = [word for word, number in words.items() if number < 500]
    numbers = [words[word] for word in letters]
    words.update(zip(letters, numbers[7:] + numbers[:7], strict=True))
    path.write_text(json.dumps(content))


@breaks("text")
def the_text_encoder_says_one_thing(run, project):
    change_weights(run, "text_encoder", lambda name, value: torch.full_like(value, 0.02))


def merge_words(folder: Path, file: str, prefix: str = "") -> None:
    """Red and green become one token to the encoder in `folder`."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    red, green = (tokenizer(f"a {name} bar").input_ids for name in ("red", "green"))
    assert len(red) == len(green)
    weights = load_file(folder / file)
    name = next(name for name in weights if name.endswith("token_embedding.weight"))
    weights[name][green] = weights[name][red]
    save_file(weights, folder / file, {"format": "pt"})


@breaks("text")
def two_captions_are_one_to_the_text_encoder(run, project):
    merge_words(run / "final", "text_encoder/model.safetensors")


def falling(steps: int, power: float, seed: int = 0) -> list[dict]:
    """A log whose loss is 0.8 step^-power, with noise of 3%, and whose rate decays over the last fifth."""
    rng = np.random.default_rng(seed)
    return [
        {"step": i, "loss": 0.8 * i**-power * float(rng.normal(1, 0.03)), "lr": min(1.0, 5 * (1 - i / steps) + 1e-3)}
        for i in range(20, steps + 1, 20)
    ]


@breaks("progress")
def the_log_ends_while_the_loss_falls(run, project):
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in falling(1200, 0.5)))


@breaks("progress", slow=True)  # trains anew
def the_unet_is_stopped_too_early(run, project):
    train_anew(run, project, train=train_options(120, 32).model_copy(update={"log_every": 3}))


@breaks("training")
def training_stopped_after_five_steps(run, project):
    train_anew(run, project, steps=5)


@breaks("schedule")
def the_last_training_time_still_shows_the_picture(run, project):
    """Settings and scheduler as of a run trained so; nothing before this check looks at what the U-Net learned."""
    noise = {"process": "linear", "prediction_type": "v_prediction", "shift": 0.01}
    change_settings(run, "ldm.noise", **noise)
    shutil.rmtree(run / "final/scheduler")
    export_scheduler(NoiseOptions(**noise)).save_pretrained(run / "final/scheduler")


@breaks("scheduler")
def the_scheduler_takes_another_prediction(run, project):
    change_json(run / "final/scheduler/scheduler_config.json", prediction_type="epsilon")


@breaks("scheduler")
def the_scheduler_has_another_schedule(run, project):
    """Of a run trained with cosine, as its settings say."""
    change_settings(run, "ldm.noise", process="cosine", prediction_type="v_prediction")
    other = NoiseOptions(process="linear", prediction_type="v_prediction")
    shutil.rmtree(run / "final/scheduler")
    export_scheduler(other).save_pretrained(run / "final/scheduler")


@breaks("scheduler", slow=True)  # seen by its prediction, as the first
def the_scheduler_is_of_another_process(run, project):
    other = NoiseOptions(process="scaled_linear", prediction_type="epsilon")
    shutil.rmtree(run / "final/scheduler")
    export_scheduler(other).save_pretrained(run / "final/scheduler")


@breaks("ema")
def the_average_is_where_training_began(run, project):
    change_weights(run, "unet", lambda name, value: initial(value))
    step = checkpoint.newest(run / "checkpoints")
    unet = load_file(run / "final/unet/diffusion_pytorch_model.safetensors")
    averaged = load_file(step / "ema.safetensors")
    averaged |= {name: unet[name.removeprefix("unet.")] for name in averaged if name.startswith("unet.")}
    save_file(averaged, step / "ema.safetensors")
    checkpoint._write_manifest(clean(step))


@breaks("loss")
def the_unet_is_untrained(run, project):
    change_weights(run, "unet", lambda name, value: initial(value))


@breaks("conditioning", slow=True)  # trains anew
def captions_were_shuffled(run, project):
    write_pictures(run.parent / "pictures", shuffled=True)
    data = data_options(project).model_copy(update={"source": str(run.parent / "pictures")})
    train_anew(run, project, steps=100, data=data)


@breaks("sampler", slow=True)
def one_step(run, project):
    change_settings(run, "ldm.sampling", num_inference_steps=1)


@breaks("guidance", slow=True)
def guidance_of_50(run, project):
    change_settings(run, "ldm.sampling", guidance_scale=50.0)


@breaks("guidance", slow=True)  # all checks before it run, as for the other
def guidance_of_0(run, project):
    change_settings(run, "ldm.sampling", guidance_scale=0.0)


# ---- and who is blamed ----------------------------------------------------------------------------------------------


def clean(folder: Path) -> Path:
    """Without its manifest, so that it can be written anew and tells nothing."""
    (folder / checkpoint.MANIFEST).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES])
def test_a_broken_run_is_blamed_on_what_was_broken(name, project, tmp_path):
    cause, fault = CASES[name]
    run = tmp_path / "ldm"
    shutil.copytree(project / "ldm", run)
    fault(run, project)
    checkpoint._write_manifest(clean(run / "final"))
    first = next(finding for finding in examine(run, limit=48, device="cpu") if finding.status == "fail")
    assert first.name == cause, first
    assert first.advice and "the check itself raised" not in first.text


def test_a_healthy_run_has_no_fault(project):
    found = list(examine(project / "ldm", limit=48, device="cpu"))
    assert [finding.name for finding in found] == list(checks())
    assert {finding.status for finding in found} == {"ok"}, [f for f in found if f.status != "ok"]
    assert verdict(found) == "no failure found"


def test_a_run_that_validation_ended_has_no_fault(project, tmp_path):
    """final/ has the EMA of the best checkpoint, and not that of the newest."""
    run = tmp_path / "ldm"
    shutil.copytree(project / "ldm", run)
    best = checkpoint.newest(run / "checkpoints")
    step = int(best.name.removeprefix("step-"))
    last = shutil.copytree(best, best.with_name(checkpoint.name(step + 3)))
    validations = [{"step": step + i, "loss": 1.0 + (i > 0)} for i in range(4)]
    change_json(last / "state.json", step=step + 3, validations=validations)
    ema = load_file(last / "ema.safetensors")
    save_file({name: value + noise_like(value) for name, value in ema.items()}, last / "ema.safetensors")
    checkpoint._write_manifest(clean(last))
    change_settings(run, "train", num_steps=step + 10, patience=3 / (step + 10))
    change_settings(run, "optim", schedule="constant")
    found = {finding.name: finding for finding in examine(run, limit=48, device="cpu")}
    assert {finding.status for finding in found.values()} == {"ok"}
    assert f"the validation loss had not fallen since step {step}" in found["training"].text
    change_json(last / "state.json", validations=[])
    checkpoint._write_manifest(clean(last))
    found = {finding.name: finding for finding in examine(run, limit=48, device="cpu")}
    assert found["ema"].status == "warn" and "does not hold the EMA of" in found["ema"].text


@pytest.mark.parametrize("stage", ["vae", "clip"])
def test_a_run_of_one_trainer_alone_is_examined(stage, project):
    found = list(examine(project / stage, limit=48, device="cpu"))
    assert [finding.name for finding in found] == list(checks(stage)) and len(found) >= 7
    assert {finding.status for finding in found} == {"ok"}, [f for f in found if f.status != "ok"]
    step = checkpoint.newest(project / stage / "checkpoints")
    assert [finding.name for finding in examine(step, limit=8, device="cpu")] == list(checks(stage))


def alone(project: Path, stage: str, tmp_path: Path) -> Path:
    run = tmp_path / stage
    shutil.copytree(project / stage, run)
    return run


@pytest.mark.parametrize(
    "change, said",
    [
        (lose_green, "loses green-magenta (gain 0.0"),
        (lambda name, value: blur(name, value).contiguous(), "not trained: "),
        (lambda name, value: initial(value), "it keeps nothing of the images"),
    ],
)
def test_what_is_wrong_with_a_vae_is_named_before_a_denoiser_is_trained_on_it(change, said, project, tmp_path):
    run = alone(project, "vae", tmp_path)
    change_weights(run, "vae", change)
    checkpoint._write_manifest(clean(run / "final"))
    first = next(finding for finding in examine(run, limit=48, device="cpu") if finding.status == "fail")
    assert first.name == "vae" and said in first.text and first.advice


def test_a_text_encoder_that_merges_two_words_is_named_and_one_that_learned_nothing(project, tmp_path):
    run = alone(project, "clip", tmp_path)
    merge_words(run / "final", "text_encoder/model.safetensors")
    found = {finding.name: finding for finding in examine(run, limit=48, device="cpu")}
    assert found["text"].status == "fail" and "2 of 5 captions cannot be told from another" in found["text"].text
    clip = run / "final/clip/model.safetensors"
    save_file({name: initial(value) for name, value in load_file(clip).items()}, clip, {"format": "pt"})
    found = {finding.name: finding for finding in examine(run, limit=48, device="cpu")}
    assert found["retrieval"].status == "fail" and "by chance 33%" in found["retrieval"].text


def test_an_unfinished_vae_says_what_is_missing(project, tmp_path):
    run = alone(project, "vae", tmp_path)
    shutil.rmtree(run / "final")
    first = next(examine(run, limit=48, device="cpu"))
    assert (first.name, first.status) == ("files", "fail") and "ldm train vae" in first.text + first.advice


def test_captions_are_as_far_apart_as_their_most_different_tokens():
    one_hot = torch.eye(6).view(6, 1, 6)
    assert nearest_caption(one_hot)[1].numpy() == pytest.approx(2**0.5)  # orthogonal: nothing in common
    assert nearest_caption(torch.cat([one_hot, torch.zeros(6, 9, 6)], 1))[1].min() > 2  # long captions do not hide it
    assert (nearest_caption(torch.ones(4, 3, 5))[1] == 0).all()
    index, apart = nearest_caption(torch.tensor([[[1.0, 0]], [[0, 1.0]], [[1.0, 0]]]))
    assert index[0] == 2 and apart.tolist() == pytest.approx([0, 2**0.5, 0])


def test_the_exponent_of_a_power_law_is_found_and_what_a_decaying_rate_adds_is_not():
    exact = [{"step": i, "loss": 3 * i**-0.25, "lr": 1.0} for i in range(10, 1000, 10)]
    assert loss_exponent(exact) == pytest.approx((0.25, 0), abs=1e-6)
    exponent, error = loss_exponent(falling(4000, 0.0))
    assert abs(exponent) < 3 * error and error < 0.05
    decayed = [row | {"loss": row["loss"] * row["lr"] ** 0.5} for row in exact_decay()]
    assert loss_exponent(decayed)[0] == pytest.approx(0.25, abs=0.01)
    assert loss_exponent(exact[:10]) is None and loss_exponent([]) is None


def exact_decay() -> list[dict]:
    return [{"step": i, "loss": 3 * i**-0.25, "lr": min(1.0, 5 * (1 - i / 2000) + 0.01)} for i in range(10, 2000, 10)]


def test_a_checkpoint_is_opened_like_the_finished_run(project, tmp_path):
    """A run without final/ is put together again, and draws with the average that final/ holds."""
    finished = open_run(project / "ldm", "cpu")
    step = checkpoint.newest(project / "ldm" / "checkpoints")
    assembled = open_run(step, "cpu")
    for name, value in network_weights(finished.pipeline).items():
        assert torch.equal(value, network_weights(assembled.pipeline)[name]), name
    latents = [each.pipeline("a red bar", seed=0, output_type="latent").images for each in (finished, assembled)]
    torch.testing.assert_close(*latents)
    raw = saved_weights(step, "raw")
    with holding(finished.pipeline, raw):
        assert all(torch.equal(value, raw[name]) for name, value in network_weights(finished.pipeline).items())
    assert any(not torch.equal(value, raw[name]) for name, value in network_weights(finished.pipeline).items())
    with pytest.raises(UserError, match="of another network"):
        put_weights(finished.pipeline, {"unet.nothing": torch.zeros(1)})


def test_an_export_is_examined_with_the_data_it_names_if_they_are_here(project, tmp_path, monkeypatch):
    export(project / "ldm", tmp_path / "model")
    monkeypatch.chdir(project)  # it names them without the folders above
    found = {finding.name: finding for finding in examine(tmp_path / "model", limit=32, device="cpu")}
    assert {finding.status for finding in found.values()} == {"ok", "skip"}
    assert [name for name, finding in found.items() if finding.status == "skip"] == ["parts", "progress", "ema"]
    monkeypatch.chdir(tmp_path)
    found = {finding.name: finding for finding in examine(tmp_path / "model", limit=32, device="cpu")}
    sampler = found.pop("sampler")  # how far its few steps end from many differs by machine, so little is it trained
    assert {finding.status for finding in found.values()} == {"ok", "skip"} and sampler.status != "skip"
    assert found["scheduler"].status == "ok" and found["data"].status == "skip"
    change_json(tmp_path / "model/ldm.json", training={}, guidance_scale=0.0)
    found = {finding.name: finding for finding in examine(tmp_path / "model", limit=32, device="cpu")}
    assert found["loss"].status == found["scheduler"].status == "skip"
    assert found["guidance"].status == "fail"


def call(*argv) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", *map(str, argv)])
    return doctor.run(args)


def test_the_command_names_the_cause_and_its_exit_code_says_so(project, tmp_path, capsys):
    run = tmp_path / "ldm"
    shutil.copytree(project / "ldm", run)
    the_unet_holds_a_nan(run, project)
    capsys.readouterr()
    assert call(run, "--device", "cpu", "--limit", "48", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in found] == list(checks())
    assert {item["name"] for item in found if item["status"] == "fail"} == {"weights"}
    skipped = {item["name"]: item["text"] for item in found if item["status"] == "skip"}
    assert skipped["loss"] == "not checked, because of weights"
    assert call(run, "--device", "cpu", "--limit", "48") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("cause: weights: unet holds NaN or infinity")
    assert any(line.startswith("ok    data ") for line in lines)


def test_what_is_no_run_is_told_of(tmp_path):
    with pytest.raises(UserError, match="is no model"):
        list(examine(tmp_path))
    with pytest.raises(SystemExit):
        call(tmp_path, "--limit", "0")


def test_the_first_failure_is_the_cause_and_warnings_are_none():
    fine, doubt = Finding("a", "ok", ""), Finding("b", "warn", "so so", "x")
    assert verdict([fine, doubt]) == "no failure found; 1 warning(s)"
    faults = [Finding(name, "fail", f"{name} is broken", "x") for name in "cd"]
    assert verdict([fine, doubt, *faults]).startswith("cause: c: c is broken (1 later check(s) fail too")
