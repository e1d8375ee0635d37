"""`ldm sample`: many samples of a model into one file, drawn by our own samplers."""

import argparse
import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MOST_STEPS = 1000


def add_parser(subparsers) -> None:
    from ldm.diffusion.samplers import SAMPLERS  # torch, for the names that --help lists
    from ldm.diffusion.time_grids import TIME_GRIDS

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
    from ldm.pipelines.native_sampling import draw, process_and_settings, to_array

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
