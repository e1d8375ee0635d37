"""The example of docs/use/lora.md: ten glyphs of a style that models/glyphs never saw, and what ten pictures change.

`pictures FOLDER` writes them, thinned to two thirds of the width of stroke. `measure LORA` draws the same prompts and
seeds with and without the adapters, judges layout and stroke width, and puts both on one sheet.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ldm.data import evenly_spaced_indices
from ldm.data.glyphs.captions import layout_phrase, radical_phrase
from ldm.data.glyphs.dataset import split_characters
from ldm.data.glyphs.rendering import cached_glyphs, style_font
from ldm.evaluation.glyphs.classifier import GlyphClassifier
from ldm.evaluation.glyphs.prompts import glyph_prompts
from ldm.evaluation.glyphs.validity import stroke_widths
from ldm.evaluation.metrics.ink import ink
from ldm.evaluation.metrics.proportions import wilson_interval
from ldm.pipelines.generation import generate_pixels
from ldm.pipelines.loading import load_pipeline
from ldm.utils.image_grid import image_grid

LARGE, SIDE, WIDTH = 512, 128, 11  # pixels; the filter takes 10 of 512 off each stroke
TEN = {"horizontal": 4, "vertical": 3, "upper left": 1, "lower left": 1, "enclosed": 1}
GREAT = ("horizontal", "vertical")  # the layouts of most characters


def write_pictures(folder: Path, cache: Path) -> None:
    """Ten common characters of the training split, light, each with all there is to say of it in a .txt beside it."""
    chosen = []
    for layout, count in TEN.items():
        fitting = [g for g in split_characters("common")["train"] if g.structure == layout and 6 <= g.strokes <= 12]
        chosen += [fitting[i] for i in evenly_spaced_indices(len(fitting), count)]
    images = light(cache, "".join(glyph.char for glyph in chosen))
    folder.mkdir(parents=True, exist_ok=True)
    for glyph, image in zip(chosen, images, strict=True):
        Image.fromarray(image).save(folder / f"{glyph.codepoint:x}.png")
        meaning = f", meaning {glyph.senses[0]}" if glyph.senses else ""
        caption = f"{layout_phrase(glyph.structure)} {radical_phrase(glyph.radical)}{meaning}, {glyph.strokes} strokes"
        (folder / f"{glyph.codepoint:x}.txt").write_text(caption, encoding="utf-8")


def light(cache: Path, characters: str) -> np.ndarray:
    """Characters of the sans font with thinner strokes: uint8 (n, 128, 128)."""
    place, _ = cached_glyphs(style_font("hei"), characters, LARGE, cache)
    large = [Image.fromarray(image) for image in np.load(place / "images.npy")]
    thin = [image.filter(ImageFilter.MaxFilter(WIDTH)) for image in large]  # the lightest nearby: ink recedes
    return np.stack([np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) for image in thin])


def measure(model: str, lora: Path, out: Path, cache: Path, each: int) -> None:
    """Print stroke widths and layout adherence without and with the adapters, and draw both in `out`."""
    asked = [one for one in glyph_prompts(("layout",)) for _ in range(each)]
    great = [one for one in glyph_prompts(("layout",)) if one.layout in GREAT for _ in range(8 * each)]
    asked, split = asked + great, len(asked)
    real = [glyph.char for glyph in split_characters("common")["validation"]]
    target = light(cache, "".join(real[i] for i in evenly_spaced_indices(len(real), 100)))
    print(f"real light glyphs: stroke width {_mean(stroke_widths(target)[0])}")
    classifier, sheets, obeyed = GlyphClassifier(), [], []
    wanted = np.array([classifier.layout_class(one.layout) for one in asked])
    for name, options in (("model", {}), ("with LoRA", {"lora": lora})):
        pipeline = load_pipeline(model, **options)
        images = generate_pixels(pipeline, [one.prompt for one in asked], range(len(asked)))[..., 0]
        right = np.array(classifier.predict(images).layouts) == wanted
        obeyed.append(right.astype(float))
        print(f"{name}: stroke width {_mean(stroke_widths(images)[0])}, ink {_mean(ink(images))}")
        for what, part in (("15 layouts", right[:split]), ("horizontal and vertical", right[split:])):
            low, high = wilson_interval(int(part.sum()), part.size)
            print(f"  {what}: {part.mean():.1%} obey ({low:.1%} to {high:.1%}, n = {part.size})", flush=True)
        sheets.append([Image.fromarray(image) for image in images[:split:each]] + [Image.fromarray(images[-1])])
    change = 100 * (obeyed[1] - obeyed[0])  # picture by picture, in points
    print(f"change of 15 layouts {_mean(change[:split])}, of horizontal and vertical {_mean(change[split:])}")
    columns = len(sheets[0]) // 2
    page = image_grid(
        [image for half in (0, 1) for row in sheets for image in row[half * columns :][:columns]], columns
    )
    page.save(out, optimize=True)


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.3f} \u00b1 {values.std() / len(values) ** 0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("pictures").add_argument("folder", type=Path)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("lora", type=Path)
    measuring.add_argument("--model", default="models/glyphs")
    measuring.add_argument("--each", type=int, default=14, help="pictures of each of the 15 layouts")
    measuring.add_argument("-o", "--output", type=Path, default=Path("lora.png"))
    for verb in verbs.choices.values():
        verb.add_argument("--cache", type=Path, default=Path("cache"))
    args = parser.parse_args()
    if args.verb == "pictures":
        write_pictures(args.folder, args.cache)
    else:
        measure(args.model, args.lora, args.output, args.cache, args.each)


if __name__ == "__main__":
    main()
