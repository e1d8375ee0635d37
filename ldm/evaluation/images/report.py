"""`ldm evaluate` of a run that learned one's own pictures: one picture for each held-out caption, and four questions.

Does the run's CLIP tell whose caption a picture was drawn from? Are the pictures, as a whole, like those held out? Are
they new, or near copies of training pictures? What does the autoencoder lose? Nobody here knows what such pictures
should show, so beside each number stands what real pictures get by the same measure, and the sheets are half of it all.
"""

import json
import logging
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.data import ImageTextData, spread
from ldm.evaluation.autoencoder_report import rate
from ldm.evaluation.feature_extractors import ClipJudge, VisionModel, digest
from ldm.evaluation.generation import Drawing, draw
from ldm.evaluation.images.report_page import report_page
from ldm.evaluation.metrics.confidence import bootstrap
from ldm.evaluation.metrics.distribution_distances import yardstick
from ldm.evaluation.metrics.proportions import share
from ldm.evaluation.metrics.reconstruction import psnr, reconstruct, ssim
from ldm.evaluation.run_loading import OpenRun, checkpoint_state, open_run
from ldm.models.lora import as_options, merge, read_lora
from ldm.utils.atomic_files import write_whole
from ldm.utils.errors import UserError
from ldm.utils.image_grid import image_grid, save_png

log = logging.getLogger(__name__)

TRAINING = 2000  # training pictures that are looked at, evenly chosen
CANDIDATES = 100  # captions that a picture's own one has to stand out from, itself counted
DEALS = 20  # the floor is the mean of so many deals
RARE = 0.01  # of real held-out pictures are as near to a training picture as what is called a near copy
COARSE = 8  # side of the pictures that are compared where there is no network
PAIRS, COLUMNS, SIDE = 32, 8, 128  # on a sheet, and the most pixels of a picture there


@dataclass(frozen=True)
class Eye:
    """By what pictures are compared. `embed`: uint8 (n, h, w, c) -> float (n, d)."""

    name: str
    digest: str
    embed: Callable[[np.ndarray], np.ndarray]


def evaluate(run: Path, args: Namespace) -> dict:
    """Measure a run on one's own pictures; write metrics.json, index.html and PNG sheets; return the metrics.

    Args:
        run: of train_ldm.py, finished or not, whose data are still where they were.
        args: of `ldm evaluate`: output, samples (at most; one for each held-out picture), seed, steps, guidance, batch,
            device, lora, clip, features.
    Raises: UserError when the data are gone, or fewer than two pictures were held out.
    """
    started, output = time.monotonic(), Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    opened = open_run(run, args.device)
    clip, guides = judge_of(opened, args.clip)
    eye = eye_of(args.features, clip)
    pipeline, held = opened.pipeline, opened.data.validation
    if len(held) < 2:
        raise UserError(f"{run} holds out {len(held)} picture: measuring takes two; see data.files.validation_fraction")
    if args.lora:
        path, scale = as_options(args.lora).values()
        merge(pipeline.components, read_lora(path), scale, path)
        pipeline.lora = path, scale
    chosen = spread(len(held), args.samples)
    real, conditional = read(held, chosen), opened.settings.text.source != "none"
    rng = np.random.default_rng(0)
    captions = [held.caption(int(i), rng) if conditional else "" for i in chosen]
    how = Drawing(args.steps, args.guidance if conditional else 1.0, args.batch)  # without words nothing to be told
    drawn = draw_all(pipeline, captions, args.seed, how)
    metrics: dict[str, Any] = {
        "format": 1,
        "model": {"source": str(run), "digest": pipeline.digest, "lora": args.lora},
        "settings": {
            "samples": len(drawn),
            "seed": args.seed,
            "num_inference_steps": args.steps or pipeline.defaults["num_inference_steps"],
            "guidance_scale": pipeline.defaults["guidance_scale"] if how.guidance is None else how.guidance,
        },
        "pictures": {"held_out": len(held), "training": len(opened.data.train)},
        "features": {"name": eye.name, "digest": eye.digest},
        **sections(drawn, real, captions, opened.data.train, eye, clip, output),
        "autoencoder": autoencoder_section(pipeline.networks.module("vae"), real, output),
    }
    metrics["notes"] = notes(metrics, captions, clip, guides, opened)
    metrics["summary"] = summary(metrics)
    metrics["seconds"] = round(time.monotonic() - started)
    save_pairs(drawn, real, output / "drawn.png", captions)
    write_whole(output / "metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(output / "index.html", report_page(metrics, output).encode())
    print("\n".join([json.dumps(metrics["summary"], indent=1), *metrics["notes"]]))
    print(f"{output / 'index.html'}: numbers and pictures in one file")
    return metrics


def draw_all(pipeline, captions: list[str], seed: int, how: Drawing) -> np.ndarray:
    """Picture i of caption i from seed + i, uint8 (n, h, w, c), a batch at a time: as floats they take much memory."""
    parts = []
    for start in range(0, len(captions), how.batch):
        part = captions[start : start + how.batch]
        parts.append(draw(pipeline, part, [seed + start + i for i in range(len(part))], how))
        log.info("%d of %d pictures drawn", start + len(part), len(captions))
    return np.concatenate(parts)


# ---- who looks, and at what -----------------------------------------------------------------------------------------


def judge_of(opened: OpenRun, named: Path | None) -> tuple[ClipJudge | None, bool]:
    """The CLIP that is named, else the one that the run was told its words by, else the one beside it; and whether the
    model was guided by this very encoder."""
    settings = opened.settings
    elsewhere = settings.text.source not in ("run", "new", "none")
    own = Path(settings.text.source) if elsewhere else opened.folder.parent / "clip"
    place = next((place for place in (own / "final", own) if (place / "clip" / "config.json").is_file()), None)
    if named is None and place is None:
        return None, False
    judge = ClipJudge(named or own)
    told = settings.text.source not in ("new", "none") and not settings.start.model and not settings.distill.teacher
    return judge, told and place is not None and judge.digest == digest(place / "clip")


def eye_of(features: str | None, clip: ClipJudge | None) -> Eye:
    """The vision model that is named, else the CLIP's image tower, else the pictures themselves, coarsely."""
    if features is not None:
        model = VisionModel(features)
        return Eye(type(model.model).__name__, model.digest, lambda x: model.embed(x[..., 0] if x.shape[3] == 1 else x))
    if clip is not None:
        return Eye("CLIP", clip.digest, clip.embed)
    return Eye(f"colours at {COARSE} x {COARSE}", "", coarse)


def coarse(images: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w, c) -> the mean colour of each of 8 x 8 fields, float32 in [-1, 1], (n, 64 c)."""
    size = (COARSE, COARSE)
    small = [Image.fromarray(x.squeeze()).resize(size, Image.Resampling.BOX) for x in images]
    return np.stack([np.asarray(x, np.float32).ravel() / 127.5 - 1 for x in small])


def read(data: ImageTextData, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    """These pictures of a split: uint8 (n, h, w, c)."""
    return np.stack([data.image(int(i)) for i in chosen])


# ---- the four questions ---------------------------------------------------------------------------------------------


def sections(
    drawn: np.ndarray,
    real: np.ndarray,
    captions: list[str],
    train: ImageTextData,
    eye: Eye,
    clip: ClipJudge | None,
    output: Path,
) -> dict[str, Any]:
    """Words, likeness and novelty of drawn pictures, uint8 (n, h, w, c), of the captions of real ones alike; None for
    what cannot be measured. nearest.png goes to `output`."""
    rows = spread(len(train), TRAINING)
    parts = [eye.embed(read(train, rows[start : start + 64])) for start in range(0, len(rows), 64)]  # few in memory
    known, ours, theirs = np.concatenate(parts), eye.embed(drawn), eye.embed(real)
    index, distance = nearest(ours, known)
    order = np.argsort(distance, kind="stable")[:PAIRS]
    labels = [f"{distance[i]:.3g}" for i in order]
    save_pairs(drawn[order], read(train, rows[index[order]]), output / "nearest.png", labels)
    return {
        "words": words_section(drawn, real, captions, clip) if clip else None,
        "likeness": likeness_section(ours, theirs, known),
        "novelty": novelty_section(distance, nearest(theirs, known)[1]),
    }


def words_section(drawn: np.ndarray, real: np.ndarray, captions: list[str], clip: Callable) -> dict | None:
    """R-precision of the drawn pictures, its ceiling (the real ones') and its floor (captions dealt out anew).

    Args:
        clip: pictures and as many captions -> unit features of both, float (n, d) tensors.
    Returns: see `share`, with ceiling, floor and the number of candidates; None with fewer than two captions. The
        interval is that of other pictures of these captions.
    """
    told = [i for i, caption in enumerate(captions) if caption]
    names = [captions[i] for i in told]
    distinct, first, own = np.unique(names, return_index=True, return_inverse=True)
    if len(distinct) < 2:
        return None
    image, text = (x.numpy() for x in clip(drawn[told], names))
    real_image = clip(real[told], names)[0].numpy()
    scores, rng = image @ text[first].T, np.random.default_rng(0)
    floor = np.mean([r_precision(scores, rng.permutation(own)).mean() for _ in range(DEALS)])
    return share(r_precision(scores, own)) | {
        "ceiling": round(float(r_precision(real_image @ text[first].T, own).mean()), 4),
        "floor": round(float(floor), 4),
        "candidates": min(CANDIDATES, len(distinct)),
        "digest": getattr(clip, "digest", ""),
    }


def r_precision(similarity: np.ndarray, own: np.ndarray, seed: int = 0) -> np.ndarray:
    """Whether each picture is nearer to its own caption than to 99 others drawn at random, or all there are; bool (n,).

    Args:
        similarity: float (n, m) of n pictures to m different captions; own: int (n,), the number of each one's own.
    Source: Xu et al. 2018, AttnGAN, arXiv 1711.10485, section 4: R-precision with R = 1 and 99 mismatching captions.
    """
    rng, count = np.random.default_rng(seed), similarity.shape[1]
    right = np.zeros(len(similarity), bool)
    for i, mine in enumerate(own):
        others = np.delete(np.arange(count), mine)
        rivals = rng.choice(others, min(CANDIDATES - 1, len(others)), replace=False)
        right[i] = similarity[i, mine] > similarity[i, rivals].max()
    return right


def likeness_section(drawn: np.ndarray, held: np.ndarray, train: np.ndarray) -> dict | None:
    """Distances of drawn pictures' features (n, d) to those of held-out ones, and those of as many training pictures,
    which is what real pictures get; None of fewer pictures than that takes, or of features that are all alike."""
    try:
        found = yardstick(drawn, held, floor=train)
    except ValueError as error:
        log.warning("likeness is left out: %s", error)
        return None
    return {"drawn": found["generated"], "training": found["floor"]}


def nearest(features: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest row of pool (m, d) for each of features (n, d): int64 (n,) and the Euclidean distance, float64."""
    features, pool = features.astype(np.float64), pool.astype(np.float64)
    squares = (pool**2).sum(1)
    parts = [features[start : start + 256] for start in range(0, len(features), 256)]
    index = np.concatenate([(squares - 2 * part @ pool.T).argmin(1) for part in parts])
    return index, np.linalg.norm(features - pool[index], axis=1)


def novelty_section(drawn: np.ndarray, held: np.ndarray) -> dict:
    """Distances (n,) to the nearest training picture: the share of drawn ones that are nearer than nearly all held-out
    ones are, 'near_copies', and the medians of both."""
    limit = float(np.quantile(held, RARE, method="lower"))
    found: dict[str, Any] = {"near_copies": share(drawn < limit), "limit": limit}
    return found | {"median_drawn": float(np.median(drawn)), "median_held_out": float(np.median(held))}


def autoencoder_section(vae, real: np.ndarray, output: Path) -> dict:
    """PSNR and SSIM of held-out pictures, uint8 (n, h, w, c), after encoding and decoding, with intervals; the rate."""
    after, latents = reconstruct(vae, real)
    save_pairs(real, after, output / "reconstructions.png")
    parts = [slice(start, start + 16) for start in range(0, len(real), 16)]  # in float64 they take much memory
    measures = {
        name: bootstrap(np.concatenate([each(real[part], after[part]) for part in parts])).rounded()
        for name, each in (("psnr", psnr), ("ssim", ssim))
    }
    return measures | {"rate": rate(vae, real, latents)}


# ---- what is told ---------------------------------------------------------------------------------------------------


def notes(metrics: dict, captions: list[str], clip: ClipJudge | None, guides: bool, opened: OpenRun) -> list[str]:
    """What a reader must know to read the numbers, and why some are missing."""
    found = []
    if clip is None and any(captions):
        found.append("Words are not judged: the run has no CLIP of its own; name a run of train_clip.py by --clip.")
    elif metrics["words"] is None:
        why = "the held-out pictures have one caption" if any(captions) else "the model draws without words"
        found.append(f"Words are not judged: {why}.")
    elif guides:
        found.append(
            "The words are judged by the encoder that guided the model: it sees what the model was told, and is no "
            "second opinion. Look at drawn.png."
        )
    if metrics["likeness"] is None:
        found.append("Likeness is not measured: it takes 20 pictures of either kind that differ.")
    if metrics["features"]["name"].startswith("colours"):
        found.append("Pictures are compared by their coarse colours alone: name a vision model by --features.")
    count = metrics["pictures"]["training"]
    if count > TRAINING:
        found.append(f"Of {count:,} training pictures {TRAINING:,} were looked at: a copy of another one is not found.")
    if changed(opened):
        found.append("The training pictures are others now than at the last checkpoint: what is held out may be too.")
    if set(opened.data.validation.ids) & set(opened.data.train.ids):
        found.append("Held-out pictures were trained on (data.files.validation_fraction): nothing here is unseen.")
    return found


def changed(opened: OpenRun) -> bool:
    """Whether the training pictures are others than those that the newest checkpoint was made with."""
    then = checkpoint_state(opened.checkpoint).get("identity", {}).get("data") if opened.checkpoint else None
    return then is not None and then != opened.data.train.fingerprint


def summary(metrics: dict) -> dict:
    """The few numbers that are quoted; `ldm.hub.model_card.rows` reads them."""
    words, likeness, vae = metrics["words"], metrics["likeness"], metrics["autoencoder"]
    quoted: dict[str, Any] = {}
    if words:
        quoted["own_caption_first"] = {key: words[key] for key in ("n", "share", "interval", "ceiling", "floor")}
    for name in ("fd", "kid", "coverage") if likeness else ():
        values = {"": likeness["drawn"], "of_real": likeness["training"]}
        quoted[name] = {key: round(found[name]["value"], 6) for key, found in values.items()}
    quoted["near_copies"] = metrics["novelty"]["near_copies"]
    quoted["psnr"] = {key: vae["psnr"][key] for key in ("n", "value", "interval")}
    return quoted | {"ssim": vae["ssim"]["value"]}  # with an interval a card would take it for a share


def save_pairs(above: np.ndarray, below: np.ndarray, path: Path, labels: Sequence[str] | None = None) -> None:
    """At most 32 pictures (n, h, w, c) in rows of eight, evenly chosen, with the other of each pair under it."""
    chosen = spread(len(above), PAIRS)
    shown, told = [], []
    for start in range(0, len(chosen), COLUMNS):
        row = chosen[start : start + COLUMNS]
        blank = [Image.new("RGB", (1, 1), "#d8d8d8")] * (COLUMNS - len(row))
        for side, texts in ((above, labels), (below, None)):
            shown += [*(_small(side[i]) for i in row), *blank]
            told += [*(texts[i] if texts else "" for i in row), *[""] * len(blank)]
    save_png(image_grid(shown, COLUMNS, labels=told if labels else None), path)


def _small(image: np.ndarray) -> Image.Image:
    """uint8 (h, w, c) as a picture of about 128 pixels at most; small ones are made larger by whole pixels."""
    found = Image.fromarray(image.squeeze())
    if max(found.size) > SIDE:
        found.thumbnail((SIDE, SIDE))
    times = max(1, SIDE // max(found.size))
    return found.resize((found.width * times, found.height * times), Image.Resampling.NEAREST)
