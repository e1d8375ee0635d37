"""The model card: README.md of an exported folder, from what the run recorded about itself."""

import json
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.model_folder import read_json, read_yaml

TEMPLATE = Path(__file__).with_name("card.md.j2")
PARTS = {"vae": "vae", "text_encoder": "clip"}  # component -> the part whose run made it


def write_card(folder: Path, run: Path, metrics: Path | None = None) -> None:
    """Write README.md into the exported `folder`.

    Args:
        folder: with model_index.json and ldm.json.
        run: the LDM run it came from; its config.yaml, versions.json, log.jsonl, parts.json and metrics.json are read
            where they are there.
        metrics: JSON file with {name: number or {value, low, high}}, instead of the run's metrics.json.
    """
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(**facts(folder, run, metrics))
    (folder / "README.md").write_text(text, encoding="utf-8")


def facts(folder: Path, run: Path, metrics: Path | None = None) -> dict[str, Any]:
    """Everything the template may say; absent facts are None or empty."""
    settings = read_yaml(run / "config.yaml")
    runs = {"ldm": run} | {part: path for part, path in _part_runs(run).items() if path is not None}
    return {
        "model": read_json(folder / "ldm.json"),
        "scheduler": read_json(folder / "scheduler" / "scheduler_config.json"),
        "sizes": {name: _parameters(folder / name) for name in ("text_encoder", "vae", "unet")},
        "context": read_json(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length"),
        "source": settings.get("data", {}).get("source"),
        "prompts": settings.get("sampling", {}).get("prompts", [])[:3],
        "trained": {part: _trained(path) for part, path in runs.items()},
        "config": _public(settings),
        "metrics": _metrics(run, metrics),
        "picture": next((p.name for p in sorted(folder.glob("*.png"))), None),
    }


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
    """Steps, batch, hours and hardware of one run, as far as it kept them."""
    settings = read_yaml(run / "config.yaml")
    versions = read_json(run / "versions.json") if (run / "versions.json").is_file() else {}
    train, rows = settings.get("train", {}), _log(run / "log.jsonl")
    seconds = next((row[key] for row in reversed(rows) for key in ("seconds", "elapsed", "time") if key in row), None)
    return {
        "steps": next((row["step"] for row in reversed(rows) if "step" in row), train.get("num_steps")),
        "batch_size": train.get("batch_size"),
        "minutes": round(seconds / 60, 1) if isinstance(seconds, int | float) and seconds < 1e8 else None,
        "hardware": versions.get("hardware") or versions.get("device"),
        "versions": {name: versions[name] for name in ("torch", "diffusers", "transformers") if name in versions},
    }


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


def _metrics(run: Path, given: Path | None) -> dict[str, Any]:
    if given is not None and not given.is_file():
        raise UserError(f"--metrics {given}: there is no such file")
    path = given or run / "metrics.json"
    return read_json(path) if path.is_file() else {}


def _public(settings: dict) -> str:
    """The run's settings as YAML, without the places on the machine that trained it."""
    import yaml

    kept = {key: value for key, value in settings.items() if key not in ("output_dir", "vae", "report_to")}
    if "data" in kept:
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "cache_dir"}
        if str(kept["data"].get("source", "")).startswith(("/", "~", ".")):
            kept["data"]["source"] = Path(kept["data"]["source"]).name
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).strip() if kept else ""
