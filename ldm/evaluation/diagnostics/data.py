"""Checks of what the run was trained on: images, their shapes, captions, and how often a caption is dropped."""

import numpy as np

from ldm.data import evenly_spaced_indices
from ldm.evaluation.diagnostics.context import RunContext
from ldm.evaluation.diagnostics.findings import Finding, fail, ok, skip, warn
from ldm.models.latents import downsampling_factor
from ldm.training.task import SampleRef, captions_of
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import size_of

SMALLEST_RANGE = 32  # of 256 grey levels
EXAMINED = 256
DRAWS = 2000


def check_data(context: RunContext) -> Finding:
    """Images are uint8, use the range 0 to 255, and differ."""
    if context.settings is None:
        return skip("the model does not say which data it was trained on, or in an older version")
    try:
        data = context.data.train
    except UserError as error:
        if context.opened is None:  # an export goes where its data are not
            return skip(f"the data that the model names are not here: {error}")
        return fail(str(error), "fix data.source in the run's config.yaml, or run doctor beside it")
    if (points := getattr(data, "points", None)) is not None:
        spreads = points.std(0)
        text = f"{len(points)} points, standard deviation {spreads.min():.2g} to {spreads.max():.2g}"
        if not np.isfinite(points).all() or spreads.max() < 1e-3:
            return fail(f"{text}: they do not vary", "check data.source and data.toy")
        return ok(text)
    chosen = evenly_spaced_indices(len(data), EXAMINED)
    images = [data.image(int(i)) for i in chosen]
    if any(image.dtype != np.uint8 for image in images):
        types = sorted({str(image.dtype) for image in images})
        return fail(f"images hold {', '.join(types)}", "give whole numbers 0 to 255 (uint8)")
    return _levels(np.stack(images), len(data))


def _levels(images: np.ndarray, total: int) -> Finding:
    low, high = int(images.min()), int(images.max())
    different = len({image.tobytes() for image in images})
    text = f"{total} images {images.shape[1]} x {images.shape[2]} x {images.shape[3]}, levels {low} to {high}"
    if different == 1:
        return fail(f"{text}: all {len(images)} examined are equal", "fix the files: data.source")
    if high - low < SMALLEST_RANGE:
        advice = "the files use another range, such as 0 to 1: save them with levels 0 to 255, then train again"
        return fail(f"{text}: hardly any of the 256 levels are used", advice)
    flat = np.mean([image.min() == image.max() for image in images])
    if flat > 0.5 or different < len(images) / 2:
        seen = f"{flat:.0%} are of one colour, {1 - different / len(images):.0%} are copies of another"
        return warn(f"{text}; {seen}", "`ldm data check` shows which")
    return ok(f"{text}, {different} of {len(images)} examined differ")


def check_channels(context: RunContext) -> Finding:
    """Data, autoencoder and denoiser agree about channels and sizes."""
    vae, unet = context.pipeline.vae.config, context.pipeline.unet.config
    (channels, *size), factor = context.pipeline.latent_shape, downsampling_factor(vae)
    its = tuple(side * factor for side in size)
    errors = []
    if context.readable is not None:
        resolution, wanted = context.readable.train.resolution, context.readable.train.channels
        if vae.in_channels != wanted:
            errors.append(
                f"the images have {wanted} channel(s) and the VAE takes {vae.in_channels}: set data.channels: "
                f"{vae.in_channels}, or train the VAE again"
            )
        if its != size_of(resolution):
            errors.append(
                f"the denoiser's {size[0]} x {size[1]} latents are images of {its[0]} x {its[1]} pixels and the data "
                f"has {resolution}: set data.resolution: {list(its) if its[0] != its[1] else its[0]}"
            )
    if vae.latent_channels != channels:
        errors.append(
            f"the VAE has {vae.latent_channels} latent channels and the denoiser takes {channels}: one of the two is "
            "of another run; point --vae to the one it was trained with"
        )
    given = unet.get("out_channels", channels)
    if given not in (channels, 2 * channels):
        errors.append(f"the denoiser takes {channels} channels and gives {given}: its config.json is of another model")
    if errors:
        what, _, advice = errors[0].partition(": ")
        return fail(what, advice)
    what = "points" if context.scale > 1 else "images"
    text = f"{what} {vae.in_channels} x {its[0]} x {its[1]}, latents {channels} x {size[0]} x {size[1]}"
    return ok(text)


def check_captions(context: RunContext) -> Finding:
    """There are captions, few are empty, and they are not all the same."""
    if context.unconditional:
        return ok("none wanted (text.source: none)")
    data = context.data.train
    if not data.has_captions:
        advice = "give captions (data.files.caption_column, .txt files), or set text.source: none"
        return fail("the data have no captions", advice)
    chosen = evenly_spaced_indices(len(data), EXAMINED)
    words = [data.caption(int(i), np.random.default_rng([0, i])) for i in chosen]
    empty = np.mean([not word.strip() for word in words])
    distinct = len(set(words))
    text = f"{distinct} different among {len(words)}, {empty:.0%} empty, such as {words[0]!r}"
    advice = "fix the caption column or the .txt files; `ldm data check` shows them"
    if empty > 0.5:
        return fail(f"most captions are empty ({text})", advice)
    if distinct == 1:
        return fail(f"every image has the same caption, {words[0]!r}", advice)
    if empty > 0.1:
        return warn(text, advice)
    return ok(text)


def check_dropout(context: RunContext) -> Finding:
    """Captions are sometimes dropped in training, sampled here as the task does, and not always."""
    settings = context.settings
    if settings is None or context.unconditional:
        return ok("no captions to drop")
    total = len(context.data.train)
    items = [(context.data.train, SampleRef(i % total, i // total)) for i in range(DRAWS)]
    sampled = captions_of(items, settings.seed, settings.caption_dropout)
    rate = float(np.mean([not caption for caption in sampled]))
    text = f"{rate:.1%} of {DRAWS} sampled captions are empty (caption_dropout {settings.caption_dropout})"
    if rate >= 0.9:
        return fail(f"{text}: it never sees a caption", "set caption_dropout: 0.1 and train again")
    if rate >= 0.5:
        return warn(f"{text}: it seldom sees a caption", "set caption_dropout: 0.1")
    if rate == 0 and context.pipeline.defaults["guidance_scale"] != 1:
        advice = "set caption_dropout: 0.1 and train again, or sampling.guidance_scale: 1"
        return warn(f"{text}: guidance relies on a null caption that it never saw", advice)
    return ok(text)
