"""Do the measures of fidelity detect errors? Real glyphs are corrupted more and more, and compared with others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.inputs import glyphs
from ldm.apps.figures.plot_style import GREY, PALETTE, bare, page
from ldm.evaluation.glyphs.classifier import GlyphClassifier
from ldm.evaluation.metrics.corruptions import blurred, mirrored, noisy
from ldm.evaluation.metrics.distribution_distances import distances

GRADES = {
    "noise": (0, 0.15, 0.25, 0.35, 0.5),  # standard deviation; 1 = from ink to ground
    "blur": (0, 0.75, 1.5, 2.25, 3),  # standard deviation in pixels
    "mirrored": (0, 0.25, 0.5, 0.75, 1),  # fraction of the images
}
KEPT = (99, 4, 2, 1)  # layouts that are left, the commonest ones
UNITS = {
    "noise": "deviation (of the range)",
    "blur": "deviation (pixels)",
    "mirrored": "fraction of the images",
    "layouts dropped": "fraction of layouts, rare first",
}
DISTANCES = {"fd": "FD", "kid": "KID", "mmd": "MMD", "sliced": "sliced W2"}
SHARES = ("precision", "recall", "density", "coverage")
Embed = Callable[[np.ndarray], np.ndarray]
Curves = dict[str, dict[str, list[float]]]  # corruption -> measure -> a value for each grade


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt images, in grades."""

    grades: Sequence[float]
    sets: list[np.ndarray]  # for each grade uint8 (n, h, w), n the same for all


def corrupt(
    images: np.ndarray, layouts: Sequence[str], count: int, kept: Sequence[int] = KEPT
) -> dict[str, Corruption]:
    """Every corruption in its grades, the first of which is none: name -> Corruption.

    Args:
        images: uint8 (n, h, w), real glyphs in random order.
        layouts: the layout of each.
        count: images in a set; where layouts are dropped, at most as many as are left after the last grade.
        kept: how many layouts, the commonest ones, are left at each grade.
    """
    names, counts = np.unique(layouts, return_counts=True)
    commonest = names[np.argsort(-counts, kind="stable")]
    left = [images[np.isin(layouts, commonest[:few])] for few in kept]
    first, least = images[:count], min(count, *map(len, left))
    kinds = {
        "noise": [noisy(first, grade) for grade in GRADES["noise"]],
        "blur": [blurred(first, grade) for grade in GRADES["blur"]],
        "mirrored": [mirrored(first, grade) for grade in GRADES["mirrored"]],
    }
    corrupted = {name: Corruption(GRADES[name], sets) for name, sets in kinds.items()}
    dropped = [max(0, 1 - few / len(names)) for few in kept]
    return corrupted | {"layouts dropped": Corruption(dropped, [x[:least] for x in left])}


def curves(corrupted: dict[str, Corruption], reference: np.ndarray, embed: Embed) -> Curves:
    """Every measure of every grade against the reference, uint8 (m, h, w)."""
    real = embed(reference)
    found: Curves = {}
    for kind, one in corrupted.items():
        each = [distances(embed(images), real) for images in one.sets]
        found[kind] = {name: [numbers[name] for numbers in each] for name in each[0]}
    return found


def sensitivity(setting: Setting) -> Drawing:
    """Four distances and four fractions on the classifier's features, over four ways to corrupt real glyphs."""
    data = glyphs(setting, "train")
    images = np.stack([data.image(i)[..., 0] for i in range(min(256 if setting.quick else 18_000, len(data)))])
    layouts = [data.meta(i)["structure"] for i in range(len(images))]
    real = min(2000, len(images) // 2)
    corrupted = corrupt(images[real:], layouts[real:], 600)
    found = curves(corrupted, images[:real], GlyphClassifier().embed)
    numbers = {
        f"{kind}, {name}": [float(f"{v:.4g}") for v in values]
        for kind, of in found.items()
        for name, values in of.items()
    }
    sizes = {"reference": real, **{f"images, {kind}": len(one.sets[0]) for kind, one in corrupted.items()}}
    return Drawing(_drawn(corrupted, found), sizes | numbers)


def _drawn(corrupted: dict[str, Corruption], found: Curves):
    figure, axes = page(3, 4, height=4.6, height_ratios=(0.5, 1, 1))
    for column, (kind, one) in enumerate(corrupted.items()):
        strip, far, near = axes[:, column]
        strip.imshow(np.concatenate([x[0] for x in one.sets], axis=1), cmap="gray", vmin=0, vmax=255)
        strip.set_title(kind)
        bare(strip)
        for colour, (name, label) in zip(PALETTE, DISTANCES.items()):
            values = np.array(found[kind][name])
            far.plot(one.grades, values / values[-1], "o-", ms=2.5, color=colour, label=label)
        for colour, name in zip(PALETTE, SHARES):
            near.plot(one.grades, found[kind][name], "o-", ms=2.5, color=colour, label=name)
        far.set_ylim(-0.1, 1.1)
        near.set_ylim(0, 1.2)
        near.set_xlabel(UNITS[kind])
        near.axhline(1, color=GREY, lw=0.5)
    axes[1, 0].set_ylabel("distance / the greatest")
    axes[2, 0].set_ylabel("share")
    axes[1, 0].legend()
    axes[2, 0].legend(loc="lower left", fontsize=6)
    return figure
