"""The autoencoder's objective: its terms add up, the discriminator starts late and moves only the image."""

import numpy as np
import pytest
import torch

from ldm.config.settings import VaeLoss, VaeModel, VaeSettings
from ldm.data import Splits
from ldm.evaluation.metrics.reconstruction import reconstruct
from ldm.models.autoencoder import build_vae, load_vae
from ldm.models.digests import network_digest
from ldm.models.latents import posterior
from ldm.models.reconstruction_losses import (
    PatchDiscriminator,
)
from ldm.training.data_order import BatchSlice
from ldm.training.task import SampleRef
from ldm.training.tasks.vae import VaeObjective, VaeTask, check_shapes, initial_vae
from ldm.utils.assets import shipped_autoencoders
from ldm.utils.errors import UserError
from scripts.emoji.colours import swatch_differences, swatch_images

VQ = VaeModel(kind="vq", codebook_size=16, block_out_channels=[8, 16], norm_num_groups=8, latent_channels=3)


SMALL = VaeModel(block_out_channels=[16, 32], norm_num_groups=8, latent_channels=3)


def small_vae(channels=1):
    torch.manual_seed(0)
    return build_vae(SMALL, channels, 32)


def images(count=6, channels=1):
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_adversarial_term_moves_the_picture_and_not_the_judge():
    judge, fake = PatchDiscriminator(1), images().requires_grad_()
    judge.frozen(fake).mean().backward()
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in judge.parameters())
    torch.testing.assert_close(judge.frozen(fake), judge(fake))


def test_no_discriminator_work_before_it_starts():
    objective = VaeObjective(small_vae(), VaeLoss(adversarial=0.1, adversarial_start=0.5))
    noise = torch.randn(6, 3, 16, 16)
    assert "discriminator" not in objective(images(), noise, progress=0.49)[1]
    loss, terms = objective(images(), noise, progress=0.5)
    assert "discriminator" in terms
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def vq(seed=0):
    torch.manual_seed(seed)
    vae = build_vae(VQ, 1, 32)
    with torch.no_grad():  # codes among the vectors, each channel with a mean and spread of its own
        vae.quant_conv.bias += torch.tensor([3.0, -1.0, 0.5])
        found = vae.encode(images()).latents.movedim(1, -1).flatten(0, 2)
        vae.quantize.embedding.weight.copy_(found[torch.randperm(len(found))[:16]])
    return vae


def test_a_vq_learns_and_its_terms_add_up_to_the_loss():
    vae = vq().train()
    objective = VaeObjective(vae, VaeLoss(perceptual=0, edge=0.5, commitment=0.25, revive_after=4))
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(12):
        loss, terms = objective(images())
        assert loss.item() == pytest.approx(
            (terms["l1"] + 0.5 * terms["edge"] + 0.25 * terms["commitment"]).item(), rel=1e-5
        )
        loss.backward()
        assert all(parameter.grad is not None for parameter in objective.parameters())  # as DDP asks
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


LINEAR = VaeModel(kind="linear", block_out_channels=[8, 8], layers_per_block=1, latent_channels=6)


def test_a_linear_encoder_is_fixed_and_its_decoder_learns(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 3), np.uint8)
    data = Splits(Coloured(colours), Coloured(colours[:8]), None)
    settings = VaeSettings(model=LINEAR, loss={"edge": 0, "perceptual": 0, "mse": 1}, crop=8)
    task = VaeTask(settings, data)
    encoder = {name: value.clone() for name, value in task.model.encoder.state_dict().items()}
    batch = task.batch([SampleRef(i, 0) for i in range(8)], BatchSlice(0, 0, 8, 8))
    assert batch["images"].shape == (8, 3, 8, 8) and batch["noise"].shape == (8, 6, 4, 4)
    assert 0 < batch["noise"].std() < settings.loss.latent_noise / task.model.config.scaling_factor
    before, terms = task.module(**batch)
    torch.testing.assert_close(before, terms["l1"] + terms["mse"])
    optimizer = torch.optim.Adam([p for p in task.module.parameters() if p.requires_grad], 1e-2)
    for step in range(40):
        loss, _ = task.module(**task.batch([SampleRef(i, 0) for i in range(40)], BatchSlice(step, 0, 40, 40)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * before
    task.finish(tmp_path)
    exported = load_vae(tmp_path)
    assert all(torch.equal(value, exported.encoder.state_dict()[name]) for name, value in encoder.items())


def colours(count):
    return Coloured(np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), np.uint8))


@pytest.fixture(scope="module", params=["linear", "kl", "vq"])
def start(request, tmp_path_factory):
    """The folder of a finished autoencoder, of random weights."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    model = LINEAR if kind == "linear" else VaeModel(kind=kind, block_out_channels=[8, 16], latent_channels=5)
    task = VaeTask(VaeSettings(model=model, loss={"perceptual": 0}), Splits(colours(8), colours(4)))
    task.finish(folder)
    return folder


def test_fine_tuning_begins_with_the_reconstructions_of_its_start(start):
    """Whatever `vae.model` says, which another autoencoder would be built of."""
    settings = VaeSettings(start={"model": str(start)}, data={"channels": 3}, crop=8, loss={"perceptual": 0})
    task, finished = VaeTask(settings, Splits(colours(8), colours(4))), load_vae(start)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before, now = (vae.decode(posterior(vae, images).mode()).sample for vae in (finished, task.model))
    assert torch.equal(before, now)
    batch = task.batch([SampleRef(i, 0) for i in range(4)], BatchSlice(0, 0, 4, 4))
    task.module(**batch)[0].backward()
    trained = {name.split(".")[0] for name, p in task.model.named_parameters() if p.grad is not None}
    tiny = type(finished).__name__ == "AutoencoderTiny"
    assert ("encoder" in trained) != tiny and "decoder" in trained
    assert task.fingerprints["start"] == network_digest(finished)


@pytest.mark.parametrize("name", shipped_autoencoders())
def test_a_shipped_start_goes_by_its_name_and_keeps_colours(name):
    """The mean of a large square of each colour, within 6 CIEDE2000: nobody would call it another colour."""
    vae, settings = initial_vae(VaeSettings(start={"model": name}), 3)
    assert settings.model.kind == "linear" and settings.model.latent_channels == vae.config.latent_channels
    assert max(swatch_differences(reconstruct(vae, swatch_images(64))[0]).values()) < 6
    with pytest.raises(UserError, match="takes images of 3 channels, and the data have 1"):
        initial_vae(VaeSettings(start={"model": name}), 1)


@pytest.mark.parametrize(
    ("name", "crop", "resolution", "wanted"),
    [
        ("f4", 32, 64, 32),
        ("f4", 0, 64, 0),
        ("f8", 32, 64, 64),
        ("f8", 32, 48, 0),
        ("f8", 96, 128, 96),
        ("f4", 128, 64, 128),
        ("f8", 30, 64, 30),
    ],
)
def test_crops_for_a_start_have_8_by_8_latents_or_are_whole_images(name, crop, resolution, wanted):
    given = {
        "start": {"model": f"autoencoders/{name}"},
        "crop": crop,
        "data": {"resolution": resolution, "channels": 3},
    }
    assert initial_vae(VaeSettings(**given), 3)[1].crop == wanted


def test_a_start_for_other_images_is_refused(start):
    greys = Coloured(np.zeros((4, 1, 1, 1), np.uint8))
    greys.channels = 1
    settings = VaeSettings(start={"model": str(start)})
    with pytest.raises(UserError, match="takes images of 3 channels, and the data have 1: set data.channels"):
        VaeTask(settings, Splits(greys, greys))
    odd = colours(4)
    odd.resolution = 15
    with pytest.raises(UserError, match="data.resolution 15 must be a multiple of the VAE's factor 2"):
        VaeTask(settings, Splits(odd, odd))


def test_a_start_that_is_no_autoencoder_is_one_line(tmp_path):
    for source, message in ((tmp_path, "no finished VAE in"), ("nowhere", "there is no folder nowhere")):
        with pytest.raises(UserError, match=message):
            VaeTask(VaeSettings(start={"model": str(source)}), Splits(colours(4), colours(4)))


class Coloured:
    """Images of one colour each."""

    resolution, channels, ids, fingerprint = 16, 3, (), "colours"

    def __init__(self, colours):
        self.pixels = colours.repeat(16, 1).repeat(16, 2)

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        return self.pixels[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 32}, "vae.crop 32 must be a multiple of 2 of at most 16"),
        ({"crop": 5}, "vae.crop 5 must be"),
        ({"model": LINEAR.model_copy(update={"latent_channels": 13})}, "13 is more than the 12 numbers of a patch"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check_shapes(VaeSettings(model=LINEAR).model_copy(update=changes), 3, 16)


def test_the_validation_loss_is_the_squared_error_of_the_held_out_images():
    settings = VaeSettings(model=LINEAR, data={"channels": 3, "resolution": 16})
    task = VaeTask(settings, Splits(colours(8), colours(5)))
    pixels = np.stack([task.data.validation.image(i) for i in range(5)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        decoded = task.model.decode(task.model.encode(images).latents).sample.clamp(-1, 1)
    assert task.validate() == {"loss": pytest.approx((decoded - images).square().mean().item(), rel=1e-4)}
