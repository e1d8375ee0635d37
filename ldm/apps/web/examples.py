"""What the page shows before the model is there, and what it offers to press: posters, chips, a title.

A poster is an image that the model generated when the page was written, for each example prompt; the page says so.
"""

import unicodedata
from pathlib import Path
from typing import Any

from ldm.pipelines.image_metadata import complete, empty_job, save_png
from ldm.pipelines.model_folder import FALLBACKS
from ldm.pipelines.torch_free import TorchFreePipeline

MAX_EXAMPLES = 6
SEED = 0
RADICALS = "water tree hand mouth heart fire grass woman man metal speech earth".split()
LAYOUTS = (
    "horizontal",
    "vertical",
    "enclosed",
    "above",
    "upper left",
    "lower left",
    "single",
)
STROKES = (5, 8, 11, 15)


def write_posters(model: TorchFreePipeline, settings: dict[str, Any], stage: Path) -> list[dict[str, Any]]:
    """Generate an image for each of `settings`["prompts"] into `stage`/posters.

    Args:
        settings: of the page, see `ldm.apps.web.site.describe`.

    Returns: {"prompt": text, "seed": int, "path": name in the site} for each.
    """
    posters = []
    for i, prompt in enumerate(settings["prompts"]):
        images = model.generate(
            [prompt], [""], settings["steps"], settings["guidance"], tuple(settings["interval"]), SEED
        )
        path = f"posters/{i}.png"
        (stage / path).parent.mkdir(exist_ok=True)
        _save(images[0], stage / path, prompt, settings)
        posters.append({"prompt": prompt, "seed": SEED, "path": path})
    return posters


def _save(pixels: Any, path: Path, prompt: str, settings: dict[str, Any]) -> None:
    from PIL import Image

    job = empty_job() | {name: settings[name] for name in ("model", "steps", "guidance", "interval", "digest")}
    job |= {"prompt": prompt or None, "grid": "1x1", "seed": SEED}
    complete(job, FALLBACKS)
    save_png(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), path, job)


def labels(data: str | None, picture: list[int], positions: bool = False) -> dict[str, str]:
    """Title of the page and the line below it.

    Args:
        data: what the model is trained on.
        picture: [C, H, W] of an image.
        positions: whether its captions say where a component stands.
    """
    size = f"{picture[2]} x {picture[1]} pixels"
    if data == "glyphs":
        parts = "components and their positions" if positions else "a radical"
        return {
            "title": "Chinese characters that do not exist",
            "hint": f"Say a layout, {parts}, a meaning or a number of strokes. The model draws a character, {size}.",
        }
    return {"title": "Images from words", "hint": f"Describe an image, {size}, or begin with an example."}


def chips(data: str | None, positions: bool = False) -> list[dict[str, Any]]:
    """Groups of phrases that prompts are composed of, see the page's `chips.js`; [] but for glyphs."""
    if data != "glyphs":
        return []
    from ldm.data.glyphs import captions
    from ldm.data.glyphs.names import OPPOSITE

    names = captions.RADICALS
    radicals = [
        {"text": captions.radical_phrase(names.index(name) + 1), "label": f"{_sign(names.index(name))} {name}"}
        for name in RADICALS
    ]
    layouts = [captions.layout_phrase(name) for name in LAYOUTS]
    places = [_plain(captions.PLACE_PHRASES[place][0]) for place in OPPOSITE]
    return [
        {"name": "Layout", "join": " ", "phrases": [{"text": "glyph", "label": "any"}, *map(_plain, layouts)]},
        {"name": "Radical", "join": " ", "phrases": radicals},
        *([{"name": "Position", "join": " ", "phrases": places, "after": 1}] if positions else []),
        {"name": "Strokes", "join": ", ", "phrases": [_plain(f"{count} strokes") for count in STROKES]},
    ]


def _plain(text: str) -> dict[str, str]:
    short = text.replace(" stacked glyph", "").replace(" glyph", "").replace("glyph ", "").replace(" strokes", "")
    return {"text": text, "label": short}


def _sign(index: int) -> str:
    """The character of a Kangxi radical, 0 to 213."""
    return unicodedata.normalize("NFKC", chr(0x2F00 + index))
