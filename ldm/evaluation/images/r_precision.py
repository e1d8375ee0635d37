"""R-precision: can a CLIP tell from which caption an image was generated, among others at random?

Source: Xu et al. 2018, AttnGAN, arXiv 1711.10485, section 4.
"""

from collections.abc import Callable

import numpy as np

from ldm.evaluation.metrics.proportions import proportion

CANDIDATES = 100  # captions among which an image's own one has to be the nearest, itself included
NUM_PERMUTATIONS = 20  # chance level is the mean over so many permutations of the captions
WEAK = 0.5  # of real images whose caption the CLIP finds itself: of fewer it is no reference


def words_section(generated: np.ndarray, real: np.ndarray, captions: list[str], clip: Callable) -> dict | None:
    """R-precision of the generated images, its ceiling (of the real ones) and its floor (captions permuted).

    Args:
        clip: images and as many captions -> unit features of both, float (n, d) tensors.
    Returns: see `proportion`, with ceiling, floor, whether the ceiling is too low to compare with ("weak"), and the
        number of candidates; None with fewer than two captions. The interval is over other images of these captions.
    """
    found, top = (caption_similarity(images, captions, clip) for images in (generated, real))
    if found is None or top is None:
        return None
    (scores, own), rng = found, np.random.default_rng(0)
    floor = np.mean([r_precision(scores, rng.permutation(own)).mean() for _ in range(NUM_PERMUTATIONS)])
    ceiling = float(r_precision(*top).mean())
    return proportion(r_precision(scores, own)) | {
        "ceiling": round(ceiling, 4),
        "weak": ceiling < WEAK,
        "floor": round(float(floor), 4),
        "candidates": min(CANDIDATES, scores.shape[1]),
        "digest": getattr(clip, "digest", ""),
    }


def own_caption_first(images: np.ndarray, captions: list[str], clip: Callable) -> np.ndarray | None:
    """Of each captioned image whether its own caption is the nearest; bool (k,), None with fewer than two captions."""
    found = caption_similarity(images, captions, clip)
    return None if found is None else r_precision(*found)


def caption_similarity(images: np.ndarray, captions: list[str], clip: Callable) -> tuple[np.ndarray, np.ndarray] | None:
    """Similarity of each captioned image to the distinct captions, float (k, m), and which is its own, int (k,)."""
    captioned = [i for i, caption in enumerate(captions) if caption]
    names = [captions[i] for i in captioned]
    distinct, first, own = np.unique(names, return_index=True, return_inverse=True)
    if len(distinct) < 2:
        return None
    image, text = (x.numpy() for x in clip(images[captioned], names))
    return image @ text[first].T, own


def r_precision(similarity: np.ndarray, own: np.ndarray, seed: int = 0) -> np.ndarray:
    """Whether each image is nearer to its own caption than to 99 others at random, or all there are; bool (n,).

    Args:
        similarity: float (n, m) of n images to m distinct captions; own: int (n,), the number of each one's own.
    Source: Xu et al. 2018, AttnGAN, arXiv 1711.10485, section 4: R-precision with R = 1 and 99 mismatching captions.
    """
    rng, count = np.random.default_rng(seed), similarity.shape[1]
    first = np.zeros(len(similarity), bool)
    for i, mine in enumerate(own):
        others = np.delete(np.arange(count), mine)
        rivals = rng.choice(others, min(CANDIDATES - 1, len(others)), replace=False)
        first[i] = similarity[i, mine] > similarity[i, rivals].max()
    return first
