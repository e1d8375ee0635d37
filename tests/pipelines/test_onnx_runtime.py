"""Drawing through ONNX Runtime, with and without torch: the same numbers as the networks give, or torch instead."""

import copy
import importlib.util
import json
import logging
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch
from commands import BIN, ROOT, run
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import COSINE, tiny_folder, tiny_lora, tiny_pipeline

from ldm.cli import generate
from ldm.cli.main import build_parser
from ldm.hub import export
from ldm.pipelines import generation
from ldm.pipelines.image_metadata import complete, read_png
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.model_folder import resolve_model
from ldm.pipelines.networks import OnDisk
from ldm.pipelines.onnx_export import SMALL, write_graphs
from ldm.pipelines.onnx_runtime import GRAPHS, graph, open_engine
from ldm.pipelines.torch_free import open_torch_free, seeded_normal
from ldm.utils.errors import UserError


def with_graphs(folder, *args, **options):
    tiny_folder(folder, *args, **options)
    write_graphs(load_pipeline(folder, engine="torch"), folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return with_graphs(tmp_path_factory.mktemp("engine") / "model")


def copied(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


def draw(pipeline, **options):
    return pipeline(["water", "fire"], seed=3, output_type="np", **options).images


# ---- graphs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"noise": COSINE, "channels": 3, "pooled_text": False}])
def test_every_network_gives_what_torch_gives(tmp_path, options):
    folder = with_graphs(tmp_path / "model", **options)
    engine, torch_one = open_engine(resolve_model(folder), threads=1), load_pipeline(folder, engine="torch")
    ids = torch.randint(0, 500, (3, 16), generator=torch.Generator().manual_seed(0))
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([999.0, 500.0, 1.0])
    with torch.inference_mode():
        states = torch_one.text_encoder(ids)[0]
        found = (
            engine.encode_text(ids.numpy()),
            engine.predict(x.numpy(), t.numpy(), states.numpy()),
            engine.decode(x.numpy()),
        )
        wanted = states, torch_one.unet(x, t, encoder_hidden_states=states).sample, torch_one.vae.decode(x).sample
    for ours, its in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, its.numpy(), atol=2e-5 * its.abs().max().item())


def test_images_of_another_size_are_generated_in_torch(model):
    """Graphs are of one size; only what cannot be computed by them is not."""
    pipeline, options = load_pipeline(model, engine="onnx"), {"height": 24, "width": 40}
    wanted = draw(load_pipeline(model, engine="torch"), **options)
    assert wanted.shape == (2, 24, 40, 1)
    np.testing.assert_allclose(draw(pipeline, **options), wanted, atol=1e-4)
    assert set(pipeline.engines.values()) == {"onnx"}  # for the images of the model's own size


def test_graphs_hold_no_weights(model):
    for component in GRAPHS:
        inside = onnx.load(graph(resolve_model(model), component), load_external_data=False).graph.initializer
        outside = [one for one in inside if one.data_location == onnx.TensorProto.EXTERNAL]
        assert outside and {
            entry.value for one in outside for entry in one.external_data if entry.key == "location"
        } == {next(path.name for path in (model / component).glob("*.safetensors"))}
        assert all(np.prod(one.dims) < SMALL for one in inside if one not in outside)


def test_a_graph_computes_with_the_weights_that_lie_beside_it(tmp_path, model):
    folder = copied(model, tmp_path)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = {name: entry for name, entry in json.loads(content[8:start]).items() if name.startswith("decoder")}
    first, end = next(e["data_offsets"] for e in header.values() if np.prod(e["shape"]) >= SMALL)
    content[start + first : start + end] = (2 * np.frombuffer(content[start + first : start + end], "<f4")).tobytes()
    path.write_bytes(content)
    z = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    before, after = (open_engine(resolve_model(each), 1).decode(z) for each in (model, folder))
    with torch.inference_mode():
        wanted = load_pipeline(folder, engine="torch").vae.decode(torch.from_numpy(z)).sample.numpy()
    assert abs(before - wanted).max() > 1e-3
    np.testing.assert_allclose(after, wanted, atol=1e-4)


def test_a_graph_of_other_weights_is_left_alone(tmp_path, model, caplog):
    folder = copied(model, tmp_path)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path), path)  # the same weights, in another order
    pipeline = load_pipeline(folder)
    assert set(pipeline.engines.values()) == {"torch"} and open_torch_free(resolve_model(folder)) is None
    assert "is of other weights" in caplog.text
    np.testing.assert_allclose(draw(pipeline), draw(load_pipeline(model)), atol=1e-4)


def test_half_precision_weights_are_computed_with_in_float32(tmp_path, model):
    out = export.export(model, tmp_path / "half", "fp16")
    assert open_engine(resolve_model(out)) is not None
    np.testing.assert_allclose(*(draw(load_pipeline(out, engine=one)) for one in ("onnx", "torch")), atol=1e-4)


def test_an_export_without_onnx_is_whole(tmp_path, model, monkeypatch, caplog):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else found(name, *rest))
    out = export.export(model, tmp_path / "plain")
    assert "onnx is not installed" in caplog.text and not list(out.rglob("*.onnx"))
    assert in_torch(load_pipeline(out))


def test_a_graph_that_points_out_of_its_folder_is_refused(tmp_path, model):
    folder = copied(model, tmp_path)
    shutil.move(folder / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "elsewhere.safetensors")
    shutil.copy(tmp_path / "elsewhere.safetensors", folder / "vae" / "diffusion_pytorch_model.safetensors")
    hostile = onnx.load(folder / "vae" / "decoder.onnx", load_external_data=False)
    for one in hostile.graph.initializer:
        for entry in one.external_data:
            entry.value = "../../elsewhere.safetensors" if entry.key == "location" else entry.value
    (folder / "vae" / "decoder.onnx").write_bytes(hostile.SerializeToString())
    with pytest.raises(UserError, match="cannot be run"):
        open_engine(resolve_model(folder)).decode(np.zeros((1, 4, 8, 8), np.float32))


def test_a_broken_graph_is_told_in_one_line(tmp_path, model):
    folder = copied(model, tmp_path)
    whole = (folder / "unet" / "model.onnx").read_bytes()
    (folder / "unet" / "model.onnx").write_bytes(b"not a graph" + whole)
    with pytest.raises(UserError, match="model.onnx cannot be run.*ldm export"):
        load_pipeline(folder)("water", seed=0)


# ---- the pipeline ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"sampler": "unipc"}, {"cfg_zero": True}, {"guidance_rescale": 0.5}])
def test_the_engine_draws_what_torch_draws(model, options):
    np.testing.assert_allclose(*(draw(load_pipeline(model, engine=e), **options) for e in ("onnx", "torch")), atol=1e-4)


def in_torch(pipeline) -> bool:
    return set(pipeline.engines.values()) == {"torch"}


def weights(pipeline):
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(3)


def new_weights(pipeline):
    pipeline.unet.conv_out.weight = torch.nn.Parameter(3 * pipeline.unet.conv_out.weight)


def data_multiplied(pipeline):
    pipeline.unet.conv_out.weight.data.mul_(3)


def data_copied(pipeline):
    """As an EMA or a merge puts weights in."""
    for weight in pipeline.text_encoder.parameters():
        weight.data.copy_(weight.data.roll(1, 0))


def freeu(pipeline):
    for block in pipeline.unet.up_blocks:
        for name, value in (("s1", 0.2), ("s2", 0.2), ("b1", 2.0), ("b2", 2.0)):
            setattr(block, name, value)
        block.resolution_idx = 0
    pipeline.unet.conv_in.weight.data.mul_(1.5)
    pipeline.unet.enable_freeu(0.2, 0.2, 2.0, 2.0)


def circular_padding(pipeline):
    for network in (pipeline.unet, pipeline.vae):
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.padding_mode = "circular"
                module._reversed_padding_repeated_twice = [side for side in module.padding[::-1] for _ in range(2)]


def another_forward(pipeline):
    forward = pipeline.unet.conv_out.forward
    pipeline.unet.conv_out.forward = lambda x: 3 * forward(x)


class Tripled(torch.nn.Conv2d):
    def forward(self, x):
        return 3 * super().forward(x)


def another_class(pipeline):
    pipeline.unet.conv_out.__class__ = Tripled


def another_epsilon(pipeline):
    for module in pipeline.unet.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1.0


def another_network(pipeline):
    pipeline.unet = tiny_pipeline(pooled_text=False).unet


def a_hook(pipeline):
    pipeline.unet.conv_out.register_forward_hook(lambda module, inputs, output: 3 * output)


def another_layer(pipeline):
    pipeline.vae.decoder.conv_out = torch.nn.Sequential(pipeline.vae.decoder.conv_out, torch.nn.Flatten(1, 0))
    pipeline.vae.decoder.conv_out = pipeline.vae.decoder.conv_out[0]
    pipeline.vae.decoder.conv_out.bias.data = pipeline.vae.decoder.conv_out.bias + 0.3


def through_a_copy(pipeline):
    """A copy shares the networks."""
    weights(copy.copy(pipeline))


def through_components(pipeline):
    pipeline.components["unet"].conv_out.weight.data.mul_(3)


def half(pipeline):
    pipeline.to(dtype=torch.float64)


CHANGES = [weights, new_weights, data_multiplied, data_copied, freeu, circular_padding, another_forward, another_class]
CHANGES += [another_epsilon, another_network, a_hook, another_layer, through_a_copy, through_components, half]


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_a_network_is_lost(model, change):
    """Every way to change one begins with asking for it; from then on it runs in torch."""
    fast, slow = load_pipeline(model), load_pipeline(model, engine="torch")
    before = draw(fast)
    assert set(fast.engines.values()) == {"onnx"}
    change(fast)
    change(slow)
    np.testing.assert_allclose(draw(fast), draw(slow), atol=1e-4)
    assert "torch" in fast.engines.values() and (change is half or abs(draw(slow) - before).max() > 1e-3)


def test_a_network_that_somebody_holds_stays_in_torch(model, caplog):
    pipeline = load_pipeline(model)
    with caplog.at_level(logging.INFO, "ldm"):
        unet = pipeline.unet
        assert pipeline.unet is unet
    (record,) = caplog.records
    assert "unet was asked for, so it runs in torch" in record.getMessage()
    draw(pipeline)
    unet.conv_out.weight.data.mul_(3)
    slow = load_pipeline(model, engine="torch")
    data_multiplied(slow)
    np.testing.assert_allclose(draw(pipeline), draw(slow), atol=1e-4)
    assert pipeline.engines == {"vae": "onnx", "text_encoder": "onnx", "unet": "torch"}


@pytest.mark.parametrize("change", [*CHANGES[:8], another_network, through_a_copy, half])
def test_a_fixed_engine_gives_no_network_away(model, change):
    pipeline = load_pipeline(model, engine="onnx")
    before = draw(pipeline)
    with pytest.raises(UserError, match=r"load_pipeline\(..., engine='torch'\)"):
        change(pipeline)
    np.testing.assert_array_equal(draw(pipeline), before)
    assert pipeline.to("cpu") is pipeline and pipeline.to(dtype=torch.float32) is pipeline


def test_networks_that_only_graphs_stand_for_are_not_loaded(model):
    pipeline = load_pipeline(model)
    draw(pipeline)
    assert all(isinstance(one, OnDisk) for one in pipeline.networks._modules.values())
    assert pipeline.latent_shape == (4, 8, 8) and pipeline.image_shape == (1, 16, 16)


def test_adapters_run_in_torch_and_are_refused_with_graphs(tmp_path, model):
    lora = tiny_lora(tmp_path)
    assert in_torch(load_pipeline(model, lora=lora))
    with pytest.raises(UserError, match="not with adapters"):
        load_pipeline(model, lora=lora, engine="onnx")


def test_gradients_still_flow_through_the_decoder(model):
    latents = torch.randn(1, 4, 8, 8, requires_grad=True)
    load_pipeline(model, engine="onnx").decode(latents).sum().backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0


def test_an_engine_is_chosen_where_it_can_be(tmp_path, model):
    plain = tiny_folder(tmp_path / "plain")
    assert set(load_pipeline(model).engines.values()) == {"onnx"}
    assert in_torch(load_pipeline(model, dtype=torch.float64)) and in_torch(load_pipeline(model, dtype="float16"))
    assert in_torch(load_pipeline(plain))
    with pytest.raises(UserError, match="no graphs"):
        load_pipeline(plain, engine="onnx")
    with pytest.raises(UserError, match="not torch.float16 on cpu"):
        load_pipeline(model, dtype=torch.float16, engine="onnx")
    with pytest.raises(UserError, match="dtype must be one of float32, .* or a torch.dtype, got 'half'"):
        load_pipeline(model, dtype="half")
    with pytest.raises(UserError, match="auto, torch, onnx, got 'fast'"):
        load_pipeline(model, engine="fast")


# ---- without torch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16,), (4, 16, 16), (3, 5, 7), (1, 4, 5), (17,)])
@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 + 5])
def test_noise_is_that_of_torch(shape, seed):
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
    np.testing.assert_allclose(seeded_normal(seed, shape), wanted, atol=1e-6)


def test_fewer_than_sixteen_numbers_are_refused():
    with pytest.raises(ValueError, match="16 numbers"):
        seeded_normal(0, (3, 5))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize(
    ("steps", "scale", "interval"), [(1, 2.0, (0, 1)), (4, 1.0, (0, 1)), (7, 3.0, (0.2, 0.7)), (20, 0.0, (0, 1))]
)
def test_it_draws_what_the_pipeline_draws(tmp_path, model, order, shift, steps, scale, interval):
    folder = copied(model, tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"solver_order": order, "flow_shift": shift}))
    wanted = draw(
        load_pipeline(folder, engine="torch"),
        negative_prompt="earth",
        num_inference_steps=steps,
        guidance_scale=scale,
        guidance_interval=interval,
    )
    light = open_torch_free(resolve_model(folder))
    found = light.generate(["water", "fire"], ["earth", "earth"], steps, scale, interval, 3)
    assert found.dtype == np.uint8 and abs(found - (wanted * 255).round()).max() <= 1
    one_by_one = light.generate(["water", "fire"], ["earth", "earth"], steps, scale, interval, 3, batch_size=1)
    assert abs(found.astype(int) - one_by_one).max() <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"solver_order": 3},
        {"use_flow_sigmas": False},
        {"algorithm_type": "sde-dpmsolver++"},
        {"euler_at_final": True},
    ],
)
def test_what_it_cannot_draw_is_left_to_the_pipeline(tmp_path, model, settings):
    folder = copied(model, tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert open_torch_free(resolve_model(model)) is not None and open_torch_free(resolve_model(folder)) is None


def test_timesteps_are_those_of_diffusers_for_every_number_of_steps(model):
    scheduler, light = load_pipeline(model).scheduler, open_torch_free(resolve_model(model))
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        levels, timesteps = light._levels(steps)
        assert timesteps == scheduler.timesteps.tolist()
        assert [level.sigma for level in levels] == scheduler.sigmas.tolist()


def test_a_shorter_tokenizer_is_followed_by_every_engine(tmp_path, model):
    """The graphs are of the length that they were written with: with another one the network runs in torch."""
    folder = copied(model, tmp_path)
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 8}))
    wanted = draw(load_pipeline(folder, engine="torch"))
    assert abs(wanted - draw(load_pipeline(model))).max() > 1e-3
    changed = load_pipeline(model)
    changed.tokenizer.model_max_length = 8
    for pipeline in (load_pipeline(folder), load_pipeline(folder, engine="onnx"), changed):
        np.testing.assert_allclose(draw(pipeline), wanted, atol=1e-4)
    assert open_torch_free(resolve_model(folder)) is None


def test_lost_words_are_told_as_by_the_pipeline(model, caplog):
    prompt = "water and then fire and then earth"
    caplog.set_level(logging.WARNING)
    load_pipeline(model).encode_prompt([prompt])
    open_torch_free(resolve_model(model))._encode([prompt])
    first, second = (record.getMessage() for record in caplog.records)
    assert first == second and "were lost" in first


def picture(*argv) -> np.ndarray:
    args = build_parser(["generate", *argv]).parse_args(["generate", *map(str, argv)])
    args.run(args)
    with Image.open(argv[argv.index("-o") + 1]) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    "options",
    [(), ("water",), ("water", "--grid", "3x2", "--negative", "fire"), ("water", "--interval", 0.2, 0.8, "--steps", 5)],
)
def test_the_command_draws_the_same_either_way(tmp_path, model, monkeypatch, options):
    light = picture(*options, "-m", str(model), "-o", tmp_path / "light.png", "--seed", 5)
    monkeypatch.setattr(generation, "open_torch_free", lambda folder: None)
    whole = picture(*options, "-m", str(model), "-o", tmp_path / "whole.png", "--seed", 5)
    assert abs(light - whole).max() <= 1
    assert read_png(tmp_path / "light.png") == read_png(tmp_path / "whole.png")


@pytest.mark.parametrize("option", [("--sampler", "unipc"), ("--cfg-zero",), ("--rescale", 0.5), ("--device", "cuda")])
def test_the_command_leaves_more_to_the_pipeline(model, option):
    args = build_parser(["generate"]).parse_args(["generate", "water", "-m", str(model), *map(str, option)])
    job = generate._job(args)
    complete(job, {})
    assert not (generation.suits_torch_free(job) and not generation.wants_gpu(args.device))


def test_a_picture_from_the_shell_loads_neither_torch_nor_diffusers(tmp_path, model):
    check = (
        "import sys; sys.argv = ['ldm', 'generate', 'water', '-m', sys.argv[1], '-o', sys.argv[2], '--device', 'cpu']\n"
        "from ldm.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'diffusers', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    told = run(sys.executable, "-c", check, model, tmp_path / "out.png", cwd=tmp_path)
    assert told.splitlines()[-1] == "[]" and (tmp_path / "out.png").is_file()


@pytest.mark.parametrize("name", ["glyphs", "glyphs-fast", "digits"])
def test_the_shipped_graphs_are_of_the_shipped_models(name):
    folder = ROOT / "models" / name
    prompt, options = ["horizontal stacked glyph", "a red 7"], {"seed": 1, "output_type": "np"}
    found = (load_pipeline(folder, engine=each)(prompt, **options).images for each in ("onnx", "torch"))
    np.testing.assert_allclose(*found, atol=1e-3)


def test_help_is_there_at_once():
    assert "generate" in run(BIN / "ldm", "--help", cwd=ROOT)
