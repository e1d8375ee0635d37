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
LOADING = 120_000  # milliseconds


def main(address: str, target: Path) -> None:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 640})
        page.goto(address)
        page.get_by_role("tab", name="Attention").click()
        panel = page.get_by_role("tabpanel").filter(visible=True)
        panel.get_by_label("Prompt", exact=True).fill("horizontal stacked glyph with the water radical")
        panel.get_by_role("button", name="Show").click()
        panel.locator(".thumbnail-item").first.wait_for(timeout=LOADING)
        page.wait_for_timeout(1000)
        shot = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    shot.convert("RGB").save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/app_screenshot.py ADDRESS PICTURE.png")
    main(sys.argv[1], Path(sys.argv[2]))
