"""The latent cache meets only the pixels and weights it was made of."""

import pickle

import numpy as np
import pytest
import torch

from ldm.config.settings import VaeModel
from ldm.models.autoencoder import build_vae
from ldm.models.digests import weights_digest
from ldm.training.latent_cache import Uncached, cached_latents, encoding_batch_size
from ldm.utils.errors import UserError
from ldm.utils.image_tensors import to_images


class Pictures:
    """Ten random pictures; the fingerprint follows the pixels."""

    channels, resolution, has_captions = 1, 16, False

    def __init__(self, seed=0):
        self.pixels = np.random.default_rng(seed).integers(0, 256, (10, 16, 16, 1), dtype=np.uint8)
        self.ids = [str(i) for i in range(10)]
        self.fingerprint = str(self.pixels.sum())

    def __len__(self):
        return 10

    def image(self, i):
        return self.pixels[i]


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return build_vae(VaeModel(block_out_channels=[8, 16], norm_num_groups=8, latent_channels=2), 1, 16).eval()


def folders(root):
    return sorted(path.name for path in (root / "latents").iterdir())


def test_the_cache_holds_the_posterior_of_each_picture(vae, tmp_path):
    data = Pictures()
    latents = cached_latents(vae, data, tmp_path, batch_size=3)
    with torch.no_grad():
        posterior = vae.encode(to_images(data.pixels)).latent_dist
    np.testing.assert_allclose(latents.mean, posterior.mean.numpy(), atol=2e-3)
    np.testing.assert_allclose(latents.std, posterior.std.numpy(), atol=2e-3)
    noise = torch.randn(2, 2, 8, 8)
    expected = posterior.mean[[4, 1]] + posterior.std[[4, 1]] * noise
    torch.testing.assert_close(latents.sample([4, 1], noise), expected, atol=5e-3, rtol=0)


def test_it_is_built_once(vae, tmp_path, monkeypatch):
    cached_latents(vae, Pictures(), tmp_path)
    monkeypatch.setattr(vae, "encode", lambda *_: pytest.fail("encoded again"))
    assert len(cached_latents(vae, Pictures(), tmp_path)) == 10


def test_other_weights_and_other_pixels_make_other_caches(vae, tmp_path):
    cached_latents(vae, Pictures(), tmp_path)
    before = weights_digest(vae)
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 1e-3
    assert weights_digest(vae) != before
    cached_latents(vae, Pictures(), tmp_path)
    cached_latents(vae, Pictures(seed=1), tmp_path)
    assert len(folders(tmp_path)) == 3


class Oblong(Pictures):
    """Ten pictures in three sizes."""

    resolution, sizes = (8, 24), [(8, 24), (16, 16), (24, 8)]
    buckets = np.array([2, 0, 1, 1, 2, 0, 0, 2, 1, 0])

    def __init__(self):
        rng, self.fingerprint = np.random.default_rng(0), "oblong"
        self.pixels = [rng.integers(0, 256, (*self.sizes[k], 1), dtype=np.uint8) for k in self.buckets]
        self.ids = [str(i) for i in range(10)]


def test_buckets_are_encoded_each_at_its_size(vae, tmp_path, monkeypatch):
    data, items = Oblong(), [7, 0, 4]
    latents = cached_latents(vae, data, tmp_path, batch_size=2)
    assert len(latents) == 10 and len(folders(tmp_path)) == 3
    assert [latents.shape_of(i) for i in range(3)] == [(2, 12, 4), (2, 4, 12), (2, 8, 8)]
    with torch.no_grad():
        posterior = vae.encode(to_images(np.stack([data.image(i) for i in items]))).latent_dist
    noise = torch.randn(3, 2, 12, 4)
    expected = posterior.mean + posterior.std * noise
    torch.testing.assert_close(latents.sample(items, noise), expected, atol=5e-3, rtol=0)
    again = pickle.loads(pickle.dumps(latents))
    assert torch.equal(again.sample(items, noise), latents.sample(items, noise))
    monkeypatch.setattr(vae, "encode", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(cached_latents(vae, data, tmp_path).sample(items, noise), latents.sample(items, noise))


def test_pixels_of_buckets_are_trained_on_at_their_size():
    data = Oblong()
    assert Uncached(data).shape_of(0) == (1, 24, 8)
    found = Uncached(data).sample([1, 5], torch.zeros(2, 1, 8, 24))
    assert torch.equal(found, to_images(np.stack([data.image(1), data.image(5)])))


def test_a_damaged_cache_is_built_anew(vae, tmp_path, capsys):
    good = cached_latents(vae, Pictures(), tmp_path).mean.copy()
    file = tmp_path / "latents" / folders(tmp_path)[0] / "mean.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(cached_latents(vae, Pictures(), tmp_path).mean, good)
    assert "rebuilding it" in capsys.readouterr().out


def test_a_vae_for_other_channels_is_refused(vae, tmp_path):
    data = Pictures()
    data.channels = 3
    with pytest.raises(UserError, match="1-channel images and the data has 3"):
        cached_latents(vae, data, tmp_path)


def test_latents_that_are_not_numbers_are_refused_and_leave_nothing(vae, tmp_path):
    with torch.no_grad():
        vae.quant_conv.bias[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        cached_latents(vae, Pictures(), tmp_path)
    assert folders(tmp_path) == []


def test_a_cpu_encodes_what_its_caches_hold(vae):
    assert encoding_batch_size(vae, 16) == 1024  # 8 MiB of 16 x 16 maps of 8 channels in fp32
    assert encoding_batch_size(vae, 1024) == 1


class Grey:
    channels, resolution = 1, 8

    def __len__(self):
        return 3

    def image(self, i):
        return np.full((8, 8, 1), 85 * i, np.uint8)


class Dots(Grey):
    channels, resolution = 2, 1

    def image(self, i):
        return np.array([[[2 * i, 2 * i + 1]]], np.float32)


def test_pictures_come_in_their_range_and_points_as_single_pixels():
    pictures, noise = Uncached(Grey()), torch.randn(2, 1, 8, 8)
    assert pictures.shape_of(0) == (1, 8, 8) and len(pictures) == 3
    found = pictures.sample([0, 2], noise)
    assert (
        found.shape == noise.shape and found[0].unique() == -1 and torch.isclose(found[1].unique(), torch.tensor(1 / 3))
    )
    points = Uncached(Dots()).sample([2, 0], torch.zeros(2, 2, 1, 1))
    torch.testing.assert_close(points.flatten(1), torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
