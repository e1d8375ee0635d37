"""`ldm edit`: the verbs of `ldm.pipelines.editing` from the shell."""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.common import MAX_IMAGES, MAX_SCALE, check_writable, progress, sheet
from ldm.pipelines.image_metadata import EDIT_KEY, enlarged, save_png
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from ldm.pipelines.pipeline import Pipeline

# options of the drawing itself -> the pipeline's names
OPTIONS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "negative": "negative_prompt",
    "sampler": "sampler",
    "seed": "seed",
    "number": "num_images_per_prompt",
}


def add_parser(subparsers) -> None:
    made = _parser(subparsers, "image-to-image", "Draw on from a picture: noise is put on it and taken off again.", _on)
    made.add_argument("picture", help="file of any size; it is brought to the model's square")
    made.add_argument("prompt", nargs="?", help="what to draw")
    made.add_argument("--strength", type=float, nargs="+", default=[0.7], help="0 = the picture, 1 = forget it (0.7)")

    made = _parser(subparsers, "inpaint", "Draw a part of a picture anew; the rest stays as it is, exactly.", _inpaint)
    made.add_argument("picture", help="file of any size; it is brought to the model's square")
    made.add_argument("prompt", nargs="?", help="what to draw")
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", help="file of the picture's size: white is drawn")
    box = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    where.add_argument("--box", type=int, nargs=4, metavar=box, help="draw this rectangle, in the picture's pixels")
    made.add_argument("--strength", type=float, default=1.0, help="below 1 the old content shines through (1)")
    made.add_argument("--resample", type=int, default=1, help="times that each step is taken (1)")

    made = _parser(subparsers, "invert", "Find the noise of a picture, and draw from it with other prompts.", _invert)
    made.add_argument("picture", help="file of any size; it is brought to the model's square")
    made.add_argument("prompt", nargs="*", help="what to draw, one picture for each (default: the picture again)")
    made.add_argument("--was", default="", help="what the picture shows")
    made.add_argument("--rounds", type=int, default=1, help="1 = DDIM inversion, more may come nearer (1)")

    made = _parser(
        subparsers, "interpolate", "Pictures from one prompt or seed to another: .gif, .mp4, .png.", _between
    )
    made.add_argument("first", help="prompt")
    made.add_argument("second", nargs="?", help="prompt (default: the first)")
    made.add_argument("--to-seed", type=int, help="seed at the end (default: the same)")
    made.add_argument("--frames", type=int, default=9, help="both ends with them (9)")
    made.add_argument("--words", default="linear", help="how the text is mixed: linear or slerp (linear)")

    made = _parser(subparsers, "vary", "Pictures from noise near that of a seed.", _vary)
    made.add_argument("prompt", nargs="?", help="what to draw")
    made.add_argument("--amount", type=float, default=0.3, help="0 = the picture of the seed, 1 = others (0.3)")

    made = _parser(subparsers, "compose", "One picture of several prompts.", _compose)
    made.add_argument("prompt", help="what to draw, with a weight as in 'water glyph:0.8' (default: 1)")
    for name, what in (("and", "hold too"), ("not", "not hold")):
        made.add_argument(
            f"--{name}", dest=f"{name}_", metavar="PROMPT", action="append", default=[], help=f"shall {what}"
        )

    made = _parser(subparsers, "weigh", "Draw with weights on words: 'glyph with the (water:1.5) radical'.", _weigh)
    made.add_argument("prompt", nargs="+", help="what to draw, one picture for each")


def _parser(subparsers, name: str, description: str, draw) -> argparse.ArgumentParser:
    """A parser with the options that every verb has."""
    parser = subparsers.add_parser(name, help=description, description=description)
    parser.add_argument("-m", "--model", help="exported folder, LDM run or Hub id (default: the shipped model)")
    parser.add_argument("-o", "--output", default="out.png", help="file to write (default: out.png)")
    parser.add_argument("--seed", type=int, help="of the first picture (default: 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--sampler", help="another way to take the steps, such as unipc or ddim (default: the model's)")
    parser.add_argument("--guidance", type=float, help="how strictly to follow the prompt; 1 = off")
    parser.add_argument("--negative", help="what to lead away from")
    parser.add_argument("-n", "--number", type=int, help="pictures side by side")
    parser.add_argument("--scale", type=int, default=1, help="enlarge every pixel this many times for viewing (1)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.set_defaults(run=run, draw=draw, verb=name)
    return parser


def run(args: argparse.Namespace) -> int:
    start, output = time.perf_counter(), Path(args.output).expanduser()
    check_writable(output, (".png", ".gif", ".mp4") if args.verb == "interpolate" else (".png",))
    if output.suffix.lower() == ".mp4":
        import av  # noqa: F401  # a missing extra is told before the work
    for name, most in (("scale", MAX_SCALE), ("number", MAX_IMAGES), ("frames", MAX_IMAGES)):
        value = getattr(args, name, None)
        if value is not None and not 1 <= value <= most:
            raise UserError(f"--{name} must be from 1 to {most}, got {value}")
    given = {name: value for name, value in vars(args).items() if name not in ("run", "draw", "help_of", "device")}
    job = {name: value for name, value in given.items() if value not in (None, [], "")}
    from ldm.pipelines.loading import load_pipeline

    pipeline = load_pipeline(args.model, device=args.device)
    job["digest"] = pipeline.digest
    options = {OPTIONS[name]: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    options = {"seed": 0} | options | {"callback": progress(args.steps or pipeline.defaults["num_inference_steps"])}
    try:
        images, columns = args.draw(pipeline, args, options)
    except ValueError as error:
        raise UserError(str(error)) from None
    if output.suffix.lower() == ".png":
        save_png(sheet(images, columns), output, job, EDIT_KEY)
    else:
        _save_film(images, output, job)
    many = "s" * (len(images) > 1)
    print(f"{output}: {len(images)} picture{many} in {time.perf_counter() - start:.1f} s")
    return 0


def _on(pipeline: "Pipeline", args, options) -> "tuple[list[Image.Image], int]":
    """Rows: strengths; columns: seeds. With one picture for each strength, a row of them."""
    from ldm.pipelines.editing import image_to_image

    rows = [image_to_image(pipeline, args.picture, args.prompt, each, **options).images for each in args.strength]
    return [image for row in rows for image in row], len(rows[0]) if len(rows[0]) > 1 else len(rows)


def _inpaint(pipeline: "Pipeline", args, options) -> "tuple[list[Image.Image], int]":
    from ldm.pipelines.editing import box_mask, inpaint

    mask = args.mask or box_mask(args.picture, args.box)
    images = inpaint(pipeline, args.picture, mask, args.prompt, args.strength, args.resample, **options).images
    return images, len(images)


def _invert(pipeline: "Pipeline", args, options) -> "tuple[list[Image.Image], int]":
    from ldm.pipelines.editing import edit

    if args.sampler or args.seed is not None or args.number is not None:
        raise UserError("invert takes no --sampler, --seed or --number: the picture decides the noise, DDIM the steps")
    prompts = args.prompt or [args.was]
    images = edit(pipeline, args.picture, prompts, args.was, args.rounds, **{**options, "seed": None}).images
    return images, len(images)


def _between(pipeline: "Pipeline", args, options) -> "tuple[list[Image.Image], int]":
    from ldm.pipelines.editing import interpolate

    if args.number is not None:
        raise UserError("interpolate takes no --number: say how many with --frames")
    ends = {"frames": args.frames, "last_seed": args.to_seed, "words": args.words}
    images = interpolate(pipeline, args.first, args.second, **ends, **options).images
    return images, len(images)


def _vary(pipeline: "Pipeline", args, options) -> "tuple[list[Image.Image], int]":
    from ldm.pipelines.editing import vary

    images = vary(pipeline, args.prompt, amount=args.amount, number=options.pop("num_images_per_prompt", 4), **options)
    return images.images, len(images.images)


def _compose(pipeline: "Pipeline", args, options) -> "tuple[list[Image.Image], int]":
    from ldm.pipelines.editing import compose

    terms = [_term(args.prompt), *map(_term, args.and_)]
    terms += [(text, -weight) for text, weight in map(_term, args.not_)]
    images = compose(pipeline, terms, **options).images
    return images, len(images)


def _weigh(pipeline: "Pipeline", args, options) -> "tuple[list[Image.Image], int]":
    """Columns: prompts with one seed, or with several a row of seeds for each."""
    from ldm.pipelines.editing import weigh

    rows = [weigh(pipeline, prompt, **options).images for prompt in args.prompt]
    return [image for row in rows for image in row], len(rows[0]) if len(rows[0]) > 1 else len(rows)


def _term(told: str) -> tuple[str, float]:
    """'water glyph:0.8' as ('water glyph', 0.8); without a number the weight is 1."""
    text, colon, number = told.rpartition(":")
    try:
        return (text, float(number)) if colon else (told, 1.0)
    except ValueError:
        return told, 1.0


def _save_film(images: "list[Image.Image]", path: Path, job: dict[str, Any]) -> None:
    from ldm.utils import animation as film
    from ldm.utils.atomic_files import write_whole

    made = film.mp4 if path.suffix.lower() == ".mp4" else film.gif
    content = made([enlarged(image, job["scale"]) for image in images], json.dumps({EDIT_KEY: job}))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
