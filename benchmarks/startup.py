"""What a user waits for before the first picture: whole programs, each in a fresh process, by turns.

    python benchmarks/startup.py -o runs/benchmarks/startup.json

Imports, `ldm --help`, and one picture from a cold start, beside a script that draws the same picture with stock
diffusers. That the two pictures are the same is looked at first.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from protocol import markdown, paired_ratio, process_rounds, ratio_text, summary, write_report

from ldm.utils.runtime import run_main

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "horizontal stacked glyph"
STOCK = """
import sys
import torch
from diffusers import StableDiffusionPipeline
folder, out = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder)
noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
pipeline("{prompt}", latents=noise, num_inference_steps={steps}, guidance_scale=3.0).images[0].save(out)
"""
PYTHON = """
import sys
from ldm import load_pipeline
folder, out = sys.argv[1:]
load_pipeline(folder)("{prompt}", seed=0, num_inference_steps={steps}, guidance_scale=3.0).images[0].save(out)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "glyphs")
    parser.add_argument("--fast", type=Path, default=ROOT / "models" / "glyphs-fast", help="a student of few steps")
    parser.add_argument("--steps", type=int, default=20, help="of the same picture")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks/startup.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = {"imports": imports(args), "picture": pictures(args, Path(folder))}
    write_report(args.output, report)


def imports(args: argparse.Namespace) -> list[dict]:
    statements = {
        "from diffusers import StableDiffusionPipeline": "from diffusers import StableDiffusionPipeline",
        "from ldm import load_pipeline": "from ldm import load_pipeline",
        "import ldm": "import ldm, sys; assert 'torch' not in sys.modules",
    }
    commands: dict = {name: [sys.executable, "-c", code] for name, code in statements.items()}
    commands["ldm --help"] = [Path(sys.executable).parent / "ldm", "--help"]
    return table("Imports", commands, args.rounds)


def pictures(args: argparse.Namespace, folder: Path) -> list[dict]:
    drawn = {name: folder / f"{name}.png" for name in ("stock", "python", "shell", "own", "fast")}
    python = [sys.executable, "-c"]
    shell = [Path(sys.executable).parent / "ldm", "generate", PROMPT, "--seed", "0"]
    same = ["--steps", str(args.steps), "--guidance", "3"]
    commands: dict = {
        f"stock script, {args.steps} steps": [
            *python, STOCK.format(prompt=PROMPT, steps=args.steps), args.model, drawn["stock"]
        ],
        f"load_pipeline, {args.steps} steps": [
            *python, PYTHON.format(prompt=PROMPT, steps=args.steps), args.model, drawn["python"]
        ],
        f"ldm generate, {args.steps} steps": [*shell, "-m", args.model, *same, "-o", drawn["shell"]],
        "ldm generate, as it comes": [*shell, "-m", args.model, "-o", drawn["own"]],
    }  # fmt: skip
    if args.fast.is_dir():
        commands["ldm generate, the student of few steps"] = [*shell, "-m", args.fast, "-o", drawn["fast"]]
    rows = table("One picture from a cold start", commands, args.rounds)
    stock, *ours = (np.asarray(Image.open(drawn[name])).astype(int) for name in ("stock", "python", "shell"))
    gap = max(abs((stock[..., 0] if stock.ndim == 3 else stock) - one).max() for one in ours)
    print(f"largest difference between the first three pictures: {gap} of 255\n")
    return [*rows, {"difference": int(gap)}]


def table(title: str, commands: dict, count: int) -> list[dict]:
    """Every command's wall and CPU seconds and memory, and how many times less than the first one's they are."""
    found = process_rounds(commands, count)
    first = found[next(iter(commands))]
    rows = []
    for name, costs in found.items():
        row: dict = {"name": name, "rss_mb": max(cost.max_rss_mb for cost in costs)}
        row["memory"] = row["rss_mb"] / max(cost.max_rss_mb for cost in first)
        for kind in ("wall", "cpu"):
            values = [getattr(cost, kind) for cost in costs]
            row[kind] = summary(values) | {"ratio": paired_ratio([getattr(cost, kind) for cost in first], values)}
        rows.append(row)
    head = [title, "wall s", "times less", "CPU s", "times less", "memory MB", "share"]
    lines = [
        [
            r["name"],
            *(c for k in ("wall", "cpu") for c in (r[k]["median"], ratio_text(r[k]["ratio"]))),
            r["rss_mb"],
            r["memory"],
        ]
        for r in rows
    ]
    print(markdown(head, lines), flush=True)
    return rows


if __name__ == "__main__":
    run_main(main)
