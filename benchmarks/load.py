"""Two threads beside one busy process: how much slower drawing and training get, with and without our thread policy.

    python benchmarks/load.py -o runs/benchmarks/load.json

Threads of OpenMP that wait by spinning take the core from the thread they wait for. Our commands have them wait
passively (`ldm.utils.runtime.prepare_threads`), and ONNX Runtime's not spin; a stock script does neither.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from protocol import busy_process, markdown, write_report

from ldm.utils.runtime import prepare_threads, run_main

ROOT = Path(__file__).resolve().parents[1]
WORK = {"draw": "one picture, 10 steps", "train": "one training step, batch 16"}
WAYS = {
    "stock": {"draw": "stock pipeline", "train": "stock loop"},
    "ours": {"draw": "our pipeline", "train": "our loop"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "glyphs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "WORK"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks/load.json"))
    args = parser.parse_args()
    if args.worker:
        return work(*args.worker, args)
    seconds: dict[tuple[str, str, bool], list[float]] = {}
    for _ in range(args.rounds):
        for what in WORK:
            for way in WAYS:
                seconds.setdefault((way, what, False), []).append(measure(way, what, args))
                with busy_process():
                    seconds.setdefault((way, what, True), []).append(measure(way, what, args))
    rows = []
    for what, said in WORK.items():
        for way, names in WAYS.items():
            calm, busy = (statistics.median(seconds[way, what, state]) for state in (False, True))
            slower = [b / a for a, b in zip(seconds[way, what, False], seconds[way, what, True], strict=True)]
            rows.append({"work": said, "way": names[what], "quiet": calm, "busy": busy, "slower": slower})
    head = ["work", "by", "s alone", "s beside a busy process", "times slower (least to most)"]
    lines = [
        [r["work"], r["way"], r["quiet"], r["busy"],
         f"{statistics.median(r['slower']):.2f} ({min(r['slower']):.2f} to {max(r['slower']):.2f})"] for r in rows
    ]  # fmt: skip
    print(markdown(head, lines))
    write_report(args.output, {"rows": rows})


def measure(way: str, what: str, args: argparse.Namespace) -> float:
    """Median wall seconds of a call in a fresh process, whose threads are set as such a program sets them."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, __file__, "--worker", way, what, "--model", args.model]
    command += ["--threads", args.threads, "--calls", args.calls]
    done = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def work(way: str, what: str, args: argparse.Namespace) -> None:
    if way == "ours":
        prepare_threads(args.threads)
    else:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    call = {"draw": drawing, "train": training}[what](way, args)
    call()
    seconds = []
    for _ in range(args.calls):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    print(json.dumps(statistics.median(seconds)))


def drawing(way: str, args: argparse.Namespace):
    options = {"num_inference_steps": 10, "guidance_scale": 3.0}
    if way == "ours":
        from ldm.pipelines.loading import load_pipeline

        pipeline = load_pipeline(args.model)
        return lambda: pipeline("horizontal stacked glyph", seed=0, **options)
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(args.model)
    stock.set_progress_bar_config(disable=True)
    return lambda: stock("horizontal stacked glyph", **options)


def training(way: str, args: argparse.Namespace):
    """The model's U-Net, its forward and backward pass and AdamW: the same work on both sides, in fp32."""
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(args.model / "unet", torch_dtype=torch.float32).train()
    if way == "ours":
        from ldm.models.unet import choose_attention

        choose_attention(unet, "auto", torch.device("cpu"), half=False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=way == "ours")
    x, states = torch.randn(16, 4, 16, 16), torch.randn(16, 32, unet.config.cross_attention_dim)

    def step() -> None:
        unet(x, torch.full((16,), 500.0), states).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    run_main(main)
