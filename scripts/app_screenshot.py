"""Draw with a running `ldm app` in Chromium and save what it looks like: the figure of docs/use/app.md.

ldm app --port 7860 &
python scripts/app_screenshot.py http://127.0.0.1:7860 docs/figures/app.png
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
LOADING = 600_000  # milliseconds, on a machine under load


def main(address: str, target: Path) -> None:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        page.set_default_timeout(LOADING)
        page.goto(address)
        panel = page.get_by_role("tabpanel").filter(visible=True)
        panel.locator(".thumbnail-item").first.wait_for()
        panel.get_by_label("Prompt", exact=True).fill("horizontal stacked glyph with the water radical")
        panel.get_by_label("Keep this seed").check()
        panel.get_by_role("button", name="Generate", exact=True).click()
        panel.get_by_text("4 images, seeds").wait_for()
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(1000)
        shot = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    shot.convert("RGB").save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/app_screenshot.py ADDRESS PICTURE.png")
    main(sys.argv[1], Path(sys.argv[2]))
