"""`ldm edit`: the operations of `ldm.pipelines.editing` from the shell."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.common import MAX_SCALE, add_options, check_number, check_writable, counted, progress
from ldm.pipelines.generation import MAX_IMAGES
from ldm.pipelines.image_metadata import EDIT_KEY, save_png
from ldm.utils.errors import UserError
from ldm.utils.terminal import LiveLine

if TYPE_CHECKING:
    from PIL import Image

    from ldm.pipelines.pipeline import Pipeline

# options -> the pipeline's names
OPTIONS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "negative": "negative_prompt",
    "sampler": "sampler",
    "height": "height",
    "width": "width",
    "seed": "seed",
    "number": "num_images_per_prompt",
}
IMAGE: dict[str, Any] = {"help": "image file of any size; it is brought to the size of what is generated"}
PROMPT: dict[str, Any] = {"nargs": "?", "help": "what the image should show"}


def add_parser(subparsers: Any) -> None:
    made = _parser(subparsers, "image-to-image", "Change an image by a prompt: add noise to it and remove it.", _image)
    made.add_argument("picture", **IMAGE)
    made.add_argument("prompt", **PROMPT)
    help_text = "one or more from 0 = the image to 1 = ignore it (default: 0.7)"
    made.add_argument("--strength", type=float, nargs="+", default=[0.7], help=help_text)

    made = _parser(subparsers, "inpaint", "Generate a part of an image; the rest stays as it is, exactly.", _inpaint)
    made.add_argument("picture", **IMAGE)
    made.add_argument("prompt", **PROMPT)
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", help="file of the image's size: white is generated, black kept")
    box = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    where.add_argument("--box", type=int, nargs=4, metavar=box, help="generate this rectangle, in the image's pixels")
    help_text = "below 1 the old content shows through (default: 1)"
    made.add_argument("--strength", type=float, default=1.0, help=help_text)
    made.add_argument("--resample", type=int, default=1, help="times that each step is taken (default: 1)")

    made = _parser(subparsers, "invert", "Find the noise of an image and generate from it with other prompts.", _invert)
    made.add_argument("picture", **IMAGE)
    made.add_argument("prompt", nargs="*", help="one image for each (default: the same image again)")
    made.add_argument("--was", default="", help="prompt of the image as it is")
    made.add_argument("--rounds", type=int, default=1, help="1 = DDIM inversion, more may be more exact (default: 1)")

    made = _parser(subparsers, "interpolate", "Images between two prompts or seeds: .gif, .mp4 or .png.", _interpolate)
    made.add_argument("first", help="prompt")
    made.add_argument("second", nargs="?", help="prompt (default: the first)")
    made.add_argument("--to-seed", type=int, help="seed at the end (default: the same)")
    made.add_argument("--frames", type=int, default=9, help="number of images, both ends included (default: 9)")
    help_text = "how prompt embeddings are mixed: linear or slerp (default: linear)"
    made.add_argument("--words", default="linear", help=help_text)

    made = _parser(subparsers, "vary", "Variations of the image of a seed.", _vary)
    made.add_argument("prompt", **PROMPT)
    help_text = "0 = the image of the seed, 1 = others (default: 0.3)"
    made.add_argument("--amount", type=float, default=0.3, help=help_text)

    made = _parser(subparsers, "compose", "One image of several prompts, joined by AND and NOT.", _compose)
    made.add_argument("prompt", help="prompt, with a weight as in 'water glyph:0.8' (default: 1)")
    for name, what in (("and", "should show too"), ("not", "should not show")):
        options: dict[str, Any] = {"dest": f"{name}_", "metavar": "PROMPT", "action": "append", "default": []}
        made.add_argument(f"--{name}", help=f"what the image {what}", **options)

    made = _parser(subparsers, "weigh", "Weight words of a prompt: 'glyph with the (water:1.5) radical'.", _weigh)
    made.add_argument("prompt", nargs="+", help="one image for each")


def _parser(subparsers: Any, name: str, description: str, draw: Callable) -> argparse.ArgumentParser:
    """A parser with the options that every operation has."""
    parser = subparsers.add_parser(name, help=description, description=description)
    parser.add_argument("-o", "--output", default="out.png", help="file to write (default: out.png)")
    add_options(parser, "model", "negative", "guidance", "steps", "sampler", "height", "width", "seed", "number")
    add_options(parser, "scale", default=1)
    add_options(parser, "device")
    parser.set_defaults(run=run, draw=draw, verb=name)
    return parser


def run(args: argparse.Namespace) -> int:
    with LiveLine() as live:
        return _edit(args, live)


def _edit(args: argparse.Namespace, live: LiveLine) -> int:
    start, output = time.perf_counter(), Path(args.output).expanduser()
    check_writable(output, (".png", ".gif", ".mp4") if args.verb == "interpolate" else (".png",))
    if output.suffix.lower() == ".mp4":
        import av  # noqa: F401  # a missing extra is reported before the work
    for name, most in (("scale", MAX_SCALE), ("number", MAX_IMAGES), ("frames", MAX_IMAGES)):
        check_number(name, getattr(args, name, None), 1, most)
    given = {name: value for name, value in vars(args).items() if name not in ("run", "draw", "help_of", "device")}
    job = {name: value for name, value in given.items() if value not in (None, [], "")}
    live.show("loading the model ...", now=True)
    from ldm.pipelines.loading import load_pipeline

    pipeline = load_pipeline(args.model, device=args.device)
    job["digest"] = pipeline.digest
    options = {OPTIONS[name]: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    steps = args.steps or pipeline.defaults["num_inference_steps"]
    options = {"seed": 0} | options | {"callback": progress(steps, live)}
    try:
        rows = args.draw(pipeline, args, options)
    except ValueError as error:
        raise UserError(str(error)) from None
    live.clear()
    _save(rows, output, job)
    print(f"{output}: {counted(sum(map(len, rows)))} in {time.perf_counter() - start:.1f} s")
    return 0


def _save(rows: "list[list[Image.Image]]", output: Path, job: dict[str, Any]) -> None:
    """A PNG with the rows below each other, one row where each holds one image; or an animation."""
    from ldm.utils import animation
    from ldm.utils.atomic_files import atomic_write
    from ldm.utils.image_grid import enlarged, image_grid

    images = [image for row in rows for image in row]
    if output.suffix.lower() == ".png":
        columns = len(rows[0]) if len(rows[0]) > 1 else len(rows)
        save_png(image_grid(images, columns, pad=0, mode=None), output, job, EDIT_KEY)
        return
    encode = animation.mp4 if output.suffix.lower() == ".mp4" else animation.gif
    content = encode([enlarged(image, job["scale"]) for image in images], json.dumps({EDIT_KEY: job}))
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, content)


# ---- operations: rows of images -------------------------------------------------------------------------------------


def _image(pipeline: "Pipeline", args: argparse.Namespace, options: dict) -> "list[list[Image.Image]]":
    from ldm.pipelines.editing import image_to_image

    return [image_to_image(pipeline, args.picture, args.prompt, each, **options).images for each in args.strength]


def _inpaint(pipeline: "Pipeline", args: argparse.Namespace, options: dict) -> "list[list[Image.Image]]":
    from ldm.pipelines.editing import box_mask, inpaint

    mask = args.mask or box_mask(args.picture, args.box)
    return [inpaint(pipeline, args.picture, mask, args.prompt, args.strength, args.resample, **options).images]


def _invert(pipeline: "Pipeline", args: argparse.Namespace, options: dict) -> "list[list[Image.Image]]":
    from ldm.pipelines.editing import edit

    if args.sampler or args.seed is not None or args.number is not None:
        raise UserError("invert takes no --sampler, --seed or --number: the image decides the noise, DDIM the steps")
    prompts = args.prompt or [args.was]
    return [edit(pipeline, args.picture, prompts, args.was, args.rounds, **{**options, "seed": None}).images]


def _interpolate(pipeline: "Pipeline", args: argparse.Namespace, options: dict) -> "list[list[Image.Image]]":
    from ldm.pipelines.editing import interpolate

    if args.number is not None:
        raise UserError("interpolate takes no --number: say how many with --frames")
    ends = {"frames": args.frames, "last_seed": args.to_seed, "words": args.words}
    return [interpolate(pipeline, args.first, args.second, **ends, **options).images]


def _vary(pipeline: "Pipeline", args: argparse.Namespace, options: dict) -> "list[list[Image.Image]]":
    from ldm.pipelines.editing import variations

    number = options.pop("num_images_per_prompt", 4)
    return [variations(pipeline, args.prompt, amount=args.amount, number=number, **options).images]


def _compose(pipeline: "Pipeline", args: argparse.Namespace, options: dict) -> "list[list[Image.Image]]":
    from ldm.pipelines.editing import compose_prompts

    terms = [_term(args.prompt), *map(_term, args.and_)]
    terms += [(text, -weight) for text, weight in map(_term, args.not_)]
    return [compose_prompts(pipeline, terms, **options).images]


def _weigh(pipeline: "Pipeline", args: argparse.Namespace, options: dict) -> "list[list[Image.Image]]":
    from ldm.pipelines.editing import prompt_weighting

    return [prompt_weighting(pipeline, prompt, **options).images for prompt in args.prompt]


def _term(text: str) -> tuple[str, float]:
    """'water glyph:0.8' as ('water glyph', 0.8); without a number the weight is 1."""
    prompt, colon, number = text.rpartition(":")
    try:
        return (prompt, float(number)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0
