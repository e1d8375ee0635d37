"""Transparent images from files to files: autoencoders, a tiny real run, its export, stock diffusers, the numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from ldm.cli.main import build_parser
from ldm.config.settings import ClipModel, ClipSettings, DataOptions, OptimOptions, VaeLoss, VaeModel, VaeSettings
from ldm.data import build
from ldm.evaluation.metrics.reconstruction import psnr, reconstruct
from ldm.hub.export import export
from ldm.models.autoencoder import build_vae, load_vae
from ldm.models.latents import posterior
from ldm.models.linear_autoencoder import fit_encoder
from ldm.pipelines.editing import image_to_image, inpaint
from ldm.pipelines.image_input import read_images
from ldm.pipelines.loading import load_pipeline
from ldm.training.run_directory import record
from ldm.training.tasks.clip import ClipTask
from ldm.training.tasks.vae import VaeObjective, VaeTask
from ldm.training.trainer import Trainer
from ldm.utils.image_tensors import to_images
from ldm.utils.transparency import on_ground
from tests.tiny_run import ldm_settings, train_ldm, train_options

SIDE, ITEMS = 16, 160
COLOURS = {"red": (230, 20, 20), "white": (255, 255, 255), "black": (0, 0, 0)}
KINDS = {
    "kl": VaeModel(block_out_channels=[16, 16], norm_num_groups=8, latent_channels=4),
    "vq": VaeModel(kind="vq", codebook_size=32, block_out_channels=[16, 16], norm_num_groups=8, latent_channels=4),
    "linear": VaeModel(kind="linear", block_out_channels=[16, 16], layers_per_block=2, latent_channels=8),
}
STOCK = """
import sys
sys.modules["ldm"] = None  # any import of the package fails
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
latents = torch.randn(2, *eval(sys.argv[2]), generator=torch.Generator().manual_seed(0))
images = pipeline(["a red bar"] * 2, latents=latents, num_inference_steps=4, guidance_scale=2.0).images
for i, image in enumerate(images):
    image.save(f"stock-{i}.png")
"""


def bars(count: int = ITEMS) -> np.ndarray:
    """Bars with soft ends, some half transparent, on nothing; the colours of nothing are noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, SIDE, SIDE, 4), np.uint8)
    images[..., 3] = 0
    for i, image in enumerate(images):
        top, tall = 2 * rng.integers(0, 5), 2 * rng.integers(2, 4)
        image[top : top + tall, 1:15] = (*list(COLOURS.values())[i % 3], 255 if i % 2 else 150)
        image[top : top + tall, [1, 14], 3] //= 3
    return images


def tensors(count: int = 16) -> torch.Tensor:
    return to_images(bars(count))


# ---- autoencoders ---------------------------------------------------------------------------------------------------


def objective(kind: str, **loss) -> VaeObjective:
    torch.manual_seed(0)
    vae = build_vae(KINDS[kind], 4, SIDE)
    if kind == "linear":
        fit_encoder(vae, [tensors(64)])
    return VaeObjective(vae, VaeLoss(**loss))


@pytest.mark.parametrize("kind", KINDS)
def test_colours_that_nobody_sees_change_neither_latents_nor_loss(kind):
    module, images, noise = objective(kind, mse=1, adversarial=0.1, adversarial_start=0), tensors(), None
    other = torch.where(images[:, 3:] == -1, -images, images)
    other[:, 3] = images[:, 3]
    assert (other != images).float().mean() > 0.3
    latents = posterior(module.vae, images).mean
    torch.testing.assert_close(posterior(module.vae, other).mean, latents, atol=1e-6, rtol=0)
    if kind != "vq":
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    module.eval()  # a codebook that is not updated
    losses = [module(each, noise)[0].item() for each in (images, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_is_not_asked_for_colours_that_nobody_sees(kind):
    """The gradient to the last bias is that of alpha alone where all images are clear and so is the reconstruction."""
    module = objective(kind, perceptual=0, edge=0, kl=0, commitment=0)
    last = [layer for layer in module.vae.decoder.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():  # of an AutoencoderTiny colours are from 0 to 1
        last.bias.copy_(torch.tensor([0.5, 0.5, 0.5, 0.0 if kind == "linear" else -1.0]))
    clear = torch.full((2, 4, SIDE, SIDE), -1.0)
    shape = posterior(module.vae, clear).mean.shape
    loss, _ = module(clear, None if kind == "vq" else torch.zeros(shape))
    loss.backward()
    assert loss == 0 and (last.bias.grad[:3] == 0).all()


@pytest.mark.parametrize(("kind", "gain", "lr"), [("kl", 6, 3e-3), ("vq", 1.5, 1e-3), ("linear", 6, 3e-3)])
def test_an_autoencoder_learns_what_is_seen_on_any_ground(kind, gain, lr):
    """`gain`: dB, of 60 steps; a codebook takes longer."""
    module, images, pixels = objective(kind, perceptual=0), tensors(48), bars(48)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr)
    torch.manual_seed(0)
    before, shape = reconstruct(module.vae, pixels)[0], posterior(module.vae, images).mean.shape
    for _ in range(60):
        loss, _ = module(images, None if kind == "vq" else 0.05 * torch.randn(shape))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = reconstruct(module.vae, pixels)[0]
    assert psnr(pixels, after).mean() > psnr(pixels, before).mean() + gain
    for ground in (0, 128, 255):
        seen, old, new = (on_ground(each, ground) for each in (pixels, before, after))
        assert psnr(seen, new).mean() > psnr(seen, old).mean()


# ---- a run ----------------------------------------------------------------------------------------------------------


def fit(task, settings) -> None:
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    record(settings.output_dir, settings)
    Trainer(task, settings, settings.output_dir).fit()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """CLIP, autoencoder and U-Net of transparent bars."""
    folder = tmp_path_factory.mktemp("clear")
    (folder / "pictures").mkdir()
    for i, pixels in enumerate(bars()):
        Image.fromarray(pixels).save(folder / "pictures" / f"{i:03}.png")
        (folder / "pictures" / f"{i:03}.txt").write_text(f"a {list(COLOURS)[i % 3]} bar")
    data = DataOptions(
        source=str(folder / "pictures"),
        resolution=SIDE,
        channels=4,
        cache_dir=folder / "cache",
        files={"validation_fraction": 0.2},
    )
    splits = build(data)
    small = {"width": 16, "layers": 1, "heads": 2, "vision_width": 16, "vision_layers": 1, "vision_heads": 2}
    shared = {"data": data, "optim": OptimOptions(lr=1e-2, warmup_steps=5)}
    model = ClipModel(**small, embed_dim=8, patch_size=8, vocab_size=560, context_length=8)
    clip = ClipSettings(output_dir=folder / "clip", model=model, train=train_options(60, 32), **shared)
    fit(ClipTask(clip, splits, folder / "clip"), clip)
    loss = VaeLoss(perceptual=0.1)
    vae = VaeSettings(
        output_dir=folder / "vae", model=KINDS["linear"], loss=loss, train=train_options(120, 16), **shared
    )
    fit(VaeTask(vae, splits), vae)
    unet = {"block_out_channels": [16, 16], "norm_num_groups": 4, "attention_levels": [1], "heads": 2}
    train_ldm(ldm_settings(folder, steps=60, data=data, text={"source": "run"}, model=unet), splits)
    return folder


@pytest.fixture(scope="module")
def exported(project):
    return export(project / "ldm", project / "model", prompts=["a red bar"])


def ldm(*words) -> int:
    argv = [str(word) for word in words]
    args = build_parser(argv).parse_args(argv)
    return args.run(args)


def test_the_autoencoder_keeps_bars_on_both_grounds(project):
    pixels = bars()
    assert psnr(pixels, reconstruct(load_vae(project / "vae"), pixels)[0]).mean() > 22


def test_a_run_is_measured_on_two_grounds(project, tmp_path):
    assert ldm("evaluate", project / "ldm", "-o", tmp_path, "--steps", 2, "--quick") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["features"]["name"] == "CLIP" and metrics["words"]["ceiling"] > metrics["words"]["floor"]
    assert metrics["autoencoder"]["psnr"]["value"] > 20 and metrics["autoencoder"]["floor"]["psnr"] > 15
    assert metrics["autoencoder"]["chroma"]["gains"]["red-cyan"] > 0.8
    with Image.open(tmp_path / "drawn.png") as grid:
        assert grid.mode == "RGB"


def test_files_come_out_with_alpha_here_and_in_stock_diffusers(project, exported, tmp_path):
    pipeline = load_pipeline(exported, device="cpu")
    shape = pipeline.latent_shape
    script = tmp_path / "stock.py"
    script.write_text(STOCK)
    stock = subprocess.run(
        [sys.executable, script, exported, repr(shape)], cwd=tmp_path, capture_output=True, text=True
    )
    assert stock.returncode == 0, stock.stderr
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    ours = pipeline(["a red bar"] * 2, latents=latents, num_inference_steps=4, guidance_scale=2.0).images
    for i, image in enumerate(ours):
        with Image.open(tmp_path / f"stock-{i}.png") as theirs:
            assert image.mode == theirs.mode == "RGBA"
            apart = [
                np.abs(on_ground(np.asarray(theirs), g).astype(int) - on_ground(np.asarray(image), g)) for g in (0, 255)
            ]
        assert max(each.max() for each in apart) <= 3
    alpha = np.stack([np.asarray(image)[..., 3] for image in ours])
    assert alpha.min() < 60 and alpha.max() > 120  # there is something, and nothing around it
    card = (exported / "README.md").read_text()
    assert "colour images with transparency of 16 x 16" in card and "straight alpha" in card
    assert json.loads((exported / "ldm.json").read_text())["channels"] == 4


def test_the_commands_write_alpha(project, exported, tmp_path):
    out = tmp_path / "out.png"
    assert ldm("generate", "a red bar", "-m", exported, "--grid", "2x1", "--steps", 3, "-o", out) == 0
    with Image.open(out) as image:
        assert (image.mode, image.size) == ("RGBA", (32, 16)) and image.info["prompt"] == "a red bar"
    picture = project / "pictures" / "000.png"
    words = ["edit", "inpaint", picture, "a white bar", "--box", 0, 0, 8, 16, "--steps", 3]
    assert ldm(*words, "-m", exported, "-o", out) == 0
    with Image.open(out) as image:
        assert image.mode == "RGBA"


def test_what_is_not_edited_stays_to_the_pixel(project, exported):
    pipeline, pixels = load_pipeline(exported, device="cpu"), bars(1)[0]
    given = pixels.copy()
    given[given[..., 3] == 0] = 0  # what nobody sees is black
    kept = np.asarray(inpaint(pipeline, pixels, np.eye(SIDE, dtype=np.uint8) * 255, "a red bar", seed=0).images[0])
    outside = ~np.eye(SIDE, dtype=bool)
    assert (kept[outside] == given[outside]).all()
    half = np.zeros((SIDE, SIDE), np.uint8) + 100  # less than half of white: nothing is generated
    assert (np.asarray(inpaint(pipeline, pixels, half, "a red bar", seed=0).images[0]) == given).all()
    (image,) = image_to_image(pipeline, pixels, "", 0.0, seed=0).images  # through the autoencoder alone
    assert image.mode == "RGBA" and psnr(pixels[None], np.asarray(image)[None]) > 12
    padded = read_images(pipeline, np.full((8, 16, 4), 255, np.uint8))
    assert (padded[:, :, 4:12] == 1).all() and (padded[:, :, :4] == 0).all()
    assert (read_images(pipeline, Image.new("RGB", (16, 16), (230, 20, 20)))[:, 3] == 1).all()
