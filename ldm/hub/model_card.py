"""The model card: README.md of an exported folder, from what the run recorded about itself."""

import copy
import json
import re
from pathlib import Path
from typing import Any

from ldm.hub.gallery import pictures
from ldm.hub.metrics_in_words import is_metric, numbers, rows, value_of
from ldm.models.latents import is_linear, is_tiny
from ldm.pipelines.model_folder import HUB_ID
from ldm.training.run_directory import CORE_WATTS
from ldm.utils.assets import model_path
from ldm.utils.untrusted_files import count, read_json, read_yaml

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
SUBJECTS = {"glyphs": "invented Chinese characters", "digits": "handwritten digits"}
PLACE = "path/to/this/folder"  # in the card's examples; on the Hub it is the repository's name


def write_card(folder: Path) -> None:
    """Write README.md into the exported `folder`, from all that lies there, metrics.json included."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    model = read_json(folder / "ldm.json")
    training = model.get("training", {})
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    sentences = [*rows(metrics).values()]
    gallery, curves = pictures(folder), (folder / "logs").is_dir()
    text = template.render(
        place=PLACE,
        model=model,
        training=training,
        scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
        sizes={name: count(folder / name) for name in ("text_encoder", "vae", "unet")},
        linear_vae=is_linear(read_json(folder / "vae" / "config.json")),
        tiny_vae=is_tiny(read_json(folder / "vae" / "config.json")),
        variant=any(folder.glob("unet/*.fp16.safetensors")),
        context=read_json(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length"),
        metrics=sentences,
        references=any("real images" in one or "chance" in one for one in sentences),
        notice=(folder / "NOTICE").is_file(),
        subject=subject(model, training),
        prompt=next(iter(training.get("prompts", ())), "a prompt").replace('"', '\\"'),
        header=header(model, metrics, gallery, curves),
        energy={part: energy(run) for part, run in training.get("runs", {}).items()},
        picture=next((path.name for path in sorted(folder.glob("*.png"))), None),
        gallery=gallery,
        curves=curves,
        adapters=(folder / "lora").is_dir(),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def subject(model: dict[str, Any], training: dict[str, Any]) -> str:
    """What the model generates, from which texts: the card's first sentence."""
    kind = "greyscale" if model.get("channels") == 1 else "colour"
    size = model.get("resolution")
    height, width = (size, size) if isinstance(size, int) else size or ("?", "?")
    clear = " with transparency" if model.get("channels") == 4 else ""
    if training.get("data") in SUBJECTS:
        what = f"{SUBJECTS[training['data']]}, in {kind} images{clear} of {width} x {height} pixels"
    else:
        what = f"{kind} images{clear} of {width} x {height} pixels"
    if training.get("text") == "none":
        return f"Generates {what}, like those that it was trained on; it ignores prompts."
    prompts = [f'"{prompt}"' for prompt in training.get("prompts", ())[:2] if prompt]
    return f"Generates {what}, from texts" + (f" such as {' or '.join(prompts)}." if prompts else ".")


def header(model: dict[str, Any], metrics: dict[str, Any], gallery: list[dict[str, str]], curves: bool = False) -> str:
    """The card's YAML, as the Hub reads it (https://huggingface.co/docs/hub/model-cards)."""
    from huggingface_hub import ModelCardData

    training = model.get("training", {})
    before = training.get("start") or training.get("student", {}).get("teacher")
    data, task = training.get("data"), task_of(training)
    shown = [{"text": each["prompt"] or "-", "output": {"url": each["file"]}} for each in gallery]
    card = ModelCardData(
        license=model.get("license"),
        library_name="diffusers",
        pipeline_tag=task,
        tags=[
            task,
            "latent-diffusion",
            "diffusers",
            *(["lora"] if training.get("lora_rank") else []),
            *(["tensorboard"] if curves else []),
        ],
        datasets=data if training.get("data_on_hub") else None,
        base_model=before if training.get("start_on_hub") else None,
        widget=shown or None,
        model_name=model.get("name", "model"),
        eval_results=results(task, data, metrics) or None,
    )
    return card.to_yaml().strip()


def training_facts(run: Path) -> dict[str, Any]:
    """What an LDM run recorded about itself, for ldm.json and the card; {} for a folder that is no run."""
    settings = read_yaml(run / "config.yaml")
    if not settings:
        return {}
    own = settings.get("ldm", {})
    source, start = settings.get("data", {}).get("source"), own.get("start", {}).get("model")
    student = own.get("distill", {})
    before = start or student.get("teacher")
    text = own.get("text", {}).get("source")
    runs, vae = part_runs(run), own.get("vae", "run")
    if vae == "run" and "vae" in runs:
        vae = read_yaml(runs["vae"] / "config.yaml").get("vae", {}).get("start", {}).get("model") or "run"
    facts: dict[str, Any] = {
        "data": _public_source(source),
        "data_on_hub": _is_on_hub(source),
        "text": _public_source(text),
        "vae": None if vae in ("run", "identity") else _public_source(vae),
        "prompts": [""] * 4 if text == "none" else own.get("sampling", {}).get("prompts", []),
        "runs": {part: _trained(path) for part, path in runs.items()},
    }
    if not before:
        return facts
    earlier = {"before" if part == "ldm" else part: one for part, one in _runs_of(model_path(before)).items()}
    facts |= {"runs": earlier | facts["runs"], "start_on_hub": _is_on_hub(before)}
    if start:
        return facts | {"start": _public_source(start), "lora_rank": own["start"].get("lora_rank", 0)}
    told = {name: student.get(name) for name in ("steps", "guidance_scale")}
    return facts | {"student": told | {"teacher": _public_source(before)}}


def _runs_of(model: Path) -> dict[str, Any]:
    """The runs that made a model, an exported folder or itself a run, as far as it still says."""
    if (model / "ldm.json").is_file():
        return read_json(model / "ldm.json").get("training", {}).get("runs", {})
    return training_facts(model).get("runs", {}) if (model / "config.yaml").is_file() else {}


def task_of(training: dict[str, Any]) -> str:
    """What the Hub calls that which the model does."""
    return "unconditional-image-generation" if training.get("text") == "none" else "text-to-image"


def results(task: str, data: str | None, metrics: dict[str, Any]) -> list:
    """The same numbers for the header's "model-index"."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=data or "unknown",
            dataset_name=data or "unknown",
            dataset_split="test",
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=round(value_of(number), 4),
            metric_args={"interval": number["interval"]} if isinstance(number, dict) else None,
        )
        for metric, number in numbers(metrics).items()
        if is_metric(number)
    ]


def energy(run: dict[str, Any]) -> float | None:
    """Watt-hours of a training as far as they can be estimated: its time in steps at what its hardware may draw."""
    cores = re.search(r"(\d+) cores", run.get("hardware") or "")
    watts = run.get("watts") or (int(cores[1]) * CORE_WATTS if cores else None)
    return watts * run["minutes"] / 60 if watts and run.get("minutes") else None


def part_runs(run: Path) -> dict[str, Path]:
    """Part -> the run that made it, in the order of training: the runs beside this one, or those it was pointed to."""
    settings = read_yaml(run / "config.yaml")
    if not settings:
        return {}
    own = settings.get("ldm", {})
    if own.get("start", {}).get("model") or own.get("distill", {}).get("teacher"):
        return {"ldm": run}  # the other parts are those of the model before
    named = {"clip": own.get("text", {}).get("source", "run"), "vae": own.get("vae", "run")}
    runs = {part: run.parent / part if name == "run" else Path(name) for part, name in named.items()} | {"ldm": run}
    return {part: path for part, path in runs.items() if (path / "config.yaml").is_file()}


def _trained(run: Path) -> dict[str, Any]:
    """Steps, batch, minutes, hardware and settings of one run, as far as it kept them."""
    settings = read_yaml(run / "config.yaml")
    versions = read_json(run / "versions.json") if (run / "versions.json").is_file() else {}
    train, log = settings.get("train", {}), _log(run / "log.jsonl")
    return {
        "steps": max((row["step"] for row in log if "step" in row), default=train.get("num_steps")),
        "batch_size": train.get("batch_size"),
        "minutes": _minutes(log, train.get("batch_size", 0)),
        "hardware": versions.get("hardware"),
        "watts": versions.get("watts"),
        "versions": {name: versions[name] for name in ("torch", "diffusers", "transformers") if name in versions},
        "config": _public(settings),
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


def _public(settings: dict) -> str:
    """The run's settings as YAML, without the paths on the machine that trained it."""
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
        (kept.get("vae", {}).get("start"), "model"),
    ):
        if block and key in block:
            block[key] = _public_source(block[key])
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).strip()


def _is_on_hub(source: object) -> bool:
    return isinstance(source, str) and HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def _public_source(source: object) -> str | None:
    """A data set's name; of a local path only its last part."""
    if not isinstance(source, str):
        return None
    return Path(source).name if source.startswith(("/", "~", ".")) else source
