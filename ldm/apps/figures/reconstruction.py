"""What the autoencoder keeps of an image."""

import numpy as np

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.inputs import glyphs, model, resolution_of
from ldm.apps.figures.plot_style import SIGNED, grey, strip
from ldm.evaluation.metrics.ink import ink
from ldm.evaluation.metrics.reconstruction import psnr, reconstruct


def reconstruction(setting: Setting) -> Drawing:
    """Unseen glyphs, four evenly spaced and the four with the most ink, there and back again, and the difference."""
    pipeline = model(setting)
    data = glyphs(setting, "validation", resolution_of(pipeline))
    before = np.stack([data.image(i) for i in range(min(16 if setting.quick else 192, len(data)))])
    after, _ = reconstruct(pipeline.networks.module("vae"), before)
    even = np.linspace(0, len(before) - 1, 4).round().astype(int)
    dense = np.argsort(-ink(before), kind="stable")
    chosen = [*even, *dense[:4]]
    ratio = psnr(before, after)
    pairs = [(before[i, ..., 0].astype(float), after[i, ..., 0].astype(float)) for i in chosen]
    rows = [
        [grey(x) for x, _ in pairs],
        [grey(y) for _, y in pairs],
        [SIGNED((y - x) / 128 + 0.5)[..., :3] for x, y in pairs],  # four times the contrast
    ]
    feet = [f"{ratio[i]:.1f} dB" for i in chosen]
    titles = [(1.5, "evenly spaced"), (5.5, "the most ink")]
    figure = strip(rows, ("original", "after", "difference\n(4 x)"), [""] * len(chosen), feet, left=110, titles=titles)
    tenth = dense[: max(1, len(dense) // 10)]
    latent = int(np.prod(pipeline.latent_shape))
    numbers = {
        "validation glyphs": len(before),
        "PSNR (dB)": float(ratio.mean()),
        "PSNR of the tenth with the most ink (dB)": float(ratio[tenth].mean()),
        "numbers per image": f"{before[0].size} pixels, {latent} latents",
    }
    return Drawing(figure, numbers)
