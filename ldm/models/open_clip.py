"""Pretrained text towers of open_clip, converted exactly to classes of transformers.

A CLIP text transformer of open_clip and `CLIPTextModel` compute the same function under other names: fused query, key
and value weights are split, the rest is renamed. Towers that compute something else are refused. Text is cleaned as
open_clip does it (`text_cleaning`) and cut into the same tokens; only the padding after the end token differs
(transformers pads with the end token, open_clip with 0), which by the causal mask never reaches a state before it.
Needs the `openclip` extra; nothing else imports open_clip.

Weights are safetensors where a model offers them; other files go through torch's weights-only reader.
"""

import difflib
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ldm.models.text_cleaning import open_clip_normalizer
from ldm.utils.errors import UserError
from ldm.utils.torchvision_compat import patch_torchvision

patch_torchvision()  # has to come before these two imports

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402

try:
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer, _clean_lower
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock
except ModuleNotFoundError as error:
    raise UserError(
        f"{error.name} is not installed, and text towers from open_clip need it: "
        "pip install -c constraints.txt -e '.[openclip]'"
    ) from error

PREFIX = "open_clip:"
SCHEMES = ("hf-hub:", "local-dir:")
START, END = "<|startoftext|>", "<|endoftext|>"


def load_text_tower(source: str) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A pretrained text tower and its tokenizer as classes of transformers.

    Args:
        source: "open_clip:ARCH/TAG" (downloads a published model), "open_clip:hf-hub:user/name" (a Hub repository in
            open_clip's layout) or "open_clip:local-dir:PATH" (such a folder: open_clip_config.json and its weights).

    Returns: the model in fp32 and eval mode; the tokenizer, whose `model_max_length` is the context length.
    Raises: UserError for an unknown name, a failed download or a tower that is no CLIP text transformer.
    """
    arch, tag = parse_source(source)
    try:
        model = open_clip.create_model(arch, pretrained=tag, require_pretrained=True, weights_only=True)
        tokenizer = open_clip.get_tokenizer(arch)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"open_clip cannot load {source.removeprefix(PREFIX)}: {reason}") from error
    return convert_text_tower(model, tokenizer), convert_tokenizer(tokenizer)


def parse_source(source: str) -> tuple[str, str | None]:
    """The two names open_clip takes: architecture (or a scheme with its path) and weights tag (None for a scheme).

    Raises: UserError, with the nearest name, if there is no such architecture or no such tag for it.
    """
    forms = f"{PREFIX}ARCH/TAG, {PREFIX}hf-hub:user/name or {PREFIX}local-dir:PATH"
    name = source.removeprefix(PREFIX)
    if name == source:
        raise UserError(f"text.source must be one of {forms}, got {source!r}")
    for scheme in SCHEMES:
        if name.startswith(scheme):
            if name == scheme:
                raise UserError(f"{source!r} names nothing after {scheme!r}; allowed: {forms}")
            return name, None
    arch, _, tag = name.partition("/")
    _require("architecture", arch, open_clip.list_models(), source)
    _require(f"weights tag of {arch}", tag, open_clip.list_pretrained_tags_by_model(arch), source)
    return arch, tag


def convert_text_tower(model: nn.Module, tokenizer: SimpleTokenizer) -> CLIPTextModel:
    """The text tower of any open_clip model as a `CLIPTextModel` that gives the same hidden states.

    Args:
        model: an open_clip CLIP or CustomTextCLIP; its weights are copied.
        tokenizer: its open_clip tokenizer, which knows the start and end ids.

    Raises: UserError if the tower computes something that `CLIPTextModel` cannot.
    """
    tower = getattr(model, "text", model)  # CustomTextCLIP keeps its tower apart, CLIP is its own
    _require_clip_tower(tower)
    _require_simple_tokenizer(tokenizer)
    text_model = CLIPTextModel(_config_of(tower, tokenizer))
    text_model.load_state_dict(_renamed(tower), strict=True)
    return text_model.eval()


def convert_tokenizer(tokenizer: Any) -> CLIPTokenizer:
    """A `CLIPTokenizer` with the vocabulary, ids and merges of an open_clip tokenizer. Raises: UserError for others."""
    _require_simple_tokenizer(tokenizer)
    renamed = {tokenizer.sot_token_id: START, tokenizer.eot_token_id: END}
    vocab = {renamed.get(index, token): index for token, index in tokenizer.encoder.items()}
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    converted = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=tokenizer.context_length)
    converted.backend_tokenizer.normalizer = open_clip_normalizer()
    return converted


def _require(what: str, name: str, known: list[str], source: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)[:5]
    hint = f"nearest: {', '.join(near)}" if near else "there is none; use hf-hub: or local-dir: instead"
    raise UserError(f"{source!r}: unknown {what} {name!r}; {hint}")


def _require_clip_tower(tower: nn.Module) -> None:
    """Refuse everything with which the tower computes something else than `CLIPTextModel`."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    needed = ("token_embedding", "positional_embedding", "ln_final", "attn_mask")
    if blocks is None or any(not hasattr(tower, name) for name in needed):
        _refuse(f"{type(tower).__name__} is no CLIP text transformer")
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        _refuse("its attention blocks are of another type")
    if any(not isinstance(scale, nn.Identity) for block in blocks for scale in (block.ls_1, block.ls_2)):
        _refuse("it scales its layers")
    if getattr(tower, "cls_emb", None) is not None:
        _refuse("it appends a class token (as CoCa does)")
    if tower.attn_mask is None:
        _refuse("its attention is not causal")
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", "argmax"))
    if pool not in ("argmax", "eos"):
        _refuse(f"it pools at {pool!r}, not at the end token")


def _require_simple_tokenizer(tokenizer: Any) -> None:
    if type(tokenizer) is not SimpleTokenizer:
        _refuse(f"its tokenizer is a {type(tokenizer).__name__}, not CLIP's byte-pair tokenizer")
    if tokenizer.clean_fn is not _clean_lower or tokenizer.reduction_fn is not None:
        _refuse("its tokenizer cleans or shortens text in another way than CLIP's")


def _refuse(reason: str) -> NoReturn:
    raise UserError(f"this open_clip text tower cannot become a CLIPTextModel: {reason}; choose a plain CLIP model")


def _config_of(tower: nn.Module, tokenizer: SimpleTokenizer) -> CLIPTextConfig:
    first = tower.transformer.resblocks[0]
    vocab_size, width = tower.token_embedding.weight.shape
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=first.mlp.c_fc.out_features,
        num_hidden_layers=len(tower.transformer.resblocks),
        num_attention_heads=first.attn.num_heads,
        max_position_embeddings=tower.positional_embedding.shape[0],
        hidden_act=_activation_of(first.mlp.gelu),
        layer_norm_eps=tower.ln_final.eps,
        projection_dim=width if tower.text_projection is None else _projection_width(tower.text_projection),
        bos_token_id=tokenizer.sot_token_id,
        eos_token_id=tokenizer.eot_token_id,
        pad_token_id=tokenizer.eot_token_id,
    )


def _projection_width(projection: Tensor | nn.Linear) -> int:
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


def _activation_of(module: nn.Module) -> str:
    """The name transformers has for an activation. Raises: UserError for one it has not."""
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu_pytorch_tanh" if module.approximate == "tanh" else "gelu"
    _refuse(f"its activation is {type(module).__name__}")


@torch.no_grad()
def _renamed(tower: nn.Module) -> dict[str, Tensor]:
    """The tower's weights in fp32 under the names of `CLIPTextModel`, with the fused projections split."""
    state = {
        "embeddings.token_embedding.weight": tower.token_embedding.weight,
        "embeddings.position_embedding.weight": tower.positional_embedding,
        "final_layer_norm.weight": tower.ln_final.weight,
        "final_layer_norm.bias": tower.ln_final.bias,
    }
    for index, block in enumerate(tower.transformer.resblocks):
        layers = {
            "layer_norm1": block.ln_1,
            "layer_norm2": block.ln_2,
            "self_attn.out_proj": block.attn.out_proj,
            "mlp.fc1": block.mlp.c_fc,
            "mlp.fc2": block.mlp.c_proj,
        }
        for name, layer in layers.items():
            state[f"encoder.layers.{index}.{name}.weight"] = layer.weight
            state[f"encoder.layers.{index}.{name}.bias"] = layer.bias
        for kind in ("weight", "bias"):
            fused = getattr(block.attn, f"in_proj_{kind}")
            for name, part in zip("qkv", fused.chunk(3), strict=True):
                state[f"encoder.layers.{index}.self_attn.{name}_proj.{kind}"] = part
    return {key: value.detach().to(torch.float32).clone() for key, value in state.items()}
