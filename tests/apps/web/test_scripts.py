"""The page's JavaScript says what Python says, and does what its files promise, in node."""

import json
import math
import random
import re
import unicodedata
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from browser_page import ask, runtime_at_hand, web
from tiny_model import linear_folder

from ldm.apps.font.vectorize import trace
from ldm.apps.web import site
from ldm.apps.web.examples import chips
from ldm.pipelines.model_folder import resolve_model
from ldm.pipelines.torch_free import open_torch_free, seeded_normal


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


# ---- what only the page does ----------------------------------------------------------------------------------------


def test_a_link_says_all_settings_and_takes_no_others(node):
    code = """
import { fileName, fromHash, toHash } from "./link.js";
const names = [fileName(told), fileName({ prompt: "", seed: 1 })];
console.log(JSON.stringify([fromHash(toHash(told)), fromHash("#seed=5&evil=1"), fromHash(""), ...names]));"""
    job = {"prompt": "a & b = 水 #1", "negative": "", "seed": 2**53 - 1, "steps": 4, "guidance": 2.5, "images": 9}
    again, some, none, name, unnamed = node(code, job | {"preview": True})
    assert again == {name: str(value) for name, value in job.items()}
    assert (some, none, unnamed) == ({"seed": "5"}, {}, "image-1")
    assert name == "a-b-水-1-9007199254740991"


def test_chips_compose_captions(node):
    """A phrase takes the place of another of its group, is added in the captions' order, and goes when chosen again."""
    code = """
import { chosen, compose } from "./chips.js";
let prompt = told.start;
const answer = told.presses.map(([group, text]) => (prompt = compose(prompt, told.chips, group, text)));
console.log(JSON.stringify([answer, told.chips.map((group) => chosen(prompt, group))]));"""
    water, fire = "with the water radical", "with the fire radical"
    presses = [
        (2, "8 strokes"),
        (1, water),
        (0, "glyph enclosed from above"),
        (1, fire),
        (0, "single glyph"),
        (1, fire),
    ]
    prompts, left = node(code, {"start": "", "presses": presses, "chips": chips("glyphs")})
    assert prompts == [
        "glyph, 8 strokes",
        f"glyph {water}, 8 strokes",
        f"glyph enclosed from above {water}, 8 strokes",
        f"glyph enclosed from above {fire}, 8 strokes",
        f"single glyph {fire}, 8 strokes",
        "single glyph, 8 strokes",
    ]
    assert left == ["single glyph", "", "8 strokes"]
    presses = [(2, "above"), (1, fire), (3, "8 strokes"), (2, "below"), (1, fire), (2, "below"), (2, "below")]
    prompts, _ = node(code, {"start": "", "presses": presses, "chips": chips("glyphs", positions=True)})
    assert prompts == [
        f"glyph {water} above",
        f"glyph {fire} above",
        f"glyph {fire} above, 8 strokes",
        f"glyph {fire} below, 8 strokes",
        "glyph, 8 strokes",
        f"glyph {water} below, 8 strokes",
        f"glyph {water}, 8 strokes",
    ]


def rgba(grey: np.ndarray) -> list[int]:
    return np.stack([grey, grey, grey, np.full_like(grey, 255)], -1).ravel().tolist()


def outlined(node, grey: np.ndarray) -> list[np.ndarray]:
    code = """
import { trace } from "./outline.js";
console.log(JSON.stringify(trace(Uint8ClampedArray.from(told.pixels), told.width, told.height)));"""
    height, width = grey.shape
    return [np.array(each) for each in node(code, {"pixels": rgba(grey), "width": width, "height": height})]


def area(points: np.ndarray) -> float:
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def ring(outer: float, inner: float, size: int = 48) -> np.ndarray:
    """An antialiased black ring on white, uint8, its centre off the grid."""
    y, x = np.mgrid[:size, :size] + 0.5
    r = np.hypot(x - 24.3, y - 23.6)
    cover = np.clip(outer - r + 0.5, 0, 1) * np.clip(r - inner + 0.5, 0, 1)
    return np.round(255 * (1 - cover)).astype(np.uint8)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_ring_is_two_circles_outer_clockwise_and_hole_the_other_way(node, inverted):
    grey = ring(15, 7)
    areas = sorted(area(points) for points in outlined(node, 255 - grey if inverted else grey))
    np.testing.assert_allclose(areas, [-math.pi * 7**2, math.pi * 15**2], rtol=0.02)


def test_a_blank_image_has_no_outline(node):
    assert outlined(node, np.full((20, 30), 200, np.uint8)) == []


def test_outlines_are_those_of_python(node, light):
    """The same contours as `ldm.apps.font.vectorize`, but for its sharper corners: areas within 2 %."""
    pytest.importorskip("contourpy")
    grey = light.generate(["horizontal stacked glyph"], [""], 4, 1.0, (0.0, 1.0), 3)[0, ..., 0]
    ours, its = outlined(node, grey), trace(grey).polygons()
    assert len(ours) == len(its)
    found, wanted = (sorted(map(area, polygons)) for polygons in (ours, its))
    np.testing.assert_allclose(found, wanted, rtol=0.05, atol=1.0)
    assert sum(found) == pytest.approx(sum(wanted), rel=0.02)
    assert sum(map(len, ours)) < 1500  # few points: an SVG of some kilobytes


def test_an_svg_is_well_formed_whatever_the_prompt(node):
    code = """
import { path, svg } from "./outline.js";
console.log(JSON.stringify(svg(path([[[0, 0], [1.004, 0], [0.5, 2]]], 64, 0), 128, 64, told, told)));"""
    text = node(code, "a < b & \u0000 c \ud800 ]]> 水")
    root = ElementTree.fromstring(text)
    assert [child.tag.split("}")[1] for child in root] == ["title", "desc", "path"]
    assert root[0].text == "a < b &  c  ]]> 水" and root[2].get("d") == "M64 0L65 0L64.5 2Z"


@pytest.mark.parametrize(
    "adapter, wish, isolated, wanted",
    [
        (None, {}, False, ["wasm 1"]),
        (None, {}, True, ["wasm 4"]),
        (None, {"threads": "2"}, True, ["wasm 2"]),
        (None, {"threads": "2"}, False, ["wasm 1"]),
        ({"info": {}}, {}, True, ["wasm 4"]),
        ({"info": {}}, {"engine": "webgpu"}, False, ["webgpu 1", "wasm 1"]),
        (None, {"engine": "webgpu"}, True, ["wasm 4"]),
    ],
)
def test_the_best_engine_is_tried_first(node, adapter, wish, isolated, wanted):
    code = """
import { engines } from "./engine.js";
const gpu = { requestAdapter: async () => told.adapter };
Object.defineProperty(globalThis, "navigator", { value: { hardwareConcurrency: 16, gpu } });
globalThis.crossOriginIsolated = told.isolated;
WebAssembly.Suspending ??= class {};
const found = await engines({ cpu: {}, gpu: {} }, told.wish);
const none = await engines({ cpu: {}, gpu: null }, told.wish);
console.log(JSON.stringify([found, none].map((list) => list.map((each) => `${each.provider} ${each.threads}`))));"""
    found, without = node(code, {"adapter": adapter, "wish": wish, "isolated": isolated})
    assert found == wanted and without == wanted[-1:]


WORKER = """
import vm from "node:vm";
const kept = new Map();
const asked = [];
let online = true;
const full = (request) => new URL(request.url ?? request, told.scope).href;
const bare = (url) => url.split("?")[0];
const net = async (request) => {
  asked.push(full(request).replace(told.scope, ""));
  if (!online) throw new TypeError("no network");
  return new Response(`of ${full(request)}`, { headers: { "Content-Type": "text/plain" } });
};
const open = async (name) => {
  if (!kept.has(name)) kept.set(name, new Map());
  const held = kept.get(name);
  return {
    match: async (request, { ignoreSearch } = {}) => {
      const same = ([url]) => url === full(request) || (ignoreSearch && bare(url) === bare(full(request)));
      return [...held].find(same)?.[1].clone();
    },
    put: async (request, answer) => void held.set(full(request), answer),
    add: async (request) => void held.set(full(request), await net(request)),
  };
};
const caches = { open, keys: async () => [...kept.keys()], delete: async (name) => kept.delete(name) };
const Request = class { constructor(path) { this.url = full(path); } };
const worker = { registration: { scope: told.scope }, caches, fetch: net, URL, Response, Headers, Request };
vm.runInNewContext(fs.readFileSync("sw.js", "utf8"), worker);
const get = async (path, request = {}) => {
  const waits = [];
  let answer = null;
  worker.onfetch({
    request: { url: full(path), method: "GET", mode: "cors", ...request },
    respondWith: (promise) => { answer = promise; },
    waitUntil: (promise) => waits.push(promise),
  });
  if (answer === null) return null;
  const { headers } = await answer;
  const found = [await (await answer).text(), headers.get("Cross-Origin-Embedder-Policy"), headers.get("Content-Type")];
  await Promise.all(waits);
  return found;
};
"""


def test_the_service_worker_keeps_the_page_and_one_version_of_the_model(node):
    code = (
        WORKER
        + """
kept.set("ldm /other/ model 1", new Map());
const found = {};
await get("main.js");
found.first = await get("model/unet?v=1");
found.again = await get("model/unet?v=1");
await get("model/unet?v=2");
found.kept = [...kept.keys()].sort();
const waits = [];
worker.onmessage({ data: ["runtime/ort.mjs"], waitUntil: (promise) => waits.push(promise) });
await Promise.all(waits);
found.asked = [...asked];
online = false;
const start = await get("?engine=wasm", { mode: "navigate" });
found.offline = [await get("model/unet?v=2"), await get("worker.js"), start].map(([text]) => text);
found.lost = await get("model/other?v=2").catch((error) => error.message);
found.others = [await get("http://elsewhere.test/x"), await get("../x"), await get("x", { method: "POST" })];
console.log(JSON.stringify(found));"""
    )
    scope = "http://here.test/try/"
    found = node(code, {"scope": scope})
    assert found["first"] == found["again"] == [f"of {scope}model/unet?v=1", "require-corp", "text/plain"]
    assert found["kept"] == ["ldm /other/ model 1", "ldm /try/ model 2", "ldm /try/ page"]
    assert found["asked"].count("model/unet?v=1") == 1 and found["asked"].count("worker.js") == 1
    assert "runtime/ort.mjs" in found["asked"]
    assert found["offline"] == [f"of {scope}model/unet?v=2", f"of {scope}worker.js", f"of {scope}"]
    assert found["lost"] == "no network" and found["others"] == [None, None, None]


def test_the_service_worker_knows_all_files_of_the_page():
    listed = re.search(r"FILES = \[(.*?)\]", (site.PAGE / "sw.js").read_text(), re.S)[1]
    own = {path.name for path in site.PAGE.iterdir()} - {"index.html", "README.txt", "sw.js"}
    assert set(re.findall(r'"([^"]+)"', listed)) == own | {"./", "settings.json"}


# ---- the model in ONNX Runtime Web ----------------------------------------------------------------------------------

WHOLE = """
import { Model } from "./model.js";
globalThis.fetch = async (path) => new Response(fs.readFileSync(path.split("?")[0]));
globalThis.crossOriginIsolated = false;
Object.defineProperty(globalThis, "navigator", { value: { hardwareConcurrency: 1 } });
const settings = JSON.parse(fs.readFileSync("settings.json", "utf8"));
const heard = { loading: [], preparing: [] };
const told_ = { loading: (share) => heard.loading.push(share), preparing: (share) => heard.preparing.push(share) };
const model = await Model.load(settings, {}, told_);
const { pixels, lost } = await model.draw(told, async () => {});
console.log(JSON.stringify({ pixels: [...pixels], lost, ...heard }));"""


def test_a_model_of_128_pixels_over_an_autoencoder_tiny_is_drawn(tmp_path):
    """12 latent channels of 16 x 16: nothing in the page is of one size or of one autoencoder."""
    found = runtime_at_hand()
    if found is None:
        pytest.skip("onnxruntime-web is not here: `ldm web` fetches it into cache/")
    folder = linear_folder(tmp_path / "model")
    out = tmp_path / "site"
    web(folder, "-o", out, "--runtime", found)
    job = {"prompt": "water", "negative": "fire", "seed": 3, "steps": 3, "guidance": 2.5}
    answer = ask(out, WHOLE, job)
    wanted = open_torch_free(resolve_model(folder)).generate(["water"], ["fire"], 3, 2.5, (0.0, 1.0), 3)
    assert wanted.shape == (1, 128, 128, 1) and wanted.std() > 5
    pixels = np.array(answer["pixels"]).reshape(128, 128, 4)
    assert (pixels[..., 3] == 255).all() and abs(pixels[..., :3] - wanted[0].astype(int)).max() <= 2
    for shares in (answer["loading"], answer["preparing"]):
        assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert len(answer["preparing"]) == 3
