"""Figures: each can be made, and what is computed for them is true."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

from tiny_model import tiny_folder, tiny_pipeline

from ldm.apps.figures import plot_style as style
from ldm.apps.figures.attention import centre, recording, word_maps, words_of
from ldm.apps.figures.embeddings import agreement, purity, standardised
from ldm.apps.figures.figure import Setting
from ldm.apps.figures.forward_process import share
from ldm.apps.figures.gaussian import ascent, mean_log_likelihood
from ldm.apps.figures.reverse_process import flow_factor, linear_gaussian
from ldm.cli import figures
from ldm.cli import main as cli
from ldm.data.toy import Gaussian
from ldm.diffusion.schedules import SCHEDULES

COMMITTED = Path(__file__).resolve().parents[3] / "docs" / "figures"
# UMAP compiles for a minute, learned-field trains, convergence solves an ODE in 8000 steps, sensitivity embeds for long
SLOW = {"pixel-space", "latent-space", "marginals", "learned-field", "convergence", "sensitivity"}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return Setting(str(tiny_folder(folder / "model")), folder / "cache", quick=True)


# ---- every figure ---------------------------------------------------------------------------------------------------


def test_every_name_leads_to_a_function():
    for name in figures.FIGURES:
        assert callable(figures.function_of(name)), name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in figures.FIGURES]
)
def test_a_figure_is_made_quickly(name, setting, tmp_path):
    with style.quiet():
        drawing = figures.function_of(name)(setting)
        paths = style.save(drawing, tmp_path, name)
    with Image.open(paths[0]) as image:
        assert image.format == "PNG" and min(image.size) > 100
        assert json.loads(image.text["numbers"]).keys() == drawing.numbers.keys() and drawing.numbers
    if drawing.frames:
        with Image.open(paths[1]) as film:
            assert film.format == "GIF" and film.n_frames > 1


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_committed_figure_is_there_and_small(name):
    assert 5_000 < (COMMITTED / f"{name}.png").stat().st_size < 250_000


def test_the_committed_film_is_small():
    assert (COMMITTED / "reverse.gif").stat().st_size < 600_000


# ---- the command ----------------------------------------------------------------------------------------------------


def exit_code(argv) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    return stop.value.code


def test_the_list_has_a_line_for_every_figure(capsys):
    assert exit_code(["figures", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(figures.FIGURES)


def test_a_figure_is_written_and_its_numbers_printed(tmp_path, capsys):
    assert exit_code(["figures", "gaussian", "-o", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "gaussian.png").is_file()
    assert "maximum-likelihood mean: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["figures"], "name a figure, or give --all"),
        (["figures", "gausian"], "got 'gausian'; did you mean 'gaussian'?"),
        (["figures", "gaussian", "-o", "/dev/null/x"], "not a folder that can be written"),
    ],
)
def test_a_slip_is_answered_in_one_line(argv, said, capsys):
    assert exit_code(argv) == 2
    assert said in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "ldm.apps.figures.plot_style")
    monkeypatch.delattr(sys.modules["ldm.apps.figures"], "plot_style")
    assert exit_code(["figures", "gaussian", "-o", str(tmp_path)]) == 2
    assert "[viz]" in capsys.readouterr().err


# ---- the style ------------------------------------------------------------------------------------------------------


def test_a_strip_shows_every_pixel_as_it_is():
    cell = np.zeros((8, 8, 3))
    cell[2, 5] = 1
    page = np.asarray(style.render(style.strip([[cell, None]], ["row"], ["one", "two"], left=90)))
    white = np.argwhere((page[26:42, 90:106] == 255).all(-1))
    assert white.tolist() == [[4, 10], [4, 11], [5, 10], [5, 11]]


def test_a_large_picture_gets_fewer_colours_and_a_small_one_stays_exact(monkeypatch):
    monkeypatch.setattr(style, "LARGE", 3000)
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    for pixels, mode in ((noise, "P"), (noise[:20, :20], "RGB"), (np.repeat(noise[:9, :9, :1], 3, 2), "L")):
        data = style.small(Image.fromarray(pixels), style.PngInfo())
        with Image.open(style.io.BytesIO(data)) as read:
            assert read.mode == mode
            assert mode == "P" or np.array_equal(np.asarray(read.convert("RGB")), pixels)


def test_the_style_leaves_no_trace():
    before = dict(style.matplotlib.rcParams)
    with style.quiet():
        assert style.matplotlib.rcParams["axes.spines.top"] is False
    assert dict(style.matplotlib.rcParams) == before


def test_grey_runs_from_black_to_white_and_keeps_colours():
    assert style.grey(np.array([[-9.0, 0, 1, 9]]), -1, 1)[0, :, 0].tolist() == [0, 0.5, 1, 1]
    assert style.grey(np.full((2, 2, 3), 51)).max() == pytest.approx(0.2)


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_gradient_ascent_ends_at_the_closed_form_which_nothing_beats():
    points = np.random.default_rng(0).normal(1, 0.5, 100)
    fit = Gaussian.fit(points)
    mu, sigma = fit.mean[0], math.sqrt(fit.covariance[0, 0])
    assert (mu, sigma) == (pytest.approx(points.mean()), pytest.approx(points.std()))
    assert ascent(points, -0.2, 1.15, steps=400)[-1] == pytest.approx([mu, sigma], rel=1e-4)
    best = mean_log_likelihood(points, mu, sigma)
    assert (best >= mean_log_likelihood(points, mu + 0.1 * points, sigma * np.exp(points - 1))).all()


def test_the_mean_log_likelihood_is_the_mean_of_the_log_densities():
    points = np.random.default_rng(1).normal(0, 2, 50)
    toy = Gaussian(0.3, 1.7)
    wanted = toy.log_density(torch.from_numpy(points)[:, None]).mean()
    assert mean_log_likelihood(points, 0.3, 1.7) == pytest.approx(float(wanted))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_signal_share_is_the_sigmoid_of_the_log_snr(name):
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    assert share(SCHEDULES[name](), t) == pytest.approx(SCHEDULES[name]().logsnr(t).sigmoid().numpy())


def test_separate_clusters_are_pure_and_found_and_one_cloud_is_neither():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    cloud = rng.normal(size=(200, 2))
    apart = cloud + 50 * labels[:, None]
    assert purity(apart, labels) == 1 and agreement(apart, labels) == 1
    assert abs(purity(cloud, labels) - 0.5) < 0.08 and abs(agreement(cloud, labels)) < 0.05


def test_standardised_points_have_mean_zero_and_one_variance():
    points = standardised(np.random.default_rng(0).normal(3, 5, (500, 4)))
    assert points.mean(0) == pytest.approx(np.zeros(4), abs=1e-6) and points.std() == pytest.approx(1)


def test_the_linear_denoiser_is_exact_for_gaussian_data():
    toy, schedule = Gaussian(0.7, 0.4), SCHEDULES["flow"]()
    points = np.random.default_rng(0).normal(0.7, 0.4, (4000, 1))
    fit = Gaussian.fit(points)
    x_t, t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.tensor(0.4)
    for full in (True, False):
        found = linear_gaussian(torch.from_numpy(points), schedule, full)(x_t, t)
        torch.testing.assert_close(found, fit.denoise(x_t, 0.6, 0.4), rtol=1e-3, atol=1e-3)
    assert abs(fit.mean[0] - toy.mean[0]) < 0.02


def test_the_linear_denoiser_leaves_an_error_that_the_input_cannot_explain():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(5, 5, generator=generator)
    known = torch.randn(3000, 5, generator=generator) @ mix
    eps, t = torch.randn(known.shape, generator=generator), torch.tensor(0.5)
    x_t = 0.5 * known + 0.5 * eps
    error = known - linear_gaussian(known, SCHEDULES["flow"]())(x_t, t)
    assert (error.T @ x_t / len(known)).abs().max() < 0.15
    assert error.square().mean() < (known - linear_gaussian(known, SCHEDULES["flow"](), False)(x_t, t)).square().mean()


def test_an_error_in_x0_is_divided_by_sigma_in_the_velocity():
    sigma = torch.tensor([0.1, 0.5, 1.0])
    torch.testing.assert_close(flow_factor(1 - sigma, sigma), 1 / sigma)


# ---- attention ------------------------------------------------------------------------------------------------------


def test_attention_maps_sum_to_one_over_words():
    pipeline = tiny_pipeline()
    image, words, maps = word_maps(pipeline, "two words", seed=0, side=16, num_inference_steps=2)
    assert words == ["(start)", "two", "words", "(end)"] and image.size == (16, 16)
    assert maps.shape == (4, 16, 16) and maps.min() >= 0
    assert maps.sum(0) == pytest.approx(np.ones((16, 16)), abs=1e-5)


def test_recording_changes_no_picture_and_ends():
    pipeline = tiny_pipeline()
    before = dict(pipeline.unet.attn_processors)
    plain = pipeline("two words", seed=0, output_type="pt").images
    with recording(pipeline.unet) as recorders:
        recorded = pipeline("two words", seed=0, output_type="pt").images
    assert recorders and all(recorder.maps for recorder in recorders.values())
    torch.testing.assert_close(recorded, plain)
    assert {name: type(p) for name, p in pipeline.unet.attn_processors.items()} == {
        name: type(p) for name, p in before.items()
    }


def test_every_token_has_an_owner():
    pipeline = tiny_pipeline()
    words, owners = words_of(pipeline, "ab c")
    assert words == ["(start)", "ab", "c", "(end)"]
    assert owners == [0, 1, 1, 2] + [3] * (len(owners) - 4)
    assert len(owners) == pipeline.tokenizer.model_max_length


def test_the_centre_of_a_map_is_where_its_weight_is():
    weights = np.zeros((10, 10))
    weights[9, 0] = 3
    assert centre(weights) == "centre 0.05 from the left, 0.95 from the top"
