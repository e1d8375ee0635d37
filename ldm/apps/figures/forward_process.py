"""The forward process: an image drowning in noise, and the schedules that say how fast."""

import numpy as np
import torch

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.inputs import glyph
from ldm.apps.figures.plot_style import GREY, PALETTE, grey, page, strip
from ldm.diffusion.schedules import SCHEDULES, Schedule
from ldm.utils.image_tensors import to_images

CHARACTER = "\u6cf3"  # to swim: water at the left


def forward(setting: Setting) -> Drawing:
    """Each row one schedule, each column one time; the noise is the same everywhere."""
    times = torch.linspace(0, 1, 9)
    x0 = to_images(glyph(CHARACTER, 48)[None])[0, 0]
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    rows, numbers = [], {}
    for name, build in SCHEDULES.items():
        schedule = build()
        alpha, sigma = schedule.scales(times)
        norm = schedule.norm(times) if name == "karras" else torch.ones(len(times))  # else it is white or black
        rows.append([grey(((a * x0 + s * eps) / n).numpy(), -1.3, 1.3) for a, s, n in zip(alpha, sigma, norm)])
        numbers[f"{name}: signal fraction alpha^2 / (alpha^2 + sigma^2) at t = 0.5"] = share(schedule, 0.5)
    return Drawing(strip(rows, list(SCHEDULES), [f"t = {t:.3g}" for t in times], left=130), numbers)


def schedules(setting: Setting) -> Drawing:
    """Signal fraction and log-SNR of every schedule; beside them what shift and zero-terminal SNR do."""
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
        axes[0, column].set(ylabel="", ylim=(-14, 14) if column else (-0.02, 1.02))
    axes[0, 0].set_ylabel(r"$\alpha^2 / (\alpha^2 + \sigma^2)$")
    axes[0, 1].set_ylabel(r"$\ln(\alpha^2 / \sigma^2)$")
    axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right")
    axes[0, 2].legend(loc="upper right", handlelength=2.2)
    return Drawing(figure, numbers)


def share(schedule: Schedule, t) -> "np.ndarray | float":
    """alpha^2 / (alpha^2 + sigma^2): alpha-bar, also for schedules that do not preserve variance."""
    alpha, sigma = schedule.scales(torch.as_tensor(t, dtype=torch.float64))
    values = (alpha**2 / (alpha**2 + sigma**2)).numpy()
    return float(values) if values.ndim == 0 else values
