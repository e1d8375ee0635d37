"""The autoencoder's objective: its terms add up, the discriminator starts late and moves only the image."""

import pytest
import torch

from ldm.config.settings import VaeLoss, VaeModel
from ldm.models.autoencoder import build_vae
from ldm.models.reconstruction_losses import (
    PatchDiscriminator,
)
from ldm.training.tasks.vae import VaeObjective

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
