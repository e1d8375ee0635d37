"""Where each word of a prompt looks: the cross-attention maps, as in Hertz et al. 2022, arXiv 2208.01626."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.inputs import model
from ldm.apps.figures.plot_style import HEAT, grey, strip
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.transparency import on_white

PROMPTS = ("vertical stacked glyph with the grass radical", "horizontal stacked glyph with the water radical")
START, END = "(start)", "(end)"


class Recorder(AttnProcessor):
    """Attends as usual and keeps the softmax of cross-attention, mean over heads: (B, queries, L) per call."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **options):
        if encoder_hidden_states is not None:
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            scores = attn.get_attention_scores(query, key, attention_mask)
            self.maps.append(scores.unflatten(0, (-1, attn.heads)).mean(1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **options)


@contextmanager
def recording(unet) -> Iterator[dict[str, Recorder]]:
    """Recorders in place of the cross-attention's processors, by name; put back at the end."""
    before = unet.attn_processors
    recorders = {name: Recorder() for name in before if name.endswith("attn2.processor")}
    unet.set_attn_processor({**before, **recorders})
    try:
        yield recorders
    finally:
        unet.set_attn_processor(before)


def word_maps(pipeline: Pipeline, prompt: str, seed: int, side: int = 64, **options):
    """Draw one image and see where its words looked.

    Returns: the image; the words, with `(start)` and `(end)`, the latter with the padding; their maps, float32
    (words, side, side), mean over layers, heads and steps: at each position they sum to 1.
    """
    with recording(pipeline.unet) as recorders:
        image = pipeline(prompt, seed=seed, **options).images[0]
    levels = []
    for recorder in recorders.values():
        mean = torch.stack([maps[-1] for maps in recorder.maps]).mean(0)  # with guidance the prompt's half comes last
        size = round(len(mean) ** 0.5)
        square = mean.T.view(1, -1, size, size)
        levels.append(interpolate(square, (side, side), mode="bilinear")[0])
    words, owners = words_of(pipeline, prompt)
    tokens = torch.stack(levels).mean(0)
    maps = torch.zeros(len(words), side, side).index_add(0, torch.tensor(owners), tokens)
    return image, words, maps.numpy()


def words_of(pipeline: Pipeline, prompt: str) -> tuple[list[str], list[int]]:
    """The words of a prompt between `(start)` and `(end)`, and for every token the index of its word among them."""
    tokenizer = pipeline.tokenizer
    encoded = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    words, owners, fresh, closed = [START], [0], True, False
    for token, number in zip(tokens[1:], encoded.input_ids[1:], strict=True):
        if closed or number == tokenizer.eos_token_id:
            closed = True
            owners.append(-1)
            continue
        if fresh:
            words.append("")
        words[-1] += token.removesuffix("</w>")
        fresh = token.endswith("</w>")
        owners.append(len(words) - 1)
    words.append(END)
    return words, [len(words) - 1 if owner < 0 else owner for owner in owners]


def attention(setting: Setting) -> Drawing:
    """The image, and over it the map of each word, two prompts."""
    pipeline = model(setting)
    options = {"num_inference_steps": 2} if setting.quick else {}
    drawn = [word_maps(pipeline, prompt, seed=4, **options) for prompt in PROMPTS]
    rows: list[list[np.ndarray | None]] = []
    numbers = {}
    for prompt, (image, words, maps) in zip(PROMPTS, drawn):
        ink = 1 - np.asarray(on_white(image).convert("L").resize(maps.shape[1:])) / 255
        rows.append([grey(1 - ink, 0, 1), *(overlay(weights, ink) for weights in maps)])
        for word, weights in zip(words, maps):
            numbers[f"{prompt}: {word}"] = f"{weights.mean():.1%} of the attention, {centre(weights)}"
    columns = max(map(len, rows))
    names = [" / ".join(dict.fromkeys(pair)) for pair in zip(*(words for _, words, _ in drawn))]
    shares = [
        "",
        *(" / ".join(f"{weights.mean():.0%}" for weights in pair) for pair in zip(*(maps for *_, maps in drawn))),
    ]
    rows = [row + [None] * (columns - len(row)) for row in rows]
    return Drawing(strip(rows, [""] * len(rows), ["picture", *names], shares, left=4), numbers)


def centre(weights: np.ndarray) -> str:
    """Where a map (side, side) has its mean, as fractions of the image from the left and from the top."""
    share = weights / weights.sum()
    places = (np.arange(len(weights)) + 0.5) / len(weights)
    return f"centre {share.sum(0) @ places:.2f} from the left, {share.sum(1) @ places:.2f} from the top"


def overlay(weights: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """RGB of a map (h, w) as a tint, pale at its mean, darkest at 2.5 times that, the glyph (h, w) over it in grey."""
    tint = HEAT((weights / weights.mean() / 2 - 0.25).clip(0, 1))[..., :3]
    return tint * (1 - 0.6 * ink[..., None])
