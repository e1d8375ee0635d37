"""Train the glyph classifier on rendered characters, and measure it on characters it never saw.

    python -m scripts.glyph_classifier.train --output ldm/evaluation/assets/glyph_classifier

Generated glyphs are never quite like rendered ones, so the training images are moved, stretched, slanted, thickened,
thinned, blurred and faded. A fraction of them is transposed (mirrored along the diagonal), which turns a left-right
character into a top-bottom one: the layout head has to look at where components are, and not at which character it is.
In another fraction a radical is set beside or above what it never stood with, so that it is recognised anywhere.
"""

import argparse
import copy
import hashlib
import json
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F

from ldm.config.settings import DataOptions
from ldm.data.glyphs.dataset import splits as glyph_splits
from ldm.evaluation.classifiers import CARD, WEIGHTS
from ldm.evaluation.glyphs.classifier import FORMAT, SIZE, GlyphNet
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.runtime import run_main
from scripts.glyph_classifier.accuracy import accuracy, best_threshold, common_radicals
from scripts.glyph_classifier.data import (
    IGNORE,
    MERGED,
    Batch,
    Batches,
    Glyphs,
    Mixture,
    class_names,
    component_names,
    load_glyphs,
    load_halves,
)

Net = TypeVar("Net", bound=nn.Module)
PRESENT = 3 / 250  # rough fraction of the components that a glyph has: where the bias of the component head starts
KEEP_EVERY = 250


@dataclass(frozen=True)
class Options:
    steps: int = 2000
    lr: float = 2e-3
    weight_decay: float = 0.05
    width: int = 32
    ema_decay: float = 0.99
    mixture: Mixture = field(default_factory=Mixture)
    bf16: bool = False
    seconds: float = math.inf  # the learning-rate cycle ends after this time, if the steps have not been made by then
    start: Path | None = None  # initial weights; tensors of another shape are ignored
    keep: Path | None = None  # the averaged weights are written here every `keep_every` steps
    keep_every: int = KEEP_EVERY


def loss_of(net: GlyphNet, batch: Batch) -> torch.Tensor:
    """Weighted sum of the cross-entropies of layout, radical and each component, and smooth L1 of the stroke count."""
    logits = net(batch.ink.contiguous(memory_format=torch.channels_last))
    known, counted = ~batch.components.isnan(), ~batch.strokes.isnan()
    components = F.binary_cross_entropy_with_logits(logits.components[known], batch.components[known], reduction="sum")
    return (
        F.cross_entropy(logits.layout, batch.layout, ignore_index=IGNORE, label_smoothing=0.05)
        + 0.5 * F.cross_entropy(logits.radical, batch.radical, ignore_index=IGNORE, label_smoothing=0.05)
        + 0.4 * components / len(batch.ink)
        + F.smooth_l1_loss(logits.strokes[counted], batch.strokes[counted], beta=0.1)
    )


def new_net(layouts: int, components: int, options: Options) -> GlyphNet:
    """A network to train. Raises: UserError when `options.start` is no file of weights."""
    net = GlyphNet(layouts, components, options.width)
    torch.nn.init.constant_(net.components.bias, math.log(PRESENT / (1 - PRESENT)))
    if options.start is not None:
        if not options.start.is_file():
            raise UserError(f"no weights to start from at {options.start}: give a model.safetensors, or none")
        own = net.state_dict()
        given = {k: v for k, v in load_file(options.start).items() if k in own and v.shape == own[k].shape}
        net.load_state_dict(own | given)
    return net.to(memory_format=torch.channels_last)


def fit(
    glyphs: Glyphs, names: list[str], components: list[str], options: Options, report: Callable[[str], None] = print
) -> tuple[GlyphNet, int]:
    """Train with AdamW, one cycle of the learning rate.

    Returns: the network with the exponential moving average (EMA) of the weights, and the number of steps made.
    """
    torch.manual_seed(options.mixture.seed)
    net = new_net(len(names), len(components), options)
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    batches, started, running = Batches(glyphs, names, components, options.mixture), time.monotonic(), None
    step, done = 0, 0.0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * cycle(done)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = loss_of(net, batches.draw())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        step += 1
        done = max(step / options.steps, (time.monotonic() - started) / options.seconds)
        update_ema(ema, net, min(options.ema_decay, step / (step + 10)))
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or done >= 1:
            report(f"step {step}  {done:.0%}  loss {running:.3f}  {time.monotonic() - started:.0f} s")
        if options.keep is not None and step % options.keep_every == 0:
            atomic_write(options.keep, half_precision(copy.deepcopy(ema))[1])
    return ema.eval(), step


def cycle(done: float, warm_up: float = 0.15) -> float:
    """The learning rate as a fraction of its peak, when a fraction `done` in [0, 1] of the training is over."""
    if done < warm_up:
        return 0.04 + 0.96 * done / warm_up
    return 0.5 * (1 + math.cos(math.pi * (min(done, 1) - warm_up) / (1 - warm_up)))


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the averaged weights towards those of `net`; integer buffers are copied."""
    for mean, value in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def half_precision(net: Net) -> tuple[Net, bytes]:
    """The network with its weights rounded to fp16, and the bytes of the file that holds them."""
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return net, save({k: v.contiguous() for k, v in tensors.items()})


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.glyph_classifier.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights and their card")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="rendered glyphs (default: cache)")
    parser.add_argument("--steps", type=int, default=Options.steps)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after this time, with fewer steps")
    parser.add_argument("--seed", type=int, default=Mixture.seed)
    parser.add_argument(
        "--recombined", type=float, default=Mixture.recombined, help="fraction of recombined glyphs (0 = real ones)"
    )
    parser.add_argument("--bf16", action="store_true", help="autocast; faster where the CPU has AMX or AVX512-BF16")
    parser.add_argument("--limit", type=int, default=0, help="train on the first N characters only (0 = all)")
    parser.add_argument("--start", type=Path, help="initial weights, where names and shapes agree")
    parser.add_argument("--keep", type=Path, help=f"write the weights here every {KEEP_EVERY} steps")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train, measure on characters never seen, write model.safetensors and classifier.json."""
    args, started = parse(argv), time.monotonic()
    options = Options(
        steps=args.steps,
        seconds=60 * args.minutes,
        mixture=Mixture(seed=args.seed, recombined=args.recombined),
        bf16=args.bf16,
        start=args.start,
        keep=args.keep,
    )
    splits = glyph_splits(DataOptions(resolution=SIZE, cache_dir=args.cache_dir, glyphs={"limit": args.limit}))
    own, (lent, unseen) = load_glyphs(splits["train"]), load_halves(splits["heldout"])
    names, components = class_names(own.layouts), component_names(own, len(splits["train"].files))
    trained, steps = fit(own + lent, names, components, options, report=lambda line: print(line, flush=True))
    net, weights = half_precision(trained)
    commonest = common_radicals(own.radicals).tolist()
    threshold = best_threshold(net, load_glyphs(splits["validation"]), components)
    measured = {
        name: accuracy(net, glyphs, names, commonest, components, threshold)
        for name, glyphs in (("test", load_glyphs(splits["test"])), ("heldout", unseen))
    }
    trained_on = {
        "splits": "train, and of heldout those not ldm.evaluation.glyphs.classifier.unseen",
        "glyphs": len(own.layouts),
        "glyphs_of_heldout": len(lent.layouts),
        "fingerprint": splits["train"].fingerprint,
    }
    heads = {"layouts": names, "merged_layouts": MERGED, "common_radicals": commonest, "components": components}
    write_classifier(
        args.output,
        weights,
        {"format": FORMAT, "width": options.width, "parameters": sum(p.numel() for p in net.parameters())}
        | heads
        | {"component_threshold": threshold, "trained_on": trained_on}
        | {"started_from_sha256": hashlib.sha256(args.start.read_bytes()).hexdigest() if args.start else None}
        | measured
        | {"steps": steps, "command": shlex.join(command_of(args)), "seconds": round(time.monotonic() - started)},
    )
    for name, found in measured.items():
        print(name, json.dumps({k: found[k] for k in ("layout", "radical", "radical_36_commonest", "components")}))
    return 0


def write_classifier(folder: Path, weights: bytes, card: dict) -> None:
    """Write the weights and their card, which records the weights' digest."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / WEIGHTS, weights)
    content = card | {"sha256": hashlib.sha256(weights).hexdigest()}
    atomic_write(folder / CARD, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def command_of(args: argparse.Namespace) -> list[str]:
    """The command that trains the same network again."""
    flags = ["--output", str(args.output), "--steps", str(args.steps), "--seed", str(args.seed)]
    flags += ["--limit", str(args.limit)] if args.limit else []
    flags += ["--minutes", f"{args.minutes:g}"] if args.minutes < math.inf else []
    flags += ["--start", str(args.start)] if args.start else []
    flags += ["--recombined", f"{args.recombined:g}"] if args.recombined != Mixture.recombined else []
    return ["python", "-m", "scripts.glyph_classifier.train", *flags, *(["--bf16"] if args.bf16 else [])]


if __name__ == "__main__":
    run_main(main)
