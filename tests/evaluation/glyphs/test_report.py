"""`ldm evaluate` end to end on a tiny random model, and its sections on drawings whose answer is known."""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from page_checks import chromium
from PIL import Image

from ldm.cli.evaluate import add_parser, run
from ldm.config.settings import DataOptions, GlyphOptions
from ldm.evaluation.comparison import SCORES
from ldm.evaluation.glyphs import report, sections
from ldm.evaluation.glyphs.prompts import COMPOSITION, RECOMBINED, SECTIONS, PromptSpec, glyph_prompts
from ldm.evaluation.glyphs.samples import (
    SET,
    GeneratedSet,
    ModelResults,
    Plan,
    Reference,
    generate_section,
    glyph_images,
    styles_of,
)
from ldm.pipelines.generation import SamplingOptions, generate_pixels
from ldm.utils.errors import UserError
from tests.tiny_model import tiny_folder, tiny_lora, tiny_pipeline

pytest.importorskip("pylopdf_fonts_zh_cn")
pytest.importorskip("rapidocr")


@pytest.fixture(scope="module")
def options(glyph_cache):
    return DataOptions(resolution=64, cache_dir=glyph_cache, glyphs=GlyphOptions(limit=150))


def reference_of(options):
    model = SimpleNamespace(image_shape=(1, 64, 64), defaults={}, folder=None)
    return Reference(model, options)


@pytest.fixture(scope="module")
def reference(options):
    return reference_of(options)


def scored(reference, samples):
    """What `generate_and_score` would give for these images."""
    predictions = {name: reference.scorer(part.images) for name, part in samples.items()}
    scores = {name: reference.scorer.scores(predictions[name], part.specs) for name, part in samples.items()}
    return ModelResults("digest", samples, predictions, scores)


def of_split(data, section="layout", count=30):
    """Real glyphs as if they had been drawn for a prompt with their layout."""
    metas = [data.meta(i) for i in range(count)]
    asked = [PromptSpec(section, m["structure"], layout=m["structure"]) for m in metas]
    return GeneratedSet(asked, np.arange(count) % 3, glyph_images(data, range(count)))


def test_real_glyphs_agree_with_their_layout_and_not_with_others(reference):
    found = scored(reference, {"layout": of_split(reference.both["train"])})
    measured = sections.adherence_section(found, "layout", reference)["measures"]["layout"]
    assert measured["value"] >= 0.85 and measured["ceiling"] >= 0.8 and measured["floor"] < measured["value"] - 0.2
    low, high = measured["interval"]
    assert low <= measured["value"] <= high and measured["sets"]["seeds"] == 3
    assert np.mean(measured["sets"]["each"]) == pytest.approx(measured["value"], abs=1e-4)


def test_real_glyphs_are_read_as_the_character_that_is_asked_for_and_not_as_another(reference):
    test = reference.own["test"]
    asked = [PromptSpec("named", row.char, codepoint=row.codepoint) for row, *_ in test.items]
    images = glyph_images(test)
    read, sets = reference.reader.read(images), np.arange(len(asked)) % 3
    own = sections.reading_section(GeneratedSet(asked, sets, images), read, reference)
    assert own["as_described"]["value"] == own["as_described"]["ceiling"] > 0.5
    assert own["readable"]["value"] == own["readable"]["ceiling"] > 0.5
    other = sections.reading_section(GeneratedSet(asked[2:] + asked[:2], sets, images), read, reference)
    assert other["as_described"]["value"] == 0 and other["readable"] == own["readable"]


def test_an_interval_of_nothing_but_ones_is_not_empty():
    assert sections._interval(np.ones(30), None)["interval"][0] == pytest.approx(0.886, abs=1e-3)  # Wilson, 30 of 30
    assert sections._interval(np.zeros(30), np.arange(30) // 3)["interval"][1] == pytest.approx(0.278, abs=1e-3)


def test_training_glyphs_are_copies_and_unseen_characters_are_not(reference, tmp_path):
    found = scored(reference, {"layout": of_split(reference.both["train"])})
    read = {"layout": reference.reader.read(found.samples["layout"].images)}
    section = sections.novelty_section(found, read, reference, tmp_path)
    assert section["generated"]["copies"]["share"] == 1
    assert section["generated"]["new_and_well_formed"]["share"] == 0
    assert section["real_unseen"]["copies"]["share"] <= 0.2 and (tmp_path / "nearest.png").is_file()


def test_real_glyphs_are_nearer_to_real_glyphs_than_spoiled_ones(options):
    more = options.model_copy(update={"glyphs": GlyphOptions(limit=1500, styles=["hei"])})
    reference = reference_of(more)
    section = sections.fidelity_section(of_split(reference.own["validation"], "character", 80), reference)
    for found in section.values():
        assert found["generated"]["kid"]["value"] < found["ceiling"]["halves exchanged"]["kid"]["value"]
        assert len(found["digest"]) == 16


def test_each_picture_has_its_prompt_and_its_seed():
    class Sketch:
        def __call__(self, prompts, generator, **more):
            self.prompts, self.seeds, self.more = prompts, [each.initial_seed() for each in generator], more
            return SimpleNamespace(images=np.ones((len(prompts), 4, 4, 3), np.float32))

    sampling = SamplingOptions(steps=7, guidance=2.5, batch_size=3, interval=(0.3, 0.8))
    sketch, plan = Sketch(), Plan(samples=6, seed=5, sampling=sampling)
    part = generate_section(sketch, "pair", plan)
    prompts = [one.prompt for one in glyph_prompts(("pair",))]
    assert sketch.prompts == prompts * 3 and sketch.seeds == [5] * 15 + [5 + SET] * 15 + [5 + 2 * SET] * 15
    assert sketch.more["num_inference_steps"] == 7 and sketch.more["guidance_scale"] == 2.5
    assert sketch.more["guidance_interval"] == (0.3, 0.8) and plan.as_json()["interval"] == [0.3, 0.8]
    assert sampling.over({"name": "x"}) == {
        "num_inference_steps": 7, "guidance_scale": 2.5, "guidance_interval": (0.3, 0.8)
    }  # fmt: skip
    defaults = {"num_inference_steps": 9, "guidance_scale": 4.0, "guidance_interval": [0, 1]}
    assert SamplingOptions().over(defaults) == defaults and "interval" not in SamplingOptions().as_json()
    assert (
        part.images.shape == (45, 4, 4) and part.images.dtype == np.uint8 and part.prompts.tolist() == [*range(15)] * 3
    )
    generate_section(sketch, "character", plan)
    assert len(sketch.seeds) == len(set(sketch.seeds)) == 3 * 42  # no two of them share their noise


def test_a_quick_report_of_composition_has_about_a_hundred_images():
    plan = Plan(samples=9)
    assert sum(3 * plan.per_prompt[name] * len(plan.prompts(name)) for name in RECOMBINED) <= 100
    assert all(len(plan.prompts(name)) >= 4 for name in COMPOSITION)


def test_a_report_from_before_is_compared_in_what_it_has():
    from ldm.evaluation.comparison import compare_scores

    ours = {"pair": {"radical": np.ones(4), "both": np.ones(4)}, "later": {"radical": np.zeros(4)}}
    found = compare_scores({"pair": {"radical": np.zeros(4)}}, ours)
    assert found.keys() == {"pair"} and found["pair"].keys() == {"radical"}


def test_a_wrong_setting_is_said_in_one_line():
    with pytest.raises(UserError, match="num_inference_steps"):
        generate_pixels(tiny_pipeline(), ["a"], [0], SamplingOptions(steps=0))


def test_the_styles_are_those_that_the_model_was_taught():
    def model(training):
        return SimpleNamespace(defaults={"training": training}, folder=None)

    assert styles_of(model({"config": "data: {glyphs: {styles: [song]}}"})) == ["song"]
    assert styles_of(model({"config": "data: {source: photos}"})) == styles_of(model(None)) == ["hei", "song"]


def test_clip_ranks_real_characters_above_shuffled_ones(reference):
    """With features that are one-hot of the prompt, everything is found at once; with constant ones, nothing is."""
    data = reference.own["test"]
    asked = [PromptSpec("character", f"p{i}", codepoint=ord(data.meta(i)["char"])) for i in range(len(data))]
    asked = list({one.codepoint: one for one in asked}.values())
    part = GeneratedSet(asked * 3, np.repeat(range(3), len(asked)), np.zeros((3 * len(asked), 4, 4), np.uint8))

    def told(images, prompts):
        codes = torch.nn.functional.one_hot(torch.tensor([int(p[1:]) for p in prompts]), 99).float()
        return codes, codes

    told.digest = "d"
    section = sections.clip_section(part, reference, told)
    assert section["cosine"]["value"] == section["cosine"]["ceiling"] == 1 and section["cosine"]["floor"] < 0.3
    assert (
        section["recall"]["text_to_image_recall@1"]["mean"] == section["recall_of_real"]["text_to_image_recall@1"] == 1
    )


def parse(*words):
    import argparse

    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["evaluate", *words])


@pytest.fixture(scope="module")
def reports(tmp_path_factory, options):
    """A tiny random model evaluated, in part against its own report, and with adapters against the plain model."""
    folder, same = tmp_path_factory.mktemp("reports"), {}
    model = tiny_folder(folder / "model")

    def real(*words):  # glyphs, the same for all three: they are measured once
        if not same:
            same["reference"] = Reference(*words)
        return same["reference"]

    def evaluate(name, *words):
        args = parse(str(model), "--samples", "2", "--steps", "1", "-o", str(folder / name), *words)
        with pytest.MonkeyPatch.context() as patch:  # few glyphs, or rendering them would take a minute
            patch.setattr(report, "DataOptions", lambda cache_dir: options)
            patch.setattr(report, "Reference", real)
            run(args)
        return json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))

    first = evaluate("first")
    return (
        folder,
        first,
        evaluate("second", "--against", str(folder / "first"), "--sections", "pair", "radical", "style"),
        evaluate("third", "--lora", f"{tiny_lora(folder)}:0.5", "--against", str(model)),
    )


def test_the_whole_report_of_a_tiny_random_model(reports):
    folder, metrics, *_ = reports
    saved = json.loads((folder / "first" / "metrics.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(metrics))
    for name, section in saved["adherence"].items():
        for found in section["measures"].values():
            assert {"value", "interval", "ceiling", "floor", "sets"} <= found.keys(), name
    assert saved["adherence"].keys() == {*SECTIONS, *COMPOSITION} and saved["text"].keys() == {"pair", "later"}
    assert {"layout", "radical", "both"} <= saved["adherence"]["later"]["measures"].keys()
    assert {"layout", "components", "both"} <= saved["adherence"]["place"]["measures"].keys()
    assert saved["adherence"]["place"]["not_scored"] and saved["adherence"]["pair"]["real_characters"]
    assert saved["fidelity"].keys() == saved["judges"].keys() == {"glyph encoder", "OCR"}
    assert saved["reading"].keys() == {"character", "named"} and "named_both" in saved["summary"]
    assert saved["summary"]["layout"]["value"] == saved["adherence"]["layout"]["measures"]["layout"]["value"]
    text = (folder / "first" / "index.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 12 and "src='data:" in text and "http" not in text
    assert text.count("<h3>") == 5 and text.index("<h3>") < text.index("data:image/png") < text.index("<h2>")
    assert not {"ceiling", "floor"} & {*text.lower().split()}
    with Image.open(folder / "first" / "layout.png") as page:
        assert page.width == 16 * 22  # its pictures are 16 pixels wide


def test_a_model_is_no_better_than_its_own_report(reports):
    found = reports[2]["against"]["sections"]
    assert found.keys() == {"pair", "radical", "style"}
    assert {m["verdict"] for section in found.values() for m in section.values()} == {"no difference seen"}
    assert all(m["difference"]["value"] == 0 for section in found.values() for m in section.values())


def test_the_effect_of_adapters_is_measured_against_the_model_without_them(reports):
    folder, plain, *_, found = reports
    assert found["model"]["lora"] == f"{folder / 'lora'}:0.5" and found["against"]["a"] == {
        name: plain["model"][name] for name in ("source", "digest")
    }
    assert found["model"]["digest"] not in (plain["model"]["digest"], "")
    measures = [m["difference"]["value"] for section in found["against"]["sections"].values() for m in section.values()]
    assert any(value != 0 for value in measures)
    page = (folder / "third" / "index.html").read_text(encoding="utf-8")
    assert f"with {folder / 'lora'}:0.5" in page and "Against the other model" in page


def test_the_report_opens_in_a_browser(reports, tmp_path):
    """Headless Chromium renders it at the width of a phone: nothing is wider than the screen, no picture is broken."""
    probe = (
        "<script>onload = () => { document.title = [document.documentElement.scrollWidth <= innerWidth, "
        "[...document.images].every(i => i.naturalWidth > 0), document.querySelectorAll('table').length].join(' ') }"
        "</script>"
    )
    page = tmp_path / "page.html"
    page.write_text((reports[0] / "third" / "index.html").read_text(encoding="utf-8") + probe, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    command = [
        chromium(),
        *options,
        f"--user-data-dir={tmp_path}/user",
        "--window-size=420,900",
        "--dump-dom",
        page.as_uri(),
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=600).stdout
    fits, whole, tables = said.split("<title>")[1].split("</title>")[0].split()
    assert (fits, whole) == ("true", "true") and int(tables) >= 10


def test_wrong_arguments_end_in_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for words in (
        ["--samples", "0"],
        ["--seed", "-1"],
        ["--batch", "0"],
        ["--quick", "--samples", "3"],
        ["-o", str(file)],
        ["--against", str(tmp_path / "nothing"), "--samples", "1"],
    ):
        with pytest.raises(UserError) as caught:
            run(parse(*words))
        assert "\n" not in str(caught.value), words
    assert not (tmp_path / SCORES).exists()


def test_what_a_run_has_logged_becomes_curves_beside_the_loss_at_every_time(tmp_path, monkeypatch):
    from ldm.evaluation.glyphs.report_page import plots
    from ldm.evaluation.html import render

    rows = [{"step": s, "ema/loss": 1 / (1 + s), "ema/gap": s / 9, "raw/loss": 3} for s in (0, 10, 20)]
    rows += [{"step": 30, "loss": 0.5}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    known = {name: {"mean": 0.25, "standard_error": 0.01} for name in ("train", "validation", "gap")}
    stretch = known | {"zero": 2.0, "mean": 1.5, "linear": 1.25}
    measured = {"all": stretch, "bins": [{"from": 0.0, "to": 1.0, **stretch}], "items": {"train": 14}}
    asked = []
    monkeypatch.setattr(sections.loss_by_time, "measure_run", lambda run, plan, device: asked.append(plan) or measured)
    section = sections.learning_section(tmp_path, Plan(samples=2), None)
    assert section["curves"] == {
        "loss": [(0, 1.0), (10, 1 / 11), (20, 1 / 21)],
        "gap": [(0, 0), (10, 10 / 9), (20, 20 / 9)],
    }
    assert asked[0].limit == 14 and section["bins"] == measured["bins"]
    assert plots(section["curves"]).keys() == {"loss", "gap"}
    shown = render("glyphs/learning.html.j2", tmp_path, learning=section, plots=plots)
    assert shown.count("<svg") == 2 and "0.00 to 1.00" in shown and "1.250" in shown and "shuffled" not in shown
