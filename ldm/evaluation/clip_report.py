"""`ldm evaluate` of a run of `ldm train clip`: do its two encoders agree, and do words stay apart in the text's.

Held-out images should find their own caption among all others, and prefer it to the same caption with one phrase or
word replaced. Of a text encoder of glyphs, `ldm.evaluation.glyphs.text_probe` tells what a denoiser could read in it.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ldm.config.loading import load
from ldm.data import ImageTextData, build, evenly_spaced_indices
from ldm.data.buckets import at_one_size
from ldm.evaluation.feature_extractors import ClipEmbedder
from ldm.evaluation.html import render
from ldm.evaluation.metrics.proportions import proportion
from ldm.evaluation.options import EvaluationOptions, word_table, write_metrics
from ldm.evaluation.verdict import Bar, share_bar
from ldm.models.caption_swaps import CaptionSwaps
from ldm.models.clip import recall_at
from ldm.models.text_encoder import text_tower
from ldm.training.tasks.clip import caption_swaps
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.terminal import Parts


def evaluate_clip(run: Path, options: EvaluationOptions) -> dict:
    """Measure a finished run; write metrics.json and index.html; return the metrics.

    Args: options: `samples` is the largest number of held-out pairs.
    Raises: UserError: it is not finished, its data are gone, or it holds out fewer than two images.
    """
    started, clip = time.monotonic(), ClipEmbedder(run)
    settings: Any = load("clip", run / "config.yaml")
    metrics: dict[str, Any] = {"format": 1, "model": {"source": str(run), "digest": clip.digest}}
    probed = settings.data.source == "glyphs"
    parts = ("data", "images and captions", *(["unseen prompts"] if probed else []))
    with Parts(dict.fromkeys(parts, 0.0)) as progress:
        progress.begin("data")
        data = at_one_size(build(settings.data))
        if len(data.validation) < 2:
            raise UserError(f"{run} holds out {len(data.validation)} image: measuring takes two")
        swaps = caption_swaps(data.train, settings.seed)
        progress.begin("images and captions")
        metrics |= {"pairs": pairs_section(clip, data.validation, swaps, options), "text": {}}
        if probed:
            from ldm.evaluation.glyphs.text_probe import text_section

            progress.begin("unseen prompts")
            metrics["text"] = text_section(text_tower(clip.clip), clip.tokenizer)
    metrics["seconds"] = round(time.monotonic() - started)
    write_metrics(metrics, options.output)
    page = render("clip_report.html.j2", options.output, bars=bars(metrics), **metrics)
    atomic_write(options.output / "index.html", page.encode())
    print(word_table(rows(metrics)))
    print(f"{options.output / 'index.html'}: numbers in one file")
    return metrics


def rows(metrics: dict) -> list[tuple[str, str]]:
    """What was measured, in words, and the number beside its chance level."""
    pairs, replaced = metrics["pairs"], metrics["pairs"]["one_phrase_replaced"]
    found = [
        (name.replace("_", " "), f"{value:.1%} of {pairs['n']}, chance {pairs['chance'][name]:.1%}")
        for name, value in pairs["recall"].items()
    ]
    if replaced["n"]:
        low, high = replaced["interval"]
        value = f"{replaced['share']:.1%} ({low:.1%} to {high:.1%}), chance 50%"
        found.append(("own caption preferred to one with a phrase replaced", value))
    for name, text in metrics["text"].items():
        for what in ("radical", "layout"):
            found.append((f"{what} of held-out prompts ({name}), read by a linear map", f"{text[what]:.1%}"))
    return found


def bars(metrics: dict) -> list[Bar]:
    """What opens the page. Real images are what is looked at here, so beside the encoders stands chance alone."""
    pairs, found = metrics["pairs"], []
    for name, title, what in (
        ("image_to_text_recall@1", "Do images find their caption?", "of images are nearest to their own caption"),
        ("text_to_image_recall@1", "Do captions find their image?", "of captions are nearest to their own image"),
    ):
        if name in pairs["recall"]:
            beside = {"value": pairs["recall"][name], "floor": pairs["chance"][name]}
            found.append(share_bar(title, f"{what}, of {pairs['n']}", beside))
    if (replaced := pairs["one_phrase_replaced"])["n"]:
        what = "of images are nearer to their caption than to it with one phrase replaced"
        found.append(share_bar("Is every phrase read?", what, replaced | {"floor": 0.5}))
    for read in [*metrics["text"].values()][:1]:
        for what in ("radical", "layout"):
            said = f"of unseen prompts, a linear map reads the {what} in the text encoder's states"
            found.append(share_bar(f"Is the {what} in the text states?", said, {"value": read[what]}))
    return found


def pairs_section(clip: ClipEmbedder, held: ImageTextData, swaps: CaptionSwaps, options: EvaluationOptions) -> dict:
    """Recall at k of held-out pairs, and how often an image prefers its caption to one with a phrase replaced."""
    chosen = evenly_spaced_indices(len(held), options.samples).tolist()
    images = np.stack([held.image(i) for i in chosen])
    captions = [held.caption(i, np.random.default_rng([options.seed, i])) for i in chosen]
    rng = np.random.default_rng([options.seed, 1])
    wrong = [swaps(caption, rng) for caption in captions]
    (image, text), (_, other) = clip(images, captions), clip(images, wrong)
    different = np.array([a != b for a, b in zip(captions, wrong, strict=True)])
    recall = recall_at(image, text)
    return {
        "n": len(chosen),
        "captions": len(set(captions)),
        "recall": {name: round(value, 4) for name, value in recall.items()},
        "chance": {name: round(min(1.0, int(name.split("@")[1]) / len(chosen)), 4) for name in recall},
        "one_phrase_replaced": proportion(preferred(image, text, other)[different]),
        "example": next(([a, b] for a, b in zip(captions, wrong, strict=True) if a != b), []),
    }


def preferred(image: Tensor, text: Tensor, other: Tensor) -> np.ndarray:
    """bool (n,): whether each image is nearer to its text than to the other one; all unit features (n, d)."""
    return ((image * text).sum(1) > (image * other).sum(1)).cpu().numpy()
