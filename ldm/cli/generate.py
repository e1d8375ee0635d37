"""`ldm generate`: pictures from the shell, each PNG carrying everything needed to draw it again."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.pipelines.model_folder import FALLBACKS, locate
from ldm.pipelines.torch_free import open_light
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from ldm.pipelines.pipeline import Callback, PipelineOutput
    from ldm.pipelines.torch_free import Light

KEY = "ldm"  # of the PNG text entry with the settings, as JSON
MOST = 4096  # pictures in one call
MOST_SCALE = 64
KINDS: dict[str, Any] = {  # of the settings in a PNG, which may be anyone's
    **dict.fromkeys(("model", "prompt", "negative", "grid", "sampler", "weak", "lora", "digest"), str),
    **dict.fromkeys(("seed", "number", "steps", "scale"), int),
    **dict.fromkeys(("guidance", "rescale", "zero_init"), int | float),
    "interval": list,
    "cfg_zero": bool,
}
GUIDANCE = ("interval", "rescale", "cfg_zero", "zero_init", "weak")  # refinements, remembered where they are used


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
        images = draw(pipeline, job, columns * rows, progress(job["steps"]))
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


def save_png(image: "Image.Image", path: Path, job: dict, key: str = KEY) -> None:
    """Write `image` enlarged by job["scale"] with `job` in its metadata under `key`, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    from ldm.utils.atomic_files import drafted

    info = PngInfo()
    for name, text in entries(job, key).items():
        info.add_itxt(name, text)
    image = enlarged(image, job["scale"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafted(path) as stream:
        image.save(stream, format="PNG", pnginfo=info)


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


def entries(job: dict, key: str = KEY) -> dict[str, str]:
    """The text entries of a PNG: all of `job` under `key`, and the best known settings one by one for other viewers."""
    used = {name: value for name, value in job.items() if name not in (*GUIDANCE, "sampler", "lora") or value}
    single = ("prompt", "negative", "seed", "steps", "guidance", "digest")
    told = {name: str(job[name]) for name in single if job.get(name) is not None}
    return {key: json.dumps(used, ensure_ascii=False), **told}


def enlarged(image: "Image.Image", scale: int) -> "Image.Image":
    """Every pixel drawn as scale x scale."""
    from PIL.Image import Resampling

    return image.resize((image.width * scale, image.height * scale), Resampling.NEAREST) if scale > 1 else image


def read_png(path: Path) -> dict:
    """The settings in a PNG that `ldm generate` wrote. Raises: UserError if there are none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            text = image.info.get(KEY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"--from {path}: not a readable picture ({error})") from None
    try:
        job = json.loads(text or "")
    except (ValueError, RecursionError):
        job = None
    if not isinstance(job, dict):
        raise UserError(f"--from {path}: it carries no settings of `ldm generate`")
    for name, kind in KINDS.items():
        if job.get(name) is not None and not isinstance(job[name], kind):
            raise UserError(f"--from {path}: its {name} cannot be {job[name]!r}")
    times = job.get("interval") or [0, 1]
    if len(times) != 2 or not all(isinstance(each, int | float) for each in times):
        raise UserError(f"--from {path}: its interval must be two numbers, got {times!r}")
    return job


def empty_job() -> dict[str, Any]:
    """All that decides pictures, with nothing asked for yet."""
    job: dict[str, Any] = {"model": None, "prompt": None, "negative": None, "grid": None, "number": None, "seed": 0}
    job |= {"steps": None, "sampler": None, "guidance": None, "scale": 1, "digest": None, "lora": None}
    return job | dict.fromkeys(GUIDANCE)


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
    if job["scale"] > MOST_SCALE:
        raise UserError(f"--scale must be {MOST_SCALE} or less, got {job['scale']}")
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
    if columns * rows > MOST:
        raise UserError(f"{columns * rows} pictures in one call are too many: {MOST} are allowed")
    job["grid"] = f"{columns}x{rows}"
    job.pop("number")
    return columns, rows


def check_writable(path: Path, endings: tuple[str, ...] = (".png",), option: str = "--output") -> None:
    """Fail before the work, not after it."""
    if path.suffix.lower() not in endings:
        raise UserError(f"{option} must end in {' or '.join(endings)}, got {str(path)!r}")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file in it")
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: {place} is not a writable folder")


def complete(job: dict, defaults: dict) -> None:
    """What the model chooses by default is written into `job`, and so into the picture."""
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    names |= {name: f"guidance_{name}" for name in ("interval", "rescale")}
    for name, its in names.items():
        job[name] = {**FALLBACKS, **defaults}.get(its) if job[name] is None else job[name]


def _is_plain(job: dict) -> bool:
    """Whether `ldm.pipelines.torch_free` can draw it; what is out of range is left to the pipeline, which says so."""
    if any(job[name] for name in ("sampler", "weak", "lora", "cfg_zero", "zero_init", "rescale")):
        return False
    first, last = job["interval"] or (0, 1)
    in_range = 1 <= job["steps"] <= 1000 and 0 <= job["guidance"] < math.inf and 0 <= first <= last <= 1
    return in_range and job["seed"] < 2**63 - MOST


def wants_gpu(device: str | None) -> bool:
    """Whether a GPU was asked for; or nothing was, and a driver for CUDA is here."""
    if device is not None:
        return device != "cpu"
    return any(Path(place).exists() for place in ("/dev/nvidiactl", "/dev/dxg", "C:/Windows/System32/nvcuda.dll"))


def _draw_light(light: "Light", job: dict, count: int) -> list["Image.Image"]:
    """As `draw`, without torch."""
    from PIL import Image

    prompt, negative = job["prompt"] or "", job["negative"] or ""
    scale = 1.0 if job["prompt"] is None and job["negative"] is None else float(job["guidance"])
    show = progress(job["steps"])
    callback = None if show is None else lambda step: show(step, None, None)
    times, seed = tuple(job["interval"] or (0, 1)), job["seed"]
    pixels = light.draw([prompt] * count, [negative] * count, job["steps"], scale, times, seed, callback)
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]


def draw(
    pipeline: Callable[..., "PipelineOutput"], job: dict, count: int, callback: "Callback | None" = None
) -> list["Image.Image"]:
    """The pictures, by a pipeline and all that it can do, or by a verb that takes the same options."""
    try:
        return pipeline(
            prompt=job["prompt"],
            negative_prompt=job["negative"],
            num_inference_steps=job["steps"],
            sampler=job["sampler"],
            guidance_scale=job["guidance"],
            guidance_interval=job["interval"],
            guidance_rescale=job["rescale"],
            cfg_zero=bool(job["cfg_zero"]),
            zero_init=job["zero_init"] or 0.0,
            weak=job["weak"],
            num_images_per_prompt=count,
            seed=job["seed"],
            callback=callback,
        ).images
    except ValueError as error:
        raise UserError(str(error)) from None


def progress(steps: int):
    """A callback that shows the step on a terminal, and nothing in a log file."""
    if not sys.stderr.isatty():
        return None

    def show(step: int, timestep, latents) -> None:
        end = "\r\033[K" if step + 1 == steps else ""
        print(f"\rstep {step + 1}/{steps}{end}", end="", file=sys.stderr, flush=True)

    return show


def sheet(images: list["Image.Image"], columns: int) -> "Image.Image":
    """Pictures in reading order, edge to edge."""
    from PIL import Image

    width, height = images[0].size
    sheet = Image.new(images[0].mode, (width * columns, height * -(-len(images) // columns)))
    for i, image in enumerate(images):
        sheet.paste(image, (width * (i % columns), height * (i // columns)))
    return sheet
