"""The model card: README.md of an exported folder, from what the run recorded about itself."""

import copy
import json
from pathlib import Path
from typing import Any

from ldm.model_folder import read_json, read_yaml

TEMPLATE = Path(__file__).with_name("card.md.j2")


def write_card(folder: Path, metrics: dict[str, Any] | None = None) -> None:
    """Write README.md into the exported `folder`, from its components, its ldm.json and `metrics` (see `rows`)."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    model = read_json(folder / "ldm.json")
    text = template.render(
        model=model,
        training=model.get("training", {}),
        scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
        sizes={name: _parameters(folder / name) for name in ("text_encoder", "vae", "unet")},
        context=read_json(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length"),
        metrics=rows(metrics or {}),
        index=model_index(model.get("name", folder.name), model.get("training", {}).get("data"), metrics or {}),
        picture=next((path.name for path in sorted(folder.glob("*.png"))), None),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def training_facts(run: Path) -> dict[str, Any]:
    """What an LDM run recorded about itself, for ldm.json and the card; {} for a folder that is no run."""
    settings = read_yaml(run / "config.yaml")
    if not settings:
        return {}
    own = settings.get("ldm", {})
    facts = {
        "data": _public_source(settings.get("data", {}).get("source")),
        "prompts": own.get("sampling", {}).get("prompts", [])[:3],
        "runs": {part: _trained(path) for part, path in _part_runs(run, own).items()},
        "config": _public(settings),
    }
    student = own.get("distill", {})
    if not student.get("teacher"):
        return facts
    before = _runs_of(Path(student["teacher"]))
    before = {"teacher" if part == "ldm" else part: one for part, one in before.items()}
    told = {name: student.get(name) for name in ("steps", "guidance_scale")}
    return facts | {
        "runs": before | facts["runs"],
        "student": told | {"teacher": _public_source(student["teacher"])},
    }


def _runs_of(model: Path) -> dict[str, Any]:
    """The runs that made a model, an exported folder or itself a run, as far as it still says."""
    if (model / "ldm.json").is_file():
        return read_json(model / "ldm.json").get("training", {}).get("runs", {})
    return training_facts(model).get("runs", {}) if (model / "config.yaml").is_file() else {}


def rows(metrics: dict[str, Any]) -> dict[str, str]:
    """The card's table, name -> text, of the metrics' "summary" (or of all of them, when there is none).

    A metric is a number, or {"share" or "value": x, "interval": [low, high]} and perhaps "n", "ceiling" and "floor", or
    within a summary a dict of metrics; anything else is left out.
    """
    return {name: text for name, metric in _metrics(metrics).items() if (text := _as_text(metric))}


def model_index(name: str, data: str | None, metrics: dict[str, Any]) -> str:
    """The same numbers as the Hub reads them: the "model-index" of the card's YAML header; "" where there are none."""
    import yaml
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=data or "unknown",
            dataset_name=data or "unknown",
            dataset_split="test",
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=round(_value(number), 4),
            metric_args={"interval": number["interval"]} if isinstance(number, dict) else None,
        )
        for metric, number in _metrics(metrics).items()
        if _as_text(number)
    ]
    if not results:
        return ""
    index = eval_results_to_model_index(name, results)
    return yaml.safe_dump({"model-index": index}, sort_keys=False).strip()


def _metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers that are quoted, by name; {"kid": {"OCR": 1}} is "kid_OCR"."""
    if "summary" not in metrics:
        return metrics
    flat: dict[str, Any] = {}
    for name, value in metrics["summary"].items():
        parts = value if isinstance(value, dict) and "interval" not in value else {"": value}
        flat |= {f"{name}_{part}".strip("_"): number for part, number in parts.items()}
    return flat


def _value(metric) -> Any:
    return metric.get("share", metric.get("value")) if isinstance(metric, dict) and "interval" in metric else metric


def _as_text(metric) -> str:
    """'95.3% (95% interval 91.0% to 98.0%, n = 128)'; "" for what is no metric."""
    value = _value(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if not isinstance(metric, dict):
        return f"{value:.4g}"
    (low, high), more = metric["interval"], []
    form = "{:.1%}" if 0 <= low <= high <= 1 else "{:.3g}"
    if metric.get("n"):
        more.append(f"n = {metric['n']}")
    more += [f"{name} {form.format(metric[name])}" for name in ("ceiling", "floor") if metric.get(name) is not None]
    interval = f"95% interval {form.format(low)} to {form.format(high)}"
    return f"{form.format(value)} ({', '.join([interval, *more])})"


def _part_runs(run: Path, settings: dict) -> dict[str, Path]:
    """Part -> the run that made it, in the order of training: the runs beside this one, or those it was pointed to."""
    named = {"clip": settings.get("text", {}).get("source", "run"), "vae": settings.get("vae", "run")}
    runs = {part: run.parent / part if name == "run" else Path(name) for part, name in named.items()} | {"ldm": run}
    return {part: path for part, path in runs.items() if (path / "config.yaml").is_file()}


def _trained(run: Path) -> dict[str, Any]:
    """Steps, batch, minutes and hardware of one run, as far as it kept them."""
    settings = read_yaml(run / "config.yaml")
    versions = read_json(run / "versions.json") if (run / "versions.json").is_file() else {}
    train, log = settings.get("train", {}), _log(run / "log.jsonl")
    return {
        "steps": max((row["step"] for row in log if "step" in row), default=train.get("num_steps")),
        "batch_size": train.get("batch_size"),
        "minutes": _minutes(log, train.get("batch_size", 0)),
        "hardware": versions.get("hardware"),
        "versions": {name: versions[name] for name in ("torch", "diffusers", "transformers") if name in versions},
    }


def _minutes(log: list[dict], batch_size: int) -> float | None:
    """Time spent in training steps: the images between two lines, over the speed that was measured there."""
    seconds, last = 0.0, 0
    for row in log:
        if row.get("images_per_second") and row.get("step", 0) > last:
            seconds += (row["step"] - last) * batch_size / row["images_per_second"]
            last = row["step"]
    return round(seconds / 60, 1) if seconds else None


def _log(path: Path) -> list[dict]:
    """The rows of a log, without a last line that was cut off."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def _parameters(component: Path) -> int:
    """Number of weights in a component, from the headers of its safetensors files."""
    from safetensors import safe_open

    total = 0
    for file in component.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():
                size = 1
                for length in weights.get_slice(key).get_shape():
                    size *= length
                total += size
    return total


def _public(settings: dict) -> str:
    """The run's settings as YAML, without the places on the machine that trained it."""
    import yaml

    kept = copy.deepcopy(settings)
    kept.pop("output_dir", None)
    kept.get("data", {}).pop("cache_dir", None)
    for block, key in (
        (kept.get("data"), "source"),
        (kept.get("ldm"), "vae"),
        (kept.get("ldm", {}).get("text"), "source"),
        (kept.get("ldm", {}).get("distill"), "teacher"),
        (kept.get("ldm", {}).get("start"), "model"),
    ):
        if block and key in block:
            block[key] = _public_source(block[key])
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).strip()


def _public_source(source: object) -> str | None:
    """A data set's name; of a local path only its last part."""
    if not isinstance(source, str):
        return None
    return Path(source).name if source.startswith(("/", "~", ".")) else source
