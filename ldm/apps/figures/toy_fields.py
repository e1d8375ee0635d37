"""Points in the plane whose density is known, so that the field, the paths and the errors shown are exact."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.plot_style import BLUE, DEPTH, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, SKY, page
from ldm.data.toy import Toy, exact_denoiser, toy_named
from ldm.diffusion.likelihood import Bound, squared_errors, variational_bound
from ldm.diffusion.sampling import Denoise, trajectory
from ldm.diffusion.schedules import SCHEDULES, Schedule
from ldm.diffusion.time_grids import TIME_GRIDS
from ldm.evaluation.toys.sampler_convergence import convergence as measure
from ldm.evaluation.toys.sampler_convergence import slope

LIMIT = 2.6  # of the plane, each way
PLANAR = ("8_gaussians", "swiss_roll")


# ---- the field ------------------------------------------------------------------------------------------------------


def field(setting: Setting) -> Drawing:
    """Over the exact density of x_t: where sampling moves a point. At the right complete paths, from noise to data."""
    schedule, times = SCHEDULES["flow"](), (0.9, 0.6, 0.3, 0.1)
    pixels = 20 if setting.quick else 120
    figure, axes = page(2, len(times) + 1, height=3.15, sharex=True, sharey=True)
    numbers = {}
    for row, name in enumerate(PLANAR):
        toy = toy_named(name)
        for column, t in enumerate(times):
            shade(axes[row, column], toy, schedule, t, pixels)
            arrows(axes[row, column], toy, schedule, t, exact_denoiser(toy, schedule))
        shade(axes[row, -1], toy, schedule, 0.0, pixels)
        numbers[f"{name}: length of the paths over the straight way"] = _paths(
            axes[row, -1], toy, schedule, 3 if setting.quick else 40
        )
        axes[row, 0].set_ylabel(name.replace("_", " ") + "\n$x_2$")
    for column, title in enumerate([*(f"t = {t:g}" for t in times), "paths, t = 1 to 0"]):
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel("$x_1$")
    return Drawing(figure, numbers)


def shade(axes, toy: Toy, schedule: Schedule, t: float, pixels: int = 120) -> None:
    """The density of x_t, its root as depth of colour, so that thin regions are visible as well."""
    alpha, sigma = (float(s) for s in schedule.scales(torch.tensor(t, dtype=torch.float64)))
    side = torch.linspace(-LIMIT, LIMIT, pixels, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    density = toy.log_density(grid, alpha, max(sigma, 1e-6)).exp().sqrt().view(pixels, pixels).T
    extent = (-LIMIT, LIMIT, -LIMIT, LIMIT)
    axes.imshow(density, cmap=DEPTH, origin="lower", extent=extent, vmax=1.25 * density.max(), interpolation="bilinear")
    axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xticks=(-2, 0, 2), yticks=(-2, 0, 2))


def arrows(axes, toy: Toy, schedule: Schedule, t: float, denoise: Denoise) -> None:
    """The velocity of the probability-flow ODE, turned towards the data; its root as length, none where nothing is."""
    side = torch.linspace(-LIMIT, LIMIT, 13, dtype=torch.float64)[1:-1]
    places = torch.cartesian_prod(side, side)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.scales(time)
    density = toy.log_density(places, alpha, sigma)
    places = places[density > density.max() - 12]
    x0_hat = denoise(places, time)
    way = x0_hat - (places - alpha * x0_hat) / sigma  # for flow dx/dt = eps - x0; sampling runs against it
    length = way.norm(dim=1, keepdim=True)
    way = 0.24 * way / length.clamp(min=1e-9).sqrt()
    axes.quiver(
        *places.T, *way.T, color=INK, angles="xy", scale_units="xy", scale=1, width=0.007, headwidth=3.2, headlength=3.5
    )


def _paths(axes, toy: Toy, schedule: Schedule, count: int) -> float:
    """Exact paths of some points, and by how much longer they are than the straight way."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    times = TIME_GRIDS["uniform"](schedule, 100)
    states = trajectory(exact_denoiser(toy, schedule), x, schedule, times, "heun")
    path = torch.stack([x, *(state.x for state in states)])
    axes.plot(*path.permute(2, 0, 1), color=RED, linewidth=0.6, alpha=0.7)
    axes.plot(*path[0].T, ".", color=GREY, markersize=2.5)
    axes.plot(*path[-1].T, ".", color=INK, markersize=2.5)
    walked, straight = path.diff(dim=0).norm(dim=2).sum(), (path[-1] - path[0]).norm(dim=1).sum()
    return float(walked / straight)


# ---- samplers -------------------------------------------------------------------------------------------------------

SHOWN = ("ddpm", "ddim", "heun", "dpmpp_2m")


def paths(setting: Setting) -> Drawing:
    """The same starting points under four samplers, with few steps and with more; the exact denoiser."""
    toy, schedule = toy_named("8_gaussians"), SCHEDULES["cosine"]()
    counts, caught = ((2, 4), 50) if setting.quick else ((4, 16), 2000)
    figure, axes = page(len(counts), len(SHOWN), height=3.9, sharex=True, sharey=True)
    x = torch.randn(7, 2, generator=_generator(5), dtype=torch.float64)
    numbers = {}
    for row, count in enumerate(counts):
        times = TIME_GRIDS["logsnr"](schedule, count)
        for column, name in enumerate(SHOWN):
            shade(axes[row, column], toy, schedule, 0.0)
            states = trajectory(exact_denoiser(toy, schedule), x, schedule, times, name, _generator())
            path = torch.stack([x, *(state.x for state in states)]).permute(2, 0, 1)
            axes[row, column].plot(*path, color=RED, linewidth=0.8, marker=".", markersize=3)
            axes[row, column].plot(*path[:, -1], ".", color=INK, markersize=4)
            numbers[f"{name}, {count} steps: fraction ending within 3 std of a mode"] = _caught(
                toy, schedule, times, name, caught
            )
        axes[row, 0].set_ylabel(f"{count} steps")
    for column, name in enumerate(SHOWN):
        axes[0, column].set_title(name)
    return Drawing(figure, numbers)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _caught(toy: Toy, schedule: Schedule, times: Tensor, sampler: str, count: int) -> float:
    x = torch.randn(count, 2, generator=_generator(1), dtype=torch.float64)
    for state in trajectory(exact_denoiser(toy, schedule), x, schedule, times, sampler, _generator(2)):
        x = state.x
    away = torch.cdist(x, torch.from_numpy(toy.means)).min(1).values
    return float((away < 3 * math.sqrt(toy.variances.max())).double().mean())


def convergence(setting: Setting) -> Drawing:
    """Distance from the exact end of the ODE over the number of steps, and its slope: each sampler's order."""
    samplers = ("euler", "ddim", "heun", "dpmpp_2m", "unipc", "dpmpp_3m", "dpmpp_3m_taylor")
    steps = (8, 16, 32) if setting.quick else (8, 16, 32, 64, 128, 256)
    toy, schedule = toy_named("8_gaussians"), SCHEDULES["cosine"]()
    start = toy.sample(8 if setting.quick else 64, np.random.default_rng(0))
    x = torch.from_numpy(start) + 10 * torch.randn(start.shape, generator=_generator(), dtype=torch.float64)
    found = measure(exact_denoiser(toy, schedule), schedule, samplers, x, steps=steps)
    figure, axes = page(1, 1, height=3.4)
    looks = zip((GREY, BLUE, ORANGE, GREEN, PURPLE, SKY, RED), ("s", "o", "^", "D", "v", "P", "X"))
    orders = {each.sampler: slope(each.steps[-3:], each.errors[-3:]) for each in found}  # where steps are many
    for each, (colour, marker) in zip(found, looks):
        label = f"{each.sampler}: order {orders[each.sampler]:.2f}"
        line = "--" if each.sampler == "euler" else "-"  # the same as ddim, and hidden below it
        size = 7 if each.sampler == "euler" else 4
        axes[0, 0].loglog(
            each.steps, each.errors, color=colour, marker=marker, markersize=size, linestyle=line, label=label
        )
    for order in (1, 2, 3):
        fall = [0.2 * (steps[0] / n) ** order for n in steps]
        axes[0, 0].loglog(steps, fall, color=PALE, linewidth=1, zorder=0)
        axes[0, 0].annotate(
            f"slope {-order}",
            (steps[-1], fall[-1]),
            color=GREY,
            fontsize=7,
            xytext=(4, -2),
            textcoords="offset points",
            annotation_clip=False,
        )
    axes[0, 0].set(xlabel="steps", ylabel="distance from the exact end (median)", title="error over number of steps")
    axes[0, 0].set_xticks(steps, [str(n) for n in steps], minor=False)
    axes[0, 0].set_xticks([], minor=True)
    figure.legend(loc="outside right center")
    return Drawing(figure, {f"{name}: order, from the last three": order for name, order in orders.items()})


# ---- the bound ------------------------------------------------------------------------------------------------------


VARIANCES = {"large": GREY, "small": ORANGE, "optimal": BLUE}  # of the reverse steps, see `variational_bound`


def elbo(setting: Setting) -> Drawing:
    """What each step of the chain costs, the running sum, and the bound over the number of steps; exact denoiser."""
    toy, schedule = toy_named("8_gaussians"), SCHEDULES["cosine"]()
    points = torch.from_numpy(toy.sample(50 if setting.quick else 500, np.random.default_rng(0)))
    counts = (5, 20) if setting.quick else (4, 16, 64, 256, 1000)
    truth = -float(toy.log_density(points).mean())
    bounds = {name: [_bound(toy, schedule, points, n, name) for n in counts] for name in VARIANCES}
    totals = {name: [2 * float(bound.total.mean()) for bound in row] for name, row in bounds.items()}  # 2 dimensions
    figure, axes = page(1, 3, height=2.7)
    _costs(axes[0, 0], axes[0, 1], schedule, bounds["optimal"][-1])
    for name, colour in VARIANCES.items():
        axes[0, 2].semilogx(counts, totals[name], color=colour, marker="o", markersize=3, label=f"{name} variance")
    axes[0, 2].set(title="the complete bound", xlabel="number of steps", ylabel="nats")
    for each in axes[0, 1:]:
        each.axhline(truth, color=RED, linestyle=":", label=r"exact $-\ln p(x_0)$")
    axes[0, 2].legend(loc="upper right")
    numbers: dict[str, float] = {"exact -ln p (nats)": truth}
    for name, row in totals.items():
        numbers |= {f"bound with {n} steps, {name} variance (nats)": total for n, total in zip(counts, row)}
    return Drawing(figure, numbers)


def _costs(left, right, schedule: Schedule, bound: Bound) -> None:
    """Nats per unit of log-SNR, and their sum from noise to data, whose last step is a density and may be negative."""
    costs, times = 2 * bound.steps.mean(1).flip(0), bound.times.flip(0)
    logsnr = schedule.logsnr(times)
    edges = np.linspace(-10, float(logsnr[-1]), 40)  # means over short stretches: single samples are noisy
    cost, way = (np.histogram(logsnr[1:], edges, weights=w.numpy())[0] for w in (costs[:-1], logsnr.diff()))
    left.plot((edges[1:] + edges[:-1])[way > 0] / 2, (cost[way > 0] / way[way > 0]), color=BLUE)
    left.set(title="what a step costs", ylabel="nats per unit of log-SNR", ylim=(0, None))
    total = 2 * bound.prior.mean() + costs.cumsum(0)
    right.plot(logsnr[1:], total[:-1], color=BLUE)
    right.plot(logsnr[[-1, -1]], total[-2:], color=BLUE, marker="o", markersize=3, markevery=[1])
    right.annotate(
        "the fall at the end is\nthe last step, " + r"$-\ln p(x_0 | x_t)$",
        (-9, 0.8 * float(total[-2])),
        fontsize=7,
        va="center",
    )
    right.set(title="running sum", ylabel="nats")
    for axes in (left, right):
        axes.set(xlabel="log-SNR (noise to data)", xlim=(-10, float(logsnr[-1]) + 0.6))


def _bound(toy: Toy, schedule: Schedule, points: Tensor, count: int, variance: str) -> Bound:
    """The bound's terms with the exact denoiser, for each number of steps with noise of the same seed."""
    denoise = exact_denoiser(toy, schedule)
    errors = squared_errors(denoise, points, schedule, count, _noise(1)) if variance == "optimal" else None
    return variational_bound(denoise, points, schedule, count, variance, errors, noise=_noise(0))


def _noise(seed: int) -> Callable[[Tensor], Tensor]:
    generator = _generator(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)
