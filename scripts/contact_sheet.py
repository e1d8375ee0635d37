"""Draw the contact sheet of a glyph model: `python scripts/contact_sheet.py models/glyphs sheet.png`.

One row of pictures per prompt, from seeds 0, 1, 2, ... with the model's own settings; nothing is picked out.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm.pipelines.loading import load_pipeline
from ldm.utils.image_grid import image_grid, save_png

PROMPTS = (
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
COLUMNS = 12
FONT = ImageFont.load_default(12)
LINE = sum(FONT.getmetrics()) + 4  # of a label: letters reach below the line


def main(model: str, out: str) -> None:
    pipeline, rows = load_pipeline(model), []
    for prompt in PROMPTS:
        drawn = pipeline(prompt or None, num_images_per_prompt=COLUMNS, seed=0).images
        rows.append((prompt or "(no prompt)", image_grid(drawn, COLUMNS)))
    save_png(labelled(rows), Path(out))


def labelled(rows: list[tuple[str, Image.Image]]) -> Image.Image:
    """Rows of one size below each other, each under its label."""
    width, height = rows[0][1].size
    page = Image.new("RGB", (width, len(rows) * (height + LINE)), "white")
    pen = ImageDraw.Draw(page)
    for i, (label, row) in enumerate(rows):
        pen.text((2, i * (height + LINE) + 2), label, fill="black", font=FONT)
        page.paste(row, (0, i * (height + LINE) + LINE))
    return page


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} MODEL OUT.png")
    main(*sys.argv[1:])
