"""The settings of an image (a job), and how they travel in a PNG, which `ldm generate --from` generates again."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.pipelines.model_folder import FALLBACKS
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

KEY = "ldm"  # of the PNG text entry with the settings, as JSON
EDIT_KEY = "ldm-edit"  # of the PNG text entry, or in the comment of a GIF or MP4
KINDS: dict[str, Any] = {  # of the settings in a PNG, which may be anyone's
    **dict.fromkeys(("model", "prompt", "negative", "grid", "sampler", "weak", "lora", "digest"), str),
    **dict.fromkeys(("seed", "number", "steps", "scale", "height", "width"), int),
    **dict.fromkeys(("guidance", "rescale", "zero_init"), int | float),
    "interval": list,
    "cfg_zero": bool,
}
SIZE = ("height", "width")  # in pixels, remembered where they are not the model's own
GUIDANCE = ("interval", "rescale", "cfg_zero", "zero_init", "weak")  # refinements, remembered where they are used


def empty_job() -> dict[str, Any]:
    """A job with nothing asked for yet."""
    job: dict[str, Any] = {"model": None, "prompt": None, "negative": None, "grid": None, "number": None, "seed": 0}
    job |= {"steps": None, "sampler": None, "guidance": None, "scale": 1, "digest": None, "lora": None}
    return job | dict.fromkeys((*SIZE, *GUIDANCE))


def complete(job: dict, defaults: dict) -> None:
    """Fill in what the model chooses by default."""
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    names |= {name: f"guidance_{name}" for name in ("interval", "rescale")}
    for name, its in names.items():
        job[name] = {**FALLBACKS, **defaults}.get(its) if job[name] is None else job[name]


def entries(job: dict, key: str = KEY) -> dict[str, str]:
    """The text entries of a PNG: all of `job` under `key`, and the best known settings one by one for other viewers."""
    used = {name: value for name, value in job.items() if name not in (*SIZE, *GUIDANCE, "sampler", "lora") or value}
    single = ("prompt", "negative", "seed", "steps", "guidance", "digest")
    told = {name: str(job[name]) for name in single if job.get(name) is not None}
    return {key: json.dumps(used, ensure_ascii=False), **told}


def save_png(image: "Image.Image", path: Path, job: dict, key: str = KEY) -> None:
    """Write `image` enlarged by job["scale"], with `job` in its metadata under `key`, atomically."""
    from ldm.utils import image_grid

    image_grid.save_png(image_grid.enlarged(image, job["scale"]), path, entries(job, key))


def read_png(path: Path) -> dict:
    """The settings in a PNG that `ldm generate` wrote. Raises: UserError if there are none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            text = image.info.get(KEY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"--from {path}: not a readable image ({error})") from None
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
