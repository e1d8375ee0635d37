"""The colour of a heart, circle or square, by arithmetic on its pixels: the nearest of eight that real emoji have."""

import numpy as np

from ldm.utils.errors import UserError
from scripts.emoji.data import Emoji, EmojiSet, images_of

VISIBLE = 12.0  # distance from white in L*a*b*; pixels nearer than that are background
SHOWN = 0.02  # an image with a smaller fraction of other pixels has no colour
DARK, PALE = 35.0, 15.0  # L* and chroma below which a pixel may be outline
FILLED = 0.3  # an image is black if a smaller fraction of what is seen is neither outline nor grey
LIGHTNESS = 2.0  # k_L where colours are named: a dark blue is blue


def to_lab(images: np.ndarray) -> np.ndarray:
    """sRGB uint8 (..., 3) -> CIE L*a*b* (D65), float64 (..., 3). Raises: UserError without scikit-image."""
    try:
        from skimage.color import rgb2lab
    except ImportError as error:
        raise UserError('colours are measured with scikit-image: pip install "ldm[eval]"') from error
    return rgb2lab(images.astype(np.float64) / 255)


def difference(first: np.ndarray, second: np.ndarray, lightness: float = 1.0) -> np.ndarray:
    """CIEDE2000 of two L*a*b* arrays (..., 3), which broadcast. About 1 is just visible, 100 is black to white.

    Args: lightness: the parametric factor k_L; 2 halves the weight of differences in lightness.
    """
    from skimage.color import deltaE_ciede2000

    return deltaE_ciede2000(*np.broadcast_arrays(first, second), kL=lightness)


def shape_colours(images: np.ndarray) -> np.ndarray:
    """The median L*a*b* of the pixels that differ from white, float64 (n, 3) of images uint8 (n, h, w, 3).

    Dark grey pixels are a black outline and left out, unless they are most of what is seen. NaN where hardly anything
    is seen.
    """
    lab = to_lab(images).reshape(len(images), -1, 3)
    seen = np.linalg.norm(lab - (100, 0, 0), axis=2) > VISIBLE
    filled = seen & ((lab[..., 0] > DARK) | (np.hypot(lab[..., 1], lab[..., 2]) > PALE))
    colours = np.full((len(images), 3), np.nan)
    for i, (own, mask, fill) in enumerate(zip(lab, seen, filled, strict=True)):
        if mask.mean() >= SHOWN:
            colours[i] = np.median(own[fill if fill.sum() >= FILLED * mask.sum() else mask], axis=0)
    return colours


def pairs_in(emoji: list[Emoji], data: EmojiSet) -> list[tuple[Emoji, str, str]]:
    """The hearts, circles and squares in one of the eight colours: (emoji, shape, colour)."""
    known = {f"{colour}-{shape}": (shape, colour) for shape in data.shapes for colour in data.colours}
    return [(each, *known[each.name]) for each in emoji if each.name in known]


class ColourNames:
    """Names colours as the real hearts, circles and squares of a set have them.

    Attributes: names; reference: L*a*b* float64 (k, 3), the mean over the images of each colour; accuracy: the
    fraction of those images that `name` names right.
    """

    def __init__(self, data: EmojiSet):
        found = pairs_in(data.everything, data)
        colours = np.array([colour for _, _, colour in found])
        images = images_of([each for each, _, _ in found])
        lab = shape_colours(images)
        self.names = [name for name in data.colours if (colours == name).any()]
        self.reference = np.stack([np.nanmean(lab[colours == name], axis=0) for name in self.names])
        self.accuracy = float((np.array(self.name(images)) == colours).mean())

    def name(self, images: np.ndarray) -> list[str]:
        """The nearest name for each image, uint8 (n, h, w, 3); "" where hardly anything is seen."""
        lab = shape_colours(images)
        nearest = difference(np.nan_to_num(lab)[:, None], self.reference[None], LIGHTNESS).argmin(1)
        return ["" if np.isnan(own).any() else self.names[i] for own, i in zip(lab, nearest, strict=True)]


# ---- flat colours through an autoencoder ----------------------------------------------------------------------------

SWATCHES = {
    "red": (222, 47, 56),
    "orange": (245, 139, 26),
    "yellow": (253, 203, 70),
    "green": (112, 176, 68),
    "blue": (64, 132, 220),
    "purple": (152, 88, 190),
    "brown": (124, 80, 56),
    "black": (40, 40, 42),
    "grey": (128, 128, 128),
    "pink": (250, 140, 190),
    "light blue": (90, 200, 240),
    "dark green": (20, 100, 50),
}


def swatch_images(size: int) -> np.ndarray:
    """A square of each colour on white, three quarters wide: uint8 (12, size, size, 3)."""
    images = np.full((len(SWATCHES), size, size, 3), 255, np.uint8)
    edge = size // 8
    for image, colour in zip(images, SWATCHES.values(), strict=True):
        image[edge : size - edge, edge : size - edge] = colour
    return images


def swatch_differences(after: np.ndarray) -> dict[str, float]:
    """CIEDE2000 between each swatch and the mean of the middle quarter of its reconstruction, uint8 (12, h, w, 3)."""
    quarter = after.shape[1] // 8
    middle = slice(3 * quarter, 5 * quarter)
    means = after[:, middle, middle].reshape(len(after), -1, 3).astype(np.float64).mean(1)
    wanted = np.array(list(SWATCHES.values()), np.float64)
    found = difference(to_lab(means), to_lab(wanted))
    return {name: round(float(value), 2) for name, value in zip(SWATCHES, found, strict=True)}
