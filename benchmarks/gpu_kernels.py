"""A U-Net's training step by precision, layout, attention and compilation: images/s and the fraction of the peak.

    python benchmarks/gpu_kernels.py --device cuda
    python benchmarks/gpu_kernels.py --device cpu     # small, to see that it runs

The FLOPs are counted by torch; the peak is that of matrix products in the same precision on the same device. A row
that the device, torch or a missing package does not allow has the reason in place of a number.
"""

import argparse
import itertools
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from protocol import ceilings, markdown, synchronize, write_report

from ldm.utils.runtime import prepare_threads, run_main

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"cuda": (256, 20), "cpu": (2, 1)}  # images in a batch, steps that are timed


@dataclass(frozen=True)
class Variant:
    precision: str  # fp32, tf32, bf16, fp16
    layout: str = "contiguous"
    attention: str = "sdpa"
    compiled: bool = False


def variants(device: str) -> list[Variant]:
    precisions = ("fp32", "tf32", "bf16", "fp16") if device == "cuda" else ("fp32", "bf16")
    found = [Variant(*pair) for pair in itertools.product(precisions, ("contiguous", "channels_last"))]
    if device == "cuda":
        found += [Variant("bf16", layout, "xformers") for layout in ("contiguous", "channels_last")]
        found += [Variant("bf16", "channels_last", "sdpa", True)]
    return found


def rate(variant: Variant, device: str) -> float:
    """Images a second, forward, backward, clipping and optimizer. Raises whatever the variant does not work with."""
    import torch

    from ldm.models.unet import choose_attention

    batch, steps = SIZES[device]
    model, inputs = subject(device, batch)
    if choose_attention(model, variant.attention, torch.device(device), variant.precision != "fp32") == "sdpa":
        if variant.attention == "xformers":
            raise RuntimeError("xformers is not installed")
    if variant.layout == "channels_last":
        model.to(memory_format=torch.channels_last)
    torch.set_float32_matmul_precision("high" if variant.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = variant.precision == "tf32"
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(variant.precision)
    scaler = torch.amp.GradScaler(device, enabled=variant.precision == "fp16")
    run = torch.compile(model) if variant.compiled else model

    def step() -> None:
        with torch.autocast(device, dtype) if dtype else nullcontext():
            loss = run(*inputs).sample.float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    for _ in range(3 if device == "cuda" else 1):
        step()
    synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return batch * steps / (time.perf_counter() - began)


def subject(device: str, batch: int):
    """The U-Net of configs/glyphs.yaml (smoke.yaml on a CPU) and inputs for it."""
    import torch

    from ldm.config.loading import load
    from ldm.models.unet import build_unet

    settings = load("ldm", ROOT / "configs" / ("glyphs.yaml" if device == "cuda" else "smoke.yaml"))
    torch.manual_seed(0)
    model = build_unet(settings.model, 4, 16, 128).to(device).train()
    latents, text = torch.randn(batch, 4, 16, 16, device=device), torch.randn(batch, 32, 128, device=device)
    return model, (latents, torch.rand(batch, device=device) * 1000, text)


def flops_of_an_image(device: str) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = subject(device, 2)
    with FlopCounterMode(display=False) as counter:
        model(*inputs).sample.square().mean().backward()
    return counter.get_total_flops() // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, default="cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    prepare_threads(args.threads)
    flops, peaks, results, rows = flops_of_an_image(args.device), ceilings(args.device), [], []
    for variant in variants(args.device):
        peak = peaks["gemm_fp32" if variant.precision in ("fp32", "tf32") else "gemm_bf16"] * 1e9
        try:
            images = rate(variant, args.device)
            found = {"images_per_second": images, "of_peak": images * flops / peak}
        except (RuntimeError, ImportError, ValueError) as error:
            found = {"reason": str(error).split("\n")[0][:80]}
        results.append(asdict(variant) | found)
        rows.append([*asdict(variant).values(), *found.values()])
        print(rows[-1], flush=True)
    print(markdown(["precision", "layout", "attention", "compiled", "images/s", "of the peak"], rows))
    write_report(args.output / f"gpu_kernels_{args.device}.json", {"flops_of_an_image": flops, "results": results})


if __name__ == "__main__":
    run_main(main)
