"""`ldm generate`: pictures from the shell, each PNG carrying everything needed to draw it again."""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.common import MAX_IMAGES, MAX_SCALE, check_writable, progress, sheet, wants_gpu
from ldm.pipelines.generation import generate_job
from ldm.pipelines.image_metadata import KEY, complete, empty_job, entries, read_png, save_png
from ldm.pipelines.model_folder import locate
from ldm.pipelines.torch_free import open_light
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from ldm.pipelines.torch_free import Light


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="draw pictures from a prompt",
        description="Draw pictures from a prompt (without one: unconditional).",
        epilog="Picture i is drawn from seed + i. A PNG remembers its settings: `ldm generate --from out.png`.",
    )
    parser.add_argument("prompt", nargs="?", help="what to draw")
    parser.add_argument("-m", "--model", help="exported folder, LDM run or Hub id (default: the shipped model)")
    parser.add_argument("-o", "--output", help="PNG to write; '{seed}' in it = one file per picture (default: out.png)")
    many = parser.add_mutually_exclusive_group()
    many.add_argument("--grid", metavar="CxR", help="contact sheet of C columns and R rows, for example 6x6")
    many.add_argument("-n", "--number", type=int, help="number of pictures (side by side, or one file each)")
    parser.add_argument("--seed", type=int, help="of the first picture (default: 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--sampler", help="another way to take the steps, such as unipc or ddim (default: the model's)")
    parser.add_argument("--guidance", type=float, help="how strictly to follow the prompt; 1 = off")
    parser.add_argument("--negative", help="what to lead away from")
    times = {"nargs": 2, "type": float, "metavar": ("FIRST", "LAST")}
    parser.add_argument("--interval", help="guide only at these times, 0 = picture to 1 = noise", **times)
    parser.add_argument("--rescale", type=float, help="0 to 1: how far to undo the contrast that guidance adds")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--cfg-zero", action=switch, help="guide by the optimized scale of CFG-Zero*")
    parser.add_argument("--zero-init", type=float, metavar="SHARE", help="share of the time to hold still at first")
    parser.add_argument(
        "--weak", metavar="MODEL", help="a worse model or a checkpoint to lead away from (autoguidance)"
    )
    parser.add_argument("--lora", metavar="PATH[:SCALE]", help="adapters to draw with: a file, or the run that made it")
    parser.add_argument("--scale", type=int, help="enlarge every pixel this many times for viewing (default: 1)")
    parser.add_argument("--svg", action="store_true", help="also write the outlines, as an SVG beside the PNG")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.add_argument("--from", dest="source", metavar="PNG", help="draw this picture again; other options override")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    job = _job(args)
    output = os.path.expanduser(args.output or "out.png")
    columns, rows = _layout(job, output)
    check_writable(Path(output))
    if args.svg:
        import contourpy  # noqa: F401  # a missing extra is told before the work

    folder = locate(job["model"])
    job["model"] = job["model"] and folder.source  # of a model of the Hub, with the commit
    digest, lora, strength = folder.digest(), None, 1.0
    if job["lora"]:
        from ldm.models.lora import digest_with, split_scale

        lora, strength = split_scale(job["lora"])
        digest = digest_with(digest, lora, strength)
    if args.source and job.get("digest") not in (None, digest):
        print(f"note: {args.source} was drawn by other weights ({job['digest']})", file=sys.stderr)
    job["digest"] = digest
    complete(job, folder.defaults)
    light = open_light(folder) if _is_plain(job) and not wants_gpu(args.device) else None
    if light is not None:
        images = _draw_light(light, job, columns * rows)
    else:
        from ldm.pipelines.loading import load_pipeline

        pipeline = load_pipeline(job["model"], device=args.device, lora=lora, lora_scale=strength)
        images = generate_job(pipeline, job, columns * rows, progress(job["steps"]))
    if "{seed}" in output:
        names = [Path(output.replace("{seed}", str(job["seed"] + i))) for i in range(len(images))]
        jobs = [{**job, "seed": job["seed"] + i, "grid": "1x1"} for i in range(len(images))]
        files = [(path, [image], 1, told) for path, image, told in zip(names, images, jobs, strict=True)]
    else:
        files = [(Path(output), images, columns, job)]
    for path, part, across, told in files:
        save_png(sheet(part, across), path, told)
        if args.svg:
            save_svg(part, across, path.with_suffix(".svg"), told)
    paths = [path for path, *_ in files]
    shown = str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {paths[-1]}"
    print(f"{shown}: {len(images)} picture{'s' * (len(images) > 1)} in {time.perf_counter() - start:.1f} s")
    return 0


def save_svg(images: Sequence["Image.Image"], columns: int, path: Path, job: dict) -> None:
    """Write the outlines of pictures in reading order, with `job` in the description; blank pictures are told of."""
    from ldm.apps.font.vectorize import svg, trace
    from ldm.utils.atomic_files import telling, write_whole

    outlines = [trace(image) for image in images]
    with telling(path, "give another --output"):
        write_whole(path, svg(outlines, columns, job["prompt"] or "", entries(job)[KEY]).encode())
    blank = sum(not outline.contours for outline in outlines)
    if blank:
        print(f"note: {path}: {blank} of {len(images)} pictures are blank and have no outline", file=sys.stderr)


def _job(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides the pictures: the options given, over the old picture's settings, over the defaults."""
    job = empty_job()
    if args.source:
        told = read_png(Path(args.source))
        job |= {name: told[name] for name in job if name in told}
    given = {name: getattr(args, name) for name in job if name != "digest"}
    if given["grid"] is not None or given["number"] is not None:
        job |= {"grid": None, "number": None}
    job |= {name: value for name, value in given.items() if value is not None}
    for name, least in (("seed", 0), ("scale", 1), ("number", 1), ("steps", 1)):
        if job[name] is not None and (not isinstance(job[name], int) or job[name] < least):
            raise UserError(f"--{name} must be a whole number, {least} or more, got {job[name]!r}")
    if job["scale"] > MAX_SCALE:
        raise UserError(f"--scale must be {MAX_SCALE} or less, got {job['scale']}")
    return job


def _layout(job: dict, output: str) -> tuple[int, int]:
    """Columns and rows; fills in job["grid"]."""
    if job["grid"] is None:
        columns, rows = job["number"] or 1, 1
    else:
        left, _, right = str(job["grid"]).lower().partition("x")
        if not (left.isdecimal() and right.isdecimal() and int(left) and int(right)):
            raise UserError(f"--grid must be COLUMNSxROWS, for example 6x6, got {job['grid']!r}")
        columns, rows = int(left), int(right)
    if columns * rows > MAX_IMAGES:
        raise UserError(f"{columns * rows} pictures in one call are too many: {MAX_IMAGES} are allowed")
    job["grid"] = f"{columns}x{rows}"
    job.pop("number")
    return columns, rows


def _is_plain(job: dict) -> bool:
    """Whether `ldm.pipelines.torch_free` can draw it; what is out of range is left to the pipeline, which says so."""
    if any(job[name] for name in ("sampler", "weak", "lora", "cfg_zero", "zero_init", "rescale")):
        return False
    first, last = job["interval"] or (0, 1)
    in_range = 1 <= job["steps"] <= 1000 and 0 <= job["guidance"] < math.inf and 0 <= first <= last <= 1
    return in_range and job["seed"] < 2**63 - MAX_IMAGES


def _draw_light(light: "Light", job: dict, count: int) -> list["Image.Image"]:
    """As `generate_job`, without torch."""
    from PIL import Image

    prompt, negative = job["prompt"] or "", job["negative"] or ""
    scale = 1.0 if job["prompt"] is None and job["negative"] is None else float(job["guidance"])
    show = progress(job["steps"])
    callback = None if show is None else lambda step: show(step, None, None)
    times, seed = tuple(job["interval"] or (0, 1)), job["seed"]
    pixels = light.draw([prompt] * count, [negative] * count, job["steps"], scale, times, seed, callback)
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]
