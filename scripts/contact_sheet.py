"""Draw a contact sheet of a glyph model: common prompts, components with positions, held-out pairs, or characters.

    python -m scripts.contact_sheet models/glyphs sheet.png
    python -m scripts.contact_sheet models/glyphs pairs.png --of pairs
    python -m scripts.contact_sheet models/glyphs characters.png --of characters

One row of images per prompt, from seeds 0, 1, 2, ... with the model's own settings; nothing is selected. `characters`
are real ones that no model was trained on, described by their components; each row begins with the real one.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm.config.settings import DataOptions
from ldm.data.glyphs.dataset import splits
from ldm.evaluation.glyphs.prompts import PromptSpec, glyph_prompts
from ldm.pipelines.loading import load_pipeline
from ldm.utils.image_grid import image_grid, save_png

COMMON = (
    "horizontal stacked glyph",
    "vertical stacked glyph",
    "glyph enclosed from the upper left",
    "glyph enclosed from the lower left",
    "enclosed glyph",
    "horizontal stacked glyph with the water radical",
    "vertical stacked glyph with the grass radical",
    "glyph with the metal radical",
    "glyph with the bird radical",
    "",
)
PLACES = (
    "glyph with water on the left and horse on the right",
    "roof above fire",
    "glyph of a tree beside a dog",
    "woman on the left, child on the right",
    "grass above horse",
    "glyph with speech on the left and fish on the right",
    "mountain above stone",
    "gate around an ear",
    "fire on the left, bird on the right, in serif style",
    "rain above field, in sans style",
)
SHEETS = {
    "common": lambda: COMMON,
    "places": lambda: PLACES,
    "pairs": lambda: [one.prompt for one in glyph_prompts(("pair",))],
    "characters": lambda: [one.prompt for one in described()],
}
COLUMNS, CHARACTERS = 12, 12
FONT = ImageFont.load_default(12)
LINE = sum(FONT.getmetrics()) + 4  # of a label: letters reach below the line


def contact_sheet(model: str, of: str, columns: int = COLUMNS) -> Image.Image:
    """The sheet as an image; `of`: a name in SHEETS."""
    pipeline, rows = load_pipeline(model), []
    first = real_glyphs(pipeline.image_shape[1]) if of == "characters" else {}
    for prompt in SHEETS[of]():
        real = [first[prompt]] if first else []
        images = pipeline(prompt or None, num_images_per_prompt=columns - len(real), seed=0).images
        rows.append((prompt or "(no prompt)", image_grid([*real, *images], columns)))
    return labelled(rows).convert(images[0].mode)


def described() -> list[PromptSpec]:
    """The first characters of the list that are described by their components."""
    return glyph_prompts(("named",))[:CHARACTERS]


def real_glyphs(resolution: int) -> dict[str, Image.Image]:
    """Prompt -> the character that it describes, in sans style."""
    test = splits(DataOptions(source="glyphs", resolution=resolution, glyphs={"styles": ["hei"]}))["test"]
    numbers = {row.codepoint: i for i, (row, *_) in enumerate(test.items)}
    return {one.prompt: Image.fromarray(test.image(numbers[one.codepoint])[..., 0]) for one in described()}


def labelled(rows: list[tuple[str, Image.Image]]) -> Image.Image:
    """Rows of one size below each other, each under its label."""
    width, height = rows[0][1].size
    page = Image.new("RGB", (width, len(rows) * (height + LINE)), "white")
    pen = ImageDraw.Draw(page)
    for i, (label, row) in enumerate(rows):
        pen.text((2, i * (height + LINE) + 2), label, fill="black", font=FONT)
        page.paste(row, (0, i * (height + LINE) + LINE))
    return page


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an included model, an exported folder or a Hub id")
    parser.add_argument("output", type=Path, help="PNG file to write")
    parser.add_argument("--of", choices=SHEETS, default="common")
    parser.add_argument("--columns", type=int, default=COLUMNS, help="images per prompt (default: %(default)s)")
    args = parser.parse_args(argv)
    save_png(contact_sheet(args.model, args.of, args.columns), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
