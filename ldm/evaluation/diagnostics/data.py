"""Checks of what the run learned from: pictures, their shapes, captions, and how often a caption is dropped."""

import numpy as np

from ldm.data import spread
from ldm.evaluation.diagnostics.context import Case
from ldm.evaluation.diagnostics.findings import Finding
from ldm.models.latents import downsampling_factor
from ldm.training.task import SampleRef
from ldm.training.tasks.denoising import caption_or_null
from ldm.utils.errors import UserError

SMALLEST_RANGE = 32  # of 256 grey levels
LOOKED_AT = 256
DRAWS = 2000


def check_data(case: Case) -> Finding:
    """Pictures are uint8, use the range 0 to 255, and differ."""
    if case.settings is None:
        return Finding("data", "skip", "the model does not say which data it was trained on, or in an older version")
    try:
        data = case.data.train
    except UserError as error:
        if case.opened is None:  # an export goes where its data are not
            return Finding("data", "skip", f"the data that the model names are not here: {error}")
        return Finding("data", "fail", str(error), "mend data.source in the run's config.yaml, or run doctor beside it")
    if (points := getattr(data, "points", None)) is not None:
        spreads = points.std(0)
        text = f"{len(points)} points, standard deviation {spreads.min():.2g} to {spreads.max():.2g}"
        if not np.isfinite(points).all() or spreads.max() < 1e-3:
            return Finding("data", "fail", f"{text}: they do not vary", "look at data.source and data.toy")
        return Finding("data", "ok", text)
    chosen = spread(len(data), LOOKED_AT)
    images = [data.image(int(i)) for i in chosen]
    if any(image.dtype != np.uint8 for image in images):
        kinds = sorted({str(image.dtype) for image in images})
        return Finding("data", "fail", f"pictures hold {', '.join(kinds)}", "give whole numbers 0 to 255 (uint8)")
    return _levels(np.stack(images), len(data))


def _levels(images: np.ndarray, total: int) -> Finding:
    low, high = int(images.min()), int(images.max())
    different = len({image.tobytes() for image in images})
    text = f"{total} pictures {images.shape[1]} x {images.shape[2]} x {images.shape[3]}, levels {low} to {high}"
    if different == 1:
        return Finding("data", "fail", f"{text}: all {len(images)} looked at are equal", "mend the files: data.source")
    if high - low < SMALLEST_RANGE:
        advice = "the files use another range, such as 0 to 1: save them with levels 0 to 255, then train anew"
        return Finding("data", "fail", f"{text}: hardly any of the 256 levels are used", advice)
    flat = np.mean([image.min() == image.max() for image in images])
    if flat > 0.5 or different < len(images) / 2:
        seen = f"{flat:.0%} are of one colour, {1 - different / len(images):.0%} are copies of another"
        return Finding("data", "warn", f"{text}; {seen}", "`ldm data check` shows which")
    return Finding("data", "ok", f"{text}, {different} of {len(images)} looked at differ")


def check_channels(case: Case) -> Finding:
    """Data, autoencoder and denoiser agree about channels and sizes."""
    vae, unet = case.pipeline.vae.config, case.pipeline.unet.config
    (channels, height, _), factor = case.pipeline.latent_shape, downsampling_factor(vae)
    faults = []
    if case.readable is not None:
        resolution, wanted = case.readable.train.resolution, case.readable.train.channels
        if vae.in_channels != wanted:
            faults.append(
                f"the pictures have {wanted} channel(s) and the VAE takes {vae.in_channels}: set data.channels: "
                f"{vae.in_channels}, or train the VAE anew"
            )
        if height * factor != resolution:
            faults.append(
                f"the denoiser's {height} x {height} latents are pictures of {height * factor} pixels and the data "
                f"has {resolution}: set data.resolution: {height * factor}"
            )
    if vae.latent_channels != channels:
        faults.append(
            f"the VAE has {vae.latent_channels} latent channels and the denoiser takes {channels}: one of the two is "
            "of another run; point --vae to the one it was trained on"
        )
    given = unet.get("out_channels", channels)
    if given not in (channels, 2 * channels):
        faults.append(f"the denoiser takes {channels} channels and gives {given}: its config.json is of another model")
    if faults:
        what, _, advice = faults[0].partition(": ")
        return Finding("channels", "fail", what, advice)
    side, what = height * factor, "points" if case.more > 1 else "pictures"
    text = f"{what} {vae.in_channels} x {side} x {side}, latents {channels} x {height} x {height}"
    return Finding("channels", "ok", text)


def check_captions(case: Case) -> Finding:
    """There are captions, few are empty, and they are not all the same."""
    if case.unconditional:
        return Finding("captions", "ok", "none wanted (text.source: none)")
    data = case.data.train
    if not data.has_captions:
        advice = "give captions (data.files.caption_column, .txt files), or set text.source: none"
        return Finding("captions", "fail", "the data have no captions", advice)
    chosen = spread(len(data), LOOKED_AT)
    words = [data.caption(int(i), np.random.default_rng([0, i])) for i in chosen]
    empty = np.mean([not word.strip() for word in words])
    distinct = len(set(words))
    text = f"{distinct} different among {len(words)}, {empty:.0%} empty, such as {words[0]!r}"
    advice = "mend the caption column or the .txt files; `ldm data check` shows them"
    if empty > 0.5:
        return Finding("captions", "fail", f"most captions are empty ({text})", advice)
    if distinct == 1:
        return Finding("captions", "fail", f"every picture has the same caption, {words[0]!r}", advice)
    if empty > 0.1:
        return Finding("captions", "warn", text, advice)
    return Finding("captions", "ok", text)


def check_dropout(case: Case) -> Finding:
    """Captions are dropped now and then in training, drawn here as the task draws them, and not always."""
    settings = case.settings
    if settings is None or case.unconditional:
        return Finding("dropout", "ok", "no captions to drop")
    total = len(case.data.train)
    drawn = [caption_or_null(settings, case.data.train, SampleRef(i % total, i // total)) for i in range(DRAWS)]
    rate = float(np.mean([not caption for caption in drawn]))
    text = f"{rate:.1%} of {DRAWS} captions drawn as in training are empty (caption_dropout {settings.caption_dropout})"
    if rate >= 0.9:
        return Finding("dropout", "fail", f"{text}: it never reads", "set caption_dropout: 0.1 and train anew")
    if rate >= 0.5:
        return Finding("dropout", "warn", f"{text}: it seldom reads", "set caption_dropout: 0.1")
    if rate == 0 and case.pipeline.defaults["guidance_scale"] != 1:
        advice = "set caption_dropout: 0.1 and train anew, or sampling.guidance_scale: 1"
        return Finding("dropout", "warn", f"{text}: guidance leads away from a null caption that it never saw", advice)
    return Finding("dropout", "ok", text)
