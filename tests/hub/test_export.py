"""Export and push: a self-contained folder, a truthful card, one commit."""

import argparse
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_model import tiny_folder
from transformers import CLIPTokenizer

from ldm.cli import hub as commands
from ldm.evaluation.diagnostics.environment import check_model
from ldm.hub import push as hub
from ldm.hub.export import export
from ldm.hub.metrics_in_words import KNOWN, rows, sentence
from ldm.hub.model_card import _public, subject, training_facts
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.model_folder import resolve_model
from ldm.utils.errors import UserError
from ldm.utils.untrusted_files import read_json


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("hub") / "model")


def call(*argv) -> int:
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers())
    args = parser.parse_args(list(map(str, argv)))
    return args.run(args)


def test_a_run_begun_with_an_included_model_names_the_runs_that_made_that_model(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("data: {source: glyphs}\nldm: {start: {model: glyphs}}\n")
    made = read_json(resolve_model("glyphs").paths["unet"].parent / "ldm.json")["training"]["runs"]
    monkeypatch.chdir(tmp_path)  # by its name, from anywhere
    runs = training_facts(tmp_path)["runs"]
    assert runs["before"] == made["ldm"] and runs["clip"] == made["clip"] and runs["vae"] == made["vae"]


# ---- export --------------------------------------------------------------------------------------------------------


def finished_run(model, runs):
    """A run as the trainers leave it, with two older runs beside it."""
    run = runs / "ldm"
    shutil.copytree(model, run / "final")
    for name in ("model_index.json", "ldm.json"):
        (run / "final" / name).unlink()
    (run / "config.yaml").write_text(
        "name: demo\noutput_dir: /home/someone/runs\n"
        "data: {source: /home/someone/photos, cache_dir: /home/someone/cache}\n"
        "train: {num_steps: 100, batch_size: 32}\n"
        "ldm:\n  sampling: {num_inference_steps: 5, guidance_scale: 2.0, prompts: [a red cat]}\n"
        "  vae: run\n  text: {source: run}\n"
    )
    (run / "versions.json").write_text('{"torch": "2.13.0", "machine": "secret-host", "hardware": "Fast CPU, 2 cores"}')
    lines = [{"step": 50, "images_per_second": 16.0}, {"step": 100, "images_per_second": 8.0}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    (runs / "vae").mkdir()
    (runs / "vae" / "config.yaml").write_text("train: {num_steps: 70, batch_size: 16}\n")
    return run


def test_an_export_draws_like_its_run_and_says_where_it_comes_from(tmp_path, model, capsys):
    run = finished_run(model, tmp_path / "runs")
    out = tmp_path / "models" / "demo"
    assert call("export", run, "-o", out) in (None, 0)
    assert f"{out}: 18 files" in capsys.readouterr().out
    exported = load_pipeline(out)
    assert exported.defaults["num_inference_steps"] == 5 and exported.defaults["name"] == "demo"
    ours, theirs = (each("a", seed=0, output_type="pt").images for each in (exported, load_pipeline(run)))
    torch.testing.assert_close(ours, theirs)
    assert [path.name for path in out.parent.iterdir()] == ["demo"]  # no staging folder left
    card = (out / "README.md").read_text()
    for truth in (
        "# demo",
        "| ldm | 100 | 32 | 5.0 | Fast CPU, 2 cores | 1.67 Wh |",  # 5 minutes of 2 cores at 10 W
        "No licence was chosen",
        "| vae | 70 | 16 |",
        "a red cat",
        "`photos`",
        "torch 2.13.0",
    ):
        assert truth in card, truth
    for secret in ("/home/someone", "secret-host"):
        assert secret not in card + (out / "ldm.json").read_text()


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize(
    ("text", "task", "said"),
    [
        ("none", "unconditional-image-generation", "it ignores prompts"),
        ("open_clip:ViT-B-32/some", "text-to-image", "the text encoder of `open_clip:ViT-B-32/some`"),
        ("run", "text-to-image", "A text-conditioned latent diffusion model, trained from scratch"),
    ],
)
def test_a_card_says_where_the_words_come_in(model, tmp_path, text, task, said):
    run = finished_run(model, tmp_path / "runs")
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("text: {source: run}", f"text: {{source: '{text}'}}")
    )
    card = (export(run, tmp_path / "out") / "README.md").read_text()
    assert f"pipeline_tag: {task}\n" in card and said in card
    shown = 4 if text == "none" else 1
    assert card.count("url: gallery/") == shown and card.count("- text: '-'") == (shown if text == "none" else 0)


@pytest.mark.parametrize("part", ["vae", "ldm"])
def test_what_a_part_was_fine_tuned_from_is_named_without_its_folder(part):
    text = _public({part: {"start": {"model": "/home/someone/photos"}}})
    assert "model: photos" in text and "someone" not in text
    assert "model: user/name" in _public({part: {"start": {"model": "user/name"}}})


def test_the_folder_is_stock(model, tmp_path):
    out = export(model, tmp_path / "out")
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline" and index["requires_safety_checker"] is False
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"] and index["safety_checker"] == [None, None]
    keys = load_file(out / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in keys)
    config = json.loads((out / "text_encoder" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (512, 513, 513)
    assert not [path for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert not any("_name_or_path" in path.read_text() for path in (tmp_path / "out").glob("*/config.json"))


def test_the_tokenizer_is_there_as_transformers_4_reads_it(model, tmp_path):
    """Its class takes vocab.json and merges.txt; that such a folder gives the same images was tried with 4.57."""
    out = export(model, tmp_path / "out")
    digest = resolve_model(out).digest()
    prompts = ["water glyph", "it's 12 (strokes)!", "caf\u00e9 \u6c34", ""]
    wanted = CLIPTokenizer.from_pretrained(out / "tokenizer")(prompts).input_ids
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(out / "tokenizer" / name, tmp_path)
    assert CLIPTokenizer.from_pretrained(tmp_path)(prompts).input_ids == wanted
    (out / "tokenizer" / "vocab.json").unlink()
    assert resolve_model(out).digest() == digest  # it is there once more in tokenizer.json


@pytest.mark.usefixtures("no_graphs")
def test_an_export_records_its_digest_and_the_doctor_sees_a_changed_file(model, tmp_path, monkeypatch):
    out = export(model, tmp_path / "out")
    recorded = json.loads((out / "ldm.json").read_text())["digest"]
    assert recorded == load_pipeline(out).digest
    monkeypatch.setattr("ldm.pipelines.model_folder.shipped_model", lambda: out)
    assert check_model().status == "ok" and f"{recorded} as recorded" in check_model().text
    half = export(out, tmp_path / "half", dtype="fp16")  # from an export: its own digest, not the old one
    assert json.loads((half / "ldm.json").read_text())["digest"] == load_pipeline(half).digest != recorded
    settings = out / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text().replace("1000", "900"))
    assert check_model().status == "fail" and recorded in check_model().text


@pytest.mark.usefixtures("no_graphs")
def test_half_precision_halves_the_weights_and_still_loads_with_stock_defaults(model, tmp_path):
    from diffusers import DiffusionPipeline

    out = export(model, tmp_path / "half", dtype="fp16")
    small, large = ((f / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size for f in (out, model))
    assert 0.45 < small / large < 0.65  # the header does not shrink
    stock = DiffusionPipeline.from_pretrained(out)
    assert {stock.unet.dtype, stock.text_encoder.dtype, stock.vae.dtype} == {torch.float32}
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"latents": latents, "num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}
    stock.set_progress_bar_config(disable=True)
    half, theirs = load_pipeline(out)("a", **options).images, stock("a", **options).images
    assert (half - theirs).abs().max() <= 2 / 255
    assert (half - load_pipeline(model)("a", **options).images).abs().max() <= 3 / 255


@pytest.mark.usefixtures("no_graphs")
def test_exporting_again_replaces_the_export_and_keeps_what_was_recorded(model, tmp_path):
    run = finished_run(model, tmp_path / "runs")
    out = export(run, tmp_path / "out")
    Image.new("L", (4, 4)).save(out / "sheet.png")
    metrics = tmp_path / "metrics.json"
    share = {"share": 0.953, "interval": [0.91, 0.98], "n": 128}
    metrics.write_text(json.dumps({"summary": {"horizontal": share, "radicals_mean": 0.5, "vae": None}, "other": 3}))
    export(out, out, metrics=metrics)
    card = (out / "README.md").read_text()
    assert "![images generated by this model](sheet.png)" in card and "| ldm | 100 | 32 | 5.0 |" in card
    assert "- horizontal: **95.3%** (95% interval 91.0% to 98.0%, n = 128).\n" in card
    assert "- radicals mean: **0.5**.\n" in card and "other" not in rows(json.loads(metrics.read_text()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "out", "runs"]


@pytest.mark.usefixtures("no_graphs")
def test_the_numbers_of_an_evaluation_reach_the_header_that_the_hub_reads(model, tmp_path):
    from huggingface_hub import ModelCard

    out = export(finished_run(model, tmp_path / "runs"), tmp_path / "out")
    layout = {"value": 0.47421, "interval": [0.4, 0.55], "ceiling": 0.7, "floor": 0.07}
    strokes = {"value": 3.66, "interval": [3.1, 4.3], "ceiling": 0.7, "floor": 4.45}
    summary = {"layout": layout, "strokes_error": strokes, "kid": {"OCR": 15.06, "other": None}, "copies": 0.0}
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"summary": summary}))
    export(out, out, metrics=metrics)
    card = ModelCard.load(out / "README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"layout": 0.4742, "strokes_error": 3.66, "kid_OCR": 15.06, "copies": 0.0}
    layout = "**47.4%** of glyphs have the layout, where the prompt names a layout alone (higher is better; "
    assert f"- {layout}real glyphs 70.0%, chance 7.0%; 95% interval 40.0% to 55.0%).\n" in card.content
    assert "- strokes error: **3.66** (real images 0.7, chance 4.45; 95% interval 3.1 to 4.3).\n" in card.content


def test_a_number_of_real_images_is_the_reference_of_the_models():
    found = rows({"summary": {"fd": {"": 10.46, "of_real": 8.49}, "ssim": 0.9773, "psnr_of_real": 1.0}})
    assert found == {
        "fd": "The Fréchet distance to held-out images is **10.5** (lower is better; real images 8.5).",
        "ssim": "Held-out images keep an SSIM of **0.977** when encoded and decoded (higher is better; 1 is perfect).",
        "psnr_of_real": "psnr of real: **1**.",
    }
    strokes = {"value": 3.8, "interval": None, "ceiling": 0.5, "floor": None}
    assert sentence("character_strokes_error", strokes) == (
        "The strokes are **3.80** off on average (lower is better; real glyphs 0.50)."
    )


def test_every_sentence_has_a_place_for_its_number():
    assert all(phrase.text.count("{}") == 1 and "{:" in phrase.form for phrase in KNOWN.values())


@pytest.mark.parametrize(
    ("training", "channels", "said"),
    [
        (
            {"data": "glyphs", "prompts": ["stacked glyph", "glyph", "more"]},
            1,
            "Generates invented Chinese characters, in greyscale images of 64 x 64 pixels, from texts such as "
            '"stacked glyph" or "glyph".',
        ),
        ({"data": "photos"}, 4, "Generates colour images with transparency of 64 x 64 pixels, from texts."),
        (
            {"text": "none", "prompts": [""] * 4},
            3,
            "Generates colour images of 64 x 64 pixels, like those that it was trained on; it ignores prompts.",
        ),
    ],
)
def test_the_first_sentence_says_what_the_model_generates(training, channels, said):
    assert subject({"channels": channels, "resolution": 64}, training) == said


@pytest.mark.usefixtures("no_graphs")
def test_a_card_is_written_again_and_the_weights_stay(model, tmp_path, capsys):
    out = export(finished_run(model, tmp_path / "runs"), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"summary": {"ssim": 0.5}, "other": 3}))
    assert call("card", out, "--metrics", metrics) == 0 and capsys.readouterr().out == f"{out / 'README.md'}\n"
    written = {path.name for path in out.rglob("*") if path.is_file() and before.get(path) != path.stat().st_mtime_ns}
    assert written == {"README.md", "metrics.json"}
    assert "an SSIM of **0.500**" in (out / "README.md").read_text()
    (out / "NOTICE").write_text("of others")
    assert call("card", out, "--prompt", "a blue cat", "a dog", "--license", "cc-by-4.0", "--data", "Nine cats.") == 0
    card = (out / "README.md").read_text()
    assert "license: cc-by-4.0\n" in card and "\nNine cats.\n" in card and "are in `NOTICE`" in card
    assert read_json(out / "ldm.json")["license"] == "cc-by-4.0"
    assert card.count("url: gallery/") == 2 and '("a blue cat", seed=0)' in card and "an SSIM of **0.500**" in card
    with pytest.raises(UserError, match="is no exported model"):
        call("card", tmp_path / "runs")


@pytest.mark.usefixtures("no_graphs")
def test_export_refuses_to_overwrite_anything_else(model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds something that is no earlier export"):
        export(model, tmp_path / "mine")
    out = export(model, tmp_path / "out")
    (out / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="also holds notes.txt, which replacing it would delete"):
        export(model, out)
    (tmp_path / "file").touch()
    for place, message in (("file", "is a file"), ("file/out", "cannot write .*file/out: ")):
        with pytest.raises(UserError, match=message):
            export(model, tmp_path / place)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


@pytest.mark.usefixtures("no_graphs")
def test_a_failed_export_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.hub.model_card.write_card", lambda *args: (_ for _ in ()).throw(UserError("no card")))
    with pytest.raises(UserError, match="no card"):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- push: what needs no Hub; the rest is in faults/test_push_pull.py -----------------------------------------------


@pytest.mark.usefixtures("no_graphs")
def test_a_push_is_of_the_models_files_and_of_nothing_else(model, tmp_path):
    folder = export(model, tmp_path / "out")
    (folder / ".hidden.json").write_text("{}")
    (folder / "train.py").write_text("")
    (tmp_path / "secret.json").write_text("{}")
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    sent = set(hub.files(folder))
    assert {"model_index.json", "README.md", "unet/diffusion_pytorch_model.safetensors"} <= sent
    assert not {".hidden.json", "train.py", "link.json"} & sent


def test_a_dry_run_lists_files_and_touches_nothing(model, monkeypatch, capsys):
    monkeypatch.setattr("ldm.utils.hub_client.push", None)
    call("push", model, "user/name", "--dry-run")
    shown = capsys.readouterr().out
    size = (model / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert f"{size:,}  unet/diffusion_pytorch_model.safetensors" in shown
    assert "would go to user/name as one commit" in shown


def test_a_push_of_nothing_or_to_nowhere_is_one_line(model, tmp_path):
    with pytest.raises(UserError, match="must be USER/NAME, got 'name'"):
        call("push", model, "name")
    with pytest.raises(UserError, match="neither an exported model .* nor a finished LDM run"):
        call("push", tmp_path, "user/name")
    with pytest.raises(UserError, match="user/name could not be uploaded: .*offline mode.*push again later$"):
        call("push", model, "user/name")
