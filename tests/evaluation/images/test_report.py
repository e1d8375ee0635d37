"""`ldm evaluate` of one's own pictures: measures whose right answer is known, and the whole on a tiny run."""

import argparse
import json
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from ldm.cli import evaluate as command
from ldm.data import build
from ldm.evaluation.images import in_words, one_word, samples
from ldm.evaluation.images import report as pictures
from ldm.evaluation.images.r_precision import r_precision, words_section
from ldm.evaluation.run_loading import open_run
from ldm.hub.export import export
from ldm.hub.metrics_in_words import rows
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.models.lora import Adapter, save_lora
from ldm.pipelines import model_folder
from ldm.utils.errors import UserError
from tests.tiny_run import COLOURS, data_options, ldm_settings, train_clip, train_ldm, train_vae, write_pictures

NAMES = list(COLOURS)


def uniform(colours, side=16):
    """Pictures of one colour each: uint8 (n, side, side, 3)."""
    return np.tile(np.array(colours, np.uint8)[:, None, None], (1, side, side, 1))


class Knowing:
    """A judge that knows colours: the feature of a picture, and of a caption, is the number of its colour."""

    digest = "d"

    def __call__(self, images, captions):
        known = np.array([COLOURS[name] for name in NAMES])
        seen = np.abs(images.mean((1, 2))[:, None] - known).sum(2).argmin(1)
        told = [NAMES.index(caption.split()[1]) for caption in captions]
        return torch.eye(len(NAMES))[seen], torch.eye(len(NAMES))[told]


@pytest.fixture(scope="module")
def asked():
    """Captions, and pictures of what they say."""
    names = [NAMES[i % 4] for i in range(80)]
    return [f"a {name} bar" for name in names], uniform([COLOURS[name] for name in names])


def test_pictures_of_what_was_asked_for_get_the_ceiling_and_dealt_captions_the_floor(asked):
    captions, real = asked
    found = words_section(real, real, captions, Knowing())
    assert found["share"] == found["ceiling"] == 1 and found["candidates"] == 4 and found["n"] == 80
    assert found["floor"] == pytest.approx(1 / 4, abs=0.05)
    low, high = found["interval"]
    assert low == pytest.approx(80 / (80 + 1.96**2), abs=1e-3) and high == 1  # Wilson of 80 out of 80


def test_pictures_of_other_captions_get_nothing_and_half_of_them_half(asked):
    captions, real = asked
    other = np.roll(real, 1, axis=0)  # never the colour that was asked for
    assert words_section(other, real, captions, Knowing())["share"] == 0
    half = np.concatenate([real[:40], other[40:]])
    assert words_section(half, real, captions, Knowing())["share"] == 0.5


def test_pictures_without_a_caption_are_left_out_and_one_caption_is_none(asked):
    captions, real = asked
    some = ["" if i < 8 else caption for i, caption in enumerate(captions)]
    assert words_section(real, real, some, Knowing())["n"] == 72
    assert words_section(real, real, ["a red bar"] * 80, Knowing()) is None


def test_of_many_captions_a_hundred_are_compared_and_chance_is_one_in_a_hundred():
    rng = np.random.default_rng(0)
    scores, own = rng.normal(size=(4000, 300)), rng.integers(300, size=4000)
    assert r_precision(scores, own).mean() == pytest.approx(0.01, abs=0.005)
    scores[np.arange(4000), own] = scores.max() + 1
    assert r_precision(scores, own).all()
    assert not r_precision(np.ones((3, 5)), np.arange(3)).any()  # a constant judge tells nothing


CORPUS = ["a red heart", "a blue heart", "a blue star", "the red heart", "smile"]


def test_a_word_is_replaced_by_one_between_the_same_neighbours_and_real_captions_come_first():
    found = one_word.changes(["a red heart", "a blue star", "smile", ""], CORPUS, 9)
    assert [(change.item, change.old, change.new) for change in found[:2]] == [
        (0, "red", "blue"),
        (1, "star", "heart"),
    ]
    assert len(found) == 2 and found[0].caption == "a blue heart"  # no other one-word caption, and no 'a' -> 'the'
    unseen = one_word.changes(["a green heart"], CORPUS, 9)[0]
    assert unseen.new in ("red", "blue") and unseen == one_word.changes(["a green heart"], CORPUS, 9)[0]
    many = one_word.changes([f"a {name} heart" for name in "pqrstuvw"], CORPUS, 3)
    assert [change.item for change in many] == [0, 4, 7]  # evenly chosen


def test_images_that_follow_a_word_do_so_and_those_that_do_not_are_left_behind(asked):
    captions, real = asked
    made = one_word.changes(captions, captions, 40)
    by_caption = dict(zip(captions, real))
    right = np.stack([by_caption[change.caption] for change in made])
    found = one_word.section(made, captions, real, right, by_caption, Knowing())
    assert found["n"] == 40 and found["share"] == found["ceiling"] == 1 and found["floor"] == 0.5
    assert found["unchanged"] == 0 and found["pixels"] == 1  # one colour everywhere
    deaf = one_word.section(made, captions, real, real[[change.item for change in made]], {}, Knowing())
    assert deaf["share"] == 0 and deaf["pixels"] == 0 and deaf["ceiling"] is None
    half = real[:4].copy()
    half[:, :8] = 255 - half[:, :8]
    assert one_word.changed_pixels(real[:4], half) == 0.5


def likeness(ours, real, blurred, error):
    names = {"drawn": ours, "training": real, "blurred": blurred}
    return {column: {"fd": {"value": value, "error": error}} for column, value in names.items()}


def test_a_measure_that_cannot_tell_real_images_from_blurred_ones_says_nothing():
    assert in_words.between(likeness(15, 10, 30, 1), "fd") == "75% of the way from blurred to real"
    assert in_words.between(likeness(31, 10, 30, 1), "fd") == "no better than blurred real images"
    assert in_words.between(likeness(9, 10, 30, 1), "fd") == "100% of the way from blurred to real"
    assert in_words.between(likeness(15, 10, 30, 10), "fd").startswith("says nothing")
    assert in_words.between(likeness(15, 30, 10, 1), "fd").startswith("says nothing")  # the wrong way round


@pytest.mark.parametrize(
    "share, low, n, said",
    [
        (0.3, 0.2, 200, "57% of the way from chance to real images"),
        (0.3, 0.02, 200, "no better than chance"),
        (0.3, 0.2, 32, "small"),
    ],
)
def test_a_verdict_on_words_needs_an_interval_above_chance_and_enough_images(share, low, n, said):
    found = {"share": share, "n": n, "interval": [low, 0.4], "ceiling": 0.5, "floor": 0.04, "candidates": 100}
    assert said in in_words.words_line("new caption", found)


def test_real_images_that_the_clip_does_not_know_are_no_reference():
    unknown = np.eye(4)[[1, 2, 3, 0, 1, 2, 3, 0]]  # features of eight images, none like its own caption
    captions, own = [str(i % 4) for i in range(8)], np.eye(4)[[0, 1, 2, 3] * 2]
    features = {True: own, False: unknown}

    def clip(images, texts):
        return torch.tensor(features[bool(images.any())]), torch.tensor(own)

    good, bad = np.ones((8, 1, 1, 1), np.uint8), np.zeros((8, 1, 1, 1), np.uint8)
    found = words_section(good, bad, captions, clip)
    assert found["share"] == 1 and found["ceiling"] == 0 and found["weak"]
    said = in_words.words_line("new caption", found | {"n": 200})
    assert said.endswith("real images reach too little by this measure to compare with") and "above real" not in said
    assert not words_section(good, good, captions, clip)["weak"]


def test_a_copied_training_picture_is_found_among_new_ones():
    rng = np.random.default_rng(0)
    train, held, drawn = (rng.normal(size=(n, 8)) for n in (500, 300, 100))
    drawn[:7] = train[40:47] + 1e-6
    index, distance = pictures.nearest_features(drawn, train)
    brute = np.linalg.norm(drawn[:, None] - train, axis=2)
    assert (index == brute.argmin(1)).all() and index[:7].tolist() == list(range(40, 47))
    np.testing.assert_allclose(distance, brute.min(1), rtol=1e-6)
    found = pictures.novelty_section(distance, pictures.nearest_features(held, train)[1])
    assert 0.07 <= found["near_copies"]["share"] <= 0.09  # and of the new ones 1% on average
    unseen = pictures.novelty_section(*[pictures.nearest_features(held, train)[1]] * 2)
    assert unseen["near_copies"]["share"] < 0.011


def test_real_pictures_are_as_like_as_training_ones_and_others_are_not():
    rng = np.random.default_rng(0)
    train, held, other = rng.normal(size=(600, 6)), rng.normal(size=(100, 6)), rng.normal(size=(100, 6))
    found = pictures.likeness_section(other, held, train)
    assert abs(found["drawn"]["kid"]["value"] - found["training"]["kid"]["value"]) < 0.1
    assert found["training"]["generated"] == 100  # as many: distances depend on sizes
    away = pictures.likeness_section(other + 2, held, train)
    assert away["drawn"]["kid"]["value"] > 10 * abs(away["training"]["kid"]["value"]) + 1
    assert away["drawn"]["coverage"]["value"] < 0.5 < away["training"]["coverage"]["value"]
    assert pictures.likeness_section(other[:10], held, train) is None


def test_coarse_colours_are_the_means_of_fields():
    black, white = uniform([(0, 0, 0), (255, 255, 255)])
    left = np.concatenate([white[:, :8], black[:, 8:]], axis=1)
    found = pictures.coarse_colours(np.stack([black, white, left])).reshape(3, 8, 8, 3)
    assert (found[0] == -1).all() and (found[1] == 1).all()
    assert (found[2, :, :4] == 1).all() and (found[2, :, 4:] == -1).all()
    assert pictures.coarse_colours(left[None, ..., :1]).shape == (1, 64)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_vision_model_that_is_named_comes_before_the_others(tmp_path, channels):
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    eye = pictures.feature_extractor_of(str(tmp_path), Knowing())
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, channels), dtype=np.uint8)
    assert eye.name == "Dinov2Model" and eye.embed(images).shape == (3, 16)


def test_in_pixel_space_nothing_is_lost(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    found = pictures.autoencoder_section(IdentityAutoencoder(3), images, tmp_path)
    assert found["psnr"]["value"] == 99 and found["ssim"]["value"] == 1 and found["rate"]["bits_per_pixel"] == 24


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A CLIP that has learned the four colours, a VAE, and two models: one told the words, and one without."""
    folder = tmp_path_factory.mktemp("own")
    write_pictures(folder / "pictures")
    splits = build(data_options(folder))
    train_clip(folder, splits)
    train_vae(folder, splits, steps=60)
    train_ldm(ldm_settings(folder, steps=30, text={"source": "run"}, model=small()), splits)
    plain = {"output_dir": folder / "plain" / "ldm", "vae": str(folder / "vae"), "text": {"source": "none"}}
    train_ldm(ldm_settings(folder, steps=4, model=small(), **plain), splits)
    return folder


def small():
    return {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_levels": [1], "heads": 2}


def evaluate(run, output, *words):
    """The metrics that the command leaves."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["evaluate", str(run), "-o", str(output), "--steps", "2", *words])
    assert command.run(args) == 0
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))


def test_a_run_on_ones_own_pictures_is_measured_by_them(project, tmp_path, capsys):
    metrics = evaluate(project / "ldm", tmp_path, "--quick")
    out = capsys.readouterr().out
    said = out[out.index("seen caption  ") :].splitlines()
    assert "of 4 images are nearer to their own caption than to 3 others" in said[0] and "chance " in said[0]
    assert "new caption   " in said[1] and "of 32 images are nearer to their own caption than to 3 others" in said[1]
    assert said[2].startswith("one word      ") and "chance 50%" in said[2] and "of the pixels change" in said[2]
    assert said[3] == (
        "likeness      no verdict on FD, KID, precision, recall and coverage: n = 32 is too small, 100 are needed "
        "(--samples)"
    )
    assert "a linear map to 4 numbers for each 2 x 2 patch" in out and "gains: red-cyan 1.00" in out
    assert metrics["likeness"] is None and metrics["one_word"]["ceiling"] > 0.9 and metrics["one_word"]["n"] == 32
    assert metrics["settings"]["samples"] == 32 == metrics["words"]["n"] and metrics["words"]["candidates"] == 4
    for words in (metrics["words"], metrics["seen_words"]):
        assert words["ceiling"] > 0.9 and words["floor"] < 0.4 and not words["weak"]  # the judge knows real pictures
    assert any("guided the model" in text for text in metrics["notes"]) and metrics["features"]["name"] == "CLIP"
    assert metrics["autoencoder"]["psnr"]["value"] > 35 and "near copies " in out and "{" not in out
    quoted = rows(metrics)
    assert metrics["settings"]["guidance_scale"] == 2 and "%" not in quoted["ssim"]
    assert (
        "real images " in quoted["own_caption_first"]
        and {"seen_caption_first", "follows_one_word", "near_copies", "psnr", "ssim"} <= quoted.keys()
    )
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 4 and "http" not in text
    assert text.count("<h3>") == 5 and text.index("Do they show captions of training?") < text.index("data:image/png")
    with Image.open(tmp_path / "drawn.png") as sheet:
        assert sheet.width == 8 * (128 + 4)


@pytest.mark.parametrize("source, guides", [("run", True), ("new", False), ("none", False), ("{clip}", True)])
def test_a_judge_is_said_to_have_guided_the_model_where_it_has(project, source, guides):
    opened = open_run(project / "ldm")
    text = opened.settings.text.model_copy(update={"source": source.format(clip=project / "clip")})
    opened.settings = opened.settings.model_copy(update={"text": text})
    judge, found = pictures.clip_embedder_of(opened, None)
    assert judge is not None and found is guides
    assert pictures.clip_embedder_of(opened, project / "clip" / "final")[1] is guides  # under another name too


def test_a_model_that_draws_the_held_out_pictures_gets_what_they_get(project, tmp_path, monkeypatch):
    held = open_run(project / "ldm").data.validation
    images = pictures.stacked(held, range(len(held)))
    captions = [held.caption(i, np.random.default_rng(0)) for i in range(len(held))]

    def real(pipeline, prompts, seeds, options):
        return np.stack([images[i if captions[i] == p else captions.index(p)] for p, i in zip(prompts, seeds)])

    monkeypatch.setattr(samples, "generate_pixels", real)
    monkeypatch.setattr(pictures, "FEW", 20)
    metrics = evaluate(project / "ldm", tmp_path)
    assert metrics["one_word"]["share"] == metrics["one_word"]["ceiling"] == 1
    assert metrics["one_word"]["unchanged"] == 0 and 0 < metrics["one_word"]["pixels"] < 0.9
    standing = in_words.between(metrics["likeness"], "precision")  # the features of so small a CLIP depend on the CPU
    assert standing.startswith(("100% of the way", "says nothing: it cannot tell blurred images from real ones"))
    assert "real images" in rows(metrics)["kid"]
    assert metrics["words"]["share"] == metrics["words"]["ceiling"] and metrics["words"]["n"] == len(held)
    drawn, training = (metrics["likeness"][name] for name in ("drawn", "training"))
    assert drawn["fd"]["value"] == pytest.approx(0, abs=1e-6) and drawn["coverage"]["value"] == 1
    assert training["fd"]["value"] > 0 and metrics["novelty"]["near_copies"]["share"] == 0


def test_a_model_without_words_is_measured_without_them(project, tmp_path):
    metrics = evaluate(project / "plain" / "ldm", tmp_path, "--samples", "24")
    assert metrics["words"] is None and metrics["one_word"] is None and "own_caption_first" not in metrics["summary"]
    assert metrics["features"]["name"] == "colours at 8 x 8" and metrics["likeness"] is None
    assert any("is unconditional" in text for text in metrics["notes"])
    judged = evaluate(project / "plain" / "ldm", tmp_path, "--samples", "4", "--clip", str(project / "clip"))
    assert judged["features"]["name"] == "CLIP" and judged["likeness"] is None
    assert not any("guided" in text for text in judged["notes"])


def test_a_model_is_no_better_than_itself_by_name_or_by_report(project, tmp_path, capsys):
    first = evaluate(project / "ldm", tmp_path / "first", "--samples", "8")
    for rival in (project / "ldm", tmp_path / "first"):
        metrics = evaluate(project / "ldm", tmp_path / "again", "--samples", "8", "--against", str(rival))
        found = metrics["against"]["sections"]
        assert found["words"]["own_caption_first"]["verdict"] == "no difference seen"
        assert found["one_word"]["follows_one_word"]["difference"]["value"] == 0
        assert found["seen_words"]["seen_caption_first"]["difference"]["value"] == 0
        assert metrics["against"]["a"]["digest"] == first["model"]["digest"]
        assert "against       " in capsys.readouterr().out
    with pytest.raises(UserError, match="made by another plan"):
        evaluate(project / "ldm", tmp_path / "other", "--samples", "6", "--against", str(tmp_path / "first"))


def test_nothing_is_generated_of_a_rival_where_nothing_can_be_scored(monkeypatch):
    monkeypatch.setattr(pictures, "generate_all", lambda *args: pytest.fail("generated"))
    rival = SimpleNamespace(pipeline=SimpleNamespace(digest="d"))
    found = pictures.against({}, rival, None, SimpleNamespace(against="runs/other"), None)
    assert found == {"a": {"source": "runs/other", "digest": "d"}, "sections": {}}


@pytest.mark.usefixtures("no_graphs")
def test_an_exported_model_has_no_pictures_beside_it_and_says_so_at_once(project, tmp_path):
    folder = export(project / "ldm", tmp_path / "model")
    started = time.process_time()
    with pytest.raises(UserError, match="evaluate the run that it was exported from"):
        evaluate(folder, tmp_path / "report")
    assert time.process_time() - started < 1 and not (tmp_path / "report").exists()


@pytest.mark.usefixtures("no_graphs")
def test_an_exported_model_on_the_hub_is_told_apart_too(project, tmp_path, monkeypatch):
    folder = export(project / "ldm", tmp_path / "model")
    monkeypatch.setattr(model_folder, "pull", lambda repo, revision, files, leaving: folder)
    with pytest.raises(UserError, match="someone/model was trained on pictures, images that"):
        evaluate("someone/model", tmp_path / "report")


def test_an_unfinished_run_on_other_pictures_by_now_says_so(project, tmp_path):
    write_pictures(tmp_path / "pictures")
    shutil.copytree(project / "ldm", tmp_path / "ldm", ignore=shutil.ignore_patterns("final"))
    settings = (
        (project / "ldm" / "config.yaml").read_text().replace(str(project / "pictures"), str(tmp_path / "pictures"))
    )
    (tmp_path / "ldm" / "config.yaml").write_text(settings)
    for part in ("clip", "vae"):
        (tmp_path / part).symlink_to(project / part)
    metrics = evaluate(tmp_path / "ldm", tmp_path / "same", "--samples", "4")
    assert not any("have changed" in text for text in metrics["notes"])
    Image.new("RGB", (16, 16), "red").save(tmp_path / "pictures" / "000.png")
    metrics = evaluate(tmp_path / "ldm", tmp_path / "other", "--samples", "4", "--batch", "3")
    assert any("have changed" in text for text in metrics["notes"])


def test_adapters_change_what_is_drawn(project, tmp_path):
    out, into = open_run(project / "ldm").pipeline.unet.conv_in.weight.shape[:2]
    down, up = torch.ones(2, into, 3, 3), torch.ones(out, 2, 1, 1)
    lora = save_lora({"unet.conv_in": Adapter(down, up)}, tmp_path / "lora").parent
    plain, other, none = (
        evaluate(project / "ldm", tmp_path / "report", "--samples", "4", *words)
        for words in ((), ("--lora", f"{lora}"), ("--lora", f"{lora}:0"))
    )
    assert plain["model"]["digest"] != other["model"]["digest"] and other["model"]["lora"] == str(lora)
    assert plain["novelty"]["median_drawn"] == none["novelty"]["median_drawn"] != other["novelty"]["median_drawn"]


@pytest.mark.parametrize(
    "words, said", [(("--against", "models/glyphs"), "--against"), (("--quick", "--samples", "9"), "--samples 32")]
)
def test_what_does_not_apply_is_refused(project, tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        evaluate(project / "ldm", tmp_path, *words)


def test_pictures_that_are_gone_are_told_of(project, tmp_path):
    (tmp_path / "ldm").mkdir()
    settings = (project / "ldm" / "config.yaml").read_text().replace(str(project / "pictures"), str(tmp_path / "gone"))
    (tmp_path / "ldm" / "config.yaml").write_text(settings)
    (tmp_path / "ldm" / "final").symlink_to(project / "ldm" / "final")
    with pytest.raises(UserError, match="gone does not exist"):
        evaluate(tmp_path / "ldm", tmp_path / "report")


def test_what_went_on_from_a_glyph_model_is_one(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {source: mine}\nldm: {start: {model: models/glyphs-fast}}\n")
    assert command.source_of(tmp_path) == "glyphs" == command.source_of("glyphs")
    (tmp_path / "config.yaml").write_text("data: {source: mine}\nldm: {start: {model: digits}}\n")
    assert command.source_of(tmp_path) == "mine" and command.source_of("models/digits") == "digits"
    (tmp_path / "config.yaml").write_text(f"data: {{source: mine}}\nldm: {{start: {{model: {tmp_path}}}}}\n")
    assert command.source_of(tmp_path) == "mine"  # and no endless search
    (tmp_path / "config.yaml").write_text("data: {source: mine}\nldm: [1]\n")
    assert command.source_of(tmp_path) == "mine"
