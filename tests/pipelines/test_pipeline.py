"""What a user of the pipeline relies on: parity with stock diffusers, seeds, guidance, and readable refusals."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import COSINE, FLOW, LENGTH, tiny_folder, tiny_pipeline

from ldm.config.settings import NoiseOptions
from ldm.diffusion.guidance import Guidance, guide
from ldm.hub.export import save_folder
from ldm.pipelines.denoising_loop import SamplingPlan, denoise
from ldm.pipelines.diffusers_schedulers import process_of, with_sampler
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.model_folder import resolve_model
from ldm.utils.errors import UserError

REPO = Path(__file__).resolve().parents[2]
# Draws with stock diffusers in a process where `ldm` cannot be imported.
STOCK = """
import sys
class NoLdm:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ldm":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoLdm())
try:
    import ldm
    sys.exit("ldm could be imported")
except ModuleNotFoundError:
    pass
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
noise, wide, *cases = sys.argv[1:]
latents, oblong = load_file(noise)["latents"], load_file(noise)["oblong"]
pipeline = DiffusionPipeline.from_pretrained(wide)
assert pipeline("water", num_inference_steps=1).images[0].size == (24, 16)
images = pipeline(["water"] * 2, negative_prompt=["fire"] * 2, latents=oblong, num_inference_steps=6,
                  guidance_scale=3.0, height=40, width=24, output_type="pt").images
save_file({"images": images.contiguous()}, f"{wide}.safetensors")
count = len(latents)
for folder, rescale in zip(cases[::2], cases[1::2], strict=True):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    images = pipeline(["water"] * count, negative_prompt=["fire"] * count, latents=latents, num_inference_steps=6,
                      guidance_scale=3.0, guidance_rescale=float(rescale), output_type="pt").images
    save_file({"images": images.contiguous()}, f"{folder}.safetensors")
"""


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def draw(pipeline, *args, **options):
    return pipeline(*args, output_type="pt", **options).images


# ---- parity with stock diffusers -----------------------------------------------------------------------------------


CASES = {
    "flow, grey, pooled text": (FLOW, {}, 0.0),
    "v-prediction, colour, rescaled guidance": (COSINE, {"channels": 3, "pooled_text": False}, 0.7),
    "flow, transparency": (FLOW, {"channels": 4}, 0.0),
}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Latents, and a folder for each case beside what stock diffusers draws from it: one process for all."""
    place = tmp_path_factory.mktemp("stock")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    oblong = torch.randn(2, 4, 20, 12, generator=torch.Generator().manual_seed(2))
    save_file({"latents": latents, "oblong": oblong}, place / "noise.safetensors")
    wide = tiny_pipeline()
    wide.unet.register_to_config(sample_size=(8, 12))
    (place / "wide").mkdir()
    save_folder(wide, place / "wide", "wide")
    folders = {case: tiny_folder(place / f"model{i}", CASES[case][0], **CASES[case][1]) for i, case in enumerate(CASES)}
    words = [word for case, folder in folders.items() for word in (folder, str(CASES[case][2]))]
    command = [sys.executable, "-c", STOCK, place / "noise.safetensors", place / "wide", *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ldm.json" not in done.stderr  # ignored silently
    return latents, folders, oblong


@pytest.mark.parametrize("case", CASES)
def test_stock_diffusers_without_ldm_draws_the_same_pictures(stock, case):
    latents, folders, _ = stock
    drawn = load_file(f"{folders[case]}.safetensors")["images"]
    settings = {"num_inference_steps": 6, "guidance_scale": 3.0, "latents": latents}
    ours = draw(load_pipeline(folders[case]), ["water"] * 2, "fire", guidance_rescale=CASES[case][2], **settings)
    assert ours.std() > 0.01  # a picture, not a constant
    assert (ours - drawn).abs().max() <= 2 / 255


def test_sizes_are_those_of_stock_diffusers(stock):
    """A model of 16 x 24 images, which stock diffusers made of that size, and of 40 x 24 when it was asked to."""
    _, folders, oblong = stock
    folder = next(iter(folders.values())).with_name("wide")
    ours = load_pipeline(folder)
    assert (ours.image_shape, ours.latent_shape) == ((1, 16, 24), (4, 8, 12))
    assert json.loads((folder / "ldm.json").read_text())["resolution"] == [16, 24]
    assert ours("water", seed=0, num_inference_steps=1).images[0].size == (24, 16)
    options = {"num_inference_steps": 6, "guidance_scale": 3.0, "latents": oblong, "height": 40, "width": 24}
    found = draw(ours, ["water"] * 2, negative_prompt="fire", **options)
    assert found.shape == (2, 1, 40, 24) and found.std() > 0.01
    assert (found - load_file(f"{folder}.safetensors")["images"]).abs().max() <= 2 / 255


def test_height_and_width_are_multiples_of_what_the_networks_halve(pipeline):
    assert pipeline.size_step == 4
    wide = draw(pipeline, "water", seed=3, height=16, width=32)
    assert wide.shape == (1, 1, 16, 32)
    assert torch.equal(draw(pipeline, "water", seed=3, width=32), wide)  # the other side is the model's
    assert torch.equal(draw(pipeline, "water", seed=3, height=16, width=16), draw(pipeline, "water", seed=3))
    for size, words in (
        ({"height": 18}, "height must be a multiple of 4, got 18: 16 and 20 are the nearest"),
        ({"width": 0}, "width must be a whole number, from 4 to 2048, got 0"),
        ({"width": 4096}, "from 4 to 2048, got 4096"),
        ({"height": 16.0 + 8.5}, "height must be a whole number"),
        ({"width": "32"}, "width must be a whole number"),
    ):
        with pytest.raises(ValueError, match=words):
            pipeline("water", **size)
    with pytest.raises(ValueError, match=r"latents must be a tensor of shape \(1, 4, 8, 16\)"):
        pipeline("water", width=32, latents=torch.zeros(1, 4, 8, 8))


def test_1024_pixels_are_generated(pipeline):
    latents = pipeline("water", seed=0, height=1024, width=8, num_inference_steps=1, output_type="latent").images
    assert latents.shape == (1, 4, 512, 4)
    assert pipeline.latent_shape_of(1024, 1024) == (4, 512, 512)


def test_loading_leaves_the_libraries_whole(tmp_path):
    """The lazy stand-ins give every name once somebody asks."""
    folder = tiny_folder(tmp_path / "model")
    code = f"""
import sys
sys.path.insert(0, {str(REPO)!r})
from ldm.pipelines.diffusers_schedulers import process_of, with_sampler
from ldm.pipelines.loading import load_pipeline
pipeline = load_pipeline({str(folder)!r})
assert "diffusers.models.transformers.transformer_flux" not in sys.modules, "the stand-in did nothing"
import diffusers, transformers, diffusers.models.unets
from transformers.models import bert
assert type(pipeline.unet) is diffusers.UNet2DConditionModel is diffusers.models.unets.UNet2DConditionModel
assert type(pipeline.text_encoder) is transformers.CLIPTextModel
assert diffusers.FluxTransformer2DModel and diffusers.models.unets.UNet1DModel and bert.BertModel
try:
    diffusers.models.unets.NoSuchName
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "NoSuchName" in done.stdout


# ---- seeds and batches ---------------------------------------------------------------------------------------------


def test_seed_draws_picture_i_from_seed_plus_i_whatever_the_batch(pipeline):
    whole = draw(pipeline, "water", num_images_per_prompt=5, seed=7)
    split = draw(pipeline, "water", num_images_per_prompt=5, seed=7, batch_size=2)
    third = draw(pipeline, "water", seed=9)
    torch.testing.assert_close(split, whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(third[0], whole[2], atol=1e-4, rtol=0)
    assert (whole[0] - whole[1]).abs().max() > 0.05


def test_a_generator_draws_what_it_draws_in_diffusers(pipeline):
    one = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    by_generator = draw(pipeline, ["a", "b"], generator=one)
    torch.testing.assert_close(by_generator, draw(pipeline, ["a", "b"], latents=latents))
    many = [torch.Generator().manual_seed(5 + i) for i in range(2)]
    torch.testing.assert_close(draw(pipeline, ["a", "b"], generator=many), draw(pipeline, ["a", "b"], seed=5))


def test_batches_do_not_change_a_stochastic_sampler(pipeline):
    from diffusers import EulerAncestralDiscreteScheduler

    noisy = tiny_pipeline(COSINE)
    noisy.scheduler = EulerAncestralDiscreteScheduler(prediction_type="v_prediction")
    whole = draw(noisy, "water", num_images_per_prompt=3, seed=1)
    torch.testing.assert_close(
        draw(noisy, "water", num_images_per_prompt=3, seed=1, batch_size=2), whole, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("sampler", ["euler_ancestral", "ddpm", "dpmpp_2m_sde"])
def test_one_generator_gives_the_same_noise_whatever_the_batch(sampler):
    noisy = tiny_pipeline(COSINE)
    options = {"num_images_per_prompt": 3, "sampler": sampler, "num_inference_steps": 5}

    def drawn(batch_size):
        return draw(noisy, "water", generator=torch.Generator().manual_seed(1), batch_size=batch_size, **options)

    torch.testing.assert_close(drawn(2), drawn(64), atol=1e-3, rtol=0)
    assert (drawn(64)[0] - drawn(64)[1]).abs().max() > 0.05


# ---- prompts and guidance ------------------------------------------------------------------------------------------


def counted(pipeline, monkeypatch) -> list[int]:
    """The batch sizes of the U-Net's calls from now on."""
    rows, forward = [], pipeline.unet.forward
    monkeypatch.setattr(pipeline.unet, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k))
    return rows


def test_guidance_costs_one_call_of_double_batch_and_nothing_when_off(pipeline, monkeypatch):
    rows = counted(pipeline, monkeypatch)
    draw(pipeline, ["a", "b"], guidance_scale=1, seed=0, num_inference_steps=3)
    assert rows == [2, 2, 2]
    rows.clear()
    draw(pipeline, ["a", "b"], guidance_scale=2, seed=0, num_inference_steps=3)
    assert rows == [4, 4, 4]
    rows.clear()
    draw(pipeline, seed=0, num_inference_steps=3)  # unconditional
    assert rows == [1, 1, 1]


def test_guidance_formula_and_order():
    seen = []

    def denoiser(x, t, condition):
        seen.append((x.shape[0], t.shape, condition.flatten().tolist()))
        return x * 0 + condition.view(-1, 1)

    x, cond, negative = torch.zeros(2, 1), torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0], [2.0]])
    out = guide(denoiser, cond, negative, 4.0)(x, torch.tensor([0.1, 0.1]))
    assert out.flatten().tolist() == [1 + 4 * (3 - 1), 2 + 4 * (5 - 2)]
    assert seen == [(4, torch.Size([4]), [1.0, 2.0, 3.0, 5.0])]
    assert guide(denoiser, cond, negative, 0.0)(x, torch.tensor(0.1)).flatten().tolist() == [1.0, 2.0]
    assert guide(denoiser, cond, None, 4.0)(x, torch.tensor(0.1)).flatten().tolist() == [3.0, 5.0]
    with pytest.raises(ValueError, match="negative must have condition's shape"):
        guide(denoiser, cond, negative[:1], 2.0)


@pytest.mark.parametrize("noise", [FLOW, COSINE], ids=["flow", "cosine"])
def test_the_interval_saves_passes_and_zero_init_holds_the_noise(noise, monkeypatch):
    pipeline = tiny_pipeline(noise)
    rows, states = counted(pipeline, monkeypatch), []
    options = {"seed": 0, "num_inference_steps": 10, "callback": lambda step, t, x: states.append(x)}
    draw(pipeline, "a", guidance_interval=(0.35, 0.75), **options)
    assert rows == [1, 1, 1, 2, 2, 2, 2, 1, 1, 1]  # the steps start at 1, .9, .8, .7, .6, .5, .4, .3, .2, .1
    states.clear()
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    draw(pipeline, "a", zero_init=0.2, **options)
    if noise is FLOW:
        torch.testing.assert_close(states[1], start, atol=1e-5, rtol=0)
    assert (states[2] - states[1]).abs().max() > 1e-3


def test_each_kind_of_guidance_changes_the_picture_and_only_when_on(pipeline):
    plain = draw(pipeline, "a", seed=0)
    kinds = [{"guidance_rescale": 0.7}, {"cfg_zero": True}, {"guidance_interval": (0.2, 0.8)}]
    pictures = [draw(pipeline, "a", seed=0, **kind) for kind in kinds]
    for i, picture in enumerate(pictures):
        assert all((picture - other).abs().max() > 1e-4 for other in [plain, *pictures[:i]])
    off = draw(pipeline, "a", seed=0, guidance_scale=1)
    for kind in kinds:
        assert torch.equal(draw(pipeline, "a", seed=0, guidance_scale=1, **kind), off)
    own = tiny_pipeline()
    own.defaults |= {"guidance_interval": [0.2, 0.8], "guidance_rescale": 0.0}  # as a list, from JSON
    torch.testing.assert_close(draw(own, "a", seed=0), pictures[2])


def test_a_whole_guidance_rule_may_be_given(pipeline):
    by_name = draw(pipeline, "a", seed=0, guidance_scale=2.0, guidance_rescale=0.7, cfg_zero=True)
    rule = Guidance(2.0, rescale=0.7, zero_star=True)
    assert torch.equal(draw(pipeline, "a", seed=0, guidance_scale=rule), by_name)
    with pytest.raises(ValueError, match="guidance_scale is a Guidance, which holds"):
        pipeline("a", guidance_scale=rule, guidance_rescale=0.5)


def test_no_prompt_is_the_null_caption_without_guidance(pipeline):
    torch.testing.assert_close(draw(pipeline, seed=2), draw(pipeline, "", guidance_scale=1, seed=2))
    torch.testing.assert_close(
        draw(pipeline, None, num_images_per_prompt=2, seed=2)[1], draw(pipeline, seed=3)[0], atol=1e-4, rtol=0
    )


def test_lists_of_prompts_and_negatives(pipeline):
    both = draw(pipeline, ["water", "fire"], ["x", "y"], num_images_per_prompt=2, seed=0)
    assert both.shape == (4, 1, 16, 16)
    alone = draw(pipeline, "fire", "y", num_images_per_prompt=2, seed=2)
    torch.testing.assert_close(both[2:], alone, atol=1e-4, rtol=0)  # pictures of one prompt lie side by side
    plain = draw(pipeline, "fire", seed=2)
    assert (plain[0] - alone[0]).abs().max() > 1e-3  # the negative prompt matters
    torch.testing.assert_close(plain, draw(pipeline, "fire", "", seed=2))  # and is the null caption by default


def test_long_prompts_are_cut_with_the_lost_words_named(pipeline, caplog):
    with caplog.at_level(logging.WARNING, "ldm"):
        pipeline.encode_prompt(["a" * (LENGTH - 2), "ab " * 6 + "lost"])
    (record,) = caplog.records
    assert "lost" in record.getMessage() and "cut after 16 tokens" in record.getMessage()


# ---- outputs -------------------------------------------------------------------------------------------------------


def test_output_types_agree(pipeline):
    pt = draw(pipeline, "water", seed=4)
    assert pt.shape == (1, 1, 16, 16) and pt.min() >= 0 and pt.max() <= 1
    array = pipeline("water", seed=4, output_type="np").images
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    (image,) = pipeline("water", seed=4).images
    assert (image.mode, image.size) == ("L", (16, 16))
    np.testing.assert_array_equal(np.asarray(image), (array[0, ..., 0] * 255).round().astype(np.uint8))
    latents = pipeline("water", seed=4, output_type="latent").images
    torch.testing.assert_close(pipeline.decode(latents), pt)
    assert tiny_pipeline(channels=3)("water", seed=4).images[0].mode == "RGB"


def test_callback_sees_every_step(pipeline):
    steps = []
    pipeline("a", seed=0, num_inference_steps=3, callback=lambda step, t, x: steps.append((step, int(t), x.shape)))
    assert [step for step, _, _ in steps] == [0, 1, 2]
    assert steps[0][1] > steps[1][1] > steps[2][1]
    assert steps[0][2] == (1, 4, 8, 8)
    shapes = []
    both = {"seed": 0, "num_inference_steps": 2, "batch_size": 1}
    pipeline(["a", "b"], **both, callback=lambda step, t, x: shapes.append((step, len(x))))
    assert shapes == [(0, 2), (1, 2)]  # of all images, however they go through the networks


def test_numbers_of_numpy_are_numbers(pipeline):
    ours = draw(pipeline, "a", seed=4, num_inference_steps=3, guidance_scale=2.0, num_images_per_prompt=2)
    numbers = {"seed": np.int64(4), "num_inference_steps": np.int32(3), "guidance_scale": np.float32(2)}
    assert torch.equal(draw(pipeline, "a", num_images_per_prompt=np.uint8(2), **numbers), ours)


def test_one_text_is_one_prompt(pipeline):
    assert torch.equal(pipeline.encode_prompt("water"), pipeline.encode_prompt(["water"]))
    for call in (pipeline.encode_prompt, pipeline.denoiser):
        with pytest.raises(ValueError, match="prompt is not Unicode text, got 'caf"):
            call(["water", "caf\udce9"])


@pytest.mark.parametrize("given", [(torch.float64,), ("float64",), (None, "float64"), ("cpu", torch.float64)])
def test_a_dtype_may_be_given_in_any_way(given):
    moved = tiny_pipeline().to(*given)
    assert {moved.vae.dtype, moved.text_encoder.dtype, moved.unet.dtype} == {torch.float64}
    with pytest.raises(ValueError, match="dtype must be one of float32, .* got 'half'"):
        moved.to(dtype="half")
    with pytest.raises(ValueError, match="dtype must be one of .* got torch.int8"):
        moved.to(torch.int8)
    assert moved.dtype == torch.float64


@pytest.mark.parametrize("length", [8, 5])
def test_a_shorter_tokenizer_is_followed(length):
    pipeline = tiny_pipeline(pooled_text=False)
    pipeline.tokenizer.model_max_length = length
    assert pipeline.encode_prompt("water").shape[1] == length
    assert pipeline("water", seed=1).images[0].size == (16, 16)


def test_results_can_be_computed_with_gradients(pipeline):
    scale = torch.ones((), requires_grad=True)
    for kind in ("latent", "pt"):
        images, scale.grad = pipeline("a", seed=0, output_type=kind).images, None
        (scale * images).sum().backward()
        torch.testing.assert_close(scale.grad, images.sum())


def test_where_the_first_timesteps_are_equal_every_step_is_taken():
    """Of 90 unipc steps over a flow of shift 12 the first two have the timestep 999."""
    pipeline, steps = tiny_pipeline(NoiseOptions(shift=12.0)), []
    pipeline.scheduler = with_sampler(pipeline.scheduler, "unipc")
    pipeline.scheduler.set_timesteps(90)
    assert pipeline.scheduler.timesteps[0] == pipeline.scheduler.timesteps[1]
    pipeline("a", seed=0, num_inference_steps=90, guidance_scale=1, callback=lambda step, t, x: steps.append(step))
    assert steps == list(range(90))


@pytest.mark.parametrize(("sampler", "shift", "count"), [("unipc", 1.0, 999), ("dpmpp_2m", 3.0, 700)])
def test_every_sampler_takes_every_step_where_timesteps_repeat(sampler, shift, count):
    scheduler = with_sampler(tiny_pipeline(NoiseOptions(shift=shift)).scheduler, sampler)
    noise, taken = torch.zeros(1, 1, 1, 1), []
    plan = SamplingPlan(noise, None, noise, scheduler, count, callback=lambda step, t, x: taken.append(step))
    assert denoise(plan, lambda x, t: torch.zeros_like(x)).isfinite().all() and len(taken) == count
    assert (scheduler.timesteps.diff() == 0).any()


# ---- schedulers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "IPNDM", "CMStochasticIterative"])
@pytest.mark.parametrize("noise", [NoiseOptions(), COSINE], ids=["flow", "cosine"])
def test_a_scheduler_that_cannot_generate_is_named_with_those_that_can(noise, name):
    import diffusers

    pipeline = tiny_pipeline(noise)
    own = pipeline.scheduler
    works = "UniPCMultistepScheduler"
    with pytest.raises(ValueError, match=f"scheduler {name}Scheduler cannot generate with this model: .*{works}"):
        pipeline.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(own.config)
    assert pipeline.scheduler is own
    pipeline.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline("a", seed=0, num_inference_steps=2)


def test_a_scheduler_of_another_process_or_with_clipping_is_said(caplog):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    flow, tabled = tiny_pipeline(), tiny_pipeline(COSINE)
    flow.scheduler = EulerDiscreteScheduler()
    assert "another noise process than the model's (flow on RectifiedFlow here, epsilon on DiscreteVP" in caplog.text
    caplog.clear()
    tabled.scheduler = DDIMScheduler.from_config(tabled.scheduler.config)
    assert "clip_sample=True, which cuts latents at 1" in caplog.text
    caplog.clear()
    tabled.scheduler = DDIMScheduler.from_config(tabled.scheduler.config, clip_sample=False)
    assert not caplog.records


def test_a_scheduler_of_ones_own_needs_what_the_loop_needs():
    own = tiny_pipeline().scheduler

    class Mine:
        config, order = own.config, 1
        init_noise_sigma, timesteps = 1.0, torch.tensor([900.0, 500.0])
        set_timesteps = scale_model_input = add_noise = step = lambda self, x, *rest, **options: (x,)

    pipeline = tiny_pipeline()
    pipeline.scheduler = Mine()
    assert pipeline.scheduler.timesteps is Mine.timesteps
    del Mine.step
    with pytest.raises(ValueError, match="scheduler Mine cannot generate"):
        pipeline.scheduler = Mine()


def test_the_denoiser_is_the_network_with_its_prompt_and_guidance(pipeline):
    x, t = torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    process = process_of(pipeline.scheduler)
    timestep = process.timestep(t).float()

    def x0_hat(prompt):
        embeds = pipeline.encode_prompt([prompt] * 3)
        prediction = pipeline.unet(x.float(), timestep, encoder_hidden_states=embeds).sample.double()
        return process.predict_x0(x, prediction, t)

    found = pipeline.denoiser("water")(x, t)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, x0_hat("water"), atol=1e-6, rtol=0)
    each = pipeline.denoiser(["water", "fire", ""])(x, t)
    torch.testing.assert_close(each[1], x0_hat("fire")[1], atol=1e-5, rtol=0)
    guided = x0_hat("fire") + 3 * (x0_hat("water") - x0_hat("fire"))
    torch.testing.assert_close(pipeline.denoiser("water", 3.0, "fire")(x, t), guided, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "caf\udce9"}, "prompt is not Unicode text, got 'caf"),
        ({"prompt": "a", "negative_prompt": "caf\udce9"}, "negative_prompt is not Unicode text, got 'caf"),
        ({"prompt": 3}, "prompt must be a text, a list of texts, or None, got 3"),
        ({"prompt": []}, "prompt must be"),
        ({"prompt": ["a", None]}, "prompt must be"),
        ({"prompt": "a", "negative_prompt": ["x", "y"]}, r"negative_prompt must be one, or as many as prompts \(1\)"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number, from 1 to 1000, got 0"),
        ({"num_inference_steps": 1001}, "from 1 to 1000, got 1001"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be"),
        ({"guidance_scale": -1}, "guidance_scale must be a finite number, 0 or more"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be"),
        ({"guidance_scale": "3"}, "guidance_scale must be"),
        ({"guidance_interval": (0.5, 0.2)}, "interval must be two times"),
        ({"guidance_rescale": 2}, "rescale must be from 0 to 1"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number, 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"seed": 1, "generator": torch.Generator()}, "seed must be None when generator or latents is given"),
        ({"generator": [torch.Generator()] * 2}, "generator must be one, or a list of 1"),
        ({"generator": 4}, "generator must be"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, r"latents must be a tensor of shape \(1, 4, 8, 8\), got \(1, 4, 4, 4\)"),
        ({"output_type": "jpg"}, "output_type must be one of .*got 'jpg'"),
    ],
)
def test_wrong_arguments_are_named(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)


# ---- loading -------------------------------------------------------------------------------------------------------


def test_defaults_come_from_the_folder(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "model")
    settings = json.loads((folder / "ldm.json").read_text()) | {"num_inference_steps": 3, "guidance_scale": 1.0}
    (folder / "ldm.json").write_text(json.dumps(settings))
    pipeline = load_pipeline(folder)
    rows = counted(pipeline, monkeypatch)
    pipeline("a", seed=0)
    assert rows == [1, 1, 1]
    (folder / "ldm.json").unlink()  # a stock folder without it works too
    assert load_pipeline(folder).defaults["num_inference_steps"] == 20


def test_a_finished_run_draws_like_its_export(tmp_path):
    model, run = tiny_folder(tmp_path / "model"), tmp_path / "runs" / "x" / "ldm"
    shutil.copytree(model, run / "final")
    (run / "config.yaml").write_text("ldm: {sampling: {num_inference_steps: 4, guidance_scale: 2.0}}\n")
    pipeline, exported = load_pipeline(run), load_pipeline(model)
    assert pipeline.defaults == {"num_inference_steps": 4, "guidance_scale": 2.0}
    assert pipeline.digest == exported.digest
    torch.testing.assert_close(draw(pipeline, "a", seed=0), draw(exported, "a", seed=0, guidance_scale=2.0))
    shutil.rmtree(run / "final" / "vae")
    with pytest.raises(UserError, match="has no vae in final/: it is no finished LDM run"):
        load_pipeline(run)


def test_the_digest_follows_the_weights_and_not_the_name(tmp_path):
    first, second = tiny_folder(tmp_path / "a"), tiny_folder(tmp_path / "b")
    digest = load_pipeline(first).digest
    assert digest == load_pipeline(second).digest and len(digest) == 16
    weights = load_file(second / "vae" / "diffusion_pytorch_model.safetensors")
    weights["quant_conv.bias"] += 1
    save_file(weights, second / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    assert load_pipeline(second).digest != digest


def edit_index(folder: Path, **changes) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_wrong_folders_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = tiny_folder(tmp_path / "good")

    def refused(message: str, **changes) -> None:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        if changes:
            edit_index(folder, **changes)
        for name in remove:
            (folder / name).unlink()
        with pytest.raises(UserError, match=message) as caught:
            load_pipeline(folder)
        assert "\n" not in str(caught.value)

    remove: list[str] = []
    refused("only StableDiffusionPipeline is read here", _class_name="FluxPipeline")
    refused("unet must be one of UNet2DConditionModel, got", unet=["os", "system"])
    refused("scheduler must be one of", scheduler="x")
    remove = ["unet/config.json"]
    refused("is incomplete: .*config.json is missing")
    remove = ["vae/diffusion_pytorch_model.safetensors"]
    refused("no .*safetensors")
    with pytest.raises(UserError, match="there is no folder"):
        load_pipeline(tmp_path / "nowhere" / "deep")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no model"):
        load_pipeline("empty")
    (tmp_path / "run" / "final").mkdir(parents=True)
    with pytest.raises(UserError, match="no finished LDM run"):
        load_pipeline("run")


def test_a_broken_weight_file_is_named(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="unet/diffusion_pytorch_model.safetensors is no complete safetensors file"):
        load_pipeline(folder)


def test_a_hub_id_downloads_known_files_only(tmp_path, monkeypatch):
    import huggingface_hub

    folder, asked = tiny_folder(tmp_path / "model"), {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **options: asked.update(options, repo=repo) or str(folder)
    )
    monkeypatch.chdir(tmp_path)
    assert load_pipeline("user/glyphs@v2").folder.source == "user/glyphs@model"  # a snapshot's name is its commit
    assert (asked["repo"], asked["revision"]) == ("user/glyphs", "v2")
    assert "unet/*.safetensors*" in asked["allow_patterns"]
    assert not any(
        pattern.endswith((".py", ".bin", ".pt", "*")) and "safetensors" not in pattern
        for pattern in asked["allow_patterns"]
    )

    def offline(repo, **options):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        UserError, match="there is no folder user/typo, and the Hub did not give it as a model: offline$"
    ):
        load_pipeline("user/typo")


@pytest.mark.gpu
def test_a_seed_means_the_same_noise_on_a_gpu(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    on_cpu = draw(load_pipeline(folder, "cpu"), "water", seed=1)
    torch.testing.assert_close(draw(load_pipeline(folder, "cuda"), "water", seed=1).cpu(), on_cpu, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("left", "command"), [(["vae"], "train_vae.py"), (["clip", "text_encoder", "tokenizer"], "train_clip.py")]
)
def test_a_run_of_another_stage_names_the_one_that_generates(tmp_path, left, command):
    for name in left:
        (tmp_path / "runs" / "x" / "part" / "final" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"is a run of {command}, which generates no images.*: train the U-Net too"):
        resolve_model(tmp_path / "runs" / "x" / "part")
    (tmp_path / "runs" / "x" / "ldm").mkdir()
    with pytest.raises(UserError, match="name .*runs/x/ldm"):
        resolve_model(tmp_path / "runs" / "x" / "part")


def test_an_apple_gpu_has_no_float64(tmp_path):
    with pytest.raises(UserError, match="has no float64: use float32"):
        load_pipeline(device="mps", dtype="float64")
