"""Near copies of training images, found by coarse colours.

An image is compared with its nearest training image and with the next ones: d_1 / mean(d_2 ... d_k). A plain distance
would call blurred images copies, for they are near to everything; this ratio is about 1 for them, and small where one
training image is far nearer than all others. After the calibrated distance of Carlini et al. 2023,
arXiv 2301.13188, without their factor.
"""

import numpy as np

from ldm.data import ImageTextData, evenly_spaced_indices
from ldm.evaluation.feature_extractors import coarse_colours

NEIGHBOURS = 10
RARE = 0.01  # of held-out images have a ratio that is called a copy, or one of them where they are fewer
MOST_TRAINING, MOST_HELD_OUT, BATCH = 20_000, 500, 256


class CopyDetector:
    """Finds images that are nearer to one training image than nearly all held-out ones are to any.

    Of very many training images evenly spaced ones are compared, so that copies of the others are not found.
    """

    def __init__(self, train: ImageTextData, held_out: ImageTextData):
        self.pool = _features(train, MOST_TRAINING)
        self.limit = np.quantile(self._ratios(_features(held_out, MOST_HELD_OUT)), RARE, method="lower")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Whether each image, uint8 (n, h, w, c), is a near copy: bool (n,)."""
        return self._ratios(coarse_colours(images)) < self.limit

    def _ratios(self, features: np.ndarray) -> np.ndarray:
        """d_1 / mean(d_2 ... d_k) of features (n, d): (n,); 1 where all distances are 0."""
        distances = np.stack([np.linalg.norm(self.pool - one, axis=1) for one in features])
        k = min(NEIGHBOURS, len(self.pool))
        nearest = np.sort(np.partition(distances, k - 1, axis=1)[:, :k], axis=1)
        others = nearest[:, 1:].mean(axis=1)
        return np.divide(nearest[:, 0], others, out=np.ones_like(others), where=others > 0)


def _features(data: ImageTextData, limit: int) -> np.ndarray:
    """Coarse colours of at most `limit` images, float32 (n, d)."""
    chosen = evenly_spaced_indices(len(data), limit)
    parts = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    return np.concatenate([coarse_colours(np.stack([data.image(int(i)) for i in part])) for part in parts])
