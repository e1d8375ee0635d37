"""The linear reference and the gains of colours against closed forms, and what is said of autoencoders."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.evaluation.autoencoder_quality import colour_gains, complaints, facts, quality

KL = SimpleNamespace(config={})


class Split:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def image(self, i):
        return self.images[i]


def noise(n: int, side: int, channels: int, seed: int, deviation: float = 20.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(128, deviation, (n, side, side, channels))
    return values.round().clip(0, 255).astype(np.uint8)


def test_of_white_noise_the_linear_map_keeps_as_much_as_the_latents_have_numbers():
    train, held = noise(400, 16, 3, 0), noise(100, 16, 3, 1)
    for channels in (3, 6, 9):
        found = quality(KL, Split(train), held, held, torch.zeros(100, channels, 8, 8))["floor"]
        lost = 20**2 * (1 - channels / 12)
        assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / lost), abs=0.15)
        assert (found["factor"], found["channels"]) == (2, channels)
    assert quality(KL, Split(train), held, held, torch.zeros(100, 16, 8, 8))["floor"]["psnr"] > 90  # more than pixels


def test_the_linear_map_of_transparent_images_loses_nothing_that_is_seen():
    """All pixels have one colour and alpha varies: a number for each pixel of a patch is enough."""
    train, held = (np.concatenate([flat([[200, 100, 50]] * 40), noise(40, 16, 1, i, 60)], 3) for i in (0, 1))
    found = quality(KL, Split(train), held, held, torch.zeros(40, 4, 8, 8))
    assert found["floor"]["psnr"] > 60 and found["floor"]["channels"] == 4
    assert set(found["chroma"]["gains"].values()) <= {1, None} and found["chroma"]["error"] == 0
    hidden = held.copy()
    hidden[..., :3][held[..., 3] == 0] = 0
    assert colour_gains(held, hidden)["error"] == 0


def without(direction) -> np.ndarray:
    """The matrix that takes a direction of colour away."""
    unit = np.array(direction) / np.linalg.norm(direction)
    return np.eye(3) - np.outer(unit, unit)


def flat(colours, side: int = 16) -> np.ndarray:
    return np.tile(np.asarray(colours, float)[:, None, None], (1, side, side, 1)).round().clip(0, 255).astype(np.uint8)


def test_a_lost_direction_has_gain_0_and_others_keep_what_they_do_not_share_with_it():
    colours = 128 + np.random.default_rng(0).normal(0, 25, (400, 3))
    assert colour_gains(flat(colours), flat(colours)) == {
        "error": 0.0,
        "gains": {"red-cyan": 1.0, "green-magenta": 1.0, "blue-yellow": 1.0},
    }
    found = colour_gains(flat(colours), flat(128 + (colours - 128) @ without([-1, 2, -1])))
    assert found["gains"]["green-magenta"] == pytest.approx(0, abs=0.02)
    assert found["gains"]["red-cyan"] == pytest.approx(0.75, abs=0.1)  # cos^2 of 60 degrees is lost
    assert found["error"] == pytest.approx(25 / 127.5 / np.sqrt(3), rel=0.1)
    darker = colour_gains(flat(colours), flat(colours - 40))
    assert darker["error"] < 0.005 and darker["gains"]["red-cyan"] > 0.99  # brightness is no colour


def test_greys_have_no_colours_to_lose():
    grey = np.repeat(noise(20, 16, 1, 0), 3, axis=3)
    assert set(colour_gains(grey, grey)["gains"].values()) == {None}
    assert colour_gains(grey[..., :1], grey[..., :1]) is None


SEEN = {  # a VAE of 21.2 dB that was called healthy: original -> reconstruction
    (124, 178, 68): (140, 115, 96), (169, 70, 187): (152, 140, 146), (124, 215, 52): (149, 122, 89),
    (230, 40, 40): (215, 60, 50), (250, 200, 50): (240, 190, 70), (60, 90, 220): (80, 95, 200), (0, 0, 0): (10, 10, 10),
}  # fmt: skip


def test_green_that_turns_brown_and_purple_that_turns_grey_are_named():
    chroma = colour_gains(flat(list(SEEN)), flat(list(SEEN.values())))
    first = complaints(30.0, {"floor": None, "chroma": chroma})[0]
    assert first.serious and first.text.startswith("loses green-magenta (gain 0.") and "latent_channels" in first.advice
    assert chroma["gains"]["blue-yellow"] > 0.6


def test_below_the_linear_map_and_a_decibel_is_not_trained():
    floor = {"psnr": 20.5, "channels": 4, "factor": 4, "margin": 1.0}
    found = {"floor": floor, "chroma": None}
    assert (
        "not trained: 21.2 dB, where a linear map to 4 numbers for each 4 x 4 patch reaches 20.5 dB"
        in complaints(21.2, found)[0].text
    )
    assert complaints(21.6, found) == [] and complaints(36.0, {**found, "floor": floor | {"psnr": 38.0}}) == []
    assert facts(found) == "a linear map to 4 numbers for each 4 x 4 patch reaches 20.5 dB"


def test_a_weakened_colour_is_a_doubt():
    chroma = {"error": 0.02, "gains": {"red-cyan": 0.8, "green-magenta": 0.95, "blue-yellow": None}}
    (only,) = complaints(30.0, {"floor": None, "chroma": chroma})
    assert only.text == "weakens red-cyan (gain 0.80)" and not only.serious


def test_pixels_and_codebooks_have_no_linear_reference():
    images, z = noise(8, 16, 3, 0), torch.zeros(8, 4, 4, 4)
    assert quality(KL, Split(images), images, images, z)["floor"]["factor"] == 4
    assert quality(SimpleNamespace(config={"num_vq_embeddings": 8}), Split(images), images, images, z)["floor"] is None
    same = torch.zeros(8, 3, 16, 16)
    assert quality(KL, Split(images), images, images, same)["floor"] is None
    assert quality(KL, None, images, images, z)["floor"] is None
