"""Draw on a served page of `ldm web` in Chromium, wide and light, narrow and dark: the figure of docs/use/web.md.

python -m http.server -b 127.0.0.1 -d site 8000 &
python scripts/web_screenshot.py http://127.0.0.1:8000/ docs/figures/web.png
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
LOADING = 600_000  # milliseconds, on a machine under load
VIEWS = (("light", 1280, 860), ("dark", 390, 860))  # in these colours, this wide and high


def main(address: str, target: Path) -> None:
    shots = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, width, height in VIEWS:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(f"{address}#prompt=horizontal+stacked+glyph&seed=0")
            page.wait_for_selector("#download:enabled", timeout=LOADING)
            page.evaluate("scrollTo(0, 0)")
            shots.append(Image.open(io.BytesIO(page.screenshot())))
        browser.close()
    height = shots[0].height
    shots = [shot.resize((shot.width * height // shot.height, height), Image.Resampling.LANCZOS) for shot in shots]
    sheet = Image.new("RGB", (sum(shot.width for shot in shots), height))
    left = 0
    for shot in shots:
        sheet.paste(shot, (left, 0))
        left += shot.width
    sheet.quantize(64).save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/web_screenshot.py ADDRESS PICTURE.png")
    main(sys.argv[1], Path(sys.argv[2]))
