"""How text should enter the denoiser: the three ways, on coloured digits, with everything else equal.

    python benchmarks/conditioning.py --steps 1500 -o runs/conditioning

Each row is one `train_ldm.py configs/digits.yaml` with the text encoder and the autoencoder of runs/digits, the same
seed, batches and number of steps, and then one `ldm evaluate`. A finished row is kept, so the command can be repeated.
The rows differ a little in parameters and speed, which the table shows. One seed: small differences mean nothing.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
ROWS = {
    "cross-attention": ["--model.conditioning", "cross_attention", "--model.pooled_text", "false"],
    "cross-attention and modulation": ["--model.conditioning", "cross_attention", "--model.pooled_text", "true"],
    "modulation": ["--model.conditioning", "modulation"],
    "concatenation": ["--model.conditioning", "concatenation"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "digits.yaml")
    parser.add_argument("--parts", type=Path, default=Path("runs/digits"), help="finished clip and vae runs lie here")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/conditioning"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=32, help="pictures for each held-out pair")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows = [measure(name, args) for name in ROWS]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "conditioning.json").write_text(json.dumps(rows, indent=1) + "\n")
    table = markdown(rows)
    (args.output / "conditioning.md").write_text(table)
    print(table)


def measure(name: str, args: argparse.Namespace) -> dict:
    """One row: train and evaluate unless that is done, and say what it cost."""
    run = args.output / name.replace(" ", "-")
    kept = run / "row.json"
    if not kept.exists():
        train(run, ROWS[name], args)
        command = [sys.executable, "-m", "ldm", "evaluate", run, "-o", run / "report", "--samples", args.samples]
        subprocess.run([str(word) for word in command], check=True)
        sections = json.loads((run / "report" / "metrics.json").read_text())["sections"]
        row = {"name": name, "parameters": parameters(run), "steps": args.steps}
        kept.write_text(json.dumps(row | {"sections": sections}, indent=1))
    return json.loads(kept.read_text()) | {"pictures_per_second": speed(run)}


def train(run: Path, options: list[str], args: argparse.Namespace) -> None:
    """The whole command; nothing is reported on the way."""
    command = [sys.executable, ROOT / "train_ldm.py", args.config, "--output-dir", run, *options]
    command += ["--vae", args.parts / "vae", "--text.source", args.parts / "clip", "--train.num_steps", args.steps]
    command += ["--train.threads", args.threads, "--train.sample_every", 0]
    subprocess.run([str(word) for word in command], check=True)


def speed(run: Path) -> float:
    """The median over the training; other programs on the machine slow it down, so compare it with care."""
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return statistics.median(row["images_per_second"] for row in rows if "images_per_second" in row)


def parameters(run: Path) -> int:
    """Of the denoiser."""
    with safe_open(run / "final" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())


def markdown(rows: list[dict]) -> str:
    """The table: what a row cost, and how often its pictures are what was asked for, with 95% intervals."""
    columns = {
        "digit": ("seen", "digit"),
        "colour": ("seen", "ink"),
        "both, pairs never seen": ("heldout", "both"),
        "thickness": ("seen_described", "thickness"),
        "slant": ("seen_described", "slant"),
    }
    head = ["text enters by", "parameters", "pictures/s", *columns]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in rows:
        cost = [f"{row['parameters'] / 1e6:.2f} M", f"{row['pictures_per_second']:.0f}"]
        shares = [share(row["sections"][section][part]) for section, part in columns.values()]
        lines.append(f"| {' | '.join([row['name'], *cost, *shares])} |")
    return "\n".join(lines) + "\n"


def share(found: dict) -> str:
    low, high = found["interval"]
    return f"{found['share']:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
