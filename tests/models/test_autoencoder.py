"""The autoencoder: its losses by hand, its whitening exactly, its report."""

import pytest
import torch

from ldm.config.settings import VaeModel
from ldm.models.autoencoder import build_vae, fold_whitening, latent_statistics, load_vae
from ldm.models.latents import posterior
from ldm.models.vector_quantizer import nearest
from ldm.utils.errors import UserError

VQ = VaeModel(kind="vq", codebook_size=16, block_out_channels=[8, 16], norm_num_groups=8, latent_channels=3)
SMALL = VaeModel(block_out_channels=[16, 32], norm_num_groups=8, latent_channels=3)


def small_vae(channels=1):
    torch.manual_seed(0)
    return build_vae(SMALL, channels, 32)


def images(count=6, channels=1):
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_whitening_is_exact_and_undone_by_decoding():
    vae, x = small_vae().double().eval(), images(16).double()
    before = vae.encode(x).latent_dist
    picture = vae.decode(before.mean).sample
    mean, std = latent_statistics(vae, iter(x.split(5)))
    fold_whitening(vae, mean, std)
    after = vae.encode(x).latent_dist
    shape = (1, -1, 1, 1)
    torch.testing.assert_close(after.mean, (before.mean - mean.view(shape)) / std.view(shape))
    torch.testing.assert_close(after.std, before.std / std.view(shape))
    torch.testing.assert_close(vae.decode(after.mean).sample, picture)
    unit_mean, unit_std = latent_statistics(vae, iter(x.split(5)))
    torch.testing.assert_close(unit_mean, torch.zeros_like(mean), atol=1e-9, rtol=0)
    torch.testing.assert_close(unit_std, torch.ones_like(std))


def test_a_foreign_scaling_factor_becomes_part_of_the_weights(tmp_path):
    foreign, x = small_vae().eval(), images()
    with torch.no_grad():
        raw = foreign.encode(x).latent_dist.mean
        picture = foreign.decode(raw).sample
    foreign.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    foreign.save_pretrained(tmp_path / "vae")
    ours = load_vae(tmp_path)
    assert ours.config.scaling_factor == 1
    latents = ours.encode(x).latent_dist.mean
    torch.testing.assert_close(latents, (raw - 0.25) * 0.5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.decode(latents).sample, picture, atol=1e-4, rtol=1e-4)


def test_latent_statistics_are_those_of_samples():
    vae, x = small_vae().eval(), images(16)
    mean, std = latent_statistics(vae, iter(x.split(4)))
    torch.manual_seed(0)
    drawn = torch.cat([vae.encode(x).latent_dist.sample() for _ in range(50)]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(drawn.mean(1), mean.float(), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(1), std.float(), atol=0.02, rtol=0)


def test_dead_channels_are_refused():
    with pytest.raises(UserError, match=r"channels \[1\] are dead"):
        fold_whitening(small_vae(), torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]))


def test_a_saved_vae_is_found_and_a_missing_one_named(tmp_path):
    small_vae().save_pretrained(tmp_path / "final" / "vae")
    found = load_vae(tmp_path)
    assert found.config.scaling_factor == 1.0 and not any(p.requires_grad for p in found.parameters())
    with pytest.raises(UserError, match="no finished VAE"):
        load_vae(tmp_path / "elsewhere")


def vq(seed=0):
    torch.manual_seed(seed)
    vae = build_vae(VQ, 1, 32)
    with torch.no_grad():  # codes among the vectors, each channel with a mean and spread of its own
        vae.quant_conv.bias += torch.tensor([3.0, -1.0, 0.5])
        found = vae.encode(images()).latents.movedim(1, -1).flatten(0, 2)
        vae.quantize.embedding.weight.copy_(found[torch.randperm(len(found))[:16]])
    return vae


@torch.no_grad()
def test_whitening_keeps_every_nearest_code_and_every_picture_and_gives_unit_variance():
    vae, x = vq().double().eval(), images(16).double()
    before = vae.encode(x).latents
    picture = vae.decode(before).sample
    codes = nearest(before.movedim(1, -1).flatten(0, 2), vae.quantize.embedding.weight)
    mean, std = latent_statistics(vae, iter(x.split(5)))
    assert (std == std[0]).all()
    fold_whitening(vae, mean, std)
    after = vae.encode(x).latents
    torch.testing.assert_close(after, (before - mean.view(1, -1, 1, 1)) / std[0])
    assert torch.equal(nearest(after.movedim(1, -1).flatten(0, 2), vae.quantize.embedding.weight), codes)
    torch.testing.assert_close(vae.decode(after).sample, picture)
    assert after.mean((0, 2, 3)).abs().max() < 1e-9
    assert after.var((0, 2, 3), correction=0).mean().item() == pytest.approx(1)


def test_whitening_a_vq_channel_by_channel_is_refused():
    with pytest.raises(ValueError, match="one number for all channels"):
        fold_whitening(vq(), torch.zeros(3), torch.tensor([1.0, 2.0, 1.0]))


@torch.no_grad()
def test_a_saved_vq_decodes_by_its_codes_alone(tmp_path):
    vq().save_pretrained(tmp_path / "vae")
    found, x = load_vae(tmp_path), images()
    assert type(found).__name__ == "VQModel" and found.config.scaling_factor == 1
    z = found.encode(x).latents
    codes = found.quantize.embedding.weight
    nearby = codes[nearest(z.movedim(1, -1).flatten(0, 2), codes)].view(6, 16, 16, 3).movedim(-1, 1)
    direct = found.decode(nearby, force_not_quantize=True).sample
    torch.testing.assert_close(found.decode(z).sample, direct, atol=1e-4, rtol=1e-4)  # float32 sums in another order


def test_a_foreign_vq_scaling_factor_becomes_part_of_the_weights(tmp_path):
    foreign, x = vq().eval(), images()
    picture = foreign.decode(foreign.encode(x).latents).sample
    foreign.register_to_config(scaling_factor=0.5)
    foreign.save_pretrained(tmp_path / "vae")
    ours = load_vae(tmp_path)
    torch.testing.assert_close(ours.encode(x).latents, 0.5 * foreign.encode(x).latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.decode(ours.encode(x).latents).sample, picture, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize(("factor", "widths"), [(4, [8] * 3), (8, [8] * 4), (16, [8] * 5)])
@torch.no_grad()
def test_factors(kind, factor, widths):
    model = VaeModel(kind=kind, block_out_channels=widths, norm_num_groups=4, latent_channels=5, codebook_size=8)
    vae, x = build_vae(model, 1, 32), images(2)
    z = posterior(vae, x).mode()
    assert model.factor == factor and z.shape == (2, 5, 32 // factor, 32 // factor)
    assert vae.decode(z).sample.shape == x.shape


def test_too_many_widths_are_refused_with_the_factors_there_are():
    with pytest.raises(ValueError, match="64 times smaller each way; give 3 widths for f = 4"):
        VaeModel(block_out_channels=[8] * 7)
