"""Save what the card of an exported model looks like, pictures included: the figure of docs/use/publish.md.

python scripts/card_screenshot.py my-model docs/figures/publish.png
"""

import html
import io
import sys
from pathlib import Path

import markdown
import yaml
from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
STYLE = """
body { font: 15px/1.5 sans-serif; margin: 24px; max-width: 860px } table { border-collapse: collapse }
td, th { border: 1px solid #ccc; padding: 3px 8px } pre { background: #f4f4f4; padding: 8px; overflow: hidden }
pre { font-size: 13px }
.gallery { display: flex; flex-wrap: wrap; gap: 12px } figure { margin: 0; width: 128px; font-size: 12px }
.gallery img { width: 128px; image-rendering: pixelated; border: 1px solid #ccc } body > p > img { max-width: 480px }
"""


def page(folder: Path) -> str:
    """The card as HTML. The Hub draws a gallery where it says so, of the pictures that its header names."""
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    shown = yaml.safe_load(header).get("widget", [])
    figures = "".join(
        f'<figure><img src="{each["output"]["url"]}"><figcaption>{html.escape(each["text"])}</figcaption></figure>'
        for each in shown
    )
    text = text.replace("<Gallery />", f'<div class="gallery">{figures}</div>')
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    return f'<base href="{folder.resolve().as_uri()}/"><meta charset="utf-8"><style>{STYLE}</style>{body}'


def main(folder: Path, target: Path) -> None:
    place = folder / ".card.html"  # beside the pictures that it shows
    place.write_text(page(folder), encoding="utf-8")
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 920, "height": 900})
            tab.goto(place.resolve().as_uri())
            shot = Image.open(io.BytesIO(tab.screenshot(full_page=True)))
            browser.close()
    finally:
        place.unlink()
    shot.convert("P", palette=Image.Palette.ADAPTIVE, colors=32).save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/card_screenshot.py MODEL PICTURE.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
