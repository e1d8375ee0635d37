"""The verbs, against what they must equal: plain drawing at their ends, stock diffusers, the picture itself."""

import inspect
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import COSINE, FLOW, tiny_folder, tiny_pipeline

from ldm.config.settings import NoiseOptions
from ldm.diffusion.guidance import Guidance, guide
from ldm.diffusion.parameterization import convert
from ldm.formats.image_arrays import fit_image
from ldm.pipelines import editing as verbs
from ldm.pipelines.denoising_loop import SamplingPlan, _renoise
from ldm.pipelines.denoising_loop import invert as invert_plan
from ldm.pipelines.diffusers_schedulers import process_of, with_sampler
from ldm.pipelines.image_input import read_image, read_images
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.onnx_export import write_graphs
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError

STEPS = {"num_inference_steps": 5, "output_type": "pt", "guidance_scale": 2.5}
PROCESSES = {
    "flow": FLOW,
    "v": COSINE,
    "eps": NoiseOptions(process="linear", prediction_type="epsilon"),
    "karras": NoiseOptions(process="karras", prediction_type="v_prediction"),
}


@pytest.fixture(scope="module", params=["flow", "v"])
def pipeline(request):
    return tiny_pipeline(PROCESSES[request.param])


@pytest.fixture(scope="module")
def picture():
    """16 x 16, grey, no two pixels alike."""
    return np.random.default_rng(0).permutation(256).reshape(16, 16).astype(np.uint8)


def as_pt(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture)[None, None].float() / 255


# ---- image to image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [None, "dpmpp_2m", "unipc", "dpmpp_2m_sde"])
def test_strength_one_is_plain_drawing(pipeline, picture, sampler):
    options = {"seed": 3, "num_images_per_prompt": 2, "sampler": sampler, "negative_prompt": "fire", **STEPS}
    assert torch.equal(
        verbs.image_to_image(pipeline, picture, "water", 1, **options).images, pipeline("water", **options).images
    )


def test_strength_zero_is_the_picture_through_the_autoencoder(pipeline, picture):
    drawn = verbs.image_to_image(pipeline, picture, "water", 0, seed=0, **STEPS).images
    assert torch.allclose(drawn, pipeline.decode(pipeline.encode(as_pt(picture))), atol=1e-6)


def test_an_image_comes_to_the_size_that_is_asked_for(pipeline, picture):
    size = {"height": 24, "width": 40}
    stretched = fit_image(picture[..., None], (24, 40), "stretch")[..., 0]
    options = {"resize": "stretch", "seed": 0, **size, **STEPS}
    drawn = verbs.image_to_image(pipeline, picture, "water", 0, **options).images
    torch.testing.assert_close(drawn, pipeline.decode(pipeline.encode(as_pt(stretched))), atol=1e-5, rtol=0)
    whole = verbs.image_to_image(pipeline, picture, "water", 1, **options).images
    assert torch.equal(whole, pipeline("water", seed=0, **size, **STEPS).images)
    kept = verbs.inpaint(pipeline, picture, np.zeros_like(picture), "water", **options).images
    torch.testing.assert_close(kept, as_pt(stretched))
    with pytest.raises(ValueError, match="height must be a multiple of 4, got 18"):
        verbs.image_to_image(pipeline, picture, "water", height=18)


def test_encoding_is_the_posteriors_mean_and_undone_by_decoding():
    pipeline = tiny_pipeline()
    x = torch.rand(2, 1, 16, 16)
    plain = pipeline.vae.encode(2 * x - 1).latent_dist.mean
    assert torch.allclose(pipeline.encode(x), plain)
    pipeline.vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    assert torch.allclose(pipeline.encode(x), (plain - 0.25) * 0.5)
    assert torch.allclose(
        pipeline.decode(pipeline.encode(x)), (pipeline.vae.decode(plain).sample / 2 + 0.5).clamp(0, 1), atol=1e-5
    )


def test_the_more_strength_the_further_from_the_picture(pipeline, picture):
    base = pipeline.decode(pipeline.encode(as_pt(picture)))
    far = [
        (verbs.image_to_image(pipeline, picture, "water", each, seed=0, **STEPS).images - base).abs().mean().item()
        for each in (0, 0.2, 0.6, 1)
    ]
    assert far == sorted(far) and len(set(far)) == 4


@pytest.mark.parametrize("noise", [FLOW, COSINE], ids=["flow", "v"])
@pytest.mark.parametrize("strength", [0.5, 0.81])
def test_stock_image_to_image_gives_the_same_pictures(tmp_path, noise, strength):
    from diffusers import StableDiffusionImg2ImgPipeline

    folder = tiny_folder(tmp_path / "model", noise, channels=3)
    ours = load_pipeline(folder)
    picture = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    known = ours.encode(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255).clone()
    stock = StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 10, "guidance_scale": 3.0, "strength": strength}
    seeds = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    theirs = stock(
        ["water"] * 2,
        image=known.repeat(2, 1, 1, 1),
        negative_prompt=["fire"] * 2,
        generator=seeds,
        output_type="pt",
        **settings,
    ).images
    drawn = verbs.image_to_image(
        ours, picture, ["water"] * 2, negative_prompt="fire", seed=7, output_type="pt", **settings
    ).images
    assert theirs.std() > 0.01
    assert (drawn - theirs).abs().max() <= 2 / 255


@pytest.mark.parametrize("strength", [0.5, 1])
def test_stock_inpainting_gives_the_same_latents(picture, strength):
    from diffusers import StableDiffusionInpaintPipeline

    ours = tiny_pipeline(COSINE, pooled_text=False)
    stock = StableDiffusionInpaintPipeline(
        **ours.components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.set_progress_bar_config(disable=True)
    stock.vae.register_to_config(in_channels=1)
    mask, known = verbs.box_mask(picture, (8, 4, 16, 16)), ours.encode(as_pt(picture))
    settings = {"num_inference_steps": 6, "guidance_scale": 3.0, "strength": strength, "output_type": "latent"}
    theirs = stock(
        "water",
        image=known,
        mask_image=torch.from_numpy(mask / 255)[None, None].float(),
        masked_image_latents=known,
        height=16,
        width=16,
        generator=[torch.Generator().manual_seed(7)],
        **settings,
    ).images
    drawn = verbs.inpaint(ours, picture, mask, "water", seed=7, **settings).images
    torch.testing.assert_close(drawn, theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("process", "sampler"),
    [("flow", "dpmpp_2m"), ("flow", "unipc"), ("karras", "dpmpp_2m"), ("karras", "euler")]
    + [("eps", name) for name in ("ddim", "ddpm", "euler", "heun_edm", "euler_ancestral")],
)
def test_a_picture_leaves_no_trace_in_the_scheduler(picture, process, sampler):
    """And without steps every scheduler gives the picture back, with all of them plain drawing."""
    pipeline = tiny_pipeline(PROCESSES[process])
    pipeline.scheduler = with_sampler(pipeline.scheduler, sampler)
    options = {"num_inference_steps": 4, "output_type": "latent", "seed": 3}
    before = pipeline("water", **options).images
    known = pipeline.encode(as_pt(picture))
    half = verbs.image_to_image(pipeline, picture, "water", 0.5, **options).images
    assert not torch.allclose(half, before) and not torch.allclose(half, known)
    assert torch.equal(pipeline("water", **options).images, before)
    assert torch.equal(verbs.image_to_image(pipeline, picture, "water", 1, **options).images, before)
    assert torch.allclose(verbs.image_to_image(pipeline, picture, "water", 0, **options).images, known, atol=1e-6)


def test_a_list_of_pictures_has_one_for_each_prompt(picture):
    pipeline = tiny_pipeline()
    options = {"num_images_per_prompt": 2, "num_inference_steps": 2, "output_type": "pt"}
    both = verbs.image_to_image(pipeline, [picture, 255 - picture], ["water", "fire"], 0.0, seed=0, **options).images
    one = pipeline.decode(pipeline.encode(as_pt(picture)))
    other = pipeline.decode(pipeline.encode(as_pt(255 - picture)))
    assert torch.allclose(both, torch.cat([one, one, other, other]), atol=1e-6)
    with pytest.raises(ValueError, match="one for each prompt, got 2 for 3"):
        verbs.image_to_image(pipeline, [picture, picture], ["a", "b", "c"])


def test_a_batch_of_arrays_or_a_tensor_is_a_list_of_images(picture):
    pipeline = tiny_pipeline(channels=3)
    colours = np.stack([picture, 255 - picture, picture.T], -1)
    expected = read_images(pipeline, [colours, colours[::-1].copy()])
    tensor = torch.cat([expected[:1], expected[1:]])
    as_uint8 = (tensor * 255).round().to(torch.uint8)
    batches = [
        tensor,
        tensor.double(),
        as_uint8,
        tensor.permute(0, 2, 3, 1).numpy(),
        list(tensor),
        list(tensor.split(1)),
    ]
    for batch in batches:
        assert torch.equal(read_images(pipeline, batch), expected)
    assert torch.equal(read_images(pipeline, tensor.requires_grad_()[0, :1]), read_images(pipeline, picture))
    with pytest.raises(UserError, match="float values must be from 0 to 1, got -1"):
        read_images(pipeline, tensor.detach() * 2 - 1)


@pytest.mark.parametrize("operation", ["image_to_image", "inpaint"])
def test_each_image_of_a_batch_is_what_it_is_alone(picture, operation):
    pipeline, options = tiny_pipeline(), {"num_inference_steps": 3, "output_type": "pt", "strength": 0.7}
    pictures, masks = [picture, 255 - picture], [verbs.box_mask(picture, box) for box in ((8, 0, 16, 16), (0, 0, 7, 9))]

    def change(which, prompt, **more):
        given = [[pictures[i] for i in which]]
        given += [[masks[i] for i in which]] if operation == "inpaint" else []
        return getattr(verbs, operation)(pipeline, *given, prompt, **options, **more).images

    def own(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    both = change([0, 1], ["water", "fire"], generator=own(5, 6, 7, 8), num_images_per_prompt=2)
    first = change([0], "water", generator=own(5, 6), num_images_per_prompt=2)
    last = change([1], ["fire"], generator=own(8))
    torch.testing.assert_close(both[:2], first, atol=1e-4, rtol=0)
    torch.testing.assert_close(both[3:], last, atol=1e-4, rtol=0)
    assert (both[0] - both[1]).abs().max() > 0.01


@pytest.mark.parametrize("operation", ["image_to_image", "inpaint"])
def test_callbacks_count_the_steps_that_strength_leaves(picture, operation):
    """What the last of them makes of the latents is the result, and one that interrupts gives those of its step."""
    pipeline, seen = tiny_pipeline(COSINE), []
    given = [picture, np.full_like(picture, 255)] if operation == "inpaint" else [picture]
    options = {"seed": 1, "num_inference_steps": 6, "output_type": "latent", "strength": 0.5, "guidance_scale": 2.0}

    def change(callback):
        done = getattr(verbs, operation)(pipeline, *given, "water", callback_on_step_end=callback, **options)
        return done.images

    def note(_, step, timestep, tensors):
        seen.append((step, pipeline.num_timesteps, tensors["latents"]))
        pipeline._guidance_scale += 1.0
        return tensors if step < 2 else {"latents": torch.zeros_like(tensors["latents"])}

    def stop(_, step, timestep, tensors):
        pipeline._guidance_scale += 1.0
        pipeline._interrupt = step == 1
        return tensors

    assert not change(note).any() and pipeline.guidance_scale == 5.0
    assert [each[:2] for each in seen] == [(0, 3), (1, 3), (2, 3)]
    assert torch.equal(change(stop), seen[1][2])


def test_every_engine_gives_the_same(tmp_path, picture):
    pytest.importorskip("onnxruntime")
    folder = tiny_folder(tmp_path / "model")
    write_graphs(load_pipeline(folder, engine="torch"), folder)
    fast, plain = load_pipeline(folder, engine="onnx"), load_pipeline(folder, engine="torch")
    for draw in (
        lambda p: verbs.image_to_image(p, picture, "water", 0.6, seed=0, **STEPS),
        lambda p: verbs.compose(p, [("water", 1.0), ("fire", -0.5)], seed=0, **STEPS),
        lambda p: verbs.weigh(p, "(water:1.5) and fire", seed=0, **STEPS),
    ):
        assert (draw(fast).images - draw(plain).images).abs().max() <= 2 / 255
    assert set(fast.engines.values()) == {"onnx"}


# ---- pictures of any kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_a_picture_may_have_any_mode_and_size(tmp_path, mode):
    pipeline = tiny_pipeline(channels=3)
    grey = Image.fromarray(np.full((40, 24), 255, np.uint8))
    image = grey.convert("RGB").convert(mode) if mode in ("HSV", "CMYK") else grey.convert(mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 24), 65535, np.uint16))
    found = read_images(pipeline, image, "pad", 255)
    assert found.shape == (1, 3, 16, 16) and found.min() > 0.98


def test_a_path_an_image_and_an_array_are_one_picture(tmp_path, picture):
    pipeline, image = tiny_pipeline(), Image.fromarray(picture)
    image.save(tmp_path / "a.png")
    kinds = [picture, image, tmp_path / "a.png", str(tmp_path / "a.png"), picture[..., None], picture / 255.0]
    for each in [*kinds, np.stack([picture] * 3, axis=-1)]:
        assert torch.equal(read_images(pipeline, each, "pad", 255), as_pt(picture))
    assert torch.equal(read_images(pipeline, picture > 99, "pad", 255), as_pt(picture > 99) * 255)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(turned, "PNG", exif=exif)
    assert torch.equal(read_images(pipeline, Image.open(turned), "pad", 255), as_pt(np.rot90(picture, -1).copy()))


def deep_tiff(order: str) -> Image.Image:
    """A 16-bit ramp as a file, opened."""
    stream = io.BytesIO()
    ramp = np.linspace(0, 65535, 256).astype("<u2").reshape(16, 16)
    mode = {"<": "I;16", ">": "I;16B"}[order]
    Image.frombytes(mode, (16, 16), ramp.astype(f"{order}u2").tobytes()).save(stream, "TIFF")
    return Image.open(stream)


def deep_png() -> Image.Image:
    stream = io.BytesIO()
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(stream, "PNG", transparency=257)
    return Image.open(stream)


@pytest.mark.parametrize(
    ("opened", "levels"),
    [
        (lambda: deep_tiff("<"), range(256)),
        (lambda: deep_tiff(">"), range(256)),
        (lambda: Image.frombytes("I;16B", (1, 2), b"\xff\xff\x80\x80"), [255, 128]),
        (deep_png, [0, 77, 255]),
    ],
)
def test_an_object_of_16_bits_is_what_its_file_is(opened, levels):
    for _ in range(2):
        assert read_image(opened(), 1, 77).ravel().tolist() == list(levels)
    image = opened()
    image.load()
    assert read_image(image, 3, 77)[..., 0].ravel().tolist() == list(levels)


def test_transparency_is_put_on_the_background(picture):
    clear = np.dstack([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)])
    assert (read_images(tiny_pipeline(), Image.fromarray(clear), "pad", 102) == 102 / 255).all()
    assert (read_images(tiny_pipeline(), clear, "pad", 255) == 1).all()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("no/such.png", "no such file"),
        (np.zeros((4, 4, 7), np.uint8), "array must be"),
        (np.zeros(4, np.uint8), "array must be"),
        (np.zeros((4, 4), np.int64), r"array must be .*got int64 \(4, 4\)"),
        (np.zeros((4, 4), np.uint16), r"array must be .*got uint16 \(4, 4\)"),
        ([np.zeros((4, 4, 1), np.int8)], "array must be"),
        (np.full((4, 4), 3.0), "0 to 1, got 3 to 3"),
        (np.full((4, 4), np.nan), "0 to 1"),
        (np.zeros((0, 4), np.uint8), "cannot be used"),
        (7, "the int cannot be used"),
        (b"text", "the bytes cannot be used"),
    ],
)
def test_what_is_no_picture_is_told_in_one_line(bad, reason):
    with pytest.raises(UserError, match=reason) as caught:
        verbs.image_to_image(tiny_pipeline(), bad, "water")
    assert "\n" not in str(caught.value)


def test_a_hostile_file_is_told_in_one_line(tmp_path):
    whole = io.BytesIO()
    Image.new("L", (64, 64)).save(whole, "PNG")
    for name, data in {"empty.png": b"", "text.png": b"hello", "cut.png": whole.getvalue()[:60]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            verbs.inpaint(tiny_pipeline(), tmp_path / name, np.zeros((64, 64), np.uint8))
    with pytest.raises(UserError, match="is no file"):
        verbs.image_to_image(tiny_pipeline(), tmp_path, "water")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:60])
    with pytest.raises(UserError, match="cannot be used"):
        verbs.image_to_image(tiny_pipeline(), Image.open(tmp_path / "cut.png"))


# ---- inpainting -----------------------------------------------------------------------------------------------------


def test_an_empty_mask_gives_the_picture_and_a_full_one_plain_drawing(pipeline, picture):
    options = {"seed": 1, **STEPS}
    nothing, all_of_it = np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)
    assert torch.equal(verbs.inpaint(pipeline, picture, nothing, "water", **options).images, as_pt(picture))
    plain = pipeline("water", **options).images
    assert torch.equal(verbs.inpaint(pipeline, picture, all_of_it, "water", **options).images, plain)


@pytest.mark.parametrize("sampler", [None, "ddpm", "unipc"])
@pytest.mark.parametrize("resample", [1, 3])
def test_what_the_mask_keeps_is_kept_exactly(pipeline, picture, sampler, resample):
    mask = verbs.box_mask(picture, (5, 0, 16, 9))
    options = {"seed": 1, "num_inference_steps": 4, "sampler": sampler}
    image = verbs.inpaint(pipeline, picture, mask, "water", resample=resample, **options).images[0]
    assert image.mode == "L"
    assert (np.asarray(image)[mask == 0] == picture[mask == 0]).all()
    assert (np.asarray(image)[mask > 0] != picture[mask > 0]).mean() > 0.5


def test_known_latents_are_those_of_the_picture_after_each_step(picture):
    """With the noise of their level before it, and clean in the end; flow: (1 - t) z0 + t noise."""
    pipeline, seen = tiny_pipeline(), []
    mask = verbs.box_mask(picture, (8, 0, 16, 16))
    options = {"seed": 1, "num_inference_steps": 4, "output_type": "latent"}
    z0, noise = pipeline.encode(as_pt(picture)), verbs._noise(pipeline, 1, {})[0]
    found = verbs.inpaint(pipeline, picture, mask, "water", callback=lambda i, t, x: seen.append(x), **options).images
    for x, sigma in zip(seen, pipeline.scheduler.sigmas[1:], strict=True):
        expected = (1 - sigma) * z0 + sigma * noise
        assert torch.allclose(x[..., :4], expected[..., :4], atol=1e-5)
        assert not torch.allclose(x[..., 4:], expected[..., 4:], atol=1e-2)
    assert torch.allclose(found[..., :4], z0[..., :4], atol=1e-6)


def test_going_back_gives_the_noise_of_the_level_before():
    x0, n = torch.full((20000,), 2.0), torch.randn(20000, generator=torch.Generator().manual_seed(0))
    x_t = _renoise(0.8 * x0 + 0.6 * n, (0.28, 0.96), (0.8, 0.6), torch.Generator().manual_seed(1))
    assert abs(x_t.mean() - 0.56) < 0.03 and abs(x_t.std() - 0.96) < 0.03


def test_a_wrong_mask_box_or_number_is_told(picture):
    pipeline = tiny_pipeline()
    with pytest.raises(ValueError, match="size 16 x 16, got 8 x 16"):
        verbs.inpaint(pipeline, picture, np.zeros((16, 8), np.uint8))
    with pytest.raises(ValueError, match="box must be"):
        verbs.box_mask(picture, (4, 0, 17, 3))
    for wrong in ({"strength": 1.5}, {"strength": float("nan")}, {"resample": 0}, {"resize": "squash"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            verbs.inpaint(pipeline, picture, picture, **wrong)
    heun = tiny_pipeline(NoiseOptions(process="scaled_linear", prediction_type="epsilon"))
    heun.scheduler = with_sampler(heun.scheduler, "heun_edm")
    with pytest.raises(ValueError, match="one call a step, got Heun"):
        verbs.inpaint(heun, picture, picture, resample=2)


def test_one_mask_goes_with_all_images_and_one_image_with_all_masks(picture):
    pipeline, options = tiny_pipeline(), {"num_inference_steps": 2, "output_type": "pt", "seed": 1}
    masks = [verbs.box_mask(picture, box) for box in ((8, 0, 16, 16), (0, 0, 7, 9))]
    prompts = ["water", "fire"]
    pairs = (
        ([picture, picture], masks),
        (picture, masks),
        (np.stack([picture[..., None]] * 2), np.stack(masks)[..., None]),
    )
    drawn = [verbs.inpaint(pipeline, *pair, prompts, **options).images for pair in pairs]
    for each in drawn[1:]:
        torch.testing.assert_close(each, drawn[0], atol=1e-4, rtol=0)
    for image, mask in zip(drawn[0], masks):
        assert torch.equal(image[0][mask == 0], as_pt(picture)[0, 0][mask == 0])
    same = verbs.inpaint(pipeline, [picture, picture], masks[0], prompts, **options).images
    torch.testing.assert_close(same[0], drawn[0][0], atol=1e-4, rtol=0)
    assert (same[1] - drawn[0][1]).abs().max() > 0.01
    with pytest.raises(ValueError, match="masks must be one, or one for each image, got 2 for 3"):
        verbs.inpaint(pipeline, [picture] * 3, masks, ["a", "b", "c"])


# ---- inversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "most"), [("flow", 1e-3), ("v", 0.05), ("karras", 1e-3)])
def test_drawing_from_inverted_noise_gives_the_latents_again(picture, process, most):
    """From one round nearer the more steps there are; from more rounds to within `most` of the latents' size."""
    pipeline = tiny_pipeline(PROCESSES[process])
    known = pipeline.encode(as_pt(picture))

    def error(steps: int, rounds: int) -> float:
        options = {"num_inference_steps": steps, "guidance_scale": 1.0}
        noise = verbs.invert(pipeline, picture, "water", rounds, **options)
        again = pipeline("water", latents=noise, sampler="ddim", output_type="latent", **options).images
        return ((again - known).square().mean() / known.square().mean()).sqrt().item()

    plain = [error(steps, 1) for steps in (8, 24)]
    assert plain[1] < 0.7 * plain[0]
    assert error(24, 8) < most < plain[1]


@pytest.mark.parametrize("process", PROCESSES)
def test_inversion_of_gaussian_data_gives_the_noise_of_the_exact_flow(process):
    """Data N(m, 1 / 4) and the exact x0_hat: the ODE keeps (x - alpha m) / sqrt(alpha^2 / 4 + sigma^2)."""
    scheduler = with_sampler(tiny_pipeline(PROCESSES[process]).scheduler, "ddim")
    x0, mean, its = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)), 0.7, process_of(scheduler)

    def predict(seen, timestep):
        t = its.schedule.from_timestep(timestep.double())
        alpha, sigma = (scale.item() for scale in its.scales(t))
        x = seen / its.schedule.input_scale(t).item()
        x0_hat = mean + alpha / 4 / (alpha**2 / 4 + sigma**2) * (x - alpha * mean)
        return convert(x0_hat, x, alpha, sigma, "sample", its.prediction_type).float()

    def error(steps: int) -> float:
        plan = SamplingPlan(
            torch.zeros(3, 1, 1), None, torch.zeros_like(x0), scheduler, steps, init_latents=x0, rounds=8
        )
        x = invert_plan(plan, predict) * scheduler.init_noise_sigma
        alpha, sigma = (
            scale.item() for scale in its.scales(its.schedule.from_timestep(scheduler.timesteps[0].double()))
        )
        return ((x - alpha * mean) / (alpha**2 / 4 + sigma**2) ** 0.5 - 2 * (x0 - mean)).abs().max().item()

    errors = [error(steps) for steps in (25, 100)]
    assert errors[1] < errors[0] / 3 and errors[1] < 0.2  # first order


def test_editing_with_the_same_prompt_gives_the_picture_and_with_another_not(picture):
    pipeline = tiny_pipeline()
    options = {"num_inference_steps": 10, "guidance_scale": 1.0, "output_type": "pt"}
    same, other = verbs.edit(pipeline, picture, ["water", "fire"], "water", rounds=10, **options).images
    base = pipeline.decode(pipeline.encode(as_pt(picture)))[0]
    assert (same - base).abs().max() < 2 / 255 < (other - base).abs().max()


# ---- between and around ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["linear", "slerp"])
@pytest.mark.parametrize("sampler", [None, "dpmpp_2m_sde"])
def test_both_ends_of_an_interpolation_are_plain_drawings(pipeline, words, sampler):
    options = {"batch_size": 1, "sampler": sampler, "negative_prompt": "earth", **STEPS}
    frames = verbs.interpolate(pipeline, "water", "fire", 4, 5, 9, words, **options).images
    assert torch.equal(frames[:1], pipeline("water", seed=5, **options).images)
    last = pipeline("fire", seed=9, **options).images
    if sampler is None:
        assert torch.equal(frames[-1:], last)
    between = (frames[1:] - frames[:-1]).abs().flatten(1).mean(1)
    assert (between > 0).all()


def test_an_interpolation_without_words_is_unconditional():
    pipeline = tiny_pipeline()
    options = {"batch_size": 1, **STEPS}
    frames = verbs.interpolate(pipeline, None, None, 2, 5, 9, **options).images
    assert torch.equal(frames[:1], pipeline(seed=5, **options).images)


def test_slerp_keeps_the_norm_and_the_angles_share():
    a, b = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    a, b = (each / each.norm(dim=-1, keepdim=True) * 7 for each in (a, b))
    whole = torch.linalg.vecdot(a, b).div(49).acos()
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        c = verbs.slerp(a, b, share)
        assert torch.allclose(c.norm(dim=-1), torch.tensor(7.0, dtype=torch.float64))
        assert torch.allclose(torch.linalg.vecdot(a, c).div(49).clamp(-1, 1).acos(), share * whole, atol=1e-6)
    assert torch.equal(verbs.slerp(a, b, 0.0), a) and torch.equal(verbs.slerp(a, b, 1.0), b)
    assert torch.allclose(verbs.slerp(a, a, 0.3), a)
    assert torch.allclose(verbs.slerp(a, 2 * a, 0.5), 1.5 * a)


def test_slerp_takes_several_axes_for_one_vector():
    a, b = torch.randn(2, 4, 8, 8)
    assert torch.allclose(verbs.slerp(a, b, 0.3, axes=3), verbs.slerp(a.flatten(), b.flatten(), 0.3).view_as(a))


def test_variations_reach_from_one_seed_to_others(pipeline):
    options = {"batch_size": 1, **STEPS}
    plain = pipeline("water", seed=5, **options).images
    assert torch.equal(verbs.vary(pipeline, "water", 5, 0, 2, **options).images, plain.repeat(2, 1, 1, 1))
    others = pipeline("water", seed=6, num_images_per_prompt=2, **options).images
    assert torch.equal(verbs.vary(pipeline, "water", 5, 1, 2, **options).images, others)
    far = [
        (verbs.vary(pipeline, "water", 5, each, 2, **options).images - plain).abs().mean() for each in (0.1, 0.4, 0.9)
    ]
    assert far == sorted(far)


def test_noise_for_variations_keeps_its_variance(monkeypatch):
    pipeline, seen = tiny_pipeline(), []
    monkeypatch.setattr(type(pipeline), "__call__", lambda self, *args, latents, **more: seen.append(latents))
    verbs.vary(pipeline, seed=3, amount=0.6, number=64)
    assert abs(seen[0].std() - 1) < 0.02
    centre = verbs._noise(pipeline, 3, {})[0]
    assert abs((seen[0] * centre).mean() / centre.square().mean() - 0.8) < 0.02


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"guidance_rescale": 0.5}, {"guidance_interval": (0.2, 0.7)}, {"cfg_zero": True}]
)
def test_composing_one_prompt_is_plain_drawing(pipeline, options):
    options |= {"seed": 2, "negative_prompt": "earth", "batch_size": 1, **STEPS}
    composed, plain = verbs.compose(pipeline, [("water", 1.0)], **options).images, pipeline("water", **options).images
    if "guidance_interval" in options:  # outside it the batch has another size
        assert torch.allclose(composed, plain, atol=1e-5)
    else:
        assert torch.equal(composed, plain)


def test_the_parts_of_a_composition_add_up():
    """away + s sum of w_i (e_i - away), whatever the order; the same prompt twice is one of twice the weight."""
    told = torch.tensor([[3.0], [5.0], [-2.0]])  # the null caption's prediction and two prompts'

    def denoiser(x, t, condition):
        return x + condition[:, 0, :, None]

    x, t = torch.zeros(2, 1, 1), torch.tensor(0.5)
    null, stacked = told[:1].expand(2, 1, 1), told[1:, :, None].view(1, 2, 1, 1).expand(2, -1, -1, -1)
    for scale in (0.0, 1.0, 2.0):
        for weights in ((1.0, 0.5), (1.0, -0.5), (0.0, 0.0)):
            found = guide(denoiser, stacked, null, Guidance(scale), weights=weights)(x, t)
            assert torch.allclose(found, torch.tensor(3.0 + scale * (weights[0] * 2 + weights[1] * -5)).expand(2, 1, 1))
    with pytest.raises(ValueError, match="as many prompts"):
        guide(denoiser, stacked, null, 2.0, weights=(1.0,))
    outside = guide(denoiser, stacked, null, Guidance(4.0, interval=(0.6, 1.0)), weights=(1.0, 1.0))(x, t)
    assert torch.allclose(outside, torch.tensor(3.0 + 2 - 5).expand(2, 1, 1))


def test_not_is_a_negative_weight_and_a_doubled_prompt_a_doubled_weight(pipeline):
    options = {"seed": 2, **STEPS}
    twice = verbs.compose(pipeline, [("water", 1.0), ("water", 1.0)], **options).images
    assert torch.allclose(verbs.compose(pipeline, [("water", 2.0)], **options).images, twice, atol=1e-4)
    undone = verbs.compose(pipeline, [("water", 1.0), ("fire", 0.7), ("fire", -0.7)], **options).images
    assert torch.allclose(undone, pipeline("water", **options).images, atol=1e-3)
    without = verbs.compose(pipeline, [("water", 1.0), ("fire", -0.7)], **options).images
    assert (without - undone).abs().max() > 1e-3


def test_a_composition_without_guidance_has_weights_still(pipeline):
    options = {"seed": 2, **STEPS}
    plain = verbs.compose(pipeline, [("water", 2.5)], **options | {"guidance_scale": 1.0}).images
    assert torch.allclose(plain, pipeline("water", **options).images, atol=1e-4)


def test_what_cannot_be_composed_is_told():
    pipeline = tiny_pipeline()
    for terms in ([], [("a", float("inf"))], [(3, 1.0)], ["a1"], ["water"], "a1", [("a", "much")], None):
        with pytest.raises(ValueError, match="terms must be"):
            verbs.compose(pipeline, terms)
    with pytest.raises(ValueError, match="no weak denoiser"):
        verbs.compose(pipeline, [("a", 1.0)], weak=tiny_pipeline(), guidance_scale=2.0)


def test_weights_are_read_from_the_prompt():
    assert verbs.parse_weights("a (red:1.3) ball") == ("a red ball", [(2, 5, 1.3)])
    assert verbs.parse_weights("(a b:0)(c: -.5)") == ("a bc", [(0, 3, 0.0), (3, 4, -0.5)])
    assert verbs.parse_weights("(time 12:30:2)") == ("time 12:30", [(0, 10, 2.0)])
    for plain in ("a (red) ball", "a (red:much) ball", "red:1.3", ""):
        assert verbs.parse_weights(plain) == (plain, [])


def test_a_weight_of_one_changes_nothing(pipeline):
    options = {"seed": 2, "num_images_per_prompt": 2, **STEPS}
    weighted = verbs.weigh(pipeline, ["a (red:1) ball", "(blue:1.0)"], **options).images
    assert torch.equal(weighted, pipeline(["a red ball", "blue"], **options).images)


def test_a_weight_of_zero_takes_the_word_for_not_said():
    """What other letters there are does not matter then: their tokens are hidden from all others."""
    pipeline = tiny_pipeline()
    zero = verbs.weighted_embeds(pipeline, "ab (cd:0) e")
    assert torch.allclose(zero, verbs.weighted_embeds(pipeline, "ab (xy:0) e"), atol=1e-5)
    plain = pipeline.encode_prompt(["ab cd e"])
    assert not torch.allclose(zero, plain, atol=1e-2)
    assert torch.allclose(zero[:, :3], plain[:, :3], atol=1e-5)  # before the word: start, a, b
    assert torch.allclose(zero[:, 3:5], pipeline.encode_prompt([""])[:, 3:5], atol=1e-5)  # itself
    middle = verbs.weighted_embeds(pipeline, "ab (cd:0.5) e")
    assert torch.allclose(middle, (zero + plain) / 2, atol=1e-5)


def test_a_plan_can_be_cut_into_rows_and_says_which_rows_fit():
    plan = SamplingPlan(torch.arange(4.0)[:, None, None], None, torch.zeros(4, 1, 1, 1), None, 1, [1, 2, 3, 4], 2)
    part = plan.rows(slice(1, 3))
    assert part.generators == [2, 3] and part.prompt_embeds[0] == 1 and part.negative_prompt_embeds is None
    assert replace(plan, generators=None).rows(slice(1)).generators is None
    for rows, expected in (([7], [7] * 4), ([7, 8], [7, 7, 8, 8]), ([5, 6, 7, 8], [5, 6, 7, 8])):
        assert plan.expand(torch.tensor(rows)).tolist() == expected
    with pytest.raises(ValueError, match="one for each prompt, got 2 for 4"):
        replace(plan, num_prompts=4).expand(torch.zeros(2))


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "arguments", "refused"),
    [
        (verbs.interpolate, ["a", "b"], ["generator", "latents", "num_images_per_prompt"]),
        (verbs.vary, ["a"], ["generator", "latents", "num_images_per_prompt"]),
        (verbs.invert, [0, "a"], ["seed", "generator", "latents", "sampler", "output_type"]),
        (verbs.edit, [0, "a"], ["seed", "generator", "latents", "sampler", "num_images_per_prompt"]),
    ],
)
def test_options_that_an_operation_decides_are_refused_by_name(picture, operation, arguments, refused):
    arguments = [picture if each == 0 else each for each in arguments]
    for name in refused:
        with pytest.raises(ValueError, match=f"takes no {name}: "):
            operation(tiny_pipeline(), *arguments, **{name: 1})


OPTIONS = {
    "negative_prompt": "fire",
    "num_inference_steps": np.int64(2),
    "guidance_scale": np.float32(2),
    "num_images_per_prompt": np.uint8(2),
    "generator": torch.Generator().manual_seed(1),
    "seed": np.int64(1),
    "latents": torch.ones(1, 4, 8, 8),
    "output_type": "np",
    "callback": lambda step, t, x: None,
    "batch_size": np.int32(1),
    "guidance_interval": np.array([0.1, 0.9]),
    "guidance_rescale": np.float32(0.5),
    "cfg_zero": np.bool_(True),
    "zero_init": np.float32(0.1),
    "weak": "itself",
    "sampler": "ddim",
    "height": np.int64(24),
    "width": np.int32(40),
    "timesteps": [800, 300],
    "sigmas": [0.8, 0.3],
    "eta": np.float32(0),
    "prompt_embeds": torch.zeros(1, 8, 16),
    "negative_prompt_embeds": torch.zeros(1, 8, 16),
    "return_dict": True,
    "cross_attention_kwargs": {"scale": np.float32(1)},
    "clip_skip": np.int64(1),
    "callback_on_step_end": lambda pipeline, step, t, tensors: tensors,
    "callback_on_step_end_tensor_inputs": ["latents"],
}
OPERATIONS = {
    "image_to_image": lambda *a, **o: verbs.image_to_image(*a, "water", np.float32(0.5), **o),
    "inpaint": lambda p, image, **o: verbs.inpaint(p, image, np.full_like(image, 255), "water", **o),
    "invert": lambda *a, **o: verbs.invert(*a, "water", **o),
    "edit": lambda *a, **o: verbs.edit(*a, "water", "fire", **o),
    "interpolate": lambda p, image, **o: verbs.interpolate(p, "water", "fire", np.int16(2), **o),
    "vary": lambda p, image, **o: verbs.vary(p, "water", amount=np.float16(0.5), number=np.int8(1), **o),
    "compose": lambda p, image, **o: verbs.compose(p, [("water", np.float32(1)), ("fire", np.int8(-1))], **o),
    "weigh": lambda p, image, **o: verbs.weigh(p, "(water:1.5)", **o),
}


def test_the_options_are_those_of_the_pipeline():
    assert set(OPTIONS) == set(inspect.signature(Pipeline.__call__).parameters) - {"self", "prompt"}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_option_is_taken_by_every_operation_or_refused_by_name(picture, operation):
    """Numbers may be numpy's. What `compose` says of a weak model is that its weights exclude one."""
    pipeline = tiny_pipeline()
    steps = {"num_inference_steps": 2}
    for name, value in OPTIONS.items():
        value = pipeline if name == "weak" else value
        try:
            OPERATIONS[operation](pipeline, picture, **{**steps, name: value})
        except ValueError as refusal:
            assert name in str(refusal)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "invert"])
def test_without_a_dict_the_result_is_a_tuple(picture, operation):
    options = {"num_inference_steps": 1, "output_type": "np", "return_dict": False}
    images, unsafe = OPERATIONS[operation](tiny_pipeline(), picture, **options)
    assert unsafe is None and images.shape[1:] == (16, 16, 1)


@pytest.mark.parametrize("operation", ["image_to_image", "invert", "edit"])
def test_images_that_do_not_pair_with_the_prompts_are_refused(picture, operation):
    with pytest.raises(ValueError, match="one for each prompt, got 2 for 4"):
        getattr(verbs, operation)(tiny_pipeline(), [picture] * 2, ["a", "b", "c", "d"], num_inference_steps=1)


def test_a_mask_of_zeros_and_ones_is_understood_and_an_empty_one_said(tmp_path, picture, caplog):
    pipeline, options = tiny_pipeline(), {"seed": 1, "num_inference_steps": 2, "output_type": "pt"}
    white = verbs.box_mask(picture, (8, 0, 16, 16))
    ones = verbs.inpaint(pipeline, picture, (white > 0).astype(np.uint8), "water", **options).images
    wanted = verbs.inpaint(pipeline, picture, white, "water", **options).images
    assert torch.equal(ones, wanted)
    binary = (white > 0).astype(np.uint8)
    Image.fromarray(binary).save(tmp_path / "mask.png")
    masks = [Image.fromarray(binary), tmp_path / "mask.png", binary.astype(np.int64), binary[..., None], white > 0]
    masks += [Image.fromarray(white > 0), binary.astype(np.float32), np.stack([binary] * 3, -1)]
    for mask in masks:
        assert torch.equal(verbs.inpaint(pipeline, picture, mask, "water", **options).images, wanted)
    assert not caplog.records
    black_on_clear = np.dstack([np.zeros((16, 16, 3), np.uint8), white])
    verbs.inpaint(pipeline, picture, black_on_clear, "water", **options)
    assert "the mask is white nowhere" in caplog.text
    caplog.clear()
    verbs.inpaint(pipeline, picture, np.zeros_like(picture), "water", **options)
    assert "the mask is white nowhere" in caplog.text
