"""Choose the similarity from which a glyph counts as a copy (`ldm.evaluation.glyphs.novelty.COPY`).

It lies between synthetic copies (moved, bolder, lighter or blurred training glyphs) and real characters that are not in
the training set, which are the false alarms. Some minutes on one core:

    python -m scripts.novelty_calibration
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from ldm.config.settings import DataOptions, GlyphOptions
from ldm.data.glyphs.dataset import splits
from ldm.evaluation.glyphs.novelty import COPY, SIZE, Pool, nearest_glyphs
from ldm.evaluation.metrics.corruptions import blurred, moved, reweighted
from ldm.evaluation.metrics.proportions import proportion
from ldm.utils.runtime import run_main

REACH = 3  # pixels at 64 by which synthetic copies are moved at most


def synthetic_copies(images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Copies of glyphs (n, h, w) as a model might make them, each moved by up to 3 pixels of 64 either way.

    Returns: 'moved'; 'bolder' and 'lighter' by one weight step, a 64th of the side; 'blurred' by a Gaussian of one
        pixel of 64; and, beyond what is calibrated for, 'bolder, blurred' and 'lighter, blurred' by 0.7 pixels.
    """
    rng, pixel = np.random.default_rng(seed), images.shape[1] / SIZE
    bolder, lighter = reweighted(images, 1), reweighted(images, -1)
    kinds = {
        "moved": images,
        "bolder": bolder,
        "lighter": lighter,
        "blurred": blurred(images, pixel),
        "bolder, blurred": blurred(bolder, 0.7 * pixel),
        "lighter, blurred": blurred(lighter, 0.7 * pixel),
    }

    def scattered(some: np.ndarray) -> np.ndarray:
        moves = np.round(rng.integers(-REACH, REACH + 1, (len(some), 2)) * pixel).astype(int)
        return np.concatenate([moved(image[None], y, x) for image, (y, x) in zip(some, moves.tolist(), strict=True)])

    return {name: scattered(some) for name, some in kinds.items()}


def calibrate(pool: Pool, unseen: np.ndarray, copies: int = 400, seed: int = 0) -> tuple[float, dict]:
    """The threshold midway between the least similar synthetic copy and the 99th percentile of unseen real characters.

    Args:
        pool: training glyphs.
        unseen: uint8 (n, h, w), real glyphs of characters that the pool lacks.
        copies: training glyphs that copies are made of, at random.
    Returns: the threshold, and what was seen: see `check`. The share of false alarms is that of the glyphs the
        threshold was chosen by: measure it with `check` on others.
    """
    found = nearest_glyphs(unseen, pool).similarity
    each = _found(pool, copies, seed)
    least = min(float(similarity.min()) for name, (_, similarity) in each.items() if "," not in name)
    threshold = round((least + float(np.quantile(found, 0.99))) / 2, 3)
    return threshold, _rates(threshold, found, each)


def check(pool: Pool, unseen: np.ndarray, threshold: float = COPY, copies: int = 400, seed: int = 1) -> dict:
    """How often synthetic copies are found (`copies`, by kind) and unseen real characters are taken for one."""
    return _rates(threshold, nearest_glyphs(unseen, pool).similarity, _found(pool, copies, seed))


def _found(pool: Pool, copies: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each kind of synthetic copy whether its nearest glyph is its own, and its similarity."""
    chosen = np.random.default_rng(seed).permutation(len(pool))[:copies]
    found = {name: nearest_glyphs(images, pool) for name, images in synthetic_copies(pool.images[chosen], seed).items()}
    return {name: (near.index == chosen, near.similarity) for name, near in found.items()}


def _rates(threshold: float, unseen: np.ndarray, copies: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict:
    percentiles = {f"{100 * q:g}%": round(float(np.quantile(unseen, q)), 3) for q in (0.5, 0.95, 0.99)}
    return {
        "threshold": threshold,
        "false_alarms": proportion(unseen >= threshold),
        "unseen": percentiles,
        "copies": {
            name: proportion(similarity >= threshold)
            | {"least": round(float(similarity.min()), 3), "own_glyph": round(float(own.mean()), 4)}
            for name, (own, similarity) in copies.items()
        },
    }


def main() -> None:
    """Print the calibration as JSON: the threshold by the validation split, its rates on the test and held-out ones."""
    parser = argparse.ArgumentParser(prog="python -m scripts.novelty_calibration", description=main.__doc__)
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="rendered glyphs (default: cache)")
    parser.add_argument("--limit", type=int, default=0, help="training characters (default: all)")
    parser.add_argument("--copies", type=int, default=400, help="training glyphs of which each kind of copy is made")
    args = parser.parse_args()
    data = splits(DataOptions(glyphs=GlyphOptions(limit=args.limit), cache_dir=args.cache_dir))
    images = {name: np.stack([part.image(i)[..., 0] for i in range(len(part))]) for name, part in data.items()}
    started = time.process_time()
    pool = Pool(images["train"])
    ready = time.process_time()
    nearest_glyphs(images["test"][:1000], pool)
    cost = {"pool": round(ready - started, 1), "thousand_samples": round(time.process_time() - ready, 1)}
    threshold, seen = calibrate(pool, images["validation"], args.copies)
    found = {"training_glyphs": len(pool), "cpu_seconds": cost, "calibrated_on_validation": seen}
    found["checked_on_test"] = check(pool, images["test"], threshold, args.copies)
    found["checked_on_heldout"] = proportion(nearest_glyphs(images["heldout"], pool).similarity >= threshold)
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    run_main(main)
