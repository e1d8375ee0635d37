"""What each ingredient of the method is worth: one changed at a time, equal CPU seconds, several seeds.

    python benchmarks/ablations.py                        every arm and seed; what is finished is not done again
    python benchmarks/ablations.py base muon --seeds 0    some of them
    python benchmarks/ablations.py --table                the table of what there is, nothing trained

An arm is the base with a few settings changed. How long a step of it takes is measured first, all arms by turns, so
that each gets as many steps as fit into `--seconds`; a faster arm gets more, and learning rates decay to their end. The
U-Net is small and the time short: this ranks beginnings. The arm of alignment first teaches a CLIP for `--clip-steps`;
that time is not counted, for a text encoder is trained anyway.

Columns: the denoising loss of held-out glyphs by the base's measure, where the network predicts the same; the Frechet
distance of pictures for held-out captions to real held-out glyphs, by the features of the glyph classifier; the shares
of pictures with either great layout, asked for by its phrase alone. All of EMA weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from protocol import markdown, write_report

from ldm.utils.errors import UserError
from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision

ROOT = Path(__file__).resolve().parents[1]
BASE: dict = {
    "data": {"glyphs": {"limit": 2000}},
    "model": {"block_out_channels": [32, 64, 128], "norm_num_groups": 16},
    "optim": {"lr": 8e-4, "warmup_steps": 30},
    "train": {"batch_size": 16, "ema_decay": 0.995, "report_to": ["none"], "sample_every": 0, "log_every": 50},
}
COSINE = {"process": "cosine", "prediction_type": "v_prediction", "timesteps": "uniform"}
ARMS: dict[str, dict] = {
    "base": {},  # flow, logit-normal times, AdamW, warm-up, stable, decay
    "muon": {"optim": {"name": "muon"}},
    "muon-half-rate": {"optim": {"name": "muon", "lr": 4e-4}},
    "alignment": {"alignment": {"weight": 0.5}},
    "uniform-times": {"noise": {"timesteps": "uniform"}},
    "epsilon": {"noise": {"process": "scaled_linear", "prediction_type": "epsilon", "timesteps": "uniform"}},
    "v-cosine": {"noise": COSINE},
    "v-cosine-min-snr": {"noise": COSINE | {"weight": "min_snr"}},
    "learned-weight": {"noise": {"weight": "learned"}},
    "no-pooled-text": {"model": {"pooled_text": False}},
    "no-ema": {"train": {"ema_decay": 0.0}},
    "ema-0.98": {"train": {"ema_decay": 0.98}},
    "ema-0.999": {"train": {"ema_decay": 0.999}},
    "cosine-rate": {"optim": {"schedule": "cosine"}},
    "constant-rate": {"optim": {"schedule": "constant"}},
}
LAYOUTS = ("horizontal", "vertical")
ROUNDS = 6  # of timing, the first of which is a warm-up


def settings_of(arm: str, seed: int, args: argparse.Namespace, **train):
    from ldm.config.loading import load

    given = {"vae": str(args.parts), "text": {"source": str(args.parts)}, "seed": seed}
    parts: list[dict] = [BASE, {"data": {"cache_dir": str(args.output / "cache")}}, ARMS[arm], {"train": train}, given]
    if arm == "alignment":
        parts.append({"alignment": {"source": str(args.output / "clip")}})
    merged: dict = {}
    for part in parts:
        for name, value in part.items():
            merged[name] = merged.get(name, {}) | value if isinstance(value, dict) else value
    return load("ldm", args.config, merged)


def trainer_of(arm: str, seed: int, run: Path, args: argparse.Namespace, **train):
    """A trainer that makes no reports: they would cost as much as the training."""
    import torch

    from ldm.data import build
    from ldm.training.tasks.denoising import denoising_task
    from ldm.training.trainer import Trainer

    run.mkdir(parents=True, exist_ok=True)
    settings = settings_of(arm, seed, args, **train)
    task = denoising_task(settings, build(settings.data), run, torch.device("cpu"))
    task.report = lambda folder, label: {}
    return Trainer(task, settings, run)


# ---- stages: each leaves a file and is skipped where that file is --------------------------------------------------


def clip(args: argparse.Namespace) -> None:
    """The image tower for the arm of alignment."""
    if (args.output / "clip" / "final").is_dir():
        return
    command = [sys.executable, ROOT / "train_clip.py", args.config, "--output-dir", args.output / "clip"]
    command += ["--data.cache_dir", args.output / "cache", "--train.num_steps", args.clip_steps]
    command += ["--train.batch_size", 128, "--train.sample_every", 0, "--train.threads", args.threads]
    subprocess.run([str(word) for word in command], check=True)


def step_seconds(arms: list[str], args: argparse.Namespace) -> dict[str, float]:
    """CPU seconds of a training step of each arm, measured by turns once and then kept."""
    path = args.output / "steps.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if missing := [arm for arm in arms if arm not in known]:
        measured = ["base", *(arm for arm in missing if arm != "base")]
        steppers = {arm: stepper(arm, args) for arm in measured}
        times: dict[str, list[float]] = {arm: [] for arm in measured}
        for turn in range(ROUNDS):
            for arm in measured[:: -1 if turn % 2 else 1]:
                started = time.process_time()
                next(steppers[arm])
                times[arm].append(time.process_time() - started)
        ratios = {
            arm: statistics.median(own / base for own, base in zip(times[arm][1:], times["base"][1:], strict=True))
            for arm in measured
        }
        known.setdefault("base", statistics.median(times["base"][1:]))
        if "alignment" in ratios:
            until = settings_of("alignment", 0, args).alignment.until
            ratios["alignment"] = until * ratios["alignment"] + 1 - until
        known |= {arm: ratios[arm] * known["base"] for arm in missing}
        path.write_text(json.dumps(known, indent=1))
    return known


def stepper(arm: str, args: argparse.Namespace):
    """Each `next` takes one step of training, as `Trainer.fit` does."""
    from ldm.training.progress import Meter

    trainer = trainer_of(arm, 0, args.output / "timing" / arm, args, num_steps=1000)
    module, optimizer = trainer.accelerator.prepare(trainer.task.module, trainer.optimizer)
    meter = Meter(trainer.accelerator, trainer.train, lambda entry: None)
    for micros in trainer._steps():
        trainer._step(module, optimizer, micros, meter)
        yield


def measured(arm: str, seed: int, seconds: float, args: argparse.Namespace) -> dict:
    """Train the arm for `args.seconds`, then judge it."""
    from accelerate.state import AcceleratorState

    run = args.output / f"{arm}-{seed}"
    if (run / "row.json").exists():
        return json.loads((run / "row.json").read_text())
    print(f"== {arm}, seed {seed}", flush=True)
    steps = max(1, round(args.seconds / seconds))
    trainer = trainer_of(arm, seed, run, args, num_steps=steps, save_every=10 * steps)
    started = time.process_time()
    trainer.fit()
    row = {"arm": arm, "seed": seed, "steps": steps, "seconds": time.process_time() - started}
    with trainer.ema_weights():
        trainer.task.module.eval()
        row |= {"loss": held_out_loss(trainer.task, settings_of("base", seed, args)), **judged(trainer.task, args)}
    AcceleratorState._reset_state(reset_partial_state=True)
    (run / "row.json").write_text(json.dumps(row, indent=1))
    return row


def held_out_loss(task, base) -> float | None:
    """By the base's times and weights; None where the network predicts something else."""
    import torch

    from ldm.diffusion.process import NoiseProcess

    own = task.settings.noise
    if (own.process, own.prediction_type) != (base.noise.process, base.noise.prediction_type):
        return None
    task.module.process = NoiseProcess(**base.noise.model_dump())
    task.module.uncertainty = None
    with torch.no_grad():
        return task.fixed_losses(task.components.validation)[1].mean().item()


def judged(task, args: argparse.Namespace) -> dict[str, float]:
    """Shares of layouts, and the distance of pictures for held-out captions to held-out glyphs."""
    import numpy as np

    from ldm.data import evenly_spaced_indices
    from ldm.data.glyphs.captions import layout_phrase
    from ldm.evaluation.glyphs.classifier import GlyphClassifier
    from ldm.evaluation.metrics.distribution_distances import frechet_distance, kernel_distance
    from ldm.pipelines.generation import generate_pixels
    from ldm.training.task import SampleRef, caption_of

    classifier, pipeline, data = GlyphClassifier(), task.pipeline(), task.components.validation.data
    chosen = evenly_spaced_indices(len(data), args.pictures).tolist()
    asked = [layout_phrase(layout) for layout in LAYOUTS for _ in range(args.layouts)]
    prompts = asked + [caption_of(data, SampleRef(i, 0), 0) for i in chosen]
    images = generate_pixels(pipeline, prompts, range(2**31, 2**31 + len(prompts)))
    images = images.mean(axis=3).round().astype(np.uint8)
    seen = np.array(classifier.predict(images[: len(asked)]).layouts).reshape(len(LAYOUTS), args.layouts)
    drawn = classifier.embed(images[len(asked) :])
    real = classifier.embed(np.stack([data.image(i)[..., 0] for i in range(len(data))]))
    shares = {layout: float((row == layout).mean()) for layout, row in zip(LAYOUTS, seen, strict=True)}
    return {"fd": frechet_distance(drawn, real), "kid": kernel_distance(drawn, real)} | shares


# ---- the table -----------------------------------------------------------------------------------------------------


def report(arms: list[str], args: argparse.Namespace) -> None:
    """Means over the seeds that are finished, with the range, and the difference to the base's in the same seed."""
    rows = {arm: [row for seed in args.seeds if (row := _finished(arm, seed, args))] for arm in arms}
    base = {row["seed"]: row for row in rows.get("base", [])}
    lines = []
    for arm, found in rows.items():
        if found:
            against = [row["fd"] / base[row["seed"]]["fd"] - 1 for row in found if row["seed"] in base]
            change = f"{statistics.mean(against):+.0%}" if against and arm != "base" else "-"
            shares = [_spread([row[layout] for row in found], ".0%") for layout in LAYOUTS]
            losses = [row["loss"] for row in found if row["loss"] is not None]
            numbers = [_spread(losses, ".4f") if losses else "-", _spread([row["fd"] for row in found], ".0f"), change]
            lines.append([arm, len(found), round(statistics.mean(row["steps"] for row in found)), *numbers, *shares])
    head = ["arm", "seeds", "steps", "held-out loss", "FD", "FD to base", *LAYOUTS]
    table = markdown(head, lines)
    print(table)
    (args.output / "ablations.md").write_text(table)
    write_report(args.output / "ablations.json", {"seconds": args.seconds, "base": BASE, "rows": rows})


def _finished(arm: str, seed: int, args: argparse.Namespace) -> dict | None:
    path = args.output / f"{arm}-{seed}" / "row.json"
    return json.loads(path.read_text()) if path.exists() else None


def _spread(values: list[float], form: str) -> str:
    """'0.52 (0.50 to 0.55)', or the one value there is."""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", help=f"of {', '.join(ARMS)} (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/ablations"), help="where everything is kept")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "glyphs-cpu.yaml")
    parser.add_argument("--parts", type=Path, default=ROOT / "models" / "glyphs", help="autoencoder and text encoder")
    parser.add_argument("--seconds", type=float, default=75, help="CPU seconds of training for each arm and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layouts", type=int, default=32, help="pictures for each layout")
    parser.add_argument("--pictures", type=int, default=128, help="pictures for held-out captions")
    parser.add_argument("--clip-steps", type=int, default=150, help="of 128 pairs, for the tower of alignment")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--table", action="store_true", help="only gather and print what is finished")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    prepare_threads(args.threads)
    patch_torchvision()
    args.output = args.output.resolve()
    arms = args.arms or list(ARMS)
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise UserError(f"arms must be of {', '.join(ARMS)}, got {', '.join(unknown)}")
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.table:
        if "alignment" in arms:
            clip(args)
        seconds = step_seconds(arms, args)
        for seed in args.seeds:
            for arm in arms:
                measured(arm, seed, seconds[arm], args)
    report(arms, args)


if __name__ == "__main__":
    run_main(main)
