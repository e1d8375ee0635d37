"""Training of the glyph classifier on rendered characters, and its own accuracy on characters it never saw.

Generated glyphs are never quite like rendered ones, so the training pictures are moved, stretched, slanted, thickened,
thinned, blurred and faded. A part of them is transposed (mirrored along the diagonal), which turns a left-right
character into a top-bottom one: the layout head has to look at where parts are, and not at which character it is.
"""

import argparse
import copy
import hashlib
import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional as F

from ldm.config import DataOptions
from ldm.data.glyphs import GlyphData
from ldm.data.glyphs import splits as glyph_splits
from ldm.data.pixels import write_whole
from ldm.evaluation.classifier_files import CARD, WEIGHTS
from ldm.evaluation.glyph_classifier import SIZE, STROKE_SCALE, GlyphNet, to_ink

MERGED = {"two by two": "triangle", "below": "enclosed"}  # 8 and 7 characters: too few to learn or to measure
UNJUDGED = "other"
TRANSPOSED = {  # what a layout becomes when rows and columns change places
    "horizontal": "vertical",
    "vertical": "horizontal",
    "three across": "three stacked",
    "three stacked": "three across",
    "above": "left",
    "left": "above",
    "upper right": "lower left",
    "lower left": "upper right",
    "upper left": "upper left",
    "enclosed": "enclosed",
    "overlaid": "overlaid",
    "single": "single",
}
NUM_COMMON_RADICALS = 36
IGNORE = -100


@dataclass(frozen=True)
class Glyphs:
    """Pictures with labels; n of each."""

    images: np.ndarray  # uint8 (n, 64, 64), dark on white
    layouts: list[str]  # after merging; UNJUDGED where there is no label
    radicals: np.ndarray  # int64 (n,), 1..214
    strokes: np.ndarray  # float32 (n,)


@dataclass(frozen=True)
class Options:
    steps: int = 1400
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    width: int = 32
    balance: float = 0.5  # a layout is drawn in proportion to (its number) ** (1 - balance)
    transposed: float = 0.15  # share of the training pictures that are transposed
    ema_decay: float = 0.99
    seed: int = 0
    bf16: bool = False


def class_names(layouts: list[str]) -> list[str]:
    """The layouts that occur, commonest first, without the unjudged."""
    names, counts = np.unique([name for name in layouts if name != UNJUDGED], return_counts=True)
    return names[np.argsort(-counts, kind="stable")].tolist()


def draw_weights(layouts: list[str], balance: float) -> torch.Tensor:
    """Sampling weights float64 (n,), sum 1: a class of m members weighs m ** (1 - balance) in all."""
    names, index, counts = np.unique(layouts, return_inverse=True, return_counts=True)
    weights = counts[index].astype(np.float64) ** -balance
    return torch.from_numpy(weights / weights.sum())


def augment(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw each glyph a little differently; (n, 1, h, w) ink in [0, 1] to the same."""
    n = len(ink)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = 1 / uniform(0.85, 1.08), 1 / uniform(0.85, 1.08)
    theta[:, 0, 1], theta[:, 1, 0] = uniform(-0.08, 0.08), uniform(-0.05, 0.05)
    theta[:, :, 2] = uniform(-0.12, 0.12, 2)
    x = F.grid_sample(ink, F.affine_grid(theta, list(ink.shape), align_corners=False), align_corners=False)
    weight = uniform(-0.5, 0.6, 1, 1, 1)  # below 0: thinner strokes; above: thicker
    thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    x = x + weight.clamp(min=0) * (thick - x) + (-weight).clamp(min=0) * (thin - x)
    x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), uniform(-0.5, 1, 1, 1, 1).clamp(min=0))
    x = x * uniform(0.75, 1, 1, 1, 1) + uniform(0, 0.05, 1, 1, 1)
    return (x + uniform(0, 0.06, 1, 1, 1) * torch.randn(x.shape, generator=generator)).clamp(0, 1)


class Batches:
    """Endless training batches with labels, all chance from one generator."""

    def __init__(self, glyphs: Glyphs, names: list[str], options: Options):
        self.options, self.images = options, glyphs.images
        index: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        self.layout = torch.tensor([index.get(name, IGNORE) for name in glyphs.layouts])
        self.layout_transposed = torch.tensor([index.get(TRANSPOSED.get(name), IGNORE) for name in glyphs.layouts])
        self.radical = torch.from_numpy(glyphs.radicals).long() - 1
        self.strokes = torch.from_numpy(glyphs.strokes).float() / STROKE_SCALE
        self.weights = draw_weights(glyphs.layouts, options.balance)
        self.generator = torch.Generator().manual_seed(options.seed)

    def draw(self) -> tuple[torch.Tensor, ...]:
        """Ink (B, 1, 64, 64), layout, radical (IGNORE where a picture is transposed), strokes / 10."""
        size, generator = self.options.batch_size, self.generator
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        ink = to_ink(self.images[chosen.numpy()])
        turned = torch.rand(size, generator=generator) < self.options.transposed
        turned &= self.layout_transposed[chosen] != IGNORE
        ink = torch.where(turned[:, None, None, None], ink.transpose(2, 3), ink)
        layout = torch.where(turned, self.layout_transposed[chosen], self.layout[chosen])
        radical = torch.where(turned, torch.tensor(IGNORE), self.radical[chosen])
        return augment(ink, generator), layout, radical, self.strokes[chosen]


def loss_of(net: GlyphNet, ink, layout, radical, strokes) -> torch.Tensor:
    """Cross-entropy of layout and radical, smooth L1 of the strokes, summed."""
    layout_logits, radical_logits, strokes_hat = net(ink)
    return (
        F.cross_entropy(layout_logits, layout, ignore_index=IGNORE, label_smoothing=0.05)
        + 0.5 * F.cross_entropy(radical_logits, radical, ignore_index=IGNORE, label_smoothing=0.05)
        + F.smooth_l1_loss(strokes_hat, strokes, beta=0.1)
    )


def fit(glyphs: Glyphs, names: list[str], options: Options, report=print) -> GlyphNet:
    """Train with AdamW, one cycle of the learning rate; returns the exponential average of the weights."""
    torch.manual_seed(options.seed)
    net = GlyphNet(len(names), options.width)
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps, pct_start=0.15)
    batches, started, running = Batches(glyphs, names, options), time.monotonic(), None
    for step in range(1, options.steps + 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = loss_of(net, *batches.draw())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        update(average, net, min(options.ema_decay, step / (step + 10)))
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            report(f"step {step}/{options.steps}  loss {running:.3f}  {time.monotonic() - started:.0f} s")
    return average.eval()


@torch.no_grad()
def update(average: GlyphNet, net: GlyphNet, decay: float) -> None:
    for mean, value in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


@torch.no_grad()
def accuracy(net: GlyphNet, glyphs: Glyphs, names: list[str], commonest: list[int]) -> dict:
    """Held-out numbers, ready for JSON: layout (over all, per class with counts), radical, strokes.

    `commonest`: the radicals that get a number of their own.
    """
    outputs = [net(to_ink(glyphs.images[i : i + 256])) for i in range(0, len(glyphs.images), 256)]
    layout, radical, strokes = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    guess = np.array(names)[layout.argmax(dim=1).numpy()]
    truth = np.array(glyphs.layouts)
    judged = truth != UNJUDGED
    right = guess == truth
    group = {"horizontal": 1, "vertical": 2}
    same_group = np.array([group.get(g) == group.get(t) for g, t in zip(guess, truth, strict=True)])
    radical_right = radical.argmax(dim=1).numpy() + 1 == glyphs.radicals
    error = np.abs((strokes * STROKE_SCALE).numpy() - glyphs.strokes)
    return {
        "glyphs": int(judged.sum()),
        "layout": _share(right[judged]),
        "layout_horizontal_vertical_other": _share(same_group[judged]),
        "layout_per_class": {name: _class(right, truth == name) for name in names},
        "layout_precision": {name: _share(right[judged & (guess == name)]) for name in names},
        "radical": _share(radical_right),
        "radical_36_commonest": _share(radical_right[np.isin(glyphs.radicals, commonest)]),
        "radical_per_class": {str(r): _class(radical_right, glyphs.radicals == r) for r in commonest},
        "strokes_mean_error": round(float(error.mean()), 3),
        "strokes_within_1": _share(error <= 1),
    }


def common_radicals(radicals: np.ndarray, count: int = NUM_COMMON_RADICALS) -> np.ndarray:
    """The radicals that occur most often, commonest first."""
    values, counts = np.unique(radicals, return_counts=True)
    return values[np.argsort(-counts, kind="stable")][:count]


def _class(right: np.ndarray, members: np.ndarray) -> dict:
    return {"glyphs": int(members.sum()), "accuracy": _share(right[members])}


def _share(right: np.ndarray) -> float | None:
    return round(float(right.mean()), 4) if len(right) else None


def load_glyphs(data: GlyphData) -> Glyphs:
    """A split of the glyph data as arrays, layouts merged."""
    metas = [data.meta(i) for i in range(len(data))]
    return Glyphs(
        images=np.stack([data.image(i)[..., 0] for i in range(len(data))]),
        layouts=[MERGED.get(meta["structure"], meta["structure"]) for meta in metas],
        radicals=np.array([meta["radical"] for meta in metas]),
        strokes=np.array([meta["strokes"] for meta in metas], dtype=np.float32),
    )


def half_precision(net: GlyphNet) -> tuple[GlyphNet, bytes]:
    """The network with its weights rounded to fp16, and the bytes of the file that holds them."""
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return net, save({k: v.contiguous() for k, v in tensors.items()})


def main(argv: list[str] | None = None) -> int:
    """Train, measure on the test split, write model.safetensors and classifier.json."""
    parser = argparse.ArgumentParser(prog="python -m ldm.evaluation.glyph_classifier", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights and their card")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="rendered glyphs")
    parser.add_argument("--steps", type=int, default=Options.steps)
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--bf16", action="store_true", help="autocast; faster where the CPU has AMX or AVX512-BF16")
    parser.add_argument("--limit", type=int, default=0, help="train on the first N characters only (0 = all)")
    args = parser.parse_args(argv)
    options = Options(steps=args.steps, seed=args.seed, bf16=args.bf16)
    data = DataOptions(resolution=SIZE, cache_dir=args.cache_dir, glyphs={"limit": args.limit})
    splits = glyph_splits(data)
    train = load_glyphs(splits["train"])
    names = class_names(train.layouts)
    started = time.monotonic()
    net, weights = half_precision(fit(train, names, options, report=lambda line: print(line, flush=True)))
    flags = ["--output", str(args.output), "--steps", str(args.steps), "--seed", str(args.seed)]
    command = ["python", "-m", "ldm.evaluation.glyph_classifier", *flags, *(["--bf16"] if args.bf16 else [])]
    commonest = common_radicals(train.radicals).tolist()
    card = {
        "format": 1,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "width": options.width,
        "parameters": sum(p.numel() for p in net.parameters()),
        "layouts": names,
        "merged_layouts": MERGED,
        "common_radicals": commonest,
        "trained_on": {"split": "train", "glyphs": len(train.layouts), "fingerprint": splits["train"].fingerprint},
        "test": accuracy(net, load_glyphs(splits["test"]), names, commonest),
        "heldout": accuracy(net, load_glyphs(splits["heldout"]), names, commonest),
        "command": shlex.join(command),
        "seconds": round(time.monotonic() - started),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write_whole(args.output / WEIGHTS, weights)
    write_whole(args.output / CARD, (json.dumps(card, indent=1) + "\n").encode())
    print(json.dumps({name: card["test"][name] for name in ("layout", "radical", "radical_36_commonest")}))
    return 0
