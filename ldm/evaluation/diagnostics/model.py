"""Checks of the components: files, weights, the autoencoder and its latents, the tokenizer and the text encoder."""

import numpy as np
import torch
from torch import Tensor

from ldm.data import evenly_spaced_indices
from ldm.evaluation.autoencoder_quality import complaints, facts, quality
from ldm.evaluation.diagnostics.context import RunContext
from ldm.evaluation.diagnostics.findings import Finding, fail, ok, skip, warn
from ldm.evaluation.loss_by_time import channel_moments
from ldm.evaluation.metrics.reconstruction import psnr, reconstruct
from ldm.models.digests import network_digest
from ldm.models.latents import is_tiny, is_vector_quantized, shift_factor
from ldm.models.tokenizer import tokenizer_digest
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError

GAIN = 1.0  # dB that a reconstruction must be better than the mean image, or the VAE keeps nothing
LITTLE_GAIN = 5.0
SPREAD = (0.67, 1.5)  # standard deviations of latents that are no longer taken for white
DOUBTFUL_SPREAD = (0.8, 1.25)
OFF_CENTRE, DOUBTFUL_CENTRE = 0.5, 0.25  # means of latents, in standard deviations
EXAMINED = 64  # captions
SAME = 2**-8  # relative difference of two embeddings that rounding to bf16 makes; learned synonyms differ by 0.03
ALIKE = 0.1  # of the captions that have another such near: more is a failure


def check_files(context: RunContext) -> Finding:
    """All parts are there, can be read, and are as training left them."""
    try:
        pipeline = context.pipeline
    except UserError as error:
        advice = (
            f"copy the complete folder again, or start `ldm train {context.stage}` again: it resumes and writes final/"
        )
        return fail(str(error), advice)
    if context.opened is None:
        recorded = pipeline.defaults.get("digest")
        if recorded not in (None, pipeline.digest):
            text = f"its files changed since the export (digest {pipeline.digest}, recorded {recorded})"
            return warn(text, "export the run again if that was not meant")
        return ok(f"an exported model, digest {pipeline.digest}")
    if pipeline.folder is None:
        found = context.opened.checkpoint
        text = f"not finished: examined is the EMA of {found.name if found else 'no checkpoint'}"
        return ok(text)
    final = context.opened.folder / "final"
    if difference := checkpoint.verify(final):
        advice = (
            f"if that was not meant: remove final/ and start `ldm train {context.stage}` again, which writes it again"
        )
        return warn(f"final/ is not as training left it: {difference}", advice)
    return ok("final/ is complete")


def check_weights(context: RunContext) -> Finding:
    """All weights are finite numbers, and no network is all zeros."""
    count = 0
    for part in (name for name in ("vae", "text_encoder", "unet") if hasattr(context.pipeline, name)):
        tensors = getattr(context.pipeline, part).state_dict()
        broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            advice = "go back to the last valid checkpoint with a lower optim.lr, or train.mixed_precision: no"
            return fail(f"{part} holds NaN or infinity: {broken[0]}{more}", advice)
        if not any(value.any() for value in tensors.values()):
            return fail(f"{part} holds nothing but zeros", "copy the file again, or train again")
        count += sum(value.numel() for value in tensors.values())
    return ok(f"{count / 1e6:.1f} million numbers, all finite")


def check_vae(context: RunContext) -> Finding:
    """It gives images back, better than their mean and the best linear map would, and in every colour."""
    if context.identity:
        return ok("none: the denoiser works on the data themselves")
    vae, (train, held) = context.pipeline.vae, (context.data.train, context.data.validation)
    before, examples = (
        np.stack([data.image(int(i)) for i in evenly_spaced_indices(len(data), context.limit)])
        for data in (held, train)
    )
    after, latents = reconstruct(vae, before)
    trivial = np.broadcast_to(examples.mean(0).round().astype(np.uint8), before.shape)
    ours, mean = (float(psnr(before, each).mean()) for each in (after, trivial))
    found = quality(vae, train, before, after, latents)
    text = f"PSNR {ours:.1f} dB on validation images, their mean image {mean:.1f} dB"
    if not ours > mean + GAIN:
        advice = (
            "its decoder or encoder is not trained, or of another VAE: `ldm train vae` longer, or point --vae right"
        )
        return fail(f"{text}: it keeps nothing of the images", advice)
    if wrong := complaints(ours, found):
        finding = fail if any(each.serious for each in wrong) else warn
        return finding("; ".join([*(each.text for each in wrong), text]), wrong[0].advice)
    if ours < mean + LITTLE_GAIN:
        return warn(f"{text}: it keeps little", "train the VAE longer, lower loss.kl, more channels")
    return ok("; ".join(filter(None, [text, facts(found)])))


def check_latents(context: RunContext) -> Finding:
    """The denoiser's latents, after the shift and scale that decoding undoes, have mean 0 and deviation 1."""
    mean, variance = channel_moments(context.items[0].latents)
    config = context.pipeline.vae.config
    vector = is_vector_quantized(config) or is_tiny(config)  # one scale for all channels
    std = variance.mean().sqrt().expand_as(mean) if vector else variance.sqrt()
    shift = shift_factor(config)
    text = f"mean {_range(mean)}, standard deviation {_range(std)}"
    if context.identity:
        return ok(f"the data themselves: {text}")
    text += f" (scaling_factor {config.scaling_factor:g}, shift_factor {shift:g})"
    centre = (mean / std.clamp(min=1e-6)).abs().max()
    recorded = "the trainers whiten latents, so scaling_factor is 1 (of kind linear 2.5) and shift_factor null or 0"
    if std.max() > SPREAD[1] or std.min() < SPREAD[0]:
        factor = config.scaling_factor / std.mean().item()
        advice = f"set scaling_factor in vae/config.json (about {factor:.2g} by these data); {recorded}"
        return fail(f"{text}: the noise is too weak or too strong for them", advice)
    if centre > OFF_CENTRE:
        return fail(f"{text}: off centre", f"set shift_factor in vae/config.json; {recorded}")
    if std.max() > DOUBTFUL_SPREAD[1] or std.min() < DOUBTFUL_SPREAD[0] or centre > DOUBTFUL_CENTRE:
        return warn(text, "the data are not those that the VAE was trained on, or few")
    return ok(text)


def _range(values: Tensor) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"


def check_tokenizer(context: RunContext) -> Finding:
    """Its vocabulary is the text encoder's, and captions survive it."""
    tokenizer, config = context.pipeline.tokenizer, context.pipeline.text_encoder.config
    known = context.pipeline.text_encoder.get_input_embeddings().num_embeddings
    text = f"{len(tokenizer)} tokens, {tokenizer.model_max_length} to a caption"
    advice = "put back the tokenizer that the text encoder was trained with (final/tokenizer of its run)"
    if len(tokenizer) > known:
        return fail(f"{text}, and the text encoder knows {known}", advice)
    if tokenizer.model_max_length > config.max_position_embeddings:
        return fail(f"{text}, the text encoder takes {config.max_position_embeddings}", advice)
    ends = tokenizer.eos_token_id, config.eos_token_id
    if ends[0] != ends[1] and ends[1] not in (None, 2):  # 2 stands in old CLIP configs, whatever the tokenizer
        what = f"its end mark is token {ends[0]}, the text encoder's is {ends[1]}"
        return fail(f"{text}; {what}: of another vocabulary", advice)
    captions = _captions(context)
    lost = [c for c in captions if _letters(tokenizer.decode(_ids(tokenizer, c), True)) not in _letters(c)]
    cut = [c for c in captions if len(tokenizer(c, verbose=False).input_ids) > tokenizer.model_max_length]
    if captions and len(lost) > len(captions) / 10:
        return fail(f"{text}; it garbles captions such as {lost[0]!r}", advice)
    if captions and len(cut) > len(captions) / 5:
        cut_text = f"{len(cut) / len(captions):.0%} of captions are cut"
        return warn(f"{text}; {cut_text}", "shorter captions, or a larger clip context_length")
    return ok(text)


def _captions(context: RunContext) -> list[str]:
    """Different captions of held-out items, or the prompts of a model whose data are not known."""
    if context.unconditional:
        return []
    if context.readable is None:
        return list(dict.fromkeys(context.prompts))
    data = context.readable.validation
    return list(
        dict.fromkeys(
            data.caption(int(i), np.random.default_rng([0, i])) for i in evenly_spaced_indices(len(data), EXAMINED)
        )
    )


def _ids(tokenizer, caption: str) -> list[int]:
    return tokenizer(caption, truncation=True, max_length=tokenizer.model_max_length, verbose=False).input_ids


def _letters(text: str) -> str:
    return "".join(text.lower().split())


@torch.no_grad()
def check_text(context: RunContext) -> Finding:
    """Each caption can be told from every other by its embeddings."""
    if context.unconditional:
        return ok("no captions")
    tokenizer = context.pipeline.tokenizer  # captions that are the same tokens cannot be told apart by any encoder
    distinct = {tuple(_ids(tokenizer, caption)): caption for caption in ["", *_captions(context)]}
    captions = list(distinct.values())
    if len(captions) < 2:
        return skip("there are no two captions to compare")
    index, apart = nearest_caption(context.pipeline.encode_prompt(captions))
    alike = (apart < SAME).nonzero().flatten().tolist()
    text = f"of {len(captions)} captions the nearest two differ by {apart.min():.2g} of an embedding's size"
    if not alike:
        return ok(text)
    i = alike[0]
    advice = "`ldm train clip` longer or with a lower optim.lr, or text.train: true; then the denoiser again"
    pair = f"{captions[i]!r} and {captions[index[i]]!r} for one"
    text = f"{len(alike)} of {len(captions)} captions cannot be told from another ({pair}): {text}"
    return fail(text, advice) if len(alike) > ALIKE * len(captions) else warn(text, advice)


def nearest_caption(states: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of prompt embeddings (n, L, D), n >= 2, the nearest other one, int64 (n,), and how far it is.

    Distance: root mean square difference of the embeddings of that token in which two captions differ most, over the
    root mean square of all; float64 (n,). It is 0 for an encoder that says the same of both captions, and about
    sqrt(2) for embeddings that have nothing to do with each other, however long the captions are.
    """
    states = states.double()
    size = states.square().mean().sqrt().clamp(min=1e-12)
    apart = torch.stack([(states - row).square().mean(2).sqrt().amax(1) for row in states]) / size
    apart.fill_diagonal_(torch.inf)
    found = apart.min(1)
    return found.indices, found.values


def check_parts(context: RunContext) -> Finding:
    """VAE, tokenizer and text encoder are those of training, as far as its newest checkpoint records."""
    recorded, pipeline = (context.state or {}).get("identity", {}), context.pipeline
    digests = {"vae": network_digest(pipeline.vae), "tokenizer": tokenizer_digest(pipeline.tokenizer)}
    if context.settings is not None and not context.settings.start.lora_text:  # with adapters it learned
        digests["text"] = network_digest(pipeline.text_encoder)
    known = [name for name in digests if name in recorded]
    if others := [name for name in known if digests[name] != recorded[name]]:
        advice = "put back what it was trained with, or train the denoiser again on this"
        return fail(f"of another run than this denoiser: {', '.join(others)}", advice)
    if not known:
        return skip("no checkpoint records what it was trained with")
    return ok(f"as in training: {', '.join(known)}")
