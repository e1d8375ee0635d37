"""`ldm evaluate` of a run on the user's own images: one image per held-out caption, and five questions.

Can the run's CLIP tell from which caption an image was generated? Does an image follow when one word changes? Are the
images, as a set, like the held-out ones? Are they new, or near copies of training images? What does the autoencoder
lose? Nobody here knows what such images should show, so beside each number stands what real images reach by the same
measure, and what those reach that should do badly; and the image grids matter as much.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ldm.data import ImageTextData, apart, evenly_spaced_indices
from ldm.evaluation.autoencoder_quality import quality
from ldm.evaluation.autoencoder_report import rate
from ldm.evaluation.comparison import SCORES, Report, Scores, compare_scores, load_report, save_scores
from ldm.evaluation.feature_extractors import (
    COARSE,
    ClipEmbedder,
    FeatureExtractor,
    VisionModel,
    coarse_colours,
    digest,
)
from ldm.evaluation.html import render
from ldm.evaluation.images import one_word
from ldm.evaluation.images.in_words import lines
from ldm.evaluation.images.r_precision import own_caption_first, words_section
from ldm.evaluation.images.samples import TRAINING, Generated, Prompts, generate_all, prompts_of
from ldm.evaluation.images.verdict import RARE, bars
from ldm.evaluation.metrics.confidence import bootstrap
from ldm.evaluation.metrics.distribution_distances import with_reference_range
from ldm.evaluation.metrics.proportions import proportion
from ldm.evaluation.metrics.reconstruction import psnr, reconstruct, ssim
from ldm.evaluation.options import EvaluationOptions, write_metrics
from ldm.evaluation.run_loading import OpenRun, checkpoint_state, open_run
from ldm.evaluation.verdict import FEW
from ldm.models.lora import merge, read_lora
from ldm.models.lora_formats import as_options
from ldm.training.validation import summary, validations
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.image_grid import image_grid, save_png

log = logging.getLogger(__name__)

PAIRS, COLUMNS, SIDE = 32, 8, 128  # in a grid, and the most pixels of an image there
BLUR = 16  # a blurred image is one whose Gaussian has a standard deviation of its side over so much


def evaluate_images(run: Path, options: EvaluationOptions) -> dict:
    """Measure a run on the user's own images; write metrics.json, index.html and PNG grids; return the metrics.

    Args:
        run: of `ldm train ldm`, finished or not, whose data are still where they were.
        options: `samples` is the largest number of images; there is one per held-out image.
    Raises: UserError when the data are gone, or fewer than two images were held out.
    """
    started, output = time.monotonic(), options.output
    output.mkdir(parents=True, exist_ok=True)
    opened = open_run(run, options.device)
    clip, guided = clip_embedder_of(opened, options.clip)
    extractor = feature_extractor_of(options.features, clip)
    pipeline, held = opened.pipeline, opened.data.validation
    if len(held) < 2:
        raise UserError(f"{run} holds out {len(held)} image: measuring takes two; see data.files.validation_fraction")
    if options.lora:
        path, scale = as_options(options.lora).values()
        merge(pipeline.components, read_lora(path), scale, path)
        pipeline.lora = path, scale
    prompts = prompts_of(opened, evenly_spaced_indices(len(held), options.samples), clip is not None)
    sampling = options.sampling
    if opened.settings.text.source == "none":  # without captions there is nothing to guide towards
        sampling = replace(sampling, guidance=1.0)
    plan = {"captions": prompts.digest, "clip": clip.digest if clip else "", "seed": options.seed}
    plan |= sampling.as_json()
    rival = rival_of(options, plan)  # before minutes of sampling, in case there is none
    generated = generate_all(pipeline, prompts, options.seed, sampling)
    scores = scores_of(generated, prompts, clip)
    metrics: dict[str, Any] = {
        "format": 1,
        "model": {"source": str(run), "digest": pipeline.digest, "lora": options.lora},
        "plan": plan,
        "settings": {
            "samples": len(generated.images),
            "seed": options.seed,
            **sampling.over(pipeline.defaults),
        },
        "pictures": {"held_out": len(held), "training": len(opened.data.train)},
        "features": {"name": extractor.name, "digest": extractor.digest},
        **measured(generated, prompts, opened, extractor, clip, output),
    }
    if rival is not None:
        metrics["against"] = against(scores, rival, prompts, options, clip)
    metrics["notes"] = notes(metrics, prompts.captions, clip, guided, opened)
    metrics["summary"] = quoted(metrics)
    metrics["seconds"] = round(time.monotonic() - started)
    save_scores(scores, output)
    write_metrics(metrics, output)
    said = lines(metrics)
    page = render("images/report.html.j2", output, **metrics, lines=said, bars=bars(metrics))
    atomic_write(output / "index.html", page.encode())
    print("\n".join([*said, *metrics["notes"], f"{output / 'index.html'}: numbers and images in one file"]))
    return metrics


def measured(
    generated: Generated,
    prompts: Prompts,
    opened: OpenRun,
    extractor: FeatureExtractor,
    clip: ClipEmbedder | None,
    output: Path,
) -> dict[str, Any]:
    """All sections of the report; grids of the images go to `output`."""
    train, real = opened.data.train, stacked(opened.data.validation, prompts.held_out)
    save_pairs(generated.images, real, output / "drawn.png", prompts.captions)
    vae = opened.pipeline.networks.module("vae")
    return {
        "seen_words": seen_words(generated.seen, prompts, train, clip),
        "one_word": one_word_part(generated, prompts, opened, clip, output),
        **sections(generated.images, real, prompts, train, extractor, clip, output),
        "autoencoder": autoencoder_section(vae, real, output, train),
    }


# ---- compared with another model ------------------------------------------------------------------------------------


def scores_of(generated: Generated, prompts: Prompts, clip: ClipEmbedder | None) -> dict[str, Scores]:
    """Section -> measure -> of each image 1 or 0, nan without a caption, as `compare_scores` takes them."""
    if clip is None:
        return {}
    found: dict[str, Scores] = {}
    if (first := own_caption_first(generated.seen, prompts.seen, clip)) is not None:
        found["seen_words"] = {"seen_caption_first": first.astype(float)}
    first = own_caption_first(generated.images, prompts.captions, clip)
    if first is not None:
        values = np.full(len(prompts.captions), np.nan)
        values[[bool(caption) for caption in prompts.captions]] = first
        found["words"] = {"own_caption_first": values}
    if prompts.changes:
        followed = one_word.follows(generated.changed, prompts.changes, prompts.captions, clip)
        found["one_word"] = {"follows_one_word": followed.astype(float)}
    return found


def rival_of(options: EvaluationOptions, plan: dict) -> Report | OpenRun | None:
    """What --against names: nothing, a report of the same captions and seeds, or another run."""
    if not options.against:
        return None
    if (Path(options.against) / SCORES).is_file():
        return load_report(Path(options.against), plan)
    return open_run(Path(options.against), options.device)


def against(
    scores: dict[str, Scores], rival: Any, prompts: Prompts, options: EvaluationOptions, clip: ClipEmbedder | None
) -> dict:
    """The verdicts against a `Report` or a run, on the same captions, seeds and CLIP: A is that one, B this one."""
    if isinstance(rival, Report):
        theirs, model = rival.scores, rival.metrics["model"]
    else:
        theirs = {}
        if scores:  # else nothing can be scored, and its images would be generated for nothing
            theirs = scores_of(generate_all(rival.pipeline, prompts, options.seed, options.sampling), prompts, clip)
        model = {"source": options.against, "digest": rival.pipeline.digest}
    return {"a": model, "sections": compare_scores(theirs, scores)}


# ---- what images are compared by ------------------------------------------------------------------------------------


def clip_embedder_of(opened: OpenRun, path: Path | None) -> tuple[ClipEmbedder | None, bool]:
    """The CLIP at `path`, else the one whose text encoder the run was trained with, else the one beside it; and whether
    the model was conditioned by this very encoder.
    """
    settings = opened.settings
    elsewhere = settings.text.source not in ("run", "new", "none")
    own = Path(settings.text.source) if elsewhere else opened.folder.parent / "clip"
    folder = next((each for each in (own / "final", own) if (each / "clip" / "config.json").is_file()), None)
    if path is None and folder is None:
        return None, False
    clip = ClipEmbedder(path or own)
    fixed = settings.text.source not in ("new", "none") and not settings.start.model and not settings.distill.teacher
    return clip, fixed and folder is not None and clip.digest == digest(folder / "clip")


def feature_extractor_of(features: str | None, clip: ClipEmbedder | None) -> FeatureExtractor:
    """The named vision model, else the CLIP's image encoder, else coarse colours."""
    if features is not None:
        return VisionModel(features).extractor
    if clip is not None:
        return FeatureExtractor("CLIP", clip.digest, clip.embed)
    return FeatureExtractor(f"colours at {COARSE} x {COARSE}", "", coarse_colours)


def stacked(data: ImageTextData, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    """These images of a split: uint8 (n, h, w, c)."""
    return np.stack([data.image(int(i)) for i in chosen])


# ---- the five questions ---------------------------------------------------------------------------------------------


def sections(
    generated: np.ndarray,
    real: np.ndarray,
    prompts: Prompts,
    train: ImageTextData,
    extractor: FeatureExtractor,
    clip: ClipEmbedder | None,
    output: Path,
) -> dict[str, Any]:
    """Words, likeness and novelty of generated images, uint8 (n, h, w, c), for the captions of as many real ones; None
    for what cannot be measured. nearest.png goes to `output`.
    """
    rows = evenly_spaced_indices(len(train), TRAINING)
    batches = [rows[start : start + 64] for start in range(0, len(rows), 64)]  # few images in memory
    known = np.concatenate([extractor.embed(stacked(train, batch)) for batch in batches])
    ours, theirs = extractor.embed(generated), extractor.embed(real)
    index, distance = nearest_features(ours, known)
    order = np.argsort(distance, kind="stable")[:PAIRS]
    labels = [f"{distance[i]:.3g}" for i in order]
    save_pairs(generated[order], stacked(train, rows[index[order]]), output / "nearest.png", labels)
    bad = {}
    if len(ours) >= FEW:
        bad["blurred"] = extractor.embed(blurred(stacked(train, evenly_spaced_indices(len(train), len(ours)))))
        if (few := neighbouring_captions(prompts.training, len(ours))) is not None:
            bad["other_captions"] = extractor.embed(stacked(train, few))
    return {
        "words": words_section(generated, real, prompts.captions, clip) if clip else None,
        "likeness": likeness_section(ours, theirs, known, bad),
        "novelty": novelty_section(distance, nearest_features(theirs, known)[1]),
    }


def blurred(images: np.ndarray) -> np.ndarray:
    """Images, uint8 (n, h, w, c), of which hardly more than the colours can be made out."""
    soft = ImageFilter.GaussianBlur(images.shape[1] / BLUR)
    if images.shape[3] == 4:  # colours multiplied by alpha, so that those that nobody sees are not mixed in
        straight = (Image.fromarray(x).convert("RGBa").filter(soft).convert("RGBA") for x in images)
        return np.stack([np.asarray(x) for x in straight])
    return np.stack([np.asarray(Image.fromarray(x.squeeze()).filter(soft)).reshape(x.shape) for x in images])


def neighbouring_captions(captioned: dict[str, int], count: int) -> list[int] | None:
    """`count` training images whose captions are neighbours in the alphabet: real ones, of few things; None if they
    were more than half of the captions.
    """
    names = sorted(captioned)
    start = (len(names) - count) // 2
    return [captioned[name] for name in names[start : start + count]] if len(names) >= 2 * count else None


def one_word_part(
    generated: Generated, prompts: Prompts, opened: OpenRun, clip: ClipEmbedder | None, output: Path
) -> dict | None:
    """See `one_word.section`; one_word.png shows images above those of their changed captions. None without a CLIP."""
    made, train, held = prompts.changes, opened.data.train, opened.data.validation
    if clip is None or not made:
        return None
    unseen = dict(zip(prompts.captions, prompts.held_out, strict=True))
    wanted = {change.caption for change in made}
    real = {caption: train.image(prompts.training[caption]) for caption in wanted & prompts.training.keys()}
    real |= {caption: held.image(int(unseen[caption])) for caption in wanted & unseen.keys()}
    labels = [f"{change.old} -> {change.new}" for change in made]
    before = generated.images[[change.item for change in made]]
    save_pairs(before, generated.changed, output / "one_word.png", labels)
    return one_word.section(made, prompts.captions, generated.images, generated.changed, real, clip)


def seen_words(generated: np.ndarray, prompts: Prompts, train: ImageTextData, clip: ClipEmbedder | None) -> dict | None:
    """`words_section` of captions of training images, and real images of them: what the CLIP surely knows."""
    if clip is None or not prompts.seen:
        return None
    real = stacked(train, [prompts.training[caption] for caption in prompts.seen])
    return words_section(generated, real, prompts.seen, clip)


def likeness_section(
    generated: np.ndarray, held: np.ndarray, train: np.ndarray, bad: dict[str, np.ndarray] | None = None
) -> dict | None:
    """Distances of generated images' features (n, d) to those of held-out ones, of as many training images for
    comparison, and of real images that should do badly; None for fewer than FEW, or for features that are all alike.
    """
    if min(len(generated), len(held)) < FEW:
        return None
    try:
        found = with_reference_range(generated, held, bad, floor=train)
    except ValueError as error:
        log.warning("likeness is left out: %s", error)
        return None
    return {"drawn": found["generated"], "training": found["floor"], **found["ceiling"]}


def nearest_features(features: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest row of pool (m, d) for each of features (n, d): int64 (n,) and the Euclidean distance, float64."""
    features, pool = features.astype(np.float64), pool.astype(np.float64)
    squares = (pool**2).sum(1)
    batches = [features[start : start + 256] for start in range(0, len(features), 256)]
    index = np.concatenate([(squares - 2 * batch @ pool.T).argmin(1) for batch in batches])
    return index, np.linalg.norm(features - pool[index], axis=1)


def novelty_section(generated: np.ndarray, held: np.ndarray) -> dict:
    """From distances (n,) to the nearest training image: the proportion of generated images that are nearer than nearly
    all held-out ones, 'near_copies', and the medians of both.
    """
    limit = float(np.quantile(held, RARE, method="lower"))
    found: dict[str, Any] = {"near_copies": proportion(generated < limit), "limit": limit}
    return found | {"median_drawn": float(np.median(generated)), "median_held_out": float(np.median(held))}


def autoencoder_section(vae, real: np.ndarray, output: Path, train: ImageTextData | None = None) -> dict:
    """PSNR and SSIM of held-out images, uint8 (n, h, w, c), after encoding and decoding, with intervals; `quality`; the
    rate.
    """
    after, latents = reconstruct(vae, real)
    save_pairs(real, after, output / "reconstructions.png")
    parts = [slice(start, start + 16) for start in range(0, len(real), 16)]  # in float64 they take much memory
    measures = {
        name: bootstrap(np.concatenate([measure(real[part], after[part]) for part in parts])).rounded()
        for name, measure in (("psnr", psnr), ("ssim", ssim))
    }
    return measures | quality(vae, train, real, after, latents) | {"rate": rate(vae, real, latents)}


# ---- what is reported -----------------------------------------------------------------------------------------------


def notes(metrics: dict, captions: list[str], clip: ClipEmbedder | None, guided: bool, opened: OpenRun) -> list[str]:
    """What a reader must know to read the numbers, and why some are missing."""
    found = []
    if clip is None and any(captions):
        found.append("Words are not scored: the run has no CLIP of its own; name a run of `ldm train clip` by --clip.")
    elif metrics["words"] is None:
        why = "the held-out images have one caption" if any(captions) else "the model is unconditional"
        found.append(f"Words are not scored: {why}.")
    elif guided:
        found.append(
            "The words are scored by the encoder that guided the model: it measures what the model was conditioned on, "
            "and is no second opinion. See drawn.png."
        )
    if metrics["features"]["name"].startswith("colours"):
        found.append("Images are compared by their coarse colours alone: name a vision model by --features.")
    count = metrics["pictures"]["training"]
    if count > TRAINING:
        found.append(f"Of {count:,} training images {TRAINING:,} were compared: a copy of another one is not found.")
    if opened.checkpoint and (weights := summary(validations(opened.checkpoint), opened.settings)):
        found.append(weights)
    if changed(opened):
        found.append("The training images have changed since the last checkpoint: so may have the held-out ones.")
    if not apart(opened.data.train, opened.data.validation):
        found.append("Held-out images were trained on (data.files.validation_fraction): nothing here is unseen.")
    return found


def changed(opened: OpenRun) -> bool:
    """Whether the training images are others than those that the newest checkpoint was made with."""
    then = checkpoint_state(opened.checkpoint).get("identity", {}).get("data") if opened.checkpoint else None
    return then is not None and then != opened.data.train.fingerprint


def quoted(metrics: dict) -> dict:
    """The few numbers that are quoted; `ldm.hub.model_card.rows` reads them."""
    likeness, vae = metrics["likeness"], metrics["autoencoder"]
    names = {"seen_words": "seen_caption_first", "words": "own_caption_first", "one_word": "follows_one_word"}
    shares = {name: metrics[section] for section, name in names.items() if metrics[section]}
    found: dict[str, Any] = {
        name: {key: one[key] for key in ("n", "share", "interval", "ceiling", "floor")} for name, one in shares.items()
    }
    for name in ("fd", "kid", "coverage") if likeness else ():
        values = {"": likeness["drawn"], "of_real": likeness["training"]}
        found[name] = {key: round(each[name]["value"], 6) for key, each in values.items()}
    found["near_copies"] = metrics["novelty"]["near_copies"]
    found["psnr"] = {key: vae["psnr"][key] for key in ("n", "value", "interval")}
    if vae["floor"]:
        found["psnr"]["floor"] = vae["floor"]["psnr"]
    return found | {"ssim": vae["ssim"]["value"]}  # with an interval a card would take it for a proportion


def save_pairs(above: np.ndarray, below: np.ndarray, path: Path, labels: Sequence[str] | None = None) -> None:
    """At most 32 images (n, h, w, c) in rows of eight, evenly chosen, with the other of each pair below it."""
    chosen = evenly_spaced_indices(len(above), PAIRS)
    shown, texts = [], []
    for start in range(0, len(chosen), COLUMNS):
        row = chosen[start : start + COLUMNS]
        blank = [Image.new("RGB", (1, 1), "#d8d8d8")] * (COLUMNS - len(row))
        for side, names in ((above, labels), (below, None)):
            shown += [*(_scaled(side[i]) for i in row), *blank]
            texts += [*(names[i] if names else "" for i in row), *[""] * len(blank)]
    save_png(image_grid(shown, COLUMNS, labels=texts if labels else None), path)


def _scaled(image: np.ndarray) -> Image.Image:
    """uint8 (h, w, c) as an image of about 128 pixels at most; small ones are enlarged by a whole factor."""
    small = Image.fromarray(image.squeeze())
    if max(small.size) > SIDE:
        small.thumbnail((SIDE, SIDE))
    times = max(1, SIDE // max(small.size))
    return small.resize((small.width * times, small.height * times), Image.Resampling.NEAREST)
