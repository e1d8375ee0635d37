"""`ldm web`: the folder that it writes, and where it finds ONNX Runtime Web."""

import json
import re
import shutil
import tarfile
from hashlib import sha256

import numpy as np
import pytest
from browser_page import MODEL, web
from PIL import Image
from tiny_model import COSINE, linear_folder, tiny_folder

from ldm.apps.web import runtime, site
from ldm.data.glyphs import captions
from ldm.pipelines.image_metadata import read_png
from ldm.pipelines.model_folder import resolve_model
from ldm.utils.errors import UserError

# ---- the folder -----------------------------------------------------------------------------------------------------


def test_the_folder_holds_all_that_the_page_loads_and_names_no_other_place(tmp_path, fake, capsys):
    out = tmp_path / "site"
    assert web(MODEL, "-o", out, "--runtime", fake) == 0
    assert "http.server" in capsys.readouterr().out
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert all((out / each["path"]).stat().st_size == each["bytes"] for each in settings["files"])
    named = {settings["words"]}
    for network in settings["networks"].values():
        named |= {network["graph"], *network["weights"]}
    assert named == {each["path"] for each in settings["files"]}
    assert {"LICENSE", "ThirdPartyNotices.txt", *runtime.FILES} == {path.name for path in (out / "runtime").iterdir()}
    for name, (module, wasm) in {"cpu": runtime.CPU, "gpu": runtime.GPU}.items():
        size = (out / "runtime" / wasm).stat().st_size
        wanted = {"module": f"runtime/{module}", "wasm": {"path": f"runtime/{wasm}", "bytes": size}}
        assert settings["runtimes"][name] == wanted
    assert (settings["picture"], settings["steps"], settings["model"]) == ([1, 128, 128], 4, MODEL)
    for path in site.PAGE.iterdir():
        text = re.sub(r"""xmlns=['"]http://www.w3.org/2000/svg['"]""", "", path.read_text(encoding="utf-8"))
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


def test_posters_are_what_the_model_generates_and_say_with_what(tmp_path, fake, light):
    web(MODEL, "-o", tmp_path / "site", "--runtime", fake)
    settings = json.loads((tmp_path / "site" / "settings.json").read_text(encoding="utf-8"))
    assert [poster["prompt"] for poster in settings["posters"]] == settings["prompts"] != []
    for poster in settings["posters"]:
        how = (settings["steps"], settings["guidance"], tuple(settings["interval"]), poster["seed"])
        wanted = light.generate([poster["prompt"]], [""], *how)[0, ..., 0]
        with Image.open(tmp_path / "site" / poster["path"]) as image:
            np.testing.assert_array_equal(np.asarray(image), wanted)
        job = read_png(tmp_path / "site" / poster["path"])
        assert (job["prompt"], job["seed"], job["model"]) == (poster["prompt"], poster["seed"], MODEL)


def test_the_version_changes_with_any_file_that_is_kept(tmp_path, fake):
    versions = []
    for content in (b"one", b"two"):
        (fake / runtime.PACKAGE / "dist" / runtime.CPU[1]).write_bytes(content)
        web(MODEL, "-o", tmp_path / "site", "--runtime", fake)
        versions.append(json.loads((tmp_path / "site" / "settings.json").read_text(encoding="utf-8"))["version"])
    assert len(set(versions)) == 2


def test_without_the_files_for_webgpu_the_page_does_without(tmp_path, fake):
    (fake / runtime.PACKAGE / "dist" / runtime.GPU[1]).unlink()
    web(MODEL, "-o", tmp_path / "site", "--runtime", fake)
    assert json.loads((tmp_path / "site" / "settings.json").read_text(encoding="utf-8"))["runtimes"]["gpu"] is None
    assert not (tmp_path / "site" / "runtime" / runtime.GPU[0]).exists()


def test_a_colour_model_of_128_pixels_gets_a_page_of_its_own(tmp_path, fake):
    """With an AutoencoderTiny of 12 latent channels; what is said of glyphs is not said of it."""
    folder = linear_folder(tmp_path / "model", channels=3, prompts=("water", "fire"))
    web(folder, "-o", tmp_path / "site", "--runtime", fake)
    settings = json.loads((tmp_path / "site" / "settings.json").read_text(encoding="utf-8"))
    assert (settings["picture"], settings["shape"], settings["scale"]) == ([3, 128, 128], [12, 16, 16], 2.5)
    assert (settings["outline"], settings["chips"], settings["prompts"]) == (False, [], ["water", "fire"])
    assert "128 x 128" in settings["hint"] and "character" not in settings["title"] + settings["hint"]
    with Image.open(tmp_path / "site" / settings["posters"][1]["path"]) as image:
        assert image.size == (128, 128) and image.mode == "RGB"


def test_chips_are_phrases_of_the_captions_with_their_signs():
    layouts, radicals, strokes = site.chips("glyphs")
    known = {phrase for _, phrase, _ in captions.STRUCTURES.values()}
    assert {each["text"] for each in layouts["phrases"]} <= known
    assert radicals["phrases"][0] == {"text": captions.radical_phrase(85), "label": "水 water"}
    assert all(re.fullmatch(r"[1-9]\d* strokes", each["text"]) for each in strokes["phrases"])
    assert site.chips("emoji") == site.chips(None) == []


def test_positions_are_offered_where_the_captions_have_them():
    *_, places, _ = site.chips("glyphs", positions=True)
    assert [each["text"] for each in places["phrases"]] == ["on the left", "on the right", "above", "below"]
    assert "positions" in site.labels("glyphs", [1, 128, 128], True)["hint"]
    assert "position" not in site.labels("glyphs", [1, 64, 64])["hint"]


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
