"""`ldm evaluate` end to end on a tiny random model, and its counting on drawings whose answer is known."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.config import DataOptions, GlyphOptions
from ldm.data.glyphs import splits as glyph_splits
from ldm.errors import UserError
from ldm.evaluation import report
from ldm.evaluation.adherence import add_parser, run
from ldm.evaluation.glyph_classifier import GlyphClassifier

pytest.importorskip("pylopdf_fonts_zh_cn")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return DataOptions(resolution=64, cache_dir=cache, glyphs=GlyphOptions(styles=["hei"], limit=150))


@pytest.fixture(scope="module")
def splits(options):
    return glyph_splits(options)


def obedient(data):
    """A drawing function that answers a layout phrase with real glyphs of that layout (or any, where there is none)."""
    from ldm.data.captions import layout_phrase

    images = [data.image(i)[..., 0] for i in range(len(data))]
    phrases = [layout_phrase(data.meta(i)["structure"]) for i in range(len(data))]

    def draw(prompt, count):
        fitting = [image for image, phrase in zip(images, phrases, strict=True) if phrase == prompt] or images
        return np.stack([fitting[i % len(fitting)] for i in range(count)])

    return draw


def test_real_glyphs_agree_with_their_own_layout(splits, tmp_path):
    section, pictures = report.layout_section(obedient(splits["train"]), 24, GlyphClassifier(), tmp_path)
    for structure in ("horizontal", "vertical"):
        assert section[structure]["agreement"]["share"] >= 0.9
        low, high = section[structure]["agreement"]["interval"]
        assert low < section[structure]["agreement"]["share"] <= high
        assert sum(section[structure]["judgements"].values()) == 24 == len(pictures[structure])
        assert section[structure]["classifier_on_real"]["glyphs"] > 100
    assert "other" not in section and section["below"]["judged_as"] == "enclosed"
    with Image.open(tmp_path / "layout-horizontal.png") as page:
        assert page.size == (16 * 70, 2 * 70)


def test_drawing_the_wrong_layout_is_seen(splits, tmp_path):
    draw = obedient(splits["train"])
    section, _ = report.layout_section(lambda p, n: draw("vertical stacked glyph", n), 24, GlyphClassifier(), tmp_path)
    assert section["horizontal"]["agreement"]["share"] <= 0.1


def test_training_glyphs_are_copies_and_unseen_characters_are_not(splits, tmp_path):
    train = splits["train"]
    section = report.novelty_section(
        {"horizontal": np.stack([train.image(i)[..., 0] for i in range(5)])}, splits, tmp_path
    )
    assert section["generated"]["copies"]["share"] == 1 and section["real_unseen"]["copies"]["share"] <= 0.2
    assert section["distinct"]["share"] == 1
    same = np.stack([train.image(0)[..., 0]] * 4)
    assert report.novelty_section({"horizontal": same}, splits, tmp_path)["distinct"]["share"] == 0.25


def test_the_whole_report_of_a_tiny_random_model(options, tmp_path):
    pytest.importorskip("rapidocr")
    from tests.tiny_model import tiny_pipeline

    pipeline = tiny_pipeline()
    plan = report.Plan(samples=2, radical_samples=2, radicals=2, reconstructions=4)
    metrics = report.evaluate(pipeline, plan, tmp_path, options)
    saved = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(metrics))
    assert saved["summary"]["classifier_layout_accuracy"] == GlyphClassifier().card["test"]["layout"]
    assert len(saved["radicals"]) == 2 and saved["vae"]["images"] == 4
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    for picture in ("layout-horizontal.png", "reconstructions.png", "nearest.png"):
        assert (tmp_path / picture).is_file() and picture in text


def test_the_plan_reaches_the_pipeline():
    asked = {}

    def pipeline(prompt, **options):
        asked.update(options, prompt=prompt)
        return type("Output", (), {"images": np.ones((2, 4, 4, 1), np.float32)})

    plan = report.Plan(seed=7, steps=5, guidance=2.5, batch=3)
    assert (report.drawer(pipeline, plan)("a", 2) == 255).all()
    assert asked == {"prompt": "a", "num_images_per_prompt": 2, "seed": 7, "num_inference_steps": 5} | {
        "guidance_scale": 2.5,
        "batch_size": 3,
        "output_type": "np",
    }


def parse(*words):
    import argparse

    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["evaluate", *words])


def test_wrong_arguments_end_in_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for words in (
        ["--samples", "0"],
        ["--radical-samples", "0"],
        ["--seed", "-1"],
        ["--batch", "0"],
        ["-o", str(file)],
    ):
        with pytest.raises(UserError) as caught:
            run(parse(*words))
        assert "\n" not in str(caught.value)
