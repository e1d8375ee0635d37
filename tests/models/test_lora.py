"""LoRA files and fine-tuning: merged weights equal what peft and stock diffusers make of the same file."""

import json
import signal

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import tiny_folder, tiny_pipeline

from ldm.config.settings import LdmSettings
from ldm.data import Splits
from ldm.hub.export import export
from ldm.models.lora import FILE, SETTINGS, Adapter, merge, read_lora, save_lora
from ldm.models.lora_formats import split_scale
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.onnx_runtime import GRAPHS
from ldm.training.cost_estimate import forecast
from ldm.training.run_directory import record
from ldm.training.task import BatchSlice, SampleRef
from ldm.training.tasks.denoising import LdmTask, denoising_task
from ldm.training.tasks.finetuning import finetuning_task
from ldm.training.trainer import Trainer
from ldm.utils.errors import UserError
from tests.cli.test_generate import call
from tests.training.tasks.test_denoising import Shades

CONVOLUTIONS = ["to_q", "to_out.0", "conv1"]
NETWORKS = ("unet", "text_encoder", "vae")


@pytest.fixture(autouse=True)
def a_life_of_its_own():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def settings(model, run, start=None, **changes) -> LdmSettings:
    lora = {"lora_rank": 4, "lora_alpha": 8.0, "lora_text": True, "lora_targets": CONVOLUTIONS}
    values = {
        "output_dir": run,
        "data": {"resolution": 16, "cache_dir": run.parent / "cache"},
        "train": {"num_steps": 6, "batch_size": 8, "log_every": 6, "sample_every": 0, "save_every": 3}
        | {"mixed_precision": "no", "report_to": ["none"], "ema_decay": 0.5},
        "optim": {"lr": 3e-2, "warmup_steps": 1},
        "sampling": {"num_inference_steps": 4, "prompts": ["dark"], "per_prompt": 1},
        "start": {"model": str(model)} | (lora if start is None else start),
    }
    return LdmSettings(**{**values, **changes})


class Large(Shades):
    resolution = 32

    def image(self, i):
        return np.full((32, 32, 1), 255 * (i % 2), np.uint8)


def task(options: LdmSettings, make=finetuning_task) -> LdmTask:
    options.output_dir.mkdir(parents=True, exist_ok=True)
    shades = Shades if options.data.resolution == 16 else Large
    return make(options, Splits(*(shades(count) for count in (32, 8, 8))), options.output_dir, torch.device("cpu"))


def train(options: LdmSettings) -> LdmTask:
    made = task(options)
    record(options.output_dir, options)
    Trainer(made, options, options.output_dir).fit()
    AcceleratorState._reset_state(reset_partial_state=True)
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model and a run of adapters in its U-Net (convolutions too) and its text encoder."""
    place = tmp_path_factory.mktemp("lora")
    model = tiny_folder(place / "model")
    train(settings(model, place / "run"))
    return model, place / "run"


def drawn(pipeline, count=3) -> np.ndarray:
    images = pipeline("dark", num_images_per_prompt=count, seed=5, output_type="np").images
    return np.asarray(images)


def weights(pipeline) -> dict[str, torch.Tensor]:
    return {f"{name}.{k}": v for name in NETWORKS for k, v in getattr(pipeline, name).state_dict().items()}


# ---- the file and the sum -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [torch.nn.Linear(6, 10), torch.nn.Conv2d(6, 10, 3), torch.nn.Conv2d(6, 10, 1)])
def test_the_sum_is_what_peft_merges(layer):
    from peft import LoraConfig, inject_adapter_in_model

    network = torch.nn.Sequential(layer)
    plain = torch.nn.Sequential(torch.nn.Module())
    plain[0] = type(layer)(*((6, 10) if isinstance(layer, torch.nn.Linear) else (6, 10, layer.kernel_size[0])))
    plain.load_state_dict(network.state_dict())
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["0"], init_lora_weights=False)
    inject_adapter_in_model(config, network)
    its = network[0]
    adapter = Adapter(its.lora_A["default"].weight.detach(), its.lora_B["default"].weight.detach(), 12 / 4)
    merge({"unet": plain}, {"unet.0": adapter})
    before = layer.weight.clone()
    its.merge()
    torch.testing.assert_close(plain[0].weight, its.base_layer.weight, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(before, plain[0].weight)


def test_a_file_gives_back_what_was_saved_whatever_names_and_alpha_it_has(tmp_path):
    down, up = torch.randn(2, 6), torch.randn(10, 2)
    found = read_lora(save_lora({"unet.a.to_q": Adapter(down, up, 1.5)}, tmp_path))
    torch.testing.assert_close(found["unet.a.to_q"].delta(), 1.5 * up @ down)
    older = {
        "unet.a.to_q.lora.down.weight": down,
        "unet.a.to_q.lora.up.weight": up,
        "unet.a.to_q.alpha": torch.tensor(3.0),
    }
    save_file(older, tmp_path / "older.safetensors")
    told = {"unet.a.to_q.lora_A.weight": down, "unet.a.to_q.lora_B.weight": up}
    save_file(told, tmp_path / "told.safetensors", {SETTINGS: json.dumps({"unet.r": 2, "unet.lora_alpha": 3})})
    for name in ("older", "told"):
        torch.testing.assert_close(read_lora(tmp_path / f"{name}.safetensors")["unet.a.to_q"].delta(), 1.5 * up @ down)


def saved(tmp_path, tensors, metadata=None, name="x.safetensors"):
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name, metadata)
    return tmp_path / name


def merged(path, scale=1.0) -> torch.Tensor:
    pipeline = tiny_pipeline()
    merge(pipeline.components, read_lora(path), scale)
    return pipeline.unet.get_submodule(LAYER).weight


LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
OLD = ("lora_linear_layer.down", "lora_linear_layer.up")
ATTENTION, KOHYA = LAYER.removesuffix(".to_out.0"), "lora_unet_" + LAYER.replace(".", "_")


def test_every_program_s_names_mean_the_same_layer(tmp_path):
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    alpha = torch.tensor(4.0)  # so the scale is 2
    files = {
        "kohya": {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up, f"{KOHYA}.alpha": alpha},
        "processors": {
            f"{ATTENTION}.processor.to_out_lora.down.weight": down,
            f"{ATTENTION}.processor.to_out_lora.up.weight": 2 * up,
        },
        "old": {
            f"unet.{LAYER}.lora_linear_layer.down.weight": down,
            f"unet.{LAYER}.lora_linear_layer.up.weight": 2 * up,
        },
        "peft": {f"base_model.model.{LAYER}.lora_A.weight": down, f"base_model.model.{LAYER}.lora_B.weight": 2 * up},
    }
    expected = tiny_pipeline().unet.get_submodule(LAYER).weight + 2 * up @ down
    for name, tensors in files.items():
        found = merged(saved(tmp_path, tensors, name=f"{name}.safetensors"))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)
    text = {"lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight": down}
    text |= {"lora_te_text_model_encoder_layers_1_mlp_fc1.lora_up.weight": torch.randn(32, 2)}
    pipeline, plain = tiny_pipeline(), tiny_pipeline()
    merge(pipeline.components, read_lora(saved(tmp_path, text)))
    weights = [each.text_encoder.encoder.layers[1].mlp.fc1.weight for each in (pipeline, plain)]
    assert (weights[0] - weights[1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["alpha_pattern", "rslora", "dora"])
def test_what_peft_can_do_beside_is_what_peft_merges(tmp_path, kind):
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    options = {"alpha_pattern": {LAYER: 12}} if kind == "alpha_pattern" else {f"use_{kind}": True}
    config = LoraConfig(r=4, lora_alpha=6, target_modules=[LAYER], init_lora_weights=False, **options)
    pipeline = tiny_pipeline()
    torch.manual_seed(0)
    inject_adapter_in_model(config, pipeline.unet)
    tensors = {f"unet.{key}": value for key, value in get_peft_model_state_dict(pipeline.unet).items()}
    told = {"unet.lora_alpha": 6} | {f"unet.{key}": value for key, value in options.items()}
    path = saved(tmp_path, tensors, {SETTINGS: json.dumps(told)})
    its = pipeline.unet.get_submodule(LAYER)
    before = its.base_layer.weight.clone()
    its.merge()
    torch.testing.assert_close(merged(path), its.base_layer.weight, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged(path, 0.0), before) and (its.base_layer.weight - before).abs().max() > 0.05


def test_a_folder_of_peft_s_own_has_its_alpha_beside(tmp_path):
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    tensors = {f"base_model.model.{LAYER}.lora_A.weight": down, f"base_model.model.{LAYER}.lora_B.weight": up}
    saved(tmp_path, tensors, name="adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, "use_rslora": False}))
    expected = tiny_pipeline().unet.get_submodule(LAYER).weight + 3 * up @ down
    torch.testing.assert_close(merged(tmp_path, np.float32(1)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("mark", "name"), [("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("lora_mid.weight", "LoCon")])
def test_formats_that_are_no_product_of_two_matrices_are_named(tmp_path, mark, name):
    with pytest.raises(UserError, match=f"{name} format, which is not read here: merge it"):
        read_lora(saved(tmp_path, {f"{KOHYA}.{mark}": torch.ones(2, 2)}))


A, B = torch.ones(2, 16), torch.ones(16, 2)
Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({f"{Q}.lora_A.weight": A}, "only one of its two"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": torch.ones(15, 2)}, "another model"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": torch.ones(16, 3)}, "another model"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": torch.ones(16)}, "no rank"),
        ({f"{Q}.lora_A.weight": torch.ones(0, 16), f"{Q}.lora_B.weight": torch.ones(16, 0)}, "no rank"),
        ({f"{Q}.lora_A.weight": A * torch.nan, f"{Q}.lora_B.weight": B}, "finite"),
        ({f"{Q}.lora_A.weight": A.long(), f"{Q}.lora_B.weight": B}, "finite"),
        ({"unet.nowhere.lora_A.weight": A, "unet.nowhere.lora_B.weight": B}, "no such layer"),
        ({"vae.decoder.conv_in.weight": A}, "only LoRA weights"),
        ({}, "is empty"),
    ],
)
def test_a_foreign_file_is_one_line_and_changes_nothing(tmp_path, tensors, told):
    save_file(tensors, tmp_path / "x.safetensors")
    pipeline = tiny_pipeline()
    before = {name: value.clone() for name, value in weights(pipeline).items()}
    with pytest.raises(UserError, match=told) as error:
        merge(pipeline.components, read_lora(tmp_path / "x.safetensors"), 1.0)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in weights(pipeline).items())


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"[" * 16])
def test_a_broken_file_is_one_line(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as error:
        read_lora(tmp_path)
    assert "\n" not in str(error.value)


def test_other_formats_and_missing_files_are_told(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="only .safetensors"):
        read_lora(tmp_path / "weights.bin")
    with pytest.raises(UserError, match="no such file"):
        read_lora(tmp_path / "nowhere")
    with pytest.raises(UserError, match="lora_scale"):
        merge({}, {}, float("nan"))


def test_a_scale_stands_behind_the_last_colon():
    assert split_scale("a/b.safetensors:0.5") == ("a/b.safetensors", 0.5)
    assert split_scale("C:/b.safetensors") == ("C:/b.safetensors", 1.0)
    assert split_scale("run") == ("run", 1.0)


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_only_adapters_learn_and_the_run_is_the_model_plus_the_file(trained):
    model, run = trained
    base, tuned, added = load_pipeline(model), load_pipeline(run), load_pipeline(model, lora=run)
    adapters = read_lora(run)
    changed = {name for name, value in weights(tuned).items() if not torch.equal(value, weights(base)[name])}
    assert changed == {f"{name}.weight" for name in adapters}
    assert {name.split(".")[0] for name in adapters} == {"unet", "text_encoder"}
    assert any(adapter.down.ndim == 4 for adapter in adapters.values())
    for name, value in weights(added).items():
        torch.testing.assert_close(value, weights(tuned)[name], atol=1e-6, rtol=1e-5)
    assert np.abs(drawn(base) - drawn(tuned)).max() > 0.05
    saved = load_file(run / "checkpoints" / "step-00000006" / "model.safetensors")
    assert all("lora_" in name for name in saved)


def test_stock_diffusers_draws_the_same_with_the_file(trained):
    model, run = trained
    stock = DiffusionPipeline.from_pretrained(str(model), safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    ours = load_pipeline(model, lora=run)
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "np"}
    plain = np.asarray(stock("dark", generator=torch.Generator().manual_seed(3), **options).images)
    stock.load_lora_weights(str(run / "final" / "lora"))
    its = np.asarray(stock("dark", generator=torch.Generator().manual_seed(3), **options).images)
    found = np.asarray(ours("dark", generator=torch.Generator().manual_seed(3), **options).images)
    assert np.abs(its - found).max() <= 2 / 255 < 0.05 < np.abs(its - plain).max()


def test_scale_0_is_the_model_itself_and_a_half_is_half_the_way(trained):
    model, run = trained
    base, none, half = (load_pipeline(model, lora=path, lora_scale=s) for path, s in ((None, 1), (run, 0), (run, 0.5)))
    assert all(torch.equal(value, weights(base)[name]) for name, value in weights(none).items())
    whole = load_pipeline(run)
    for name, value in weights(half).items():
        middle = (weights(base)[name] + weights(whole)[name]) / 2
        torch.testing.assert_close(value, middle, atol=1e-6, rtol=1e-5)


def test_graphs_step_aside_for_adapters_and_the_merged_export_has_its_own(trained, tmp_path):
    pytest.importorskip("onnx")
    model, run = trained
    for source, name in ((model, "base"), (run, "tuned")):
        export(source, tmp_path / name)
    base, added, tuned = (
        load_pipeline(tmp_path / n, lora=lora) for n, lora in (("base", None), ("base", run), ("tuned", None))
    )
    assert all((tmp_path / "tuned" / part / file).is_file() for part, file in GRAPHS.items())
    pictures = [drawn(one) for one in (base, added, tuned)]
    assert [set(one.engines.values()) for one in (base, tuned, added)] == [{"onnx"}, {"onnx"}, {"torch"}]
    assert np.abs(pictures[1] - pictures[2]).max() <= 2 / 255 < np.abs(pictures[0] - pictures[1]).max()


@pytest.mark.usefixtures("no_graphs")
def test_an_export_has_the_adapters_alone_too_and_its_card_says_what_it_began_as(trained, tmp_path):
    model, run = trained
    out = export(run, tmp_path / "tuned")
    stock = DiffusionPipeline.from_pretrained(str(model), safety_checker=None)
    stock.load_lora_weights(str(out), subfolder="lora")
    assert stock.get_active_adapters()
    header, text = (out / "README.md").read_text().split("---\n")[1:]
    assert "- lora" in header and "base_model" not in header  # which would be a name on the Hub
    assert "is `model`, fine-tuned" in text and str(model) not in text and 'subfolder="lora"' in text
    again = export(out, tmp_path / "again")
    assert (again / "lora" / FILE).read_bytes() == (run / "final" / "lora" / FILE).read_bytes()


def test_a_resumed_run_equals_one_that_never_stopped(trained, tmp_path):
    model, run = trained
    short = settings(model, tmp_path / "run", data={"resolution": 16, "cache_dir": tmp_path / "cache"})
    made = task(short)
    trainer = Trainer(made, short, short.output_dir)
    record(short.output_dir, short)
    finish = trainer._step

    def one_step(*args):
        finish(*args)
        if trainer.step == 3:
            trainer.held.pending = signal.SIGTERM  # what the handler does

    trainer._step = one_step
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    AcceleratorState._reset_state(reset_partial_state=True)
    train(short)
    name = "checkpoints/step-00000006"
    for file in ("model", "optimizer", "ema"):
        one, other = (load_file(place / name / f"{file}.safetensors") for place in (run, short.output_dir))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    lora = [(place / "final" / "lora" / FILE).read_bytes() for place in (run, short.output_dir)]
    assert lora[0] == lora[1]


def test_the_whole_model_starts_from_its_own_predictions_and_all_of_it_learns(tmp_path):
    model = tiny_folder(tmp_path / "model")
    options = settings(model, tmp_path / "run", {})
    made, scratch = (
        task(options),
        task(
            options.model_copy(
                update={"vae": str(model)}
                | {"text": options.text.model_copy(update={"source": str(model)}), "output_dir": tmp_path / "other"}
            ),
            denoising_task,
        ),
    )
    scratch.module.unet = load_pipeline(model).unet  # the same loss around the model's own network
    batch = made.batch([SampleRef(i, 0) for i in range(8)], BatchSlice(0, 0, 8, 8))
    with torch.no_grad():
        assert torch.equal(*(one.module.eval()(**batch, progress=0.0)[0] for one in (made, scratch)))
    options = options.model_copy(update={"output_dir": tmp_path / "again"})
    train(options)
    base, tuned = weights(load_pipeline(model)), weights(load_pipeline(options.output_dir))
    same = {name.split(".")[0] for name, value in tuned.items() if torch.equal(value, base[name])}
    moved = {name.split(".")[0] for name, value in tuned.items() if not torch.equal(value, base[name])}
    assert moved == {"unet"} and same >= {"vae", "text_encoder"}
    assert not (options.output_dir / "final" / "lora").exists()


def test_adapters_of_no_effect_yet_start_from_the_models_loss(trained, tmp_path):
    model, _ = trained
    losses = []
    for number, start in enumerate(({}, None)):
        made = task(settings(model, tmp_path / f"run{number}", start))
        batch = made.batch([SampleRef(i, 0) for i in range(8)], BatchSlice(0, 0, 8, 8))
        with torch.no_grad():
            losses.append(made.module.eval()(**batch, progress=0.0)[0])
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"noise": {"shift": 2.0}}, "start.model: .* another noise process"),
        ({"data": {"resolution": 32}}, "start.model has latents 4 x 8 x 8"),
        ({"start": {"model": "nowhere"}}, "there is no folder"),
        ({"start": {"lora_rank": 2, "lora_targets": ["to_nothing"]}}, "start.lora_targets to_nothing"),
    ],
)
def test_a_start_that_cannot_be_is_told_in_a_line(trained, tmp_path, changes, told):
    options = settings(trained[0], tmp_path / "run")
    start = options.start.model_copy(update=changes.pop("start", {}))
    merged = {"data": {"cache_dir": tmp_path / "cache", "resolution": 16} | changes.pop("data", {})}
    with pytest.raises(UserError, match=told):
        task(settings(trained[0], tmp_path / "run", start.model_dump(), **merged, **changes))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"start": {"lora_rank": 4}}, "lora_rank needs start.model"),
        ({"start": {"model": "glyphs", "lora_text": True}}, "lora_text needs"),
        ({"start": {"model": "glyphs"}, "distill": {"teacher": "models/glyphs"}}, "exclude each other"),
        ({"start": {"model": "glyphs", "lora_rank": 4}, "text": {"train": True}}, "adapters alone"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(values, told):
    with pytest.raises(ValueError, match=told):
        LdmSettings(**values)


def test_a_plan_counts_the_adapters_alone_as_trained(trained):
    model, run = trained
    found = forecast("ldm", settings(model, run), timed=False)
    learned = sum(a.down.numel() + a.up.numel() for n, a in read_lora(run).items() if n.startswith("unet"))
    assert found.cost.trained == learned
    whole = forecast("ldm", settings(model, run, {}), timed=False)
    assert whole.cost.trained == sum(p.numel() for p in load_pipeline(model).unet.parameters())


def test_the_shell_draws_with_adapters_and_a_picture_remembers_them(trained, tmp_path, capsys):
    model, run = trained
    for name, lora in (("plain", []), ("whole", [run]), ("none", [f"{run}:0"]), ("half", [f"{run}:0.5"])):
        call("dark", "-m", model, "-o", tmp_path / f"{name}.png", *(["--lora", *lora] if lora else []))
    pictures = {path.stem: np.asarray(Image.open(path)) for path in tmp_path.glob("*.png")}
    assert np.array_equal(pictures["none"], pictures["plain"])
    assert len({picture.tobytes() for picture in pictures.values()}) == 3
    expected = load_pipeline(model, lora=run)("dark", seed=0).images[0]
    assert np.array_equal(pictures["whole"], np.asarray(expected))
    call("--from", tmp_path / "half.png", "-o", tmp_path / "again.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), pictures["half"])
    assert "other weights" not in capsys.readouterr().err
    with pytest.raises(UserError, match="no such file"):
        call("dark", "-m", model, "--lora", tmp_path / "nowhere", "-o", tmp_path / "again.png")
