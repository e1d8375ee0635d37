"""Intervals hold the truth as often as they say, and a verdict is as seldom wrong as it says."""

import numpy as np
import pytest

from ldm.evaluation.metrics.confidence import bootstrap, over_seeds, paired, student_t


def test_an_interval_of_a_mean_agrees_with_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, 2000)
    found = bootstrap(values, resamples=4000)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / 2000**0.5, rel=0.05)
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * found.error, found.value + 1.96 * found.error), abs=0.1 * found.error
    )


def test_intervals_agree_with_an_independent_implementation():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).exponential(1, 300)
    given = {"n_resamples": 4000, "method": "percentile", "rng": np.random.default_rng(0)}
    wanted = stats.bootstrap((values,), np.mean, **given).confidence_interval
    found = bootstrap(values, resamples=4000)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.01)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(3).normal(0, 1, 50)
    assert bootstrap(values, seed=5) == bootstrap(values, seed=5) != bootstrap(values, seed=6)


def test_clusters_are_drawn_whole():
    """Twenty prompts whose ten pictures are all the same are twenty values, not two hundred."""
    prompts = np.random.default_rng(4).normal(0, 1, 20)
    found = bootstrap(np.repeat(prompts, 10), clusters=np.repeat(np.arange(20), 10))
    alone = bootstrap(prompts)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    assert (found.n, found.clusters) == (200, 20)
    assert bootstrap(np.repeat(prompts, 10)).error < found.error / 2.5


def covered(draw, truth, trials=500, **options):
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(trials):
        found = bootstrap(*draw(rng), resamples=300, seed=trial, **options)
        hits += found.low <= truth <= found.high
    return hits / trials


def prompts_and_pictures(rng, prompts=15, pictures=8):
    effect = rng.normal(0, 1, prompts)
    values = effect[:, None] + rng.normal(0, 1, (prompts, pictures))
    return values.ravel(), np.repeat(np.arange(prompts), pictures)


def test_an_interval_holds_the_truth_in_95_of_100():
    """Standard error of a share of 0.95 of 500: 0.01; three of them are allowed."""
    assert covered(lambda rng: (rng.normal(0, 1, 12),), 0) == pytest.approx(0.95, abs=0.03)
    assert covered(lambda rng: (rng.random(200) < 0.3,), 0.3) == pytest.approx(0.95, abs=0.03)


def test_an_interval_over_prompts_holds_the_truth_and_one_over_pictures_does_not():
    rng, hits = np.random.default_rng(9), {"prompts": 0, "pictures": 0}
    for trial in range(400):
        values, clusters = prompts_and_pictures(rng)
        for kind, given in (("prompts", clusters), ("pictures", None)):
            found = bootstrap(values, clusters=given, resamples=1000, seed=trial)
            hits[kind] += found.low <= 0 <= found.high
    assert hits["prompts"] / 400 == pytest.approx(0.95, abs=0.033)
    assert hits["pictures"] / 400 < 0.75


def two_models(rng, gain=0.0, prompts=30, seeds=3):
    """Right or wrong, on prompts that are easy or hard for both models alike: two arrays (seeds, prompts)."""
    easy = rng.uniform(0.2, 0.8, prompts)
    return (rng.random((seeds, prompts)) < easy).astype(float), (rng.random((seeds, prompts)) < easy + gain).astype(
        float
    )


def test_equal_models_are_told_apart_in_5_of_100():
    rng = np.random.default_rng(9)
    verdicts = [paired(*two_models(rng), resamples=400, seed=i).verdict for i in range(1000)]
    shares = {name: verdicts.count(name) / 1000 for name in set(verdicts)}
    assert 1 - shares["no difference seen"] == pytest.approx(0.05, abs=0.021)
    assert shares["A better at 95%"] == pytest.approx(shares["B better at 95%"], abs=0.03)


def test_a_known_difference_is_found():
    rng = np.random.default_rng(10)
    found = [paired(*two_models(rng, 0.2, prompts=120), resamples=400) for _ in range(40)]
    assert [one.verdict for one in found].count("B better at 95%") >= 38  # 0.2 is 4.3 standard errors
    assert np.mean([one.difference.value for one in found]) == pytest.approx(0.2, abs=0.03)


def test_the_verdict_knows_which_way_is_better_and_the_names():
    a = np.random.default_rng(11).normal(0, 1, 100)
    assert paired(a, a + 1).verdict == "B better at 95%"
    assert paired(a, a + 1, higher_is_better=False).verdict == "A better at 95%"
    assert paired(a, a - 1, names=("old", "new"), confidence=0.99).verdict == "old better at 99%"
    assert paired(a, a).verdict == "no difference seen"


def test_pairing_takes_away_what_both_models_share():
    rng = np.random.default_rng(12)
    prompts = rng.normal(0, 10, 50)
    a, b = prompts + rng.normal(0, 0.1, 50), prompts + 0.2 + rng.normal(0, 0.1, 50)
    found = paired(a, b)
    assert found.verdict == "B better at 95%" and found.difference.error < 0.05 < bootstrap(a).error


def test_columns_are_prompts_and_can_be_named_instead():
    a, b = two_models(np.random.default_rng(13))
    named = paired(a.ravel(), b.ravel(), np.tile(np.arange(30), 3))
    assert named == paired(a, b) and named.difference.clusters == 30
    assert set(named.rounded()) == {"a", "b", "difference", "verdict"}


def test_seeds_have_a_spread():
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found["mean"], found["spread"]) == (2, 1) and found["error"] == pytest.approx(3**-0.5)
    with pytest.raises(ValueError, match="at least three seeds"):
        over_seeds([1.0, 2.0])


@pytest.mark.parametrize("degrees", [4, 9, 30, 300])
def test_the_quantile_of_t_agrees_with_scipy(degrees):
    stats = pytest.importorskip("scipy.stats")
    assert student_t(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.01)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bootstrap([1.0]), "at least two values"),
        (lambda: bootstrap([1.0, np.nan]), "1 of 2 values are not finite"),
        (lambda: bootstrap([1.0, 2.0], resamples=10), "at least 100, got 0.95 and 10"),
        (lambda: bootstrap([1.0, 2.0], clusters=[0]), "one for each of 2 values, got 1"),
        (lambda: bootstrap([1.0, 2.0], clusters=[0, 0]), "all values are of one cluster"),
        (lambda: paired([1.0, 2.0], [1.0]), "every prompt and seed"),
    ],
)
def test_what_cannot_be_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
