"""A small network beside the exact answer: what training on points finds of the field."""

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.plot_style import BLUE, GREY, HEAT, INK, page
from ldm.apps.figures.toy_fields import LIMIT, arrows, shade
from ldm.data.toy import SwissRoll, exact_denoiser
from ldm.diffusion.sampling import Denoise, sample
from ldm.diffusion.schedules import Schedule
from ldm.diffusion.time_grids import TIME_GRIDS
from ldm.pipelines.diffusers_schedulers import process_of
from ldm.pipelines.loading import load_pipeline
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError

PRESET = "toy-swiss-roll"
TIMES = (0.6, 0.3, 0.1)


def learned_field(setting: Setting) -> Drawing:
    """The exact field over the learned one over their distance; at the right samples of both."""
    denoise, schedule = _learned(_trained(setting))
    toy = SwissRoll()
    exact = exact_denoiser(toy, schedule)
    figure, axes = page(3, len(TIMES) + 1, height=5.3)
    for column, t in enumerate(TIMES):
        for row, each in enumerate((exact, denoise)):
            shade(axes[row, column], toy, schedule, t)
            arrows(axes[row, column], toy, schedule, t, each)
        _distance(axes[2, column], toy, schedule, t, exact, denoise)
        axes[0, column].set_title(f"t = {t:g}")
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sample(denoise, x, schedule, TIME_GRIDS["uniform"](schedule, 40), "dpmpp_2m")
    for row, points in enumerate((torch.from_numpy(toy.sample(2000, np.random.default_rng(0))), drawn)):
        axes[row, -1].plot(*points.T, ".", color=INK, markersize=1, alpha=0.4)
        axes[row, -1].set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal")
    axes[0, -1].set_title("points of the data")
    axes[1, -1].set_title("sampled in 40 steps")
    for row, name in enumerate(("exact", "learned", r"distance of the two $\hat x_0$")):
        axes[row, 0].set_ylabel(name)
    return Drawing(figure, _curve(axes[2, -1], toy, schedule, exact, denoise))


def _trained(setting: Setting) -> Path:
    """A finished run of the preset in the cache folder, trained now unless it was before."""
    run = setting.cache_dir / "figures" / (PRESET + "-quick" * setting.quick) / "ldm"
    if (run / "final" / "unet").is_dir():
        return run
    trainer = Path(__file__).resolve().parents[3] / "train_ldm.py"
    if not trainer.is_file():
        raise UserError(f"there is no {trainer} to train a network with: run this in a checkout of the repository")
    short = ["--train.num-steps", "20"] if setting.quick else []
    config = shipped_configs() / f"{PRESET}.yaml"
    command = [sys.executable, str(trainer), str(config), "--output-dir", str(run), *short]
    done = subprocess.run(command, env={**os.environ, "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"training {config.name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return run


def _learned(run: Path) -> tuple[Denoise, Schedule]:
    """The network's denoise function for points (n, 2) in float64."""
    pipeline = load_pipeline(run, device="cpu")
    network = pipeline.denoiser("")

    @torch.no_grad()
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        x0_hat = cast(Tensor, network(x_t.float()[..., None, None], t))  # a pair only with a learned variance
        return x0_hat.flatten(1).double()

    return denoise, process_of(pipeline.scheduler).schedule


def _distance(axes, toy: SwissRoll, schedule: Schedule, t: float, exact: Denoise, denoise: Denoise) -> None:
    """|x0_hat - E[x0 | x_t]| over the plane, white where x_t never is."""
    side = torch.linspace(-LIMIT, LIMIT, 70, dtype=torch.float64)
    grid, time = torch.cartesian_prod(side, side), torch.tensor(t, dtype=torch.float64)
    density = toy.log_density(grid, *schedule.scales(time))
    away = (denoise(grid, time) - exact(grid, time)).norm(dim=1).where(density > density.max() - 8, torch.nan)
    extent = (-LIMIT, LIMIT, -LIMIT, LIMIT)
    shown = axes.imshow(away.view(70, 70).T, cmap=HEAT, origin="lower", extent=extent, vmin=0, vmax=0.5)
    axes.figure.colorbar(shown, ax=axes, location="bottom", shrink=0.8, aspect=30).outline.set_visible(False)


def _curve(axes, toy: SwissRoll, schedule: Schedule, exact: Denoise, denoise: Denoise) -> dict[str, float]:
    """By time, the mean squared error of x0 that nobody can avoid, and what the network adds to it."""
    points = torch.from_numpy(toy.sample(4000, np.random.default_rng(1)))
    eps = torch.randn(points.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    times = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    least, added = [], []
    for t in times:
        alpha, sigma = schedule.scales(t)
        x_t = alpha * points + sigma * eps
        best = exact(x_t, t)
        least.append(float((best - points).square().sum(1).mean()))
        added.append(float((denoise(x_t, t) - best).square().sum(1).mean()))
    axes.semilogy(times, least, color=GREY, linestyle="--", label="least possible")
    axes.semilogy(times, added, color=BLUE, label="added by the network")
    axes.set(title="squared error of $x_0$", xlabel="time t", xlim=(0, 1), ylim=(1e-7, 10))
    axes.legend(loc="lower right", handlelength=1.2)
    return {
        "least possible squared error of x0, mean over t": float(np.mean(least)),
        "what the network adds to it": float(np.mean(added)),
    }
