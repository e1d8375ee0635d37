"""Reconstruction numbers against closed forms, and the report on autoencoders whose answer is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.evaluation.autoencoder_report import character_of, vae_report, write_report
from ldm.evaluation.metrics.ink import ink
from ldm.evaluation.metrics.reconstruction import psnr, reconstruct, ssim
from ldm.models.latents import DeterministicPosterior


class Perfect(torch.nn.Module):
    """Keeps everything: latents are the pixels. `gain` < 1 loses contrast by a known amount."""

    config: dict = {}

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def encode(self, x):
        return SimpleNamespace(latent_dist=DeterministicPosterior(x))

    def decode(self, z):
        return SimpleNamespace(sample=z * self.gain)


class Pages:
    """Pictures with more and more ink; the reader below reads their mean grey."""

    def __init__(self, n=20, channels=1):
        self.ids = [f"U+{0x4E00 + i:04X}/hei" for i in range(n)]
        self.channels = channels

    def __len__(self):
        return len(self.ids)

    def image(self, i):
        image = np.full((16, 16, self.channels), 255, dtype=np.uint8)
        image[: i // 2, :] = 0
        image[0, 0] = i  # tells odd from even
        return image


class Reader:
    """Reads a page as its own character if its first pixel survived; knows all but the first character."""

    known = frozenset(chr(0x4E00 + i) for i in range(1, 20))

    def read(self, images):
        return [chr(0x4E00 + int(image[0, 0])) for image in images], np.ones(len(images), np.float32)


def test_psnr_closed_form():
    a = np.full((2, 8, 8, 1), 100, np.uint8)
    b = a.copy()
    b[1] += 5
    np.testing.assert_allclose(psnr(a, b), [99.0, 20 * np.log10(255 / 5)])


def test_ssim_of_equal_constant_and_reference_pictures():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (3, 24, 24, 2), dtype=np.uint8)
    b = (a // 2 + rng.integers(0, 60, a.shape)).astype(np.uint8)
    np.testing.assert_allclose(ssim(a, a), 1)
    c1 = (0.01 * 255) ** 2  # two flat pictures differ by their means only
    flat = [np.full((1, 16, 16, 1), v, np.uint8) for v in (50, 200)]
    np.testing.assert_allclose(ssim(*flat), (2 * 50 * 200 + c1) / (50**2 + 200**2 + c1))
    metrics = pytest.importorskip("skimage.metrics")
    reference = [
        metrics.structural_similarity(
            p, q, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2
        )
        for p, q in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(ssim(a, b), reference, atol=1e-9)


def test_transparent_images_are_compared_on_both_grounds():
    a = np.full((1, 16, 16, 4), (200, 100, 50, 255), np.uint8)
    a[:, :8] = (9, 9, 9, 0)
    b = a.copy()
    b[:, :8, :, :3] = 250  # nobody sees it
    np.testing.assert_allclose([psnr(a, b), ssim(a, b)], [[99], [1]])
    b[:, :8, :, 3] = 51  # on black 250 / 5, on white 1 less of it
    error = (50**2 + 1**2) / 2 / 2
    np.testing.assert_allclose(psnr(a, b), 10 * np.log10(255**2 / error))
    assert ssim(a, b) < 1
    assert ink(a) == pytest.approx((1 - 350 / 3 / 255) / 2)  # on white


def test_ink_is_the_black_share():
    image = np.full((1, 4, 4, 1), 255, np.uint8)
    image[0, 0] = 0
    assert ink(image) == pytest.approx(0.25)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_perfect_autoencoder_keeps_every_pixel(channels):
    data = Pages(channels=channels)
    images = np.stack([data.image(i) for i in range(len(data))])
    after, latents = reconstruct(Perfect(), images, batch_size=7)
    np.testing.assert_array_equal(after, images)
    assert latents.shape == (20, channels, 16, 16) and latents.min() == -1


def test_report_of_a_perfect_autoencoder(tmp_path):
    report = vae_report(Perfect(), Pages(), Reader(), tmp_path / "new")
    assert report["psnr"] == 99 and report["ssim"] == 1 and report["ink_error"] == 0
    assert report["ocr"] == {"read_before": 19, "share_before": 0.95, "same_after": 1.0}
    assert report["densest_decile"]["images"] == 2
    pixels = np.stack([Pages().image(i) for i in range(20)]) / 127.5 - 1
    assert report["latents"]["mean"] == pytest.approx([pixels.mean()], abs=1e-3)
    assert report["latents"]["std"] == pytest.approx([pixels.std(ddof=1)], abs=1e-3)
    assert (tmp_path / "new" / "reconstructions.png").stat().st_size > 0


def test_report_of_one_that_loses_every_character(tmp_path):
    report = vae_report(Perfect(0.5), Pages(), Reader(), None)
    assert report["ocr"]["same_after"] == 0 and report["psnr"] < 30


def test_report_without_a_reader_has_no_ocr():
    report = vae_report(Perfect(), Pages(), None, None, limit=5)
    assert report["images"] == 5 and "ocr" not in report


def test_report_of_a_run_is_written_beside_it(tmp_path, capsys):
    data = Pages()
    data.ids = [f"photos/{i}.jpg" for i in range(20)]  # no glyphs: no OCR
    report = write_report(Perfect(), data, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report and "ocr" not in report
    assert (tmp_path / "reconstructions.png").is_file() and "PSNR 99.00 dB" in capsys.readouterr().out


def test_training_mode_is_left_as_it_was():
    vae = Perfect().train()
    vae_report(vae, Pages(), None, None, limit=2)
    assert vae.training


def test_character_of_sample_ids():
    assert character_of("U+6C34/hei") == "水"
    assert character_of("photos/cat.jpg") == "" and character_of("U+/x") == ""
