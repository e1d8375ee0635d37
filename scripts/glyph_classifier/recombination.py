"""New glyphs from the parts of real ones: a radical and a remainder that never met, beside or above each other.

A radical has its usual place in real characters, and a network learns the place along with it. Here the picture of a
character that falls into two parts is cut at the only blank lane through it, and a part that holds the radical is put
on any side of a part that holds none, scaled to fit.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ldm.data.glyphs.components import radical_forms
from ldm.data.glyphs.recombination import BLANK, lane

STRETCH = 1.8  # a part is widened or heightened so much at most: strokes are no beams
SMALLEST = 8  # pixels, the least height and width of a part
LAYOUTS = ("horizontal", "vertical")


@dataclass(frozen=True)
class Parts:
    """m pieces of pictures."""

    picture: np.ndarray  # int64 (m,), index of the picture it is cut from
    box: np.ndarray  # int64 (m, 4), top, bottom, left, right; the ends are outside
    radical: np.ndarray  # int64 (m,), 1..214 where the piece is the radical of its character, else 0
    components: np.ndarray  # bool (m, components)


def cut(
    images: np.ndarray, layouts: list[str], radicals: np.ndarray, held: list[tuple[str, ...]], labels: np.ndarray
) -> Parts:
    """The pieces of pictures uint8 (n, h, w) that are the radical or hold nothing of it.

    Only pictures count that can be cut, and of which one and only one part holds the radical.

    Args:
        held: the components of each, by part (`ldm.data.glyphs.components.load_components`).
        labels: bool (2 n, components): of first and second part of each; rows of others are not read.
    """
    forms, found = radical_forms(), []
    for i, (image, layout, parts) in enumerate(zip(images, layouts, held, strict=True)):
        if layout not in LAYOUTS or len(parts) != 2:
            continue
        is_radical = [any(radicals[i] in forms.get(c, ()) for c in part) for part in parts]
        dark = image < 255 - BLANK
        across = layout == "horizontal"
        middle = lane(dark.any(axis=0 if across else 1))
        if sum(is_radical) != 1 or middle is None:
            continue
        for k, span in enumerate((slice(None, middle), slice(middle, None))):
            piece = np.zeros_like(dark)
            where = (slice(None), span) if across else (span, slice(None))
            piece[where] = dark[where]
            rows, columns = map(np.unique, np.nonzero(piece))
            box = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
            # a part of several components of which one is the radical is neither the radical nor without it
            radical = radicals[i] * (is_radical[k] and len(parts[k]) == 1)
            large = min(len(rows), len(columns)) >= SMALLEST
            if is_radical[k] == bool(radical) and large:
                found.append((i, box, radical, labels[2 * i + k]))
    picture, box, radical, components = zip(*found, strict=True)
    return Parts(np.array(picture), np.array(box), np.array(radical), np.array(components))


def place(images: np.ndarray, box: np.ndarray, target: torch.Tensor) -> torch.Tensor:
    """Ink float32 (b, 1, h, w) of the given boxes of uint8 (b, h, w), each drawn into its target box.

    `target`: float32 (b, 4), top, bottom, left, right in pixels; a picture is stretched by no more than STRETCH and
    then stands in the middle of its target.
    """
    height, width = images.shape[1:]
    rows, columns, edges = np.arange(height)[None, :, None], np.arange(width)[None, None], box[:, :, None, None]
    inside = (rows >= edges[:, 0]) & (rows < edges[:, 1]) & (columns >= edges[:, 2]) & (columns < edges[:, 3])
    ink = torch.from_numpy(np.where(inside, 255 - images, 0).astype(np.float32) / 255)[:, None]
    theta = torch.zeros(len(images), 2, 3)
    for row, (first, size) in enumerate(((2, width), (0, height))):  # x before y
        source = torch.from_numpy(box[:, first : first + 2]).float() * 2 / size - 1
        aim = target[:, first : first + 2] * 2 / size - 1
        scale = ((source[:, 1] - source[:, 0]) / (aim[:, 1] - aim[:, 0])).clamp(min=1 / STRETCH)
        theta[:, row, row] = scale
        theta[:, row, 2] = (source.sum(dim=1) - scale * aim.sum(dim=1)) / 2
    return F.grid_sample(ink, F.affine_grid(theta, list(ink.shape), align_corners=False), align_corners=False)


def cells(
    across: torch.Tensor, share: torch.Tensor, fill: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Target boxes (b, 4) of the first and the second part.

    Args:
        across: bool (b,), beside each other (else above).
        share: (b,) in (0, 1), of the first part along the line on which they stand.
        fill: (b, 2), how much of the breadth each part takes.
    """
    margin, gap = size * 0.05, size * 0.03
    length = size - 2 * margin - gap
    middle = margin + length * share
    spread = fill * (size - 2 * margin) / 2
    boxes = []
    for k, (start, end) in enumerate(
        ((torch.full_like(middle, margin), middle), (middle + gap, torch.full_like(middle, size - margin)))
    ):
        low, high = size / 2 - spread[:, k], size / 2 + spread[:, k]
        beside, above = (torch.stack(v, dim=1) for v in ((low, high, start, end), (start, end, low, high)))
        boxes.append(torch.where(across[:, None], beside, above))
    return boxes[0], boxes[1]


def recombine(
    images: np.ndarray, parts: Parts, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw new glyphs.

    Returns: ink float32 (count, 1, h, w) in [0, 1]; bool (count,), whether the parts stand beside each other;
    radical int64 (count,), 1..214; components float32 (count, components), 0 or 1.
    """
    size = images.shape[1]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    is_radical = parts.radical > 0
    # the radicals alike in their roots, as layouts are
    _numbers, index, counts = np.unique(parts.radical[is_radical], return_inverse=True, return_counts=True)
    weights = torch.from_numpy(counts[index].astype(np.float64) ** -0.5)
    a = np.flatnonzero(is_radical)[torch.multinomial(weights, count, replacement=True, generator=generator).numpy()]
    others = np.flatnonzero(~is_radical)
    b = others[torch.randint(len(others), (count,), generator=generator).numpy()]
    across, first = uniform(0, 1) < 0.4, uniform(0, 1) < 0.5
    one, two = cells(across, torch.where(first, uniform(0.3, 0.5), uniform(0.5, 0.7)), uniform(0.75, 1, 2), size)
    swap = first[:, None]
    ink = place(images[parts.picture[a]], parts.box[a], torch.where(swap, one, two))
    ink = ink + place(images[parts.picture[b]], parts.box[b], torch.where(swap, two, one))
    components = torch.from_numpy(parts.components[a] | parts.components[b]).float()
    return ink.clamp(0, 1), across, torch.from_numpy(parts.radical[a]).long(), components
