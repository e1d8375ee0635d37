"""Train the digit classifier on the handwriting of the training split, and measure it on handwriting never seen.

python -m scripts.train_digit_classifier --output ldm/evaluation/assets/digit_classifier
"""

import argparse
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.config.settings import DataOptions
from ldm.data.digits import INKS, Handwriting, draw, make_item, splits
from ldm.evaluation.digits.classifier import SIZE, DigitClassifier, DigitNet, attribute_accuracy, digit_images, find_ink
from ldm.utils.runtime import run_main
from scripts import one_cycle
from scripts.glyph_classifier.data import augment
from scripts.glyph_classifier.train import half_precision, write_classifier

BATCH_SIZE = 128


def any_item(original: int, copy: int, writing: Handwriting):
    """An item in any ink: the classifier may see every pair."""
    return make_item(original, copy, writing.digit, list(INKS))


def epoch_of(writing: dict[int, Handwriting], epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Every original once, in another ink, pen and slant each epoch: cover (n, 32, 32) and digits (n,)."""
    images = [draw(one, any_item(n, 1000 + epoch, one), SIZE) for n, one in writing.items()]
    return find_ink(np.stack(images)).cover, np.array([one.digit for one in writing.values()])


def fit(
    writing: dict[int, Handwriting],
    epochs: int,
    seed: int,
    bf16: bool = False,
    report: Callable[[str], None] = print,
) -> DigitNet:
    """A trained classifier; see `scripts.one_cycle`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = DigitNet()
    per_epoch = max(1, len(writing) // BATCH_SIZE)

    def losses(epoch: int) -> Iterator[Tensor]:
        cover, digits = epoch_of(writing, epoch)
        order = torch.randperm(len(digits), generator=generator)
        for start in range(0, per_epoch * BATCH_SIZE, BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE].numpy()
            x = augment(torch.from_numpy(cover[chosen])[:, None], generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = net(x)
            yield F.cross_entropy(logits, torch.from_numpy(digits[chosen]), label_smoothing=0.05)

    return one_cycle.fit(net, epochs, per_epoch, losses, report)


def main(argv: list[str] | None = None) -> int:
    """Train, measure, write model.safetensors and classifier.json."""
    parser = argparse.ArgumentParser(prog="python -m scripts.train_digit_classifier", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights and their card")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="traced digits (default: cache)")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast; faster where the CPU has AMX or AVX512-BF16")
    parser.add_argument("--limit", type=int, default=0, help="train on the first N digits only (0 = all)")
    args = parser.parse_args(argv)
    digits = {"limit": args.limit}
    data = splits(DataOptions(source="digits", resolution=SIZE, channels=3, cache_dir=args.cache_dir, digits=digits))
    writing = data["train"].writing
    trained = fit(writing, args.epochs, args.seed, args.bf16, report=lambda line: print(line, flush=True))
    net, weights = half_precision(trained)
    flags = ["--output", str(args.output), "--epochs", str(args.epochs), "--seed", str(args.seed)]
    flags += ["--bf16"] if args.bf16 else []
    card: dict[str, Any] = {
        "format": 1,
        "parameters": sum(p.numel() for p in net.parameters()),
        "trained_on": {"split": "train", "originals": len(writing)},
        "command": shlex.join(["python", "-m", "scripts.train_digit_classifier", *flags]),
    }
    write_classifier(args.output, weights, card)
    classifier = DigitClassifier(args.output)
    for name in ("validation", "test", "heldout"):
        images, metas = digit_images(data[name])
        card[name] = {"originals": len(data[name].writing)} | attribute_accuracy(classifier.predict(images), metas)
    write_classifier(args.output, weights, card)
    print(json.dumps({name: card[name]["digit"] for name in ("validation", "test", "heldout")}))
    return 0


if __name__ == "__main__":
    run_main(main)
