"""How much of an image an autoencoder keeps, and in how few bits: PSNR, SSIM, whether the OCR still reads the same
character, the rate, and how fast it codes.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.data import ImageTextData, evenly_spaced_indices
from ldm.evaluation.autoencoder_quality import complaints, facts, quality
from ldm.evaluation.metrics.ink import ink
from ldm.evaluation.metrics.reconstruction import DENSE_FRACTION, _place, psnr, reconstruct, ssim
from ldm.evaluation.ocr import GlyphReader
from ldm.models.autoencoder import code_counts
from ldm.models.latents import DeterministicPosterior, is_tiny, is_vector_quantized, posterior
from ldm.models.vector_quantizer import code_usage
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.image_grid import image_grid, save_png
from ldm.utils.image_tensors import to_images

log = logging.getLogger(__name__)


def vae_report(
    vae, data, reader, output: Path | None, limit: int = 512, pictures: int = 16, train: ImageTextData | None = None
) -> dict:
    """Judge an autoencoder on (at most `limit`, evenly spaced) images of a data set.

    Args:
        vae: see `reconstruct`.
        data: an ImageTextData, the validation split. Its images should be dark on white if they are to be read.
        reader: a `GlyphReader`, or None to leave the OCR out (data that is not glyphs, or the extra not installed).
        output: folder for reconstructions.png (originals over reconstructions), or None for no image.
        pictures: how many are shown.
        train: the training split, for the linear reference.
    Returns: numbers ready for JSON: psnr, ssim, ink_error (mean absolute difference of the ink fractions), the same
        under "densest_decile"; and with a reader "ocr": read_before (how many the OCR read as the character they
        are), share_before, same_after (the fraction of those read as the same character after). "latents": mean and
        standard deviation of the posterior means per channel. "floor", "chroma": see `quality`. "rate": see `rate`.
        "milliseconds": see `speed`.
    """
    chosen = evenly_spaced_indices(len(data), limit)
    before = np.stack([data.image(int(i)) for i in chosen])
    after, latents = reconstruct(vae, before)
    columns = {"psnr": psnr(before, after), "ssim": ssim(before, after), "ink_error": abs(ink(before) - ink(after))}
    if reader is not None:
        columns |= _read(reader, before, after, [data.ids[i] for i in chosen])
    dense = np.argsort(-ink(before), kind="stable")[: max(1, round(DENSE_FRACTION * len(chosen)))]
    report = {"images": len(chosen), **_summary(columns)}
    report["densest_decile"] = {"images": len(dense), **_summary({k: v[dense] for k, v in columns.items()})}
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    report["latents"] = {"mean": [round(v, 4) for v in mean.tolist()], "std": [round(v, 4) for v in std.tolist()]}
    report |= quality(vae, train, before, after, latents)
    report["rate"] = rate(vae, before, latents)
    report["milliseconds"] = speed(vae, before[:16])
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        save_png(strip(before, after, pictures), output / "reconstructions.png")
    return report


@torch.no_grad()
def rate(vae, images: np.ndarray, latents: torch.Tensor, batch_size: int = 32) -> dict:
    """What the latents cost, in bits per pixel (whatever the number of channels).

    AutoencoderKL: bits_per_pixel is KL(q(z|x) || N(0, 1)) in bits, what sending z by bits back costs under that prior.
    VQModel: bits_per_pixel is log2 of the number of codes per latent position; entropy_bits_per_pixel takes the entropy
    of the codes' use in these images instead; codes_used and perplexity as in `code_usage`. Pixel space: 8 a channel.
    AutoencoderTiny: nothing, for its latents are points without a width.

    Args:
        images: uint8 (n, h, w, c).
        latents: their posterior means (n, c, h, w).
    """
    per_pixel = latents[0, 0].numel() / (images.shape[1] * images.shape[2])  # latent positions
    if is_vector_quantized(vae.config):
        usage = code_usage(code_counts(vae, latents.to(_place(vae))))
        bits = {
            "bits_per_pixel": per_pixel * math.log2(vae.config.num_vq_embeddings),
            "entropy_bits_per_pixel": per_pixel * usage["entropy"],
        }
        return {name: round(value, 4) for name, value in (bits | usage).items()}
    if is_tiny(vae.config):
        return {}
    nats = 0.0
    for start in range(0, len(images), batch_size):
        q = posterior(vae, to_images(images[start : start + batch_size]).to(_place(vae)))
        if isinstance(q, DeterministicPosterior):  # the pixels themselves
            return {"bits_per_pixel": 8.0 * images.shape[3]}
        nats += q.kl().double().sum().item()
    return {"bits_per_pixel": round(nats / math.log(2) / images[..., 0].size, 4)}


@torch.no_grad()
def speed(vae, images: np.ndarray, repeats: int = 5) -> dict[str, float]:
    """Least milliseconds per image over a few repeats, to encode and to decode these images as one batch."""
    x = to_images(images).to(_place(vae))
    z = posterior(vae, x).mode()

    def least(call) -> float:
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            if x.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return round(1000 * min(seconds) / len(images), 3)

    return {"encode": least(lambda: vae.encode(x)), "decode": least(lambda: vae.decode(z)), "batch": len(images)}


def write_report(vae, data, run: Path, train: ImageTextData | None = None) -> dict:
    """`vae_report` of a finished run: report.json and reconstructions.png in its folder, some lines on the terminal.

    The OCR takes part when the data are glyphs and the extra `eval` is installed.
    """
    try:
        reader = GlyphReader() if any(character_of(name) for name in data.ids[:1]) else None
    except UserError as error:
        log.warning("no OCR in the report: %s", error)
        reader = None
    report = vae_report(vae, data, reader, run, train=train)
    atomic_write(run / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    same = report.get("ocr", {}).get("same_after")
    read = "" if same is None else f"; of the glyphs the OCR reads, {same:.1%} are read the same after"
    bits = f", {report['rate']['bits_per_pixel']:.3g} bits per pixel" if report["rate"] else ""
    if "codes_used" in report["rate"]:
        used, perplexity = report["rate"]["codes_used"], report["rate"]["perplexity"]
        bits += f" with {used:.0%} of the codes in use, perplexity {perplexity:.0f}"
    print(f"{run / 'report.json'}: PSNR {report['psnr']:.2f} dB, SSIM {report['ssim']:.4f}{bits}{read}")
    wrong = [f"{each.text} -> {each.advice}" for each in complaints(report["psnr"], report)]
    print("\n".join(filter(None, [facts(report), *wrong])))
    return report


def strip(before: np.ndarray, after: np.ndarray, pictures: int = 16):
    """Originals over reconstructions: half of them evenly spaced, half the densest; an RGB PIL image."""
    half = min(pictures // 2, len(before))
    even = np.linspace(0, len(before) - 1, half).round().astype(int)
    dense = np.argsort(-ink(before), kind="stable")[: min(pictures - half, len(before))]
    chosen = [*even, *dense]
    scale = max(1, 96 // before.shape[1])
    return image_grid([before[i] for i in chosen] + [after[i] for i in chosen], len(chosen), scale=scale)


def _read(reader, before: np.ndarray, after: np.ndarray, ids: list[str]) -> dict[str, np.ndarray]:
    """Which images the OCR reads rightly before, and after; only those it can read are read again."""
    grey_before, grey_after = (v.mean(axis=3).round().astype(np.uint8) for v in (before, after))
    truth = [character_of(name) for name in ids]
    right = np.zeros(len(ids), dtype=bool)
    known = np.array([i for i, c in enumerate(truth) if c in reader.known], dtype=int)
    if len(known):
        right[known] = [char == truth[i] for i, char in zip(known, reader.read(grey_before[known])[0], strict=True)]
    kept = np.zeros(len(ids), dtype=bool)
    if right.any():
        again = reader.read(grey_after[right])[0]
        kept[right] = [char == truth[i] for i, char in zip(np.flatnonzero(right), again, strict=True)]
    return {"read_before": right, "read_after": kept}


def character_of(sample_id: str) -> str:
    """The character in a glyph's sample id, 'U+6C34/hei' -> '水'; '' for any other id."""
    code = sample_id.split("/")[0]
    try:
        return chr(int(code.removeprefix("U+"), 16)) if code.startswith("U+") else ""
    except (ValueError, OverflowError):
        return ""


def _summary(columns: dict[str, np.ndarray]) -> dict:
    numbers: dict[str, Any] = {name: round(float(columns[name].mean()), 4) for name in ("psnr", "ssim", "ink_error")}
    if "read_before" in columns:
        right, kept = columns["read_before"], columns["read_after"]
        numbers["ocr"] = {
            "read_before": int(right.sum()),
            "share_before": round(float(right.mean()), 4),
            "same_after": round(float(kept.sum() / right.sum()), 4) if right.any() else None,
        }
    return numbers
