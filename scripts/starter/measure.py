"""Save a trained starter autoencoder in fp16 and measure what was saved, on images that it never saw.

    python -m scripts.starter.measure runs/f4/vae starter-images -o models/autoencoders/f4

Writes metrics.json: PSNR in dB of each held-out icon set and photograph, mean over 64 x 64 images, beside the floor,
which the best linear map to as many numbers reaches (fitted to training images; `own_floor`: to the held-out images
themselves); CIEDE2000 of twelve flat colours. And reconstructions.png: originals over reconstructions, the same number
of each source, evenly spaced.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.evaluation.metrics.reconstruction import psnr, reconstruct
from ldm.models.autoencoder import load_vae
from ldm.models.latents import downsampling_factor
from ldm.models.linear_autoencoder import pca_psnr
from ldm.models.saving import save_component
from ldm.utils.errors import UserError
from ldm.utils.image_grid import image_grid, save_png
from ldm.utils.image_tensors import to_images
from scripts.emoji.colours import swatch_differences, swatch_images

FITTED = 2000  # training images at most that the floor is computed from
SHOWN = 2  # reconstructions of each source
COLUMNS = 13


def read(folder: Path, most: int | None = None) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Images uint8 (n, h, w, 3) of a split and their rows of metadata.jsonl; at most so many, evenly spaced.

    Raises: UserError: there are none.
    """
    if not (folder / "metadata.jsonl").is_file():
        raise UserError(f"{folder} has no metadata.jsonl: build it with python -m scripts.starter.images")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    if most and len(rows) > most:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]
    return np.stack([np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows]), rows


def places(rows: list[dict[str, str]], key: str) -> dict[str, list[int]]:
    """The positions of the rows with each value of `key`."""
    found = defaultdict(list)
    for i, row in enumerate(rows):
        found[row[key]].append(i)
    return dict(found)


def measure(vae, images: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The numbers, and chosen originals and reconstructions, uint8 (n, h, w, 3)."""
    before, rows = read(images / "validation")
    after, latents = reconstruct(vae, before)
    factor, channels = downsampling_factor(vae.config), vae.config.latent_channels
    known, held = to_images(read(images / "train", FITTED)[0]), to_images(before)
    each = psnr(before, after)
    kinds = {
        kind: {
            "psnr": round(float(each[where].mean()), 2),
            "floor": round(pca_psnr(known, held[where], factor, channels), 2),
            "own_floor": round(pca_psnr(held[where], held[where], factor, channels), 2),
            "images": len(where),
        }
        for kind, where in places(rows, "kind").items()
    }
    sources = {name: round(float(each[where].mean()), 2) for name, where in places(rows, "source").items()}
    swatches = swatch_differences(reconstruct(vae, swatch_images(64))[0])
    found = {
        "factor": factor,
        "latent_channels": channels,
        "parameters": {
            part: sum(p.numel() for p in getattr(vae, part).parameters()) for part in ("encoder", "decoder")
        },
        "latent_std": [round(v, 3) for v in latents.std(dim=(0, 2, 3)).tolist()],
        "kinds": kinds,
        "sources": sources,
        "swatches": swatches,
        "worst_swatch": max(swatches.values()),
    }
    chosen = [where[i] for where in places(rows, "source").values() for i in spread(len(where))]
    return found, before[chosen], after[chosen]


def save(vae, folder: Path) -> None:
    """Weights in fp16, and the settings without the path that they were loaded from."""
    save_component(vae.half(), folder)
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def spread(count: int) -> list[int]:
    """SHOWN positions evenly inside `count`."""
    return [(2 * k + 1) * count // (2 * SHOWN) for k in range(SHOWN)]


def pairs(before: np.ndarray, after: np.ndarray) -> Image.Image:
    """Rows of originals, each over its row of reconstructions."""
    rows = []
    for start in range(0, len(before), COLUMNS):
        part = slice(start, start + COLUMNS)
        rows += [*before[part], *after[part]]
    return image_grid(rows, COLUMNS)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="finished run of `ldm train vae`, or a folder with an autoencoder")
    parser.add_argument("images", type=Path, help="what scripts.starter.images wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to save and measure it in")
    args = parser.parse_args(argv)
    try:
        save(load_vae(args.run), args.output)
        found, before, after = measure(load_vae(args.output), args.images)
    except UserError as error:
        sys.exit(f"error: {error}")
    (args.output / "metrics.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    save_png(pairs(before, after), args.output / "reconstructions.png")
    for kind, numbers in found["kinds"].items():
        print(f"{kind}: {numbers['psnr']} dB, floor {numbers['floor']} dB, {numbers['images']} images")
    print(f"worst swatch: {found['worst_swatch']} CIEDE2000")
    return 0


if __name__ == "__main__":
    sys.exit(main())
