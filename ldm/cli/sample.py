"""`ldm sample`: many samples of a model into one file, drawn by our own samplers."""

import argparse
import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.config.settings import SamplingOptions
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.time_grids import TIME_GRIDS
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ldm.diffusion.schedules import NoiseProcess
    from ldm.pipelines.pipeline import Pipeline

MOST_STEPS = 1000


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "sample",
        help="draw many samples into one file",
        description="Draw many samples of a model into one file, with any sampler on any time grid.",
        epilog="Points become a float32 array (n, d), pictures a uint8 array (n, height, width, channels). A file that "
        "ends in .png shows them instead. Sample i is drawn from seed + i, whatever else is drawn with it.",
    )
    parser.add_argument("model", help="LDM run, exported folder or Hub id")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write: .npy, or .png for a look")
    parser.add_argument("-n", "--number", type=int, default=16, help="how many (default: 16)")
    parser.add_argument("--prompt", help="what to draw (default: anything)")
    parser.add_argument("--negative", help="what to lead away from")
    parser.add_argument("--guidance", type=float, help="how strictly to follow the prompt; 1 = off")
    parser.add_argument("--sampler", choices=list(SAMPLERS), help="how steps are taken (default: the model's)")
    parser.add_argument("--steps", type=int, help="how many steps (default: the model's)")
    parser.add_argument("--grid", choices=list(TIME_GRIDS), help="at which times (default: the model's)")
    parser.add_argument("--eta", type=float, help="share of new noise, 0 to 1, of ddim and euler_ancestral")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample (default: 0)")
    parser.add_argument("--batch-size", type=int, help="samples at once (default: 64 pictures or 4096 points)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    _check(args)

    from ldm.pipelines.loading import load_pipeline

    pipeline = load_pipeline(args.model, device=args.device)
    process, sampling = process_and_settings(args.model, pipeline)
    plan = {
        "sampler": args.sampler or sampling.sampler,
        "steps": args.steps or pipeline.defaults["num_inference_steps"],
        "grid": args.grid or sampling.time_grid,
        "eta": sampling.eta if args.eta is None and args.sampler in (None, sampling.sampler) else args.eta,
    }
    try:
        found = draw(
            pipeline,
            process,
            args.number,
            **plan,
            prompt=args.prompt,
            negative=args.negative,
            guidance=args.guidance,
            seed=args.seed,
            batch_size=args.batch_size,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    array = to_array(pipeline, found)
    write(array, args.output)
    kind = f"points of {array.shape[1]}" if array.ndim == 2 else f"pictures of {array.shape[2]} x {array.shape[1]}"
    how = f"{plan['sampler']}, {plan['steps']} steps, {plan['grid']}"
    print(f"{args.output}: {len(array)} {kind} in {time.perf_counter() - start:.1f} s ({how})")
    return 0


def process_and_settings(model: str, pipeline: "Pipeline") -> "tuple[NoiseProcess, SamplingOptions]":
    """The noise process a model was trained with, and how its run says to sample."""
    from ldm.config.loading import load
    from ldm.diffusion.schedules import NoiseProcess
    from ldm.pipelines.stock_noise import process_of

    settings = Path(model) / "config.yaml"
    if not settings.is_file():  # exported: its scheduler knows the process
        return process_of(pipeline.scheduler), SamplingOptions()
    told = load("ldm", settings)
    return NoiseProcess(**told.noise.model_dump()), told.sampling


def draw(
    pipeline: "Pipeline",
    process: "NoiseProcess",
    number: int,
    sampler: str,
    steps: int,
    grid: str,
    eta: float | None = None,
    prompt: str | None = None,
    negative: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> "Tensor":
    """Model latents (number, c, h, w), float32 on the CPU: sample i from seed + i.

    Args: names in `SAMPLERS` and `TIME_GRIDS`; the others as in `ldm.pipelines.pipeline.Pipeline`.
    Raises: ValueError naming what is not allowed.
    """
    import torch

    from ldm.diffusion.guidance import Guidance, guide
    from ldm.diffusion.samplers import denoise_with, prior, sample

    shape = pipeline.latent_shape
    batch_size = batch_size or (4096 if shape[1:] == (1, 1) else 64)
    scale = pipeline.defaults["guidance_scale"] if guidance is None else guidance
    if prompt is None and negative is None:
        scale = 1.0
    interval, rescale = (pipeline.defaults.get(f"guidance_{name}") for name in ("interval", "rescale"))
    rule = Guidance(float(scale), tuple(interval or (0, 1)), rescale or 0.0)
    times = TIME_GRIDS[grid](process.schedule, steps)
    # a grid may start below t = 1, where the noise is less
    level = (process.schedule.norm(times[:1]) / process.schedule.norm(torch.ones_like(times[:1]))).item()

    def network(x: "Tensor", timestep: "Tensor", condition: "Tensor") -> "Tensor":
        return pipeline.unet(x, timestep, encoder_hidden_states=condition, return_dict=False)[0]

    results = []
    with torch.inference_mode():
        words = pipeline.encode_prompt([prompt or "", negative or ""])
        for start in range(0, number, batch_size):
            count = min(batch_size, number - start)
            generators = [torch.Generator().manual_seed(seed + start + i) for i in range(count)]
            condition, away = (each.expand(count, *each.shape) for each in words)
            away = away if scale != 1 else None
            guided = guide(network, condition, away, rule, process=process, time=process.schedule.from_timestep)
            denoise = denoise_with(process, guided)
            x = prior(process.schedule, (count, *shape), generators) * level
            x = x.to(pipeline.device, pipeline.dtype)
            results.append(sample(denoise, x, process.schedule, times, sampler, generators, eta).float().cpu())
    return torch.cat(results)


def to_array(pipeline: "Pipeline", latents: "Tensor") -> "np.ndarray":
    """Points as float32 (n, d), pictures as uint8 (n, H, W, C)."""
    import numpy as np
    import torch

    if pipeline.latent_shape[1:] == (1, 1):
        config = pipeline.vae.config
        points = latents.flatten(1) / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return points.numpy().astype(np.float32)
    with torch.inference_mode():
        pixels = [pipeline.decode(part.to(pipeline.device)).cpu() for part in latents.split(64)]
    return (torch.cat(pixels).permute(0, 2, 3, 1) * 255).round().byte().numpy()


def write(array: "np.ndarray", path: Path) -> None:
    """The array as .npy, or a look at it as .png, whole or not at all."""
    import numpy as np

    from ldm.utils.atomic_files import write_whole
    from ldm.utils.image_grid import points_picture, save_png, sheet

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_whole(path, buffer.getvalue())
    else:
        save_png(points_picture(array) if array.ndim == 2 else sheet(list(array), _columns(len(array))), path)


def _columns(count: int) -> int:
    return max(1, round(count**0.5))


def _check(args: argparse.Namespace) -> None:
    """Fail before the work, not after it."""
    limits: dict[str, Any] = {"number": (1, None), "seed": (0, None), "steps": (1, MOST_STEPS), "batch_size": (1, None)}
    for name, (least, most) in limits.items():
        value = getattr(args, name)
        if value is not None and (value < least or (most is not None and value > most)):
            allowed = f"{least} or more" if most is None else f"from {least} to {most}"
            raise UserError(f"--{name.replace('_', '-')} must be {allowed}, got {value}")
    if args.guidance is not None and not 0 <= args.guidance < float("inf"):
        raise UserError(f"--guidance must be 0 or more (1 = off), got {args.guidance}")
    if args.output.suffix not in (".npy", ".png"):
        raise UserError(f"--output must end in .npy or .png, got {str(args.output)!r}")
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder: name a file in it")
    place = next(parent for parent in args.output.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"--output {args.output} cannot be written: {place} is not a writable folder")
