"""How text should enter the denoiser: the three ways, on coloured digits, with everything else equal.

    python benchmarks/conditioning.py --steps 1500 -o runs/conditioning

Each row is one `train_ldm.py configs/digits.yaml` with the text encoder and the autoencoder of runs/digits, the same
seed, batches and number of steps, and then one `ldm evaluate`. A finished row is kept, so the command can be repeated.
The rows differ a little in parameters and speed, which the table shows. One seed: small differences mean nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

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
    parser.add_argument("--samples", type=int, default=8, help="pictures for each pair of digit and colour")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows = [measure(name, args) for name in ROWS]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "conditioning.json").write_text(json.dumps(rows, indent=1) + "\n")
    table = markdown(rows)
    (args.output / "conditioning.md").write_text(table)
    print(table)


def measure(name: str, args: argparse.Namespace) -> dict:
    """One row: train unless it is finished, evaluate, and say what it cost."""
    run = args.output / name.replace(" ", "-")
    seconds = train(run, ROWS[name], args) if not (run / "row.json").exists() else 0.0
    if not (run / "row.json").exists():
        report = run / "report"
        command = [sys.executable, "-m", "ldm", "evaluate", run, "-o", report, "--samples", args.samples]
        subprocess.run([str(word) for word in command], check=True)
        summary = json.loads((report / "metrics.json").read_text())
        row = {"name": name, "parameters": parameters(run), "seconds": round(seconds), "steps": args.steps}
        (run / "row.json").write_text(json.dumps(row | {"metrics": summary}, indent=1))
    return json.loads((run / "row.json").read_text())


def train(run: Path, options: list[str], args: argparse.Namespace) -> float:
    """Seconds of the whole command; nothing is reported on the way."""
    command = [sys.executable, ROOT / "train_ldm.py", args.config, "--output-dir", run, *options]
    command += ["--vae", args.parts / "vae", "--text.source", args.parts / "clip", "--train.num_steps", args.steps]
    command += ["--train.threads", args.threads, "--train.sample_every", 0]
    started = time.perf_counter()
    subprocess.run([str(word) for word in command], check=True)
    return time.perf_counter() - started


def parameters(run: Path) -> int:
    from safetensors import safe_open

    with safe_open(run / "final" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]
    total = 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


def markdown(rows: list[dict]) -> str:
    raise NotImplementedError


if __name__ == "__main__":
    main()
