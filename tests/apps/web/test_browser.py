"""The browser page in headless Chromium: it draws what Python draws, and people of all sorts can use it."""

import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from browser_page import MODEL, opened, serving
from page_checks import faults
from PIL import Image

from ldm.cli import generate
from ldm.cli.main import build_parser
from ldm.pipelines.image_metadata import read_png
from ldm.pipelines.model_folder import resolve_model

DRAWN = "#download:enabled, #status.error"
KEPT = "async () => (await caches.match('sampler.js') && await caches.match('noise.js')) !== undefined"


@pytest.fixture(scope="module")
def page(browser, served):
    """A page with its model loaded and its first image drawn, and then without any network."""
    found, wrong = opened(browser, served[1])
    found.wait_for_selector(DRAWN)
    assert "Seed" in found.inner_text("#status")
    until(found, KEPT)
    found.context.set_offline(True)
    found.locator("#more").evaluate("(more) => { more.open = true; }")
    yield found
    assert wrong == []


def until(page, code: str) -> None:
    """Wait until the code is true in the page, whose security policy forbids that Playwright polls there."""
    for _ in range(600):
        if page.evaluate(code):
            return
        page.wait_for_timeout(100)
    raise AssertionError(code)


def draw(page, **settings) -> np.ndarray:
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))
    page.click("#draw")
    return finished(page)


def finished(page, side: int = 128) -> np.ndarray:
    page.wait_for_selector(DRAWN)
    code = "(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    pixels = np.array(page.locator("#canvas").evaluate(code), np.uint8).reshape(side, side, 4)
    assert (pixels[..., 3] == 255).all() and (pixels[..., :1] == pixels[..., :3]).all()
    return pixels[..., 0].astype(int)


def python_draws(light, job: dict) -> np.ndarray:
    how = (job["steps"], float(job["guidance"]), (0.0, 1.0), job["seed"])
    return light.generate([job["prompt"]], [job["negative"]], *how)[0, ..., 0].astype(int)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "horizontal stacked glyph", "seed": 0, "steps": 4, "guidance": 1, "negative": ""},
        {"prompt": "", "seed": 2**40 + 3, "steps": 2, "guidance": 1, "negative": ""},
        {"prompt": "Glyph of WATER, 'enclosed' 水", "seed": 7, "steps": 3, "guidance": 2.5, "negative": "fire"},
    ],
)
def test_chromium_draws_what_python_draws(page, light, settings):
    found, wanted = draw(page, **settings), python_draws(light, settings)
    assert wanted.std() > 40  # there is something to see
    difference = abs(found - wanted)
    assert difference.mean() < 0.05 and difference.max() <= 2, (difference.mean(), difference.max())


def test_a_download_holds_the_picture_and_what_draws_it_again(page, tmp_path):
    shown = draw(page, prompt="vertical stacked glyph", seed=3, steps=4, guidance=1, negative="")
    with page.expect_download() as started:
        page.click("#download")
    assert started.value.suggested_filename == "vertical-stacked-glyph-3.png"
    started.value.save_as(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("L"), int)
    np.testing.assert_array_equal(pixels, shown.repeat(4, 0).repeat(4, 1))
    job = read_png(tmp_path / "a.png")
    wanted = {"model": MODEL, "prompt": "vertical stacked glyph", "negative": None, "seed": 3, "steps": 4, "scale": 4}
    assert job == wanted | {"guidance": 1, "grid": "1x1", "interval": [0, 1], "digest": resolve_model(MODEL).digest()}
    args = build_parser(["generate"]).parse_args(["generate", "--from", str(tmp_path / "a.png")])
    args.output = str(tmp_path / "b.png")
    generate.run(args)
    with Image.open(tmp_path / "b.png") as again:
        assert abs(np.asarray(again, int) - pixels).max() <= 2


def test_the_outline_is_what_is_seen_and_can_be_downloaded(page, tmp_path):
    draw(page, prompt="vertical stacked glyph", seed=3, steps=4, guidance=1, negative="")
    assert page.is_visible("#outline") and not page.is_visible("#canvas")
    with page.expect_download() as started:
        page.click("#vector")
    started.value.save_as(tmp_path / "a.svg")
    assert started.value.suggested_filename == "vertical-stacked-glyph-3.svg"
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert (
        root.get("viewBox") == "0 0 128 128" and root[0].text == "vertical stacked glyph" and '"seed":3' in root[1].text
    )
    assert root[2].get("d") == page.get_attribute("#path", "d") != ""
    page.click("#look")
    assert page.is_visible("#canvas") and not page.is_visible("#outline")
    page.click("#look")


def test_a_chip_draws_and_another_seed_is_one_key(page):
    page.fill("#steps", "1")
    page.click("#chips button:text-is('8')")
    finished(page)
    assert page.input_value("#prompt") == "vertical stacked glyph, 8 strokes"
    assert page.get_attribute("#chips button:text-is('8')", "aria-pressed") == "true"
    before = page.input_value("#seed")
    page.focus("#look")
    page.keyboard.press("r")
    finished(page)
    assert page.input_value("#seed") != before
    page.focus("#prompt")
    page.keyboard.press("r")  # a letter there
    assert page.input_value("#prompt").endswith("strokesr")


def test_nine_images_have_nine_seeds_and_each_can_be_had_alone(page, light, tmp_path):
    job = {"prompt": "single glyph", "seed": 20, "steps": 1, "guidance": 1, "negative": ""}
    for name, value in job.items():
        page.fill(f"#{name}", str(value))
    page.select_option("#images", "9")
    sheet = finished(page, 384)
    last = python_draws(light, job | {"seed": 28})
    assert abs(sheet[256:, 256:] - last).max() <= 2
    page.click("#earlier button >> nth=0")  # the last one drawn
    alone = finished(page)
    np.testing.assert_array_equal(alone, sheet[256:, 256:])
    assert (page.input_value("#seed"), page.input_value("#images")) == ("28", "1")
    assert "seed=28" in page.url and "images=1" in page.url
    assert page.locator("#earlier button").count() <= 18


def test_a_link_is_copied_that_draws_the_image_again(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    draw(page, prompt="single glyph", seed=5, steps=1)
    page.fill("#prompt", "something else")
    page.click("#copy")
    page.wait_for_selector("#status:text-matches('Link copied')")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.endswith("#prompt=single+glyph&negative=&seed=5&steps=1&guidance=1&images=1")


def test_a_picture_can_be_stopped_and_the_next_one_drawn(page):
    page.fill("#steps", "100")
    page.click("#draw")
    page.wait_for_selector("#status:text-matches('^Step')")
    page.click("#draw")
    page.wait_for_selector("#status:text-is('Stopped.')")
    assert page.is_disabled("#download")
    draw(page, steps=1)


def test_the_keyboard_is_enough_and_long_prompts_lose_words_aloud(page):
    page.fill("#steps", "1")
    page.focus("#prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("glyph " * 40 + "tail")
    page.keyboard.press("Enter")
    finished(page)
    assert "these words were lost: glyph" in page.inner_text("#status") and "tail" in page.inner_text("#status")
    seen = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.text"))
    assert {"seed", "dice", "images", "steps", "guidance", "negative", "preview", "draw", "download"} <= seen
    assert {"look", "vector", "copy", "with the water radical", "8 strokes"} <= seen


def test_settings_out_of_range_are_not_drawn(page):
    for name, value in (("steps", "0"), ("steps", "1.5"), ("seed", "-1"), ("seed", "")):
        before = page.input_value(f"#{name}")
        page.fill(f"#{name}", value)
        page.click("#draw")
        assert page.inner_text("#draw") == "Draw" and not page.is_disabled("#draw")
        page.fill(f"#{name}", before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_all_is_named_readable_and_within_the_window(page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    assert faults(page) == {}


def test_a_phone_shows_a_poster_at_once_and_a_link_draws_by_itself(browser, served):
    view = {"width": 360, "height": 740}
    link = "#prompt=vertical+stacked+glyph&seed=5&steps=1"
    page, wrong = opened(browser, served[1], link, viewport=view, color_scheme="dark")
    page.wait_for_selector("#caption:visible")
    assert "Drawn beforehand: “vertical stacked glyph”, seed 0" in page.inner_text("#caption")
    assert page.get_attribute("#path", "d") and page.is_disabled("#draw")
    assert page.locator("#outline").bounding_box()["y"] < 740
    picture = finished(page)
    assert picture.std() > 20 and (page.input_value("#seed"), page.input_value("#guidance")) == ("5", "1")
    assert not page.is_visible("#caption")
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] > 128"
    assert not page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground)
    assert not page.is_visible("#file") and wrong == []


def test_the_page_is_isolated_and_opens_again_without_its_server(browser, served, tmp_path):
    """sw.js sends the headers that threads need, and has kept all that the page loads."""
    folder = shutil.copytree(served[0], tmp_path / "site")
    with serving(folder) as address:
        page, wrong = opened(browser, address, "?threads=2#prompt=single+glyph&seed=1&steps=1")
        page.wait_for_selector(DRAWN)
        if not page.evaluate("crossOriginIsolated"):  # sw.js was late, so the page began without it
            page.reload()
        page.wait_for_selector("#about[data-engine='wasm 2']", state="attached")
        first = finished(page)
        assert page.evaluate("crossOriginIsolated")
        until(page, KEPT)
    page.reload()
    page.wait_for_selector("#about[data-engine]", state="attached")
    np.testing.assert_array_equal(finished(page), first)
    assert not [each for each in wrong if "ERR_CONNECTION_REFUSED" not in each]


@pytest.mark.slow
def test_webgpu_draws_what_python_draws(launch, served, light):
    """On an adapter that the CPU computes, asked for by name."""
    browser = launch("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
    job = {"prompt": "single glyph", "seed": 1, "steps": 2, "guidance": 1, "negative": ""}
    page, wrong = opened(browser, served[1], "?engine=webgpu&threads=1#prompt=single+glyph&seed=1&steps=2")
    if not page.evaluate("navigator.gpu?.requestAdapter().then((adapter) => adapter !== null)"):
        pytest.skip("this Chromium has no WebGPU")
    found = finished(page)
    assert page.get_attribute("#about", "data-engine") == "webgpu 1"
    assert abs(found - python_draws(light, job)).max() <= 3
    assert not [each for each in wrong if "powerPreference" not in each]
    browser.close()


def test_what_is_missing_is_told_in_one_line(browser, served):
    folder = served[0]
    for name in ("runtime/ort-wasm-simd-threaded.wasm", "model/unet/model.onnx", "settings.json"):
        (folder / name).rename(folder / "away")
        try:
            page, _ = opened(browser, served[1], "?threads=1")
            page.wait_for_selector("#status.error")
        finally:
            (folder / "away").rename(folder / name)
        assert name in page.inner_text("#status") and "\n" not in page.inner_text("#status")
        assert page.is_disabled("#draw")
    page = browser.new_page()
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(served[1])
    page.wait_for_selector("#status.error")
    assert "no WebAssembly" in page.inner_text("#status")


def test_a_page_opened_as_a_file_says_what_to_do(browser, served):
    page = browser.new_page()
    page.goto((served[0] / "index.html").as_uri())
    page.wait_for_selector("#file:visible")
    assert "python -m http.server" in page.inner_text("#file")
