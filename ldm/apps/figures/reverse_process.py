"""The shipped model at work: undoing noise step by step, how well at each time, and what guidance does."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.inputs import denoiser, encode, glyphs, model, resolution_of
from ldm.apps.figures.plot_style import BLUE, GREEN, GREY, ORANGE, RED, grey, page, strip
from ldm.diffusion.parameterization import convert
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.sampling import Denoise, sample, trajectory
from ldm.diffusion.schedules import Schedule
from ldm.diffusion.time_grids import TIME_GRIDS
from ldm.pipelines.diffusers_schedulers import process_of
from ldm.pipelines.pipeline import Pipeline, to_pil
from ldm.utils.image_tensors import to_pixels
from ldm.utils.transparency import on_white

PROMPT = "vertical stacked glyph with the grass radical"
SECOND = "horizontal stacked glyph with the water radical"


# ---- reverse --------------------------------------------------------------------------------------------------------


def reverse(setting: Setting) -> Drawing:
    """x_t, what its decoder makes of it, and the estimate of x0, along one sampling run."""
    pipeline = model(setting)
    steps = 4 if setting.quick else 24
    denoise, schedule = denoiser(pipeline, [PROMPT], guidance=pipeline.defaults["guidance_scale"])
    noise = torch.randn(1, *pipeline.latent_shape, generator=torch.Generator().manual_seed(3))
    states = _walk(denoise, schedule, noise, steps)
    chosen = np.linspace(0, steps, min(9, steps + 1)).round().astype(int)
    noisy, guessed = ([grey(_decoded(pipeline, states[i][k])) for i in chosen] for k in (1, 2))
    rows = [[_channels(states[i][1], noisy[0].shape[:2]) for i in chosen], noisy, guessed]
    names = ("$x_t$\n4 channels", "$x_t$\ndecoded", r"$\hat x_0$" + "\ndecoded")
    figure = strip(rows, names, [f"t = {states[i][0]:.2g}" for i in chosen], left=110)
    end = states[-1][1]
    numbers: dict[str, object] = {"prompt": PROMPT, "steps": steps}
    for i in chosen[:-1]:
        t, _, x0_hat = states[i]
        numbers[f"x0_hat from its final value at t = {t:.3g} (root mean square)"] = _distance(x0_hat, end)
    return Drawing(figure, numbers, _film(pipeline, states))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def _walk(denoise: Denoise, schedule: Schedule, x: Tensor, steps: int) -> list[tuple[float, Tensor, Tensor]]:
    """(t, x_t, x0_hat as seen from there) on the way from noise x, at last (0, x_0, x_0)."""
    states = []
    for state in trajectory(denoise, x, schedule, TIME_GRIDS["uniform"](schedule, steps), "ddim"):
        states.append((state.t, x, state.x0_hat))
        x = state.x
    return [*states, (0.0, x, x)]


def _channels(latents: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """The first and last two channels of one item's latents (1, c, h, w) as one image of height and width `shape`."""
    first = latents[0, [0, min(1, latents.shape[1] - 1)]].numpy()
    last = latents[0, -2:].numpy() if latents.shape[1] > 1 else first
    square = np.concatenate([np.concatenate(pair, axis=1) for pair in (first, last)])
    rows, columns = (np.arange(n) * have // n for n, have in zip(shape, square.shape))
    return grey(square[rows][:, columns], -2.5, 2.5)


def _decoded(pipeline: Pipeline, latents: Tensor) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3), on white, of one item's latents (1, c, h, w)."""
    with torch.no_grad():
        pixels = to_pixels(2 * pipeline.decode(latents) - 1)[0]
    return np.asarray(on_white(to_pil(pixels)))


def _film(pipeline: Pipeline, states: list[tuple[float, Tensor, Tensor]], side: int = 256) -> list[Image.Image]:
    """x_t decoded on the left, the estimate of x0 on the right, each enlarged to at most `side` pixels."""
    frames = []
    for _, x_t, x0_hat in states:
        left, right = _decoded(pipeline, x_t), _decoded(pipeline, x0_hat)
        gap = np.full((left.shape[0], 4, *left.shape[2:]), 255, np.uint8)
        frame = Image.fromarray(np.concatenate([left, gap, right], axis=1))
        scale = max(1, side // frame.height)
        frames.append(frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST))
    return [frame.quantize(16) for frame in frames]


# ---- loss by time ---------------------------------------------------------------------------------------------------


def loss(setting: Setting) -> Drawing:
    """Mean squared error by time of the model and of what one could say without it, on unseen characters."""
    pipeline = model(setting)
    count, bins = (16, 3) if setting.quick else (192, 12)
    data = glyphs(setting, "validation", resolution_of(pipeline))
    chosen = range(min(count, len(data)))
    latents = encode(pipeline, np.stack([data.image(i) for i in chosen]))
    captions = [data.caption(i, np.random.default_rng(i)) for i in chosen]
    schedule = process_of(pipeline.scheduler).schedule
    times = (torch.arange(bins) + 0.5) / bins
    errors = {
        name: torch.stack([_squared_error(predict, schedule, latents, t) for t in times])
        for name, predict in _predictors(setting, pipeline, captions).items()
    }
    figure, axes = page(1, 2, height=2.9)
    colours = dict(zip(errors, (GREY, ORANGE, GREEN, BLUE, RED)))
    alpha, sigma = schedule.scales(times)
    factors = (torch.ones(bins), (flow_factor(alpha, sigma)) ** 2)
    for column, (factor, title) in enumerate(zip(factors, ("error of the clean sample", "error of the velocity"))):
        for name, values in errors.items():
            axes[0, column].plot(times, values * factor, color=colours[name], label=name)
        axes[0, column].set(title=title, xlabel="time t (0 data, 1 noise)", xlim=(0, 1), ylabel="mean squared error")
    axes[0, 0].set_ylim(0, 0.9)
    axes[0, 1].set_ylim(0, 2.1)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    numbers: dict[str, float] = {"validation glyphs": len(latents)}
    numbers |= {f"{name}: velocity error, mean over t": float((v * factors[1]).mean()) for name, v in errors.items()}
    return Drawing(figure, numbers)


def flow_factor(alpha: Tensor, sigma: Tensor) -> Tensor:
    """By what an error in x0 is multiplied in the flow velocity at one x_t: 1 / sigma for rectified flow."""
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    at = [convert(x0, zero, alpha, sigma, "sample", "flow") for x0 in (zero, one)]
    return (at[1] - at[0]).abs()


def _squared_error(predict: Callable, schedule, latents: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of x0 at time t; the noise depends on t alone, so that all predictors meet the same."""
    generator = torch.Generator().manual_seed(int(1e6 * t))
    alpha, sigma = schedule.scales(t)
    x_t = alpha * latents + sigma * torch.randn(latents.shape, generator=generator)
    return (predict(x_t, t) - latents).square().mean()


def _predictors(setting: Setting, pipeline: Pipeline, captions: list[str]) -> dict[str, Callable]:
    """x0_hat(x_t, t) of the trivial predictors, fitted to training glyphs, and of the model without and with words."""
    data = glyphs(setting, "train", resolution_of(pipeline))
    few = range(min(48 if setting.quick else 2000, len(data)))
    known = encode(pipeline, np.stack([data.image(i) for i in few]))
    mean = known.mean(0, keepdim=True)
    unconditional, schedule = denoiser(pipeline, [""] * len(captions))
    conditional, _ = denoiser(pipeline, captions)
    return {
        "mean of the data": lambda x_t, t: mean.expand_as(x_t),
        "one variance for all": linear_gaussian(known, schedule, full=False),
        "best linear": linear_gaussian(known, schedule),
        "model, no words": unconditional,
        "model, layout and radical": conditional,
    }


def linear_gaussian(known: Tensor, schedule, full: bool = True) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x0 | x_t] for Gaussian x0 with the mean and covariance of `known` (n, ...): the best linear denoiser.

    x0_hat = m + C alpha (alpha^2 C + sigma^2 I)^-1 (x_t - alpha m), through the eigenvectors of C, which is shrunk as
    few items of many dimensions demand (Ledoit and Wolf 2004). With `full` false C is one variance times I.
    """
    flat = known.flatten(1).double()
    mean = flat.mean(0)
    if full:
        from sklearn.covariance import ledoit_wolf

        variances, axes = torch.linalg.eigh(torch.from_numpy(ledoit_wolf(flat.numpy())[0]))
    else:
        variances, axes = (flat - mean).square().mean().expand(len(mean)), None

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.scales(t.double())
        away = x_t.flatten(1).double() - alpha * mean
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        moved = away * gain if axes is None else ((away @ axes) * gain) @ axes.T
        return (mean + moved).view_as(x_t).to(x_t.dtype)

    return denoise


# ---- guidance -------------------------------------------------------------------------------------------------------


def guidance(setting: Setting) -> Drawing:
    """The same noise at every guidance scale and number of steps, for two prompts."""
    pipeline = model(setting)
    scales, steps = ([1, 3], [2, 4]) if setting.quick else ([1, 2, 4, 8], [2, 4, 8, 16])
    ink: dict[float, list[float]] = {scale: [] for scale in scales}
    rows: list[list[np.ndarray | None]] = [[] for _ in steps]
    for prompt in (PROMPT, SECOND):
        for row, count in zip(rows, steps):
            row.extend([None] if row else [])
            for scale in scales:
                image = pipeline(prompt, num_inference_steps=count, guidance_scale=float(scale), seed=1).images[0]
                row.append(grey(np.asarray(image)))
                ink[scale].append(1 - np.asarray(image).mean() / 255)
    middle = (len(scales) - 1) / 2
    titles = [(middle, PROMPT), (middle + len(scales) + 1, SECOND)]
    names = [f"guidance {scale}" if scale != 1 else "off" for scale in scales]
    figure = strip(rows, [f"{n} steps" for n in steps], [*names, "", *names], left=90, titles=titles)
    return Drawing(figure, {f"guidance {scale}: fraction of ink": float(np.mean(v)) for scale, v in ink.items()})


# ---- solvers --------------------------------------------------------------------------------------------------------


def solvers(setting: Setting) -> Drawing:
    """The same prompt and noise, a row per sampler and a column per number of steps."""
    pipeline = model(setting)
    names = ("ddpm", "ddim", "heun", "dpmpp_2m", "unipc")
    counts = (2, 4) if setting.quick else (2, 4, 8, 16, 32)
    denoise, schedule = denoiser(pipeline, [SECOND], guidance=pipeline.defaults["guidance_scale"])
    noise = torch.randn(1, *pipeline.latent_shape, generator=torch.Generator().manual_seed(1))
    truth = _ended(denoise, schedule, noise, "heun", 4 if setting.quick else 40)
    rows, numbers = [], {}
    for name in names:
        ends = [_ended(denoise, schedule, noise, name, count) for count in counts]
        rows.append([grey(_decoded(pipeline, end)) for end in ends])
        if not SAMPLERS[name].stochastic:
            away = [f"{_distance(end, truth):.2f}" for end in ends]
            numbers[f"{name}: distance in latents from 40 steps of heun, over {counts} steps"] = ", ".join(away)
    return Drawing(strip(rows, names, [f"{count} steps" for count in counts], left=110), {"prompt": SECOND, **numbers})


def _ended(denoise: Denoise, schedule: Schedule, noise: Tensor, sampler: str, steps: int) -> Tensor:
    times = TIME_GRIDS["uniform"](schedule, steps)
    generator = torch.Generator().manual_seed(0)
    return sample(denoise, noise, schedule, times, sampler, generator)
