"""The model card: README.md of an exported folder, from what the run recorded about itself."""

import json
from pathlib import Path
from typing import Any

from ldm.model_folder import read_json, read_yaml

TEMPLATE = Path(__file__).with_name("card.md.j2")
PARTS = {"vae": "vae", "text_encoder": "clip"}  # component -> the part whose run made it


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
        picture=next((path.name for path in sorted(folder.glob("*.png"))), None),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def training_facts(run: Path) -> dict[str, Any]:
    """What an LDM run recorded about itself, for ldm.json and the card; {} for a folder that is no run."""
    settings = read_yaml(run / "config.yaml")
    if not settings:
        return {}
    runs = {part: path for part, path in _part_runs(run).items() if path is not None} | {"ldm": run}
    return {
        "data": _public_source(settings.get("data", {}).get("source")),
        "prompts": settings.get("sampling", {}).get("prompts", [])[:3],
        "runs": {part: _trained(path) for part, path in runs.items()},
        "config": _public(settings),
    }


def rows(metrics: dict[str, Any]) -> dict[str, str]:
    """The card's table, name -> text, of the metrics' "summary" (or of all of them, when there is none).

    A metric is a number, or {"share": s, "interval": [low, high], "n": n}; anything else is left out.
    """
    table = {}
    for name, value in metrics.get("summary", metrics).items():
        if isinstance(value, dict) and "share" in value and len(value.get("interval", [])) == 2:
            low, high = value["interval"]
            table[name] = f"{value['share']:.1%} (95% interval {low:.1%} to {high:.1%}, n = {value.get('n', '?')})"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            table[name] = f"{value:.4g}"
    return table


def _part_runs(run: Path) -> dict[str, Path | None]:
    """The runs of the other parts, found from the component folders in parts.json (.../final/vae -> the run)."""
    recorded = read_json(run / "parts.json") if (run / "parts.json").is_file() else {}
    found: dict[str, Path | None] = {}
    for component, part in PARTS.items():
        place = Path(str(recorded.get(component, "")))
        places = [base / step for base in (place, run / place) for step in (".", "..", "../..")]
        found[part] = next(
            (p.resolve() for p in places if recorded.get(component) and (p / "config.yaml").is_file()), None
        )
    return found


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

    kept = {key: value for key, value in settings.items() if key not in ("output_dir", "vae")}
    if "data" in kept:
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "cache_dir"}
        kept["data"]["source"] = _public_source(kept["data"].get("source"))
    if str(kept.get("text", {}).get("source", "")).startswith(("/", "~", ".")):
        kept["text"] = {**kept["text"], "source": Path(kept["text"]["source"]).name}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).strip()


def _public_source(source: object) -> str | None:
    """A data set's name; of a local path only its last part."""
    if not isinstance(source, str):
        return None
    return Path(source).name if source.startswith(("/", "~", ".")) else source
