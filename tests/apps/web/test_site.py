"""The page that draws in the browser: its JavaScript says what Python says, and Chromium draws what Python draws."""

import functools
import http.server
import json
import random
import re
import shutil
import subprocess
import tarfile
import threading
import unicodedata
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import COSINE, tiny_folder

from ldm.apps.web import runtime, site
from ldm.cli import generate
from ldm.cli.main import build_parser
from ldm.cli.web import run as write
from ldm.pipelines.image_metadata import read_png
from ldm.pipelines.model_folder import resolve_model
from ldm.pipelines.torch_free import open_torch_free, seeded_normal
from ldm.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
MODEL = "glyphs-fast"


def web(*words):
    args = ["web", *map(str, words)]
    return write(build_parser(args).parse_args(args))


@pytest.fixture(scope="module")
def light():
    return open_torch_free(resolve_model(MODEL))


# ---- JavaScript beside Python ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """(code, told) -> what the code, which may import the page's modules, prints as JSON about `told`."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no node is installed")
    folder = shutil.copytree(site.PAGE, tmp_path_factory.mktemp("node") / "page")
    (folder / "package.json").write_text('{"type": "module"}')

    def ask(code, told):
        head = 'import fs from "node:fs"; const told = JSON.parse(fs.readFileSync(0, "utf8"));\n'
        (folder / "ask.js").write_text(head + code)
        done = subprocess.run([program, "ask.js"], cwd=folder, input=json.dumps(told), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


def strings(count: int) -> list[str]:
    """Odd and ordinary prompts: words, capitals, contractions, scripts, marks, spaces, special tokens, long ones."""
    chance = random.Random(0)
    assigned = [chr(c) for c in range(0x2FFFF) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    scripts = [assigned[:190], assigned, [chr(c) for c in range(0x370, 0x500) if chr(c) in set(assigned[:2000])]]
    words = ["horizontal", "stacked", "Glyph", "it's", "WE'LL", "'re", "don't", "ΣΑΣ", "İstanbul", "e\u0301", "한국"]
    words += ["<|startoftext|>", "<|endoftext|>", "<|EndOfText|>", "<|", "½", "2024", "水", "🦊🔥", "...", "a_b", "ﬁ"]
    spaces = [" ", " ", "  ", "\t\n", "\x85", "\u3000", "\ufeff", "\u2028", "\xa0", "\u200b", ""]
    found = ["", " ", "x" * 300, "a b " * 40]
    while len(found) < count:
        pieces = [
            chance.choice(words)
            if chance.random() < 0.5
            else "".join(chance.choices(chance.choice(scripts), k=chance.randint(1, 9)))
            for _ in range(chance.randint(1, 8))
        ]
        found.append("".join(piece + chance.choice(spaces) for piece in pieces))
    return found


@pytest.mark.parametrize("model", ["glyphs", "digits"])
def test_prompts_become_the_same_tokens(node, model):
    light, prompts = open_torch_free(resolve_model(model)), strings(3000)
    words = json.loads((resolve_model(model).paths["tokenizer"] / "tokenizer.json").read_text(encoding="utf-8"))
    how = {"length": light.tokenizer.padding["length"], "pad": light.tokenizer.padding["pad_token"]}
    code = """
import { Tokenizer } from "./tokenizer.js";
const tokenizer = new Tokenizer(told.words, told.how);
console.log(JSON.stringify(told.prompts.map((prompt) => tokenizer.encode(prompt))));"""
    found = node(code, {"words": words, "how": how, "prompts": prompts})
    wanted = light.tokenizer.encode_batch(prompts)
    wrong = [(p, f["ids"], w.ids) for p, f, w in zip(prompts, found, wanted, strict=True) if f["ids"] != w.ids]
    assert not wrong, (len(wrong), wrong[:3])
    assert all(w.overflowing for f, w in zip(found, wanted, strict=True) if f["lost"])
    assert found[3]["lost"] == ("a b " * 40)[how["length"] // 2 * 4 - 4 :].strip()


def test_noise_is_that_of_the_seed(node):
    asked = [(seed, size) for seed in (0, 7, 2**31, 2**32 + 5, 2**53 - 1) for size in (16, 17, 105, 1024)]
    code = """
import { standardNormal } from "./noise.js";
console.log(JSON.stringify(told.map((each) => [...standardNormal(...each)])));"""
    for (seed, size), found in zip(asked, node(code, asked), strict=True):
        np.testing.assert_allclose(found, seeded_normal(seed, (size,)), atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize("order", [1, 2])
def test_the_sampler_walks_the_same_way(node, light, order, shift):
    """Every number of steps up to 60, with a network whose answer depends on x and the time."""
    light = replace(light, scheduler=light.scheduler | {"solver_order": order, "flow_shift": shift})
    noise = seeded_normal(0, (16,))
    code = """
import { levels, walk } from "./sampler.js";
const answer = [];
for (let steps = 1; steps <= 60; steps++) {
  const predict = async (x, t) => x.map((value) => Math.sin(3 * value) + t / 1000);
  const x = await walk(predict, Float32Array.from(told.noise), { ...told, steps });
  answer.push([...Object.values(levels(steps, told)), [...x]]);
}
console.log(JSON.stringify(answer));"""
    found = node(code, {"noise": noise.tolist(), "order": order, "count": 1000, "shift": shift})
    for steps, (sigmas, timesteps, x) in enumerate(found, 1):
        levels, wanted = light._levels(steps)
        assert timesteps == wanted and sigmas == [level.sigma for level in levels]
        end = light._denoise(lambda x, t: np.sin(3 * x) + np.float32(t / 1000), noise, steps, None)
        np.testing.assert_allclose(x, end, atol=2e-5)


def test_timesteps_are_the_same_for_every_number_of_steps(node, light):
    code = """
import { levels } from "./sampler.js";
console.log(JSON.stringify(Array.from({ length: 1000 }, (_, i) => levels(i + 1, told).timesteps)));"""
    for steps, found in enumerate(node(code, {"count": 1000, "shift": light._shift}), 1):
        assert found == light._levels(steps)[1]


def test_pixels_have_the_alpha_of_the_decoder_or_are_opaque(node):
    code = """
import { Model } from "./model.js";
const found = [];
for (const [channels, values] of told) {
  const data = Float32Array.from(values);
  const vae = { run: async () => ({ picture: { data, dims: [1, channels, 1, 2] } }) };
  const model = Object.assign(new Model(), { vae, settings: { scale: 1, shape: [1] }, tensor: () => null });
  found.push([...(await model.decode(data))]);
}
console.log(JSON.stringify(found));"""
    clear = [1, -1, -1, 0, 0, 1, 1, -1]  # red and opaque, then blue, half green and clear
    found = node(code, [[1, [-1, 1]], [3, [1, -1, -1, 0, 0, 1]], [4, clear]])
    assert found[0] == [0, 0, 0, 255, 255, 255, 255, 255]
    assert found[1] == [255, 0, 128, 255, 0, 128, 255, 255]
    assert found[2] == [255, 0, 128, 255, 0, 128, 255, 0]


# ---- the folder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path):
    """A folder with files that have the names of onnxruntime-web's."""
    folder = tmp_path / "node_modules" / runtime.PACKAGE / "dist"
    folder.mkdir(parents=True)
    for name in runtime.FILES:
        (folder / name).write_bytes(name.encode())
    return tmp_path / "node_modules"


def test_the_folder_holds_all_that_the_page_loads_and_names_no_other_place(tmp_path, fake, capsys):
    out = tmp_path / "site"
    assert web(MODEL, "-o", out, "--runtime", fake) == 0
    assert "http.server" in capsys.readouterr().out
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert all((out / each["path"]).stat().st_size == each["bytes"] for each in settings["files"])
    named = {settings["words"]}
    for network in settings["networks"].values():
        named |= {network["graph"], *network["weights"]}
    assert named < {each["path"] for each in settings["files"]}
    assert {"LICENSE", "ThirdPartyNotices.txt", *runtime.FILES} == {path.name for path in (out / "runtime").iterdir()}
    assert (settings["picture"], settings["steps"], settings["model"]) == ([1, 64, 64], 4, MODEL)
    for path in site.PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("xmlns='http://www.w3.org/2000/svg'", "")
        assert not re.search(r"(https?:)?//\w", re.sub(r"(?m)(^|\s)// .*$", "", text)), path
        assert (out / path.name).read_bytes() == path.read_bytes()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', (out / "index.html").read_text())[1]
    allowed = {word for rule in policy.split(";") for word in rule.split()[1:]}
    assert policy.startswith("default-src 'none'") and allowed == {"'none'", "'self'", "'wasm-unsafe-eval'", "data:"}


def test_a_page_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path, fake):
    out = tmp_path / "site"
    web("digits", "-o", out, "--runtime", fake)
    (out / "left over").touch()
    web(MODEL, "-o", out, "--runtime", fake)
    assert json.loads((out / "settings.json").read_text())["model"] == MODEL and not (out / "left over").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    with pytest.raises(UserError, match="no earlier page"):
        web(MODEL, "-o", tmp_path / "mine", "--runtime", fake)
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"


def test_no_path_of_this_machine_gets_into_the_page(tmp_path, fake):
    folder = shutil.copytree(resolve_model("digits").paths["unet"].parent, tmp_path / "secret")
    web(folder, "-o", tmp_path / "site", "--runtime", fake)
    assert "secret" not in (tmp_path / "site" / "settings.json").read_text()


def test_what_cannot_be_drawn_there_is_told_in_one_line(tmp_path, fake):
    plain = tiny_folder(tmp_path / "plain")
    cosine = shutil.copytree(resolve_model("digits").paths["unet"].parent, tmp_path / "cosine")
    other = tiny_folder(tmp_path / "other", COSINE) / "scheduler" / "scheduler_config.json"
    shutil.copy(other, cosine / "scheduler" / "scheduler_config.json")
    words = (
        shutil.copytree(resolve_model("digits").paths["unet"].parent, tmp_path / "words")
        / "tokenizer"
        / "tokenizer.json"
    )
    words.write_text(json.dumps(json.loads(words.read_text()) | {"normalizer": None}))
    (tmp_path / "file").touch()
    for model, out, where, said in (
        (tmp_path / "nowhere", "site", fake, "there is no folder"),
        (plain, "site", fake, "model.onnx is missing: write the model again with `ldm export`"),
        (cosine, "site", fake, "rectified flow"),
        (words.parent.parent, "site", fake, "those of CLIP"),
        (MODEL, "site", tmp_path / "none", "--runtime .* name a folder of onnxruntime-web"),
        (MODEL, "file", fake, "is a file"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            web(model, "-o", tmp_path / out, "--runtime", where)
        assert "\n" not in str(caught.value) and not (tmp_path / "site").exists()


# ---- the runtime ----------------------------------------------------------------------------------------------------


def test_the_runtime_is_found_in_a_folder_or_in_node_modules_above(tmp_path, fake, monkeypatch):
    dist = fake / runtime.PACKAGE / "dist"
    for named in (fake, dist.parent, dist):
        assert runtime.find_runtime(str(named)) == dist
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert runtime.find_runtime() == dist


def test_without_npm_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"neither is npm to fetch it: `npm install onnxruntime-web@\S+` .* --runtime"):
        runtime.find_runtime()


def false_npm(tmp_path, monkeypatch, code):
    """An npm of our own, with sh; the machine's is not asked."""
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\n{code}\n")
    script.chmod(0o755)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")


def test_npm_without_a_network_is_told_in_one_line(tmp_path, monkeypatch):
    false_npm(tmp_path, monkeypatch, "echo 'npm error code EAI_AGAIN\nnpm error no network' >&2; exit 1")
    with pytest.raises(UserError, match=r"npm could not fetch it \(no network\)") as caught:
        runtime.find_runtime()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tested", [True, False])
def test_npm_fills_the_cache_with_the_tested_files_only(tmp_path, fake, monkeypatch, tested):
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as archive:
        archive.add(fake / runtime.PACKAGE, "package")
    if tested:
        monkeypatch.setattr(runtime, "FILES", {name: sha256(name.encode()).hexdigest() for name in runtime.FILES})
    shutil.move(fake, tmp_path / "away")
    false_npm(tmp_path, monkeypatch, f"cp {tmp_path}/made.tgz onnxruntime-web.tgz")
    if tested:
        assert sorted(path.name for path in runtime.find_runtime().iterdir()) == sorted(runtime.FILES)
        shutil.rmtree(tmp_path / "bin")
        assert runtime.find_runtime() == runtime.CACHE  # now without npm
    else:
        with pytest.raises(UserError, match="another ort.wasm.bundle.min.mjs than the tested one"):
            runtime.find_runtime()
        assert not runtime.CACHE.exists()


# ---- Chromium -------------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page of a shipped model on a loopback server: (folder, address)."""
    found = runtime._within(ROOT / runtime.CACHE) or runtime._within(ROOT / "node_modules")
    if found is None:
        pytest.skip("onnxruntime-web is not here: `ldm web` fetches it into cache/")
    out = tmp_path_factory.mktemp("web") / "site"
    web(MODEL, "-o", out, "--runtime", found)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=out))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield out, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium is installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser, served, query="", **options):
    """A page, and the list of what it complains of and asks elsewhere."""
    page, wrong = browser.new_page(**options), []
    page.set_default_timeout(120_000)
    page.on(
        "console",
        lambda message: (
            wrong.append(f"{message.text} {message.location}") if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((served[1], "blob:", "data:")) else wrong.append(asked.url),
    )
    page.goto(served[1] + query)
    return page, wrong


@pytest.fixture(scope="module")
def page(browser, served):
    """A page with its model loaded, and then without any network."""
    found, wrong = opened(browser, served)
    found.wait_for_selector("#draw:enabled, #status.error")
    assert found.inner_text("#status") == "Ready."
    found.context.set_offline(True)
    yield found
    assert wrong == []


def draw(page, **settings) -> np.ndarray:
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))
    page.click("#draw")
    return finished(page)


def finished(page) -> np.ndarray:
    page.wait_for_selector("#download:enabled, #status.error")
    code = "(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    pixels = np.array(page.locator("#canvas").evaluate(code), np.uint8).reshape(64, 64, 4)
    assert (pixels[..., 3] == 255).all() and (pixels[..., :1] == pixels[..., :3]).all()
    return pixels[..., 0].astype(int)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "horizontal stacked glyph", "seed": 0, "steps": 4, "guidance": 1, "negative": ""},
        {"prompt": "", "seed": 2**40 + 3, "steps": 2, "guidance": 1, "negative": ""},
        {"prompt": "Glyph of WATER, 'enclosed' 水", "seed": 7, "steps": 3, "guidance": 2.5, "negative": "fire"},
    ],
)
def test_chromium_draws_what_python_draws(page, light, settings):
    found = draw(page, **settings)
    told = (settings["steps"], float(settings["guidance"]), (0.0, 1.0), settings["seed"])
    wanted = light.generate([settings["prompt"]], [settings["negative"]], *told)[0, ..., 0].astype(int)
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
    np.testing.assert_array_equal(pixels, shown.repeat(8, 0).repeat(8, 1))
    job = read_png(tmp_path / "a.png")
    wanted = {"model": MODEL, "prompt": "vertical stacked glyph", "negative": None, "seed": 3, "steps": 4, "scale": 8}
    assert job == wanted | {"guidance": 1, "grid": "1x1", "interval": [0, 1], "digest": resolve_model(MODEL).digest()}
    args = build_parser(["generate"]).parse_args(["generate", "--from", str(tmp_path / "a.png")])
    args.output = str(tmp_path / "b.png")
    generate.run(args)
    with Image.open(tmp_path / "b.png") as again:
        assert abs(np.asarray(again, int) - pixels).max() <= 2


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
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
    assert {"seed", "dice", "steps", "guidance", "negative", "preview", "draw", "download"} <= seen


def test_settings_out_of_range_are_not_drawn(page):
    for name, value in (("steps", "0"), ("steps", "1.5"), ("seed", "-1"), ("seed", "")):
        before = page.input_value(f"#{name}")
        page.fill(f"#{name}", value)
        page.click("#draw")
        assert page.inner_text("#draw") == "Draw" and not page.is_disabled("#draw")
        page.fill(f"#{name}", before)


def test_a_phone_shows_it_all_light_or_dark_and_a_link_draws_by_itself(browser, served):
    view = {"width": 360, "height": 740}
    link = "#prompt=vertical+stacked+glyph&seed=5&steps=1"
    page, wrong = opened(browser, served, link, viewport=view, color_scheme="dark")
    picture = finished(page)
    assert picture.std() > 20 and (page.input_value("#seed"), page.input_value("#guidance")) == ("5", "1")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] > 128"
    assert not page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground)
    assert not page.is_visible("#file") and wrong == []


def test_what_is_missing_is_told_in_one_line(browser, served):
    folder = served[0]
    for name in ("runtime/ort-wasm-simd-threaded.wasm", "model/unet/model.onnx", "settings.json"):
        (folder / name).rename(folder / "away")
        try:
            page, _ = opened(browser, served)
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
