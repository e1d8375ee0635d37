"""A check of the text encoder of glyph models: can it be asked for what training never showed together?"""

from transformers import CLIPTextModel

from ldm.evaluation.diagnostics.context import RunContext
from ldm.evaluation.diagnostics.findings import Finding, ok, warn

READ = 0.7  # of held-out prompts, whose radical a linear map should read from the embeddings


def check_unseen_prompts(context: RunContext) -> Finding:
    """Of glyphs: the radical of layouts and radicals never trained together can be read from their embeddings."""
    settings, encoder = context.settings, context.pipeline.text_encoder
    if settings is None or settings.data.source != "glyphs" or context.unconditional:
        return ok("no prompts of glyphs")
    if not isinstance(encoder, CLIPTextModel):
        return ok("not a CLIP text encoder: its embeddings are not read")
    from ldm.evaluation.glyphs.text_probe import probe

    found = probe(encoder, context.pipeline.tokenizer)
    text = (
        f"of pairs never trained together a linear map reads {found.radical:.0%} of the radicals and "
        f"{found.layout:.0%} of the layouts; the nearest trained prompt has {found.nearest_radical:.0%} and "
        f"{found.nearest_layout:.0%}"
    )
    if min(found.radical, found.layout) < READ:
        advice = "clip.loss.hard_negatives: 1 and more clip.train.num_steps, or ldm.text.train: true"
        return warn(f"the words of a prompt do not stay apart: {text}", advice)
    return ok(text)
