"""How fast pictures are drawn: our pipeline beside Stable Diffusion's own over the same folder, in one process.

    python benchmarks/sample.py -o runs/benchmarks/sample.json --plot runs/benchmarks/sample.png

Two tables. **The same pictures**: same weights, noise, scheduler, steps and guidance, so what is compared is how the
arithmetic is done; the largest difference between pixels stands beside each time. **As good pictures**: any number of
steps, any solver, a student of fewer steps, beside 50 first-order steps of the stock pipeline; Frechet and kernel
distance to real glyphs of as many pictures, and the share of pictures with the layout that was asked for, stand beside
each time. Drawn pictures are kept in --work, so an interrupted run goes on; --recipes takes some alone, and
--first-seed other noise, for a recipe that was chosen by its numbers needs new ones.
"""

import argparse
import functools
import operator
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from protocol import ceilings, compared, markdown, quiet, ratio_text, rounds, write_report

from ldm.utils.runtime import prepare_threads, run_main

ROOT = Path(__file__).resolve().parents[1]
PROMPT, GUIDANCE = "horizontal stacked glyph", 3.0
REFERENCE_STEPS = 50


@dataclass(frozen=True)
class Recipe:
    """One way to draw; `sampler` None is the model's own."""

    model: str  # "glyphs" or "glyphs-fast"
    steps: int
    guidance: float = GUIDANCE
    sampler: str | None = None
    interval: tuple[float, float] = (0.0, 1.0)

    @property
    def name(self) -> str:
        guided = "" if self.guidance == 1 else f", guidance {self.guidance:g}"
        times = "" if self.interval == (0.0, 1.0) else f" at times {self.interval[0]:g} to {self.interval[1]:g}"
        return f"{self.model}, {self.sampler or 'own solver'}, {self.steps} steps{guided}{times}"


BASELINE = Recipe("glyphs", REFERENCE_STEPS, sampler="ddim")
RECIPES = (
    *(Recipe("glyphs", steps, sampler="dpmpp_2m") for steps in (20, 10, 6, 4)),
    Recipe("glyphs", 4, guidance=1.0, sampler="dpmpp_2m"),
    Recipe("glyphs", 6, sampler="unipc"),
    *(Recipe("glyphs", steps, sampler="dpmpp_2m", interval=(0.2, 0.8)) for steps in (10, 6)),
    Recipe("glyphs", 5, sampler="unipc", interval=(0.5, 0.9)),
    *(Recipe("glyphs-fast", steps, guidance=1.0) for steps in (4, 2)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="holds glyphs and glyphs-fast")
    parser.add_argument("--only", choices=("same", "matched"), help="one of the two tables")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=10, help="of the same pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=400, help="for the distances; half as many for the layouts")
    parser.add_argument("--first-seed", type=int, default=0, help="of the judged pictures")
    parser.add_argument(
        "--recipes", nargs="+", default=[""], metavar="WORDS", help="those with one of these in their names"
    )
    parser.add_argument("--threads", type=int, default=1, help="1: CPU seconds count; more: wall seconds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/pictures"))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks/sample.json"))
    parser.add_argument("--plot", type=Path, help="PNG of quality against speed")
    args = parser.parse_args()
    prepare_threads(args.threads)
    report: dict[str, Any] = {
        "ceilings": ceilings(args.device),
        "arguments": {k: str(v) for k, v in vars(args).items()} | {"clock": clock(args)},
    }
    for name, table in (("same", same), ("matched", matched)):
        if args.only in (None, name):
            report[name] = table(args)
            write_report(args.output, report)
    if args.plot and "matched" in report:
        plot(report["matched"], args.plot)


def clock(args: argparse.Namespace) -> str:
    return "cpu" if args.device == "cpu" and args.threads == 1 else "wall"


# ---- the same pictures ----------------------------------------------------------------------------------------------


def same(args: argparse.Namespace) -> list[dict]:
    """Stock pipeline, our loop over torch, our loop over ONNX Runtime."""
    stock, ours = load_stock(args), load_ours(args, "glyphs")
    rows = []
    for batch in args.batches:
        noise = standard_noise(ours["torch"], batch)
        options = {"num_inference_steps": args.steps, "guidance_scale": GUIDANCE, "output_type": "np"}
        calls = {"stock": functools.partial(draw_stock, stock, noise, **options)}
        for engine, pipeline in ours.items():
            calls[engine] = functools.partial(draw_ours, pipeline, noise, **options)
        pictures = {name: call() for name, call in calls.items()}
        found = compared(measured(calls, args), "stock", clock(args))
        for name, cost in found.items():
            gap = float(abs(pictures[name] - pictures["stock"]).max() * 255)
            rows.append({"batch": batch, "way": name, "difference": gap} | cost)
    head = ["batch", "drawn by", "s/picture", "times faster (quartiles)", "largest difference of 255"]
    lines = [
        [r["batch"], r["way"], r["seconds"]["median"] / r["batch"], ratio_text(r["ratio"]), r["difference"]]
        for r in rows
    ]
    print(f"The same pictures, {args.steps} steps, guidance {GUIDANCE:g}, {args.threads} thread(s), {clock(args)} s\n")
    print(markdown(head, lines), flush=True)
    return rows


def measured(calls: dict, args: argparse.Namespace) -> dict:
    """Rounds, of several calls each where one is short; with wall seconds only the quiet ones, if there are 3."""
    timings = rounds(calls, args.rounds, warm_up=0)
    if clock(args) == "wall" and args.device == "cpu":
        calm = quiet(timings)
        if len(next(iter(calm.values()))) >= 3:
            return calm
        print("fewer than 3 quiet rounds: other programs disturbed these wall seconds, claim nothing from them")
    return timings


def load_stock(args: argparse.Namespace):
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    stock = StableDiffusionPipeline.from_pretrained(args.models / "glyphs", torch_dtype=getattr(torch, args.dtype))
    stock.set_progress_bar_config(disable=True)
    return stock.to(args.device)


def load_ours(args: argparse.Namespace, model: str) -> dict:
    import torch

    from ldm.pipelines.loading import load_pipeline

    dtype = getattr(torch, args.dtype)
    engines = ("torch", "onnx") if args.device == "cpu" and args.dtype == "float32" else ("torch",)
    return {engine: load_pipeline(args.models / model, args.device, dtype, engine=engine) for engine in engines}


def standard_noise(pipeline, batch: int):
    import torch

    shape = (batch, *pipeline.latent_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(pipeline.device, pipeline.dtype)


def draw_stock(stock, noise, **options) -> np.ndarray:
    return stock([PROMPT] * len(noise), latents=noise, **options).images


def draw_ours(pipeline, noise, **options) -> np.ndarray:
    return pipeline([PROMPT] * len(noise), latents=noise, **options).images


# ---- as good pictures -----------------------------------------------------------------------------------------------


def matched(args: argparse.Namespace) -> list[dict]:
    """Quality and time of every recipe, and how many times faster it is than the baseline in the stock pipeline."""
    from ldm.pipelines.diffusers_schedulers import with_sampler

    known = [r for r in RECIPES if (args.models / r.model).is_dir() and any(words in r.name for words in args.recipes)]
    pipelines = {model: list(load_ours(args, model).values())[-1] for model in {r.model for r in (BASELINE, *known)}}
    judge = Scored(pipelines["glyphs"], args)
    stock = load_stock(args)
    stock.scheduler = with_sampler(stock.scheduler, BASELINE.sampler)
    rows = [
        {"name": f"stock pipeline, ddim, {REFERENCE_STEPS} steps, guidance {GUIDANCE:g}", **judge(BASELINE, pipelines)}
    ]
    rows += [{"name": recipe.name, **judge(recipe, pipelines)} for recipe in known]
    for batch in (1, 16):
        noise = standard_noise(pipelines["glyphs"], batch)
        options = {"num_inference_steps": REFERENCE_STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
        calls = {rows[0]["name"]: functools.partial(draw_stock, stock, noise, **options)}
        calls |= {r.name: functools.partial(draw_recipe, pipelines[r.model], r, noise) for r in known}
        found = compared(measured(calls, args), rows[0]["name"], clock(args))
        for row in rows:
            row[f"batch {batch}"] = found[row["name"]] | {"pictures": batch}
    head = [
        "how",
        "FD",
        "KID x 1000",
        "layout right",
        "radical right",
        "s/picture alone",
        "times faster",
        "s/picture of 16",
        "times faster",
    ]
    print(f"\nAs good pictures: {args.pictures} pictures, {args.threads} thread(s), {clock(args)} seconds\n")
    print(markdown(head, [_line(row) for row in rows]), flush=True)
    return rows


def _line(row: dict) -> list:
    cells = [row["name"], row["fd"], f"{row['kid'] * 1e3:.2f} +- {row['kid_error'] * 1e3:.2f}"]
    for part in ("layout", "radical"):
        low, high = row[f"{part}_interval"]
        cells.append(f"{row[part]:.1%} ({low:.1%} to {high:.1%})")
    for batch in (1, 16):
        found = row[f"batch {batch}"]
        cells += [found["seconds"]["median"] / batch, ratio_text(found["ratio"])]
    return cells


def draw_recipe(pipeline, recipe: Recipe, noise) -> np.ndarray:
    return draw_ours(pipeline, noise, **_options(recipe), output_type="np")


def _options(recipe: Recipe) -> dict[str, Any]:
    return {
        "num_inference_steps": recipe.steps,
        "guidance_scale": recipe.guidance,
        "sampler": recipe.sampler,
        "guidance_interval": recipe.interval,
    }


class Scored:
    """Draws a recipe's pictures, once and for all, and says how good they are."""

    def __init__(self, pipeline, args: argparse.Namespace):
        from ldm.config.settings import DataOptions
        from ldm.evaluation.glyphs.samples import Reference, glyph_images

        self.args, self.work = args, args.work
        self.reference = Reference(pipeline, DataOptions())
        own = self.reference.own
        self.classifier = self.reference.classifier
        real = np.concatenate([glyph_images(own[name]) for name in ("test", "validation")])
        self.real = self.classifier.embed(real)

    def __call__(self, recipe: Recipe, pipelines: dict) -> dict[str, Any]:
        from ldm.evaluation.glyphs.prompts import glyph_prompts
        from ldm.evaluation.metrics.distribution_distances import frechet_distance, kernel_distance_in_blocks
        from ldm.evaluation.metrics.proportions import wilson_interval

        count = self.args.pictures
        described = glyph_prompts(("character",))[:count]
        layouts = [one for one in glyph_prompts(("layout",)) if one.layout in ("horizontal", "vertical")]
        asked = [layouts[i % len(layouts)] for i in range(count // 2)]
        images = self._kept(recipe, pipelines[recipe.model], [one.prompt for one in (*described, *asked)])
        features = self.classifier.embed(images[: len(described)])
        seen = self.classifier.predict(images)
        wanted = [self.classifier.layout_class(one.layout) for one in asked]
        layouts = sum(map(operator.eq, seen.layouts[len(described) :], wanted))
        radicals = sum(map(operator.eq, seen.radicals.tolist(), [one.radical for one in described]))
        kid, error = kernel_distance_in_blocks(features, self.real)
        return {
            "fd": frechet_distance(features, self.real),
            "kid": kid,
            "kid_error": error,
            "layout": layouts / len(asked),
            "layout_interval": wilson_interval(layouts, len(asked)),
            "radical": radicals / count,
            "radical_interval": wilson_interval(radicals, count),
        }

    def _kept(self, recipe: Recipe, pipeline, prompts: list[str]) -> np.ndarray:
        """Grey pictures uint8 (n, h, w), picture i from seed i; drawn in parts that are kept."""
        first = self.args.first_seed
        name = f"{pipeline.digest}-{recipe.name}{f'-{first}' * bool(first)}"
        folder = self.work / "".join(c if c.isalnum() else "-" for c in name)
        folder.mkdir(parents=True, exist_ok=True)
        parts = []
        for start in range(0, len(prompts), 50):
            path = folder / f"{start:05d}-{len(prompts[start : start + 50])}.npy"
            if not path.exists():
                import torch

                chosen = prompts[start : start + 50]
                noise = [torch.Generator().manual_seed(first + start + i) for i in range(len(chosen))]
                began = time.perf_counter()
                images = pipeline(chosen, generator=noise, **_options(recipe), output_type="np", batch_size=25).images
                np.save(path, (images.mean(axis=3) * 255).round().astype(np.uint8))
                print(f"{recipe.name}: {start + len(chosen)} drawn, {time.perf_counter() - began:.0f} s", flush=True)
            parts.append(np.load(path))
        return np.concatenate(parts)


def plot(rows: list[dict], path: Path) -> None:
    """Distance against pictures per second, the best of them joined."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [(16 / row["batch 16"]["seconds"]["median"], row["fd"], row["name"]) for row in rows]
    front = [p for p in sorted(points) if not any(q[0] >= p[0] and q[1] <= p[1] and q != p for q in points)]
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    axes.plot([p[0] for p in front], [p[1] for p in front], color="0.7", zorder=0)
    for speed, distance, name in points:
        axes.scatter(speed, distance)
        axes.annotate(name, (speed, distance), xytext=(5, 4), textcoords="offset points", fontsize=7)
    axes.set(xscale="log", xlabel="pictures per second, 16 at once", ylabel="Frechet distance to real glyphs")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_main(main)
