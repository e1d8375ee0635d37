"""A run of `ldm train vae` or `ldm train clip` alone: the checks that need no denoiser, before one is trained on it."""

from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ldm.config.loading import load
from ldm.data import evenly_spaced_indices
from ldm.evaluation.diagnostics.context import RunContext
from ldm.evaluation.diagnostics.findings import Finding, fail, ok, skip
from ldm.evaluation.feature_extractors import ClipEmbedder
from ldm.evaluation.metrics.proportions import proportion
from ldm.evaluation.run_loading import OpenRun
from ldm.models.autoencoder import load_vae
from ldm.models.text_encoder import load_text
from ldm.models.tokenizer import encode
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.untrusted_files import read_yaml


def context_of(path: Path, limit: int, device: str | None) -> RunContext:
    """Of a run of any of the three trainers, one of its checkpoints, or an exported model."""
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    settings = read_yaml(run / "config.yaml")
    kinds = {"vae": VaeContext, "clip": ClipContext}
    stage = next((name for name in kinds if name in settings and "ldm" not in settings), None)
    return kinds[stage](run, limit, device) if stage else RunContext(path, limit, device)


class StageContext(RunContext):
    """What the checks read of a run that has no denoiser: its settings, data, log and networks."""

    scale = 1

    @cached_property
    def opened(self) -> OpenRun:
        settings: Any = load(self.stage, self.path / "config.yaml")
        return OpenRun(self.path, settings, self.networks(), checkpoint.newest(self.path / "checkpoints"))

    def networks(self) -> Any:
        """What a pipeline would have of it."""
        raise NotImplementedError


class VaeContext(StageContext):
    """A finished run of `ldm train vae`."""

    stage, unconditional = "vae", True

    def networks(self) -> Any:
        where = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return SimpleNamespace(vae=load_vae(self.path).to(where), device=where, folder=self.path)


class ClipContext(StageContext):
    """A finished run of `ldm train clip`; its encoders are small, and stay on the CPU."""

    stage, unconditional = "clip", False

    def networks(self) -> Any:
        encoder, tokenizer = load_text(self.path)
        return SimpleNamespace(
            text_encoder=encoder,
            tokenizer=tokenizer,
            folder=self.path,
            encode_prompt=lambda prompts: encoder(encode(tokenizer, prompts)).last_hidden_state,
        )


def check_retrieval(context: RunContext) -> Finding:
    """Held-out images find their own caption among all different ones more often than by chance."""
    data = context.data.validation
    chosen = evenly_spaced_indices(len(data), 4 * context.limit).tolist()
    captions = [data.caption(i, np.random.default_rng([0, i])) for i in chosen]
    names, first, own, counts = np.unique(captions, return_index=True, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return skip("the held-out images have one caption")
    image, text = ClipEmbedder(context.path)(np.stack([data.image(i) for i in chosen]), captions)
    found = proportion((image @ text[torch.from_numpy(first)].T).argmax(1).numpy() == own)
    chance = float((counts / len(own)).max())  # of always naming the most frequent one
    text_ = (
        f"{found['share']:.0%} of {found['n']} held-out images find their caption among {len(names)} "
        f"(by chance {chance:.0%} at most)"
    )
    if found["interval"][0] <= chance:
        return fail(
            f"{text_}: it cannot tell images by their captions", "`ldm train clip` longer, or check the captions"
        )
    return ok(text_)
