"""What each ingredient of a project is worth: named arms, trained alike and evaluated alike, over several seeds.

    python benchmarks/ablations.py benchmarks/ablations-glyphs.yaml --dry-run      the commands, and about how long
    python benchmarks/ablations.py benchmarks/ablations-glyphs.yaml                everything; finished parts are kept
    python benchmarks/ablations.py benchmarks/ablations-glyphs.yaml base captions --seeds 0
    python benchmarks/ablations.py benchmarks/ablations-glyphs.yaml --table        the table of what is finished

The file of arms:

    config: ../configs/glyphs-cpu.yaml       a project file, from where this file is
    stages: [clip, ldm]                      what is trained for every arm and seed, in this order
    once: [vae]                              what is trained for a seed alone, with the settings in `common`
    common: {train.num_steps: 500}           settings of all arms
    evaluate: [--sections, pair, later]      options of `ldm evaluate` of the last stage
    columns: {radical: summary.pair_radical} what the table shows of metrics.json: a number, {value} or {share}
    arms:
      base: {}
      more: {from: base, data.glyphs.recombined: 4000, ldm.text.train: true}

A setting is one of every stage, or of the one that it names first. `from` takes over the settings of another arm, and
`{shared}` in a value is the folder of the stages that are trained once. All arms of a seed see the same number of
images in the same order with the same network, so they have the same compute but for what an arm itself adds; the
minutes that each took stand in the table. Whatever was stopped resumes, and what is finished is not done again.

Intervals are 95%, over seeds by Student's t; with one seed they are that of the report. The difference to the first
arm is between equal seeds.
"""

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol import markdown, write_report

from ldm.utils.errors import UserError
from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("clip", "vae", "ldm")
KEYS = {"config", "stages", "once", "common", "evaluate", "columns", "arms"}
EVALUATION = "evaluation"
QUANTILES = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # of Student's t at 97.5%, by the number of seeds


@dataclass(frozen=True)
class Step:
    """One command, and the file or folder that is there once it is done."""

    name: str  # 'ARM seed N STAGE'
    command: list[str]
    done: Path


class Plan:
    """The file of arms and where their runs lie. Raises: UserError: it is not as the module's docstring says."""

    def __init__(self, path: Path, output: Path):
        from ldm.utils.untrusted_files import read_yaml

        content = read_yaml(path)
        if unknown := content.keys() - KEYS:
            raise UserError(f"{path}: unknown {', '.join(sorted(unknown))}; it may have {', '.join(sorted(KEYS))}")
        for name in ("config", "arms", "columns"):
            if not content.get(name):
                raise UserError(f"{path} has no {name}: see the start of benchmarks/ablations.py")
        self.path, self.output = path, output
        self.config = (path.parent / content["config"]).resolve()
        self.stages, self.once = list(content.get("stages", ["ldm"])), list(content.get("once", []))
        if wrong := [stage for stage in self.stages + self.once if stage not in STAGES]:
            raise UserError(f"{path}: stages are {', '.join(STAGES)}, got {', '.join(map(str, wrong))}")
        self.common: dict[str, Any] = content.get("common", {})
        self.evaluate = [str(word) for word in content.get("evaluate", [])]
        self.columns: dict[str, str] = content["columns"]
        self.given: dict[str, dict] = {name: dict(arm or {}) for name, arm in content["arms"].items()}

    def settings(self, arm: str) -> dict[str, Any]:
        """All that an arm sets, by dotted name. Raises: UserError: it takes over from an arm that is not above it."""
        own = dict(self.given[arm])
        begin = own.pop("from", None)
        above = list(self.given)[: list(self.given).index(arm)]
        if begin is not None and begin not in above:
            raise UserError(f"{self.path}: {arm} takes over from {begin}, which is none of the arms above it")
        return (self.settings(begin) if begin else dict(self.common)) | own

    def folder(self, arm: str, seed: int) -> Path:
        return self.output / re.sub(r"[^\w.]+", "-", arm) / f"seed-{seed}"

    def shared(self, seed: int) -> Path:
        """Where the stages lie that are trained once."""
        return self.output / "once" / f"seed-{seed}"

    def steps(self, arm: str, seed: int) -> list[Step]:
        """The commands of an arm, in order; those that are done once come first."""
        folder, shared = self.folder(arm, seed), self.shared(seed)
        steps = [self._training("once", stage, shared, seed, dict(self.common)) for stage in self.once]
        settings = self.settings(arm)
        if "vae" in self.once:
            settings = {"ldm.vae": str(shared / "vae"), **settings}
        if "clip" in self.once:
            settings = {"ldm.text.source": str(shared / "clip"), **settings}
        steps += [self._training(arm, stage, folder, seed, settings) for stage in self.stages]
        report = folder / EVALUATION
        command = [sys.executable, "-m", "ldm", "evaluate", str(folder / self.stages[-1]), "-o", str(report)]
        name = f"{arm} seed {seed} {EVALUATION}"
        return [*steps, Step(name, [*command, *self.evaluate], report / "metrics.json")]

    def _training(self, arm: str, stage: str, folder: Path, seed: int, settings: dict[str, Any]) -> Step:
        run = folder / stage
        words = overrides(settings, stage, self.shared(seed))
        command = [sys.executable, str(ROOT / f"train_{stage}.py"), str(self.config), "--output-dir", str(run)]
        return Step(f"{arm} seed {seed} {stage}", [*command, "--seed", str(seed), *words], run / "final")


def overrides(settings: dict[str, Any], stage: str, shared: Path) -> list[str]:
    """Command-line options of one stage: its own settings without their first name, and those of all stages."""
    words: list[str] = []
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        if first in STAGES and first != stage:
            continue
        values = value if isinstance(value, list) else [value]
        said = [str(v).lower() if isinstance(v, bool) else str(v).replace("{shared}", str(shared)) for v in values]
        words += [f"--{rest if first == stage else name}", *said]
    return words


# ---- what it does ---------------------------------------------------------------------------------------------------


def run(step: Step, folder: Path) -> None:
    """Do what is not done, and add the seconds that it took to times.json. Raises: UserError: the command failed."""
    if step.done.exists():
        return
    print(f"== {step.name}\n{shlex.join(step.command)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    code = subprocess.run(step.command, cwd=ROOT).returncode
    path = folder / "times.json"
    times = json.loads(path.read_text()) if path.exists() else {}
    times[step.name] = times.get(step.name, 0.0) + time.monotonic() - started
    path.write_text(json.dumps(times, indent=1))
    if code or not step.done.exists():
        raise UserError(f"{step.name} ended with code {code}; start the same command again: it resumes")


def dry_run(plan: Plan, arms: list[str], seeds: list[int]) -> None:
    """Print the commands that are left, what they are given checked, and about how long the training takes."""
    from ldm.config.overrides import parse

    todo = {step.name: step for seed in seeds for arm in arms for step in plan.steps(arm, seed)}
    seconds, images = 0.0, 0
    speeds: dict[str, float] = {}
    for step in todo.values():
        left = not step.done.exists()
        print(f"{'' if left else '# finished: '}{shlex.join(step.command)}")
        stage = step.name.rpartition(" ")[2]
        if stage == EVALUATION:
            continue
        settings, _ = parse(stage, step.command[2:])  # refuses what is no setting
        train = settings.train
        if left:
            if stage not in speeds:
                speeds[stage] = measured_speed(stage, settings, plan.config)
            seconds += train.num_steps * train.batch_size / speeds[stage]
            images += train.num_steps * train.batch_size
    print(f"about {seconds / 60:.0f} minutes for {images:,} images here, without data, samples and evaluation")


def measured_speed(stage: str, settings, config: Path) -> float:
    """Images a second, measured on one step of the first arm that needs it."""
    from ldm.training.cost_estimate import forecast

    return settings.train.batch_size / forecast(stage, settings, config).step_seconds(settings.train.batch_size)


# ---- the table ------------------------------------------------------------------------------------------------------


def looked_up(metrics: dict, path: str) -> tuple[float, list[float]] | None:
    """A number of a report and its interval, by dotted names; None where it is not there."""
    found: Any = metrics
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, dict):
        value = found.get("value", found.get("share"))
        return None if value is None else (float(value), found.get("interval", []))
    return (float(found), []) if isinstance(found, int | float) else None


def rows(plan: Plan, arms: list[str], seeds: list[int]) -> dict[str, dict[int, dict]]:
    """Arm -> seed -> {column: (value, interval)} and its minutes, of what is evaluated."""
    found: dict[str, dict[int, dict]] = {}
    for arm in arms:
        for seed in seeds:
            folder = plan.folder(arm, seed)
            if not (folder / EVALUATION / "metrics.json").exists():
                continue
            metrics = json.loads((folder / EVALUATION / "metrics.json").read_text(encoding="utf-8"))
            values: dict[str, Any] = {name: looked_up(metrics, path) for name, path in plan.columns.items()}
            times = json.loads((folder / "times.json").read_text()) if (folder / "times.json").exists() else {}
            trained = sum(value for name, value in times.items() if not name.endswith(EVALUATION))
            found.setdefault(arm, {})[seed] = values | {"minutes": trained / 60}
    return found


def spread(values: list[float]) -> str:
    """'0.52 ± 0.03', mean and half of the interval over seeds; of one value that value."""
    mean, n = statistics.mean(values), len(values)
    if n == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {QUANTILES.get(n, 2.6) * statistics.stdev(values) / n**0.5:.2g}"


def minutes(of_seeds: dict[int, dict]) -> str:
    return f"{statistics.mean(row['minutes'] for row in of_seeds.values()):.1f}"


def cell(of_seeds: dict[int, dict], base: dict[int, dict], column: str) -> str:
    """An arm's number, with its interval, and the difference to the first arm's in the same seeds."""
    found = {seed: row[column] for seed, row in of_seeds.items() if row[column] is not None}
    if not found:
        return "-"
    text = spread([value for value, _ in found.values()])
    intervals = [interval for _, interval in found.values()]
    if len(found) == 1 and intervals[0]:
        text += f" ({intervals[0][0]:.3g} to {intervals[0][1]:.3g})"
    both = [seed for seed in found if of_seeds is not base and base.get(seed, {}).get(column) is not None]
    differences = [found[seed][0] - base[seed][column][0] for seed in both]
    return f"{text}; {'+' if statistics.mean(differences) >= 0 else ''}{spread(differences)}" if differences else text


def report(plan: Plan, arms: list[str], seeds: list[int]) -> str:
    """The table of what is finished, printed and written beside the runs."""
    found = rows(plan, arms, seeds)
    base = found.get(next(iter(plan.given)), {})
    lines = [
        [arm, len(each), *(cell(each, base, name) for name in plan.columns), minutes(each)]
        for arm, each in found.items()
    ]
    table = markdown(["arm", "seeds", *plan.columns, "minutes"], lines)
    print(table)
    plan.output.mkdir(parents=True, exist_ok=True)
    (plan.output / "ablations.md").write_text(table)
    arms_as_given = {arm: plan.settings(arm) for arm in found}
    write_report(plan.output / "ablations.json", {"config": str(plan.config), "arms": arms_as_given, "rows": found})
    return table


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="YAML file of the arms")
    parser.add_argument("arms", nargs="*", help="some of them (default: all)")
    parser.add_argument("-o", "--output", type=Path, help="where everything is kept (default: runs/NAME of the file)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dry-run", action="store_true", help="print the commands and about how long they take")
    parser.add_argument("--table", action="store_true", help="only gather and print what is finished")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    prepare_threads(0)
    patch_torchvision()
    output = (args.output or ROOT / "runs" / args.file.stem).resolve()
    plan = Plan(args.file, output)
    arms = args.arms or list(plan.given)
    if unknown := [arm for arm in arms if arm not in plan.given]:
        raise UserError(f"arms must be of {', '.join(plan.given)}, got {', '.join(unknown)}")
    if args.dry_run:
        dry_run(plan, arms, args.seeds)
        return
    if not args.table:
        for seed in args.seeds:
            for arm in arms:
                for step in plan.steps(arm, seed):
                    run(step, plan.folder(arm, seed))
    report(plan, arms, args.seeds)


if __name__ == "__main__":
    run_main(main)
