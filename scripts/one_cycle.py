"""The training that small classifiers share: AdamW, one cycle of the learning rate, an average of the weights."""

import copy
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from scripts.glyph_classifier.train import Net, update_ema

LR = 4e-3


def fit(
    net: Net,
    epochs: int,
    per_epoch: int,
    losses: Callable[[int], Iterable[Tensor]],
    report: Callable[[str], None] = print,
) -> Net:
    """Train `net`; returns the exponential moving average of its weights.

    Args:
        per_epoch: steps of an epoch.
        losses: epoch -> the losses of its steps, each computed when it is asked for.
        report: takes a line after each epoch.
    """
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, epochs * per_epoch, pct_start=0.15)
    step, started = 0, time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        for loss in losses(epoch):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            update_ema(ema, net, min(0.995, step / (step + 10)))
            total += loss.item() / per_epoch
        report(f"epoch {epoch + 1}/{epochs}  loss {total:.3f}  {time.monotonic() - started:.0f} s")
    return ema.eval()
