"""`ldm sample`: many samples of a model into one file, by our own samplers."""

import argparse
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.common import add_options, check_guidance, check_number, check_writable
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MAX_STEPS = 1000


def add_parser(subparsers: Any) -> None:
    from ldm.diffusion.samplers import SAMPLERS
    from ldm.diffusion.time_grids import TIME_GRIDS

    parser = subparsers.add_parser(
        "sample",
        help="generate many samples into one file",
        description="Generate many samples of a model into one file, with any sampler on any time grid.",
        epilog="Points become a float32 array (n, d), images a uint8 array (n, height, width, channels). A file that "
        "ends in .png shows them instead. Sample i is generated from seed + i, whatever else is generated with it.",
    )
    parser.add_argument("model", help="LDM run, exported folder or Hub id")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write: .npy, or .png for a look")
    add_options(parser, "number", default=16, help="number of samples (default: 16)")
    parser.add_argument("--prompt", help="what the samples should show (default: unconditional)")
    add_options(parser, "negative", "guidance", "steps")
    parser.add_argument("--sampler", choices=list(SAMPLERS), help="sampler (default: the model's)")
    parser.add_argument("--grid", choices=list(TIME_GRIDS), help="time grid of the steps (default: the model's)")
    parser.add_argument("--eta", type=float, help="fraction of new noise, 0 to 1, of ddim and euler_ancestral")
    add_options(parser, "seed", default=0)
    parser.add_argument("--batch-size", type=int, help="samples at once (default: 64 images or 4096 points)")
    add_options(parser, "device")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    for name, least, most in (("number", 1, None), ("seed", 0, None), ("steps", 1, MAX_STEPS), ("batch_size", 1, None)):
        check_number(name, getattr(args, name), least, most)
    check_guidance(args.guidance)
    check_writable(args.output, (".npy", ".png"))

    from ldm.pipelines.loading import load_pipeline
    from ldm.pipelines.native_sampling import process_and_settings, sample_latents, to_array

    pipeline = load_pipeline(args.model, device=args.device)
    process, sampling = process_and_settings(args.model, pipeline)
    own_eta = args.eta is None and args.sampler in (None, sampling.sampler)
    how = {
        "sampler": args.sampler or sampling.sampler,
        "steps": args.steps or pipeline.defaults["num_inference_steps"],
        "grid": args.grid or sampling.time_grid,
        "eta": sampling.eta if own_eta else args.eta,
    }
    options = {name: getattr(args, name) for name in ("prompt", "negative", "guidance", "seed", "batch_size")}
    try:
        latents = sample_latents(pipeline, process, args.number, **how, **options)
    except ValueError as error:
        raise UserError(str(error)) from None
    array = to_array(pipeline, latents)
    write(array, args.output)
    what = f"points of {array.shape[1]}" if array.ndim == 2 else f"images of {array.shape[2]} x {array.shape[1]}"
    settings = f"{how['sampler']}, {how['steps']} steps, {how['grid']}"
    print(f"{args.output}: {len(array)} {what} in {time.perf_counter() - start:.1f} s ({settings})")
    return 0


def write(array: "np.ndarray", path: Path) -> None:
    """The array as .npy, or a look at it as .png, atomically."""
    import numpy as np

    from ldm.utils.atomic_files import atomic_write
    from ldm.utils.image_grid import image_grid, points_image, save_png

    if path.suffix.lower() == ".png":
        columns = max(1, round(len(array) ** 0.5))
        save_png(points_image(array) if array.ndim == 2 else image_grid(list(array), columns), path)
        return
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())
