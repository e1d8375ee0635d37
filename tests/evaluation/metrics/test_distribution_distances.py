"""Distances between clouds by closed forms, constructed sets and formulas written down a second time."""

import numpy as np
import pytest

from ldm.evaluation.metrics import distribution_distances as module
from ldm.evaluation.metrics.distribution_distances import (
    fidelity,
    frechet_distance,
    frechet_extrapolated,
    kernel_distance,
    kernel_distance_in_blocks,
    median_distance,
    mmd_rbf,
    prdc,
    sliced_distance,
    with_reference_range,
)


def normal(seed, n=400, d=6, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def whitened(points, deviations, mean):
    """The same cloud with exactly this mean and diagonal covariance."""
    centred = points - points.mean(0)
    values, vectors = np.linalg.eigh(np.cov(centred, rowvar=False))
    return centred @ vectors / np.sqrt(values) * deviations + mean


# ---- Frechet --------------------------------------------------------------------------------------------------------


def test_the_frechet_distance_of_gaussians_has_a_closed_form():
    """|m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances."""
    one, two = np.array([1.0, 2, 3]), np.array([2.0, 2, 0.5])
    first, second = whitened(normal(0, d=3), one, [0, 0, 0]), whitened(normal(1, d=3), two, [1, -2, 0])
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + ((one - two) ** 2).sum())


def test_the_frechet_distance_agrees_with_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    first, second = normal(2) @ normal(3, 6), normal(4, 300) @ normal(5, 6) + 0.3
    one, two = np.cov(first.T), np.cov(second.T)
    wanted = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
    assert frechet_distance(first, second) == pytest.approx(wanted)
    assert frechet_distance(second, first) == pytest.approx(wanted)


def test_the_frechet_distance_of_a_set_to_itself_is_zero_even_of_few_points():
    few = normal(6, n=10, d=30)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    line = normal(7, d=1)
    assert frechet_distance(line, line + 2) == pytest.approx(4)


def test_the_bias_of_the_frechet_distance_falls_with_n_and_extrapolation_takes_it_away():
    reference = normal(8, n=20_000, d=16)
    few, many = (np.mean([frechet_distance(normal(s, n, 16), reference) for s in range(6)]) for n in (100, 400))
    assert few > 2.5 * many > 0
    found = [frechet_extrapolated(normal(s, 400, 16), reference, seed=s) for s in range(12)]
    assert abs(np.mean(found)) < many / 4


# ---- kernels --------------------------------------------------------------------------------------------------------


def plain_mmd(first, second, kernel):
    """Eq. 3 of Gretton et al. 2012, a pair at a time."""
    within = sum(
        np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (first, second)
    )
    return within - 2 * np.mean([kernel(x, y) for x in first for y in second])


def test_kernel_distances_are_the_formula_pair_by_pair(monkeypatch):
    first, second = normal(9, 20, 4), normal(10, 15, 4, shift=0.5)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert kernel_distance(first, second) == pytest.approx(plain_mmd(first, second, lambda x, y: (x @ y / 4 + 1) ** 3))
    wanted = plain_mmd(first, second, lambda x, y: np.exp(-((x - y) ** 2).sum() / (2 * 1.5**2)))
    assert mmd_rbf(first, second, 1.5) == pytest.approx(wanted)


def test_the_kernels_agree_with_an_independent_implementation():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    first, second = normal(11), normal(12, 300, scale=1.2)

    def from_matrices(one, two, across):
        n, m = len(one), len(two)
        within = (one.sum() - np.trace(one)) / (n * (n - 1)) + (two.sum() - np.trace(two)) / (m * (m - 1))
        return within - 2 * across.mean()

    pairs = ((first, first), (second, second), (first, second))
    cubic = [pairwise.polynomial_kernel(x, y, degree=3, coef0=1) for x, y in pairs]  # gamma is 1 / d there
    assert kernel_distance(first, second) == pytest.approx(from_matrices(*cubic))
    width = median_distance(second)
    radial = [pairwise.rbf_kernel(x, y, gamma=1 / (2 * width**2)) for x, y in pairs]
    assert mmd_rbf(first, second) == pytest.approx(from_matrices(*radial))


@pytest.mark.parametrize("measure", [kernel_distance, mmd_rbf])
def test_a_kernel_distance_is_unbiased(measure):
    """Over resamples of one distribution its mean is 0 within two standard errors, although many are below 0."""
    found = np.array([measure(normal(100 + i, 60, 8), normal(900 + i, 60, 8)) for i in range(150)])
    assert abs(found.mean()) < 2 * found.std(ddof=1) / 150**0.5
    assert 0.3 < (found < 0).mean() < 0.8
    assert measure(normal(1, 60, 8), normal(2, 60, 8, shift=0.5)) > 5 * found.std()


def test_blocks_have_the_same_mean_and_an_honest_error():
    first, second = normal(13, 2000), normal(14, 2000, shift=0.2)
    mean, error = kernel_distance_in_blocks(first, second, 100)
    assert mean == pytest.approx(kernel_distance(first, second), abs=2 * error)
    trials = [kernel_distance_in_blocks(normal(1000 + i, 500), normal(5000 + i, 500), 50) for i in range(120)]
    spread = np.std([m for m, _ in trials], ddof=1)
    assert np.sqrt(np.mean([e**2 for _, e in trials])) == pytest.approx(spread, rel=0.3)
    with pytest.raises(ValueError, match="two blocks of 100"):
        kernel_distance_in_blocks(first[:150], second)


def test_the_median_distance_is_that_of_all_pairs():
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == pytest.approx(2)
    with pytest.raises(ValueError, match="bandwidth must be above 0"):
        mmd_rbf(normal(0), np.zeros((5, 6)))


# ---- balls ----------------------------------------------------------------------------------------------------------


def plain_prdc(generated, reference, k):
    """The definitions, written with loops and distances by norm."""

    def radius(points):
        return [sorted(np.linalg.norm(points - x, axis=1))[k] for x in points]

    real, own = radius(reference), radius(generated)
    apart = np.array([[np.linalg.norm(x - y) for y in generated] for x in reference])
    inside = apart < np.array(real)[:, None]
    return {
        "precision": np.mean(inside.any(0)),
        "recall": np.mean((apart < np.array(own)).any(1)),
        "density": inside.sum() / (k * len(generated)),
        "coverage": np.mean(inside.any(1)),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_its_definition_and_chunks_do_not_matter(k):
    generated, reference = normal(15, 70, 3, shift=0.4, scale=0.8), normal(16, 90, 3)
    wanted = plain_prdc(generated, reference, k)
    assert prdc(generated, reference, k) == pytest.approx(wanted)
    assert prdc(generated, reference, k, chunk=11) == pytest.approx(wanted)


def test_prdc_on_sets_made_for_it():
    ten = np.arange(10.0)[:, None]
    far = prdc(ten + 1000, ten, k=2)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    same = prdc(ten, ten, k=2)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    half = prdc(np.linspace(0, 4, 60)[:, None], ten, k=2)  # real everywhere it is, and nowhere beyond
    assert half["precision"] == 1 and half["recall"] < 0.6 and half["coverage"] < 0.8
    wide = prdc(np.arange(-10.0, 20)[:, None], ten, k=2)  # everywhere real, and beyond
    assert wide["recall"] == 1 and wide["precision"] < 0.5 and wide["coverage"] == 1


def test_one_distribution_has_density_one_and_the_expected_coverage():
    """Of 2 n points in any order, a ball of k neighbours is empty if these come first: 1 - 2^-k about."""
    found = [prdc(normal(s, 600, 4), normal(50 + s, 600, 4)) for s in range(4)]
    assert np.mean([one["density"] for one in found]) == pytest.approx(1, abs=0.05)
    assert np.mean([one["coverage"] for one in found]) == pytest.approx(1 - 2**-5, abs=0.015)


# ---- all of them ----------------------------------------------------------------------------------------------------

METRICS = ("fd", "fd_extrapolated", "kid", "mmd", "sliced", "precision", "recall", "density", "coverage")


def test_all_numbers_are_there_with_errors_and_do_not_change():
    first, second = normal(17, 250), normal(18, 300)
    found = fidelity(first, second, seed=3)
    assert set(found) == {"generated", "reference", *METRICS} and found["generated"] == 250
    assert all(np.isfinite(found[name]["value"]) for name in METRICS)
    assert all(found[name]["error"] > 0 for name in METRICS if name != "fd_extrapolated")
    assert found["kid"]["block_error"] > 0
    assert found == fidelity(first, second, seed=3)
    assert found["sliced"]["value"] == pytest.approx(sliced_distance(first, second, 3))


def test_the_error_is_the_spread_between_fresh_sets():
    """Of numbers well off 0; of those near 0 it may be up to twice too large, never much too small."""
    trials = [fidelity(normal(i, 150, 4, shift=0.5), normal(300 + i, 150, 4)) for i in range(24)]
    for name in ("fd", "kid", "mmd", "sliced", "precision", "density"):
        spread = np.std([one[name]["value"] for one in trials], ddof=1)
        said = np.sqrt(np.mean([one[name]["error"] ** 2 for one in trials]))
        assert 0.6 < said / spread < 2, (name, said, spread)


def test_a_yardstick_has_the_generated_set_between_floor_and_ceiling():
    real = normal(19, 1200)
    spoiled = {"moved": normal(20, 400, shift=2.0)}
    found = with_reference_range(normal(21, 300, shift=0.4), real, spoiled)
    assert found["generated"]["generated"] == found["floor"]["generated"] == 300
    assert found["floor"]["reference"] == found["generated"]["reference"] == 900
    ceiling = found["ceiling"]["moved"]
    for name in ("fd", "kid", "mmd", "sliced"):
        assert found["floor"][name]["value"] < found["generated"][name]["value"] < ceiling[name]["value"], name
    for name in ("precision", "coverage"):
        assert found["floor"][name]["value"] > found["generated"][name]["value"] > ceiling[name]["value"], name
    assert abs(found["floor"]["kid"]["value"]) < 3 * found["floor"]["kid"]["error"]


def test_a_floor_of_held_out_pictures_leaves_the_reference_whole():
    found = with_reference_range(normal(22, 200), normal(23, 500), floor=normal(24, 100))
    assert found["floor"]["generated"] == found["generated"]["generated"] == 100
    assert found["floor"]["reference"] == 500 and found["ceiling"] == {}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: frechet_distance(normal(0), normal(0, d=5)), r"one d and two rows at least, got \(400, 6\)"),
        (lambda: fidelity(normal(0, 10), normal(1)), "at least 20 rows are needed, got 10 and 400"),
        (lambda: kernel_distance(normal(0), np.full((5, 6), np.nan)), "features must be finite"),
        (lambda: prdc(normal(0, 5), normal(1), k=5), "k must be from 1 to below both sizes"),
    ],
)
def test_what_cannot_be_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
