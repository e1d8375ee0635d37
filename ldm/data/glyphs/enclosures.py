"""Where a component that encloses leaves room: the hole of a gate, a frame, a roof that hangs over the left."""

import numpy as np

BLANK = 40  # a lane is blank where no ink is darker than this, out of 255
# Layout -> whether the outer component closes the hole at the top, bottom, left and right.
CLOSED = {
    "enclosed": (1, 1, 1, 1), "above": (1, 0, 1, 1), "below": (0, 1, 1, 1), "left": (1, 1, 1, 0),
    "upper left": (1, 0, 1, 0), "upper right": (1, 0, 0, 1), "lower left": (0, 1, 1, 0),
}  # fmt: skip
COVERED = 0.5  # of each closed side, what the outer component's ink must span
THICK = 0.3  # of height and width: what is below and to the right of a hole, else it is some of the inner one
LEAST, AREA = 0.25, 0.3  # of the glyph's height, width and area, for the hole


def ink_box(dark: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the ink of a bool (h, w) image that has some; the ends are outside."""
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def hole(image: np.ndarray, layout: str) -> tuple[int, int, int, int] | None:
    """The largest hole that holds all of the inner component: top, bottom, left, right; the ends are outside.

    Blank lines part it from the outer component. At an open side it ends with the glyph, or shortly before, above the
    hook of a gate.

    Args:
        image: uint8 (h, w), dark on white, with ink.
        layout: a key of CLOSED.
    Returns: None where there are no such lines.
    """
    top, bottom, left, right = ink_box(image < 255 - BLANK)
    dark = (image < 255 - BLANK)[top:bottom, left:right]
    (height, width), closed = dark.shape, CLOSED[layout]
    starts, ends = _lines(dark, closed[:2])
    columns = _lines(dark.T, closed[2:])
    for start, end in ((s, e) for s in starts for e in ends if e - s >= LEAST * height):
        blank = ~np.asarray(dark[start:end].any(axis=0))
        first = next((c for c in columns[0] if c == 0 or blank[c]), width)
        last = next((c for c in columns[1] if c == width or blank[c - 1]), 0)
        room = dark[start:end, first:last]
        apart = (start == 0 or not room[0].any()) and (end == height or not room[-1].any())
        if last - first >= LEAST * width and room.size >= AREA * dark.size and apart and room.any():
            return top + start, top + end, left + first, left + last
    return None


def _lines(dark: np.ndarray, closed: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """First and last rows that a hole may have, those of the largest holes first.

    Beyond a closed side the ink spans enough of it; the hole's own line is blank for at least LEAST of the breadth.
    """
    size, least = len(dark), max(1, int(LEAST * dark.shape[1]))
    ink = np.cumsum(np.pad(dark, ((0, 0), (1, 0))), axis=1)
    blank = (ink[:, least:] == ink[:, :-least]).any(1)
    before = np.maximum.accumulate(dark, axis=0).mean(1) >= COVERED
    after = np.maximum.accumulate(dark[::-1], axis=0)[::-1].mean(1) >= COVERED
    near, far = int(THICK * size), int((1 - THICK) * size)
    starts = [i for i in range(1, size if closed[0] else near) if blank[i] and (before[i - 1] or not closed[0])]
    ends = [i for i in range(size - 1, far, -1) if blank[i - 1] and (after[i] or not closed[1])]
    return starts if closed[0] else [0, *starts], ends if closed[1] else [size, *ends]
