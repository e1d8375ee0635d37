"""The forward process: a picture drowning in noise, and the schedules that say how fast."""

import numpy as np
import torch

from ldm.autoencoder import to_images
from ldm.figures import Drawing, Setting
from ldm.figures.sources import glyph
from ldm.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PALETTE, RED, page, picture, row_label
from ldm.noise import SCHEDULES, Schedule

CHARACTER = "\u6cf3"  # to swim: water at the left


def forward(setting: Setting) -> Drawing:
    """Each row one schedule, each column one time; the noise is the same everywhere."""
    times = torch.linspace(0, 1, 9)
    x0 = to_images(glyph(setting, CHARACTER)[None])[0, 0]
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    figure, axes = page(len(SCHEDULES), len(times), height=5.1)
    numbers = {}
    for row, (name, build) in enumerate(SCHEDULES.items()):
        schedule = build()
        alpha, sigma = schedule.scales(times)
        for column, (a, s, norm) in enumerate(zip(alpha, sigma, schedule.norm(times), strict=True)):
            x_t = (a * x0 + s * eps) / (norm if name == "karras" else 1)
            picture(axes[row, column], x_t.numpy(), -2, 2 if column else 1.2)
            if not row:
                axes[row, column].set_title(f"t = {times[column]:.3g}")
        row_label(axes[row, 0], name.replace("_", "-\n"))
        numbers[f"{name}: signal share alpha^2 / (alpha^2 + sigma^2) at t = 0.5"] = share(schedule, 0.5)
    return Drawing(figure, numbers)


def schedules(setting: Setting) -> Drawing:
    """Signal share and log-SNR of every schedule; beside them what shift and zero-terminal SNR do."""
    figure, axes = page(1, 3, height=2.7)
    numbers = {}
    t = torch.linspace(0, 1, 500, dtype=torch.float64)[1:-1]
    for colour, (name, build) in zip(PALETTE, SCHEDULES.items()):
        schedule = build()
        axes[0, 0].plot(t, share(schedule, t), color=colour, label=name)
        axes[0, 1].plot(t, schedule.logsnr(t), color=colour)
        numbers[f"{name}: ln SNR at t = 1"] = float(schedule.logsnr(torch.ones((), dtype=torch.float64)))
    variants = {
        "flow": (SCHEDULES["flow"](), PALETTE[0], "-"),
        "flow, shift 3": (SCHEDULES["flow"](3.0), PALETTE[0], "--"),
        "scaled_linear": (SCHEDULES["scaled_linear"](), PALETTE[2], "-"),
        "... shift 3": (SCHEDULES["scaled_linear"](3.0), PALETTE[2], "--"),
        "... zero-terminal SNR": (SCHEDULES["scaled_linear"](zero_terminal_snr=True), PALETTE[2], ":"),
    }
    for name, (schedule, colour, line) in variants.items():
        axes[0, 2].plot(t, schedule.logsnr(t), color=colour, linestyle=line, label=name)
    titles = ("signal left", "log signal-to-noise ratio", "shifted and rescaled")
    for column, title in enumerate(titles):
        axes[0, column].set(title=title, xlabel="time t (0 data, 1 noise)", xlim=(0, 1))
        axes[0, column].axhline(0, color=GREY, linewidth=0.5, zorder=0)
    axes[0, 0].set_ylabel(r"$\alpha^2 / (\alpha^2 + \sigma^2)$")
    for column in (1, 2):
        axes[0, column].set(ylabel=r"$\ln(\alpha^2 / \sigma^2)$", ylim=(-14, 14))
        axes[0, column].legend(loc="upper right", handlelength=2.2)
    axes[0, 0].legend(loc="upper right")
    return Drawing(figure, numbers)


def share(schedule: Schedule, t) -> "np.ndarray | float":
    """alpha^2 / (alpha^2 + sigma^2): alpha-bar, also for schedules that do not preserve variance."""
    alpha, sigma = schedule.scales(torch.as_tensor(t, dtype=torch.float64))
    values = (alpha**2 / (alpha**2 + sigma**2)).numpy()
    return float(values) if values.ndim == 0 else values
