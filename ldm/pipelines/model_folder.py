"""Where the components of a model are: an exported folder, a finished training run, or a repository on the Hub.

Only fixed file names below those folders are read, classes come from an allowlist, and weights are safetensors.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.pipelines.component_classes import CLASSES, OWN
from ldm.utils.assets import model_path, shipped_model, shipped_models
from ldm.utils.errors import UserError
from ldm.utils.hub_client import pull
from ldm.utils.untrusted_files import (
    check_code,
    check_files,
    check_network,
    check_schedule,
    parse_yaml,
    read_json,
    read_yaml,
    section,
)

COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
DEFAULTS = ("num_inference_steps", "guidance_scale", "guidance_interval", "guidance_rescale")  # a run's own settings
FALLBACKS = {"num_inference_steps": 20, "guidance_scale": 3.0}  # of a model that has none
HUB_ID = re.compile(r"[\w][\w.\-]*/[\w][\w.\-]*(@\w[\w\-]*([./][\w\-]+)*)?")  # user/name or user/name@revision
PARTS = {"clip text_encoder tokenizer": "train_clip.py", "vae": "train_vae.py"}  # by what they leave in final/
VARIANT = ".fp16."  # in the names of weights that are there in fp16 too
AGAIN = ("vocab.json", "merges.txt")  # what tokenizer.json holds too, for transformers 4
HUB_FILES = [
    "model_index.json",
    "ldm.json",
    *(
        f"{part}/{kind}"
        for part in ("vae", "text_encoder", "unet")
        for kind in ("config.json", "*.safetensors*", "*.onnx")
    ),
    *(f"tokenizer/{kind}" for kind in ("*.json", "merges.txt", "vocab.txt")),
    "scheduler/scheduler_config.json",
]


@dataclass(frozen=True)
class ModelFolder:
    """The found components: component -> folder and -> class name, and the model's best settings."""

    source: str  # what the user named; of the Hub's, with the commit
    paths: dict[str, Path]
    classes: dict[str, str]
    defaults: dict = field(default_factory=dict)  # the content of ldm.json

    def digest(self) -> str:
        """16 hex digits that change with any weight, token or scheduler setting, and not with the folder's name.

        Only the components count: ldm.json, which records the digest, and the card may change without changing it.
        What is there once more does not: weights in fp16, the tokenizer's words and merges beside tokenizer.json.
        """
        total = hashlib.sha256()
        for component in sorted(self.paths):
            again = AGAIN if (self.paths[component] / "tokenizer.json").is_file() else ()
            for file in sorted(self.paths[component].iterdir()):
                counts = VARIANT not in file.name and file.name not in again
                if file.suffix in (".safetensors", ".json", ".txt") and counts:
                    total.update(f"{component}/{file.name}\0".encode())
                    with file.open("rb") as stream:
                        total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()[:16]

    def training_config(self) -> dict:
        """The settings that the model was trained with, {} where nothing says so."""
        return read_yaml(self.paths["unet"].parents[1] / "config.yaml") or recorded_config(self.defaults)


def recorded_config(model: dict) -> dict:
    """The settings of the training that the content of an ldm.json records, {} where it has none."""
    training = section(model, "training")
    text = training.get("config") or section(training, "runs", "ldm").get("config")  # the former in older exports
    return parse_yaml(text, "the recorded config") if isinstance(text, str) else {}


def resolve_model(path_or_id: str | Path | None = None, variant: str | None = None) -> ModelFolder:
    """Find a model.

    Args:
        path_or_id: an exported folder, the folder of a finished LDM run, a Hub id `user/name` or `user/name@revision`,
            the name of a model that ships with the project ("glyphs-fast"), or None for the one of them that is the
            default.
        variant: of the weights, which is then fetched from the Hub too.

    Raises: UserError saying what was looked for.
    """
    if path_or_id is None:
        return _exported(shipped_model(), "the shipped model")
    folder = model_path(Path(path_or_id).expanduser())
    if (folder / "model_index.json").is_file():
        return _exported(folder, str(path_or_id))
    if (folder / "final").is_dir() or (folder / "checkpoints").is_dir():
        return _run(folder)
    if folder.exists():
        raise UserError(
            f"{folder} is no model: it has neither model_index.json (an exported model) nor final/ (a finished "
            "`ldm train ldm` run)"
        )
    if HUB_ID.fullmatch(str(path_or_id)):
        repo_id, _, revision = str(path_or_id).partition("@")
        found = pull(repo_id, revision or None, HUB_FILES, leaving=[] if variant else [f"*{VARIANT}*"])
        return _exported(found, f"{repo_id}@{found.name}")  # the commit: a name may come to mean another
    raise UserError(
        f"there is no folder {folder}: name an exported model, an LDM run, a Hub id like user/name, "
        f"or one that ships: {', '.join(shipped_models())}"
    )


def _exported(folder: Path, source: str) -> ModelFolder:
    index = read_json(folder / "model_index.json")
    check_code(folder / "model_index.json", index)
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise UserError(
            f"{folder}/model_index.json names {index.get('_class_name')!r}; only StableDiffusionPipeline is read here"
        )
    classes = {name: _class_name(folder, name, index.get(name)) for name in COMPONENTS}
    defaults = read_json(folder / "ldm.json") if (folder / "ldm.json").is_file() else {}
    return _checked(ModelFolder(source, {name: folder / name for name in COMPONENTS}, classes, defaults))


def _class_name(folder: Path, component: str, entry: object) -> str:
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name not in CLASSES[component]:
        allowed = ", ".join(CLASSES[component])
        raise UserError(f"{folder}/model_index.json: {component} must be one of {allowed}, got {entry!r}")
    return name


def _run(run: Path) -> ModelFolder:
    """A finished training run: its final/ holds all five components."""
    final = run / "final"
    missing = [name for name in COMPONENTS if not (final / name).is_dir()]
    held = sorted(path.name for path in final.iterdir() if path.is_dir()) if final.is_dir() else []
    if command := PARTS.get(" ".join(held)):
        beside = run.parent / "ldm"
        next_step = f"name {beside}" if beside.is_dir() else "train the U-Net too (train_ldm.py) and name its run"
        raise UserError(f"{run} is a run of {command}, which generates no images by itself: {next_step}")
    if missing:
        raise UserError(f"{run} has no {', '.join(missing)} in final/: it is no finished LDM run; finish it first")
    classes = {name: next(iter(CLASSES[name])) for name in COMPONENTS}
    for name, file in (("vae", "config.json"), ("unet", "config.json"), ("scheduler", "scheduler_config.json")):
        classes[name] = read_json(final / name / file).get("_class_name", "")
        if classes[name] not in {**CLASSES[name], **OWN.get(name, {})}:
            raise UserError(f"{final / name} names the unknown class {classes[name]!r}")
    return _checked(ModelFolder(str(run), {name: final / name for name in COMPONENTS}, classes, _sampling(run)))


def _sampling(run: Path) -> dict:
    """The defaults of a run: the `sampling` block of its settings."""
    settings = read_yaml(run / "config.yaml")
    sampling = settings.get("ldm", {}).get("sampling", {})
    return {name: sampling[name] for name in DEFAULTS if name in sampling}


def _checked(found: ModelFolder) -> ModelFolder:
    """`found`, once every component has its settings and weights, and they are such as may be opened."""
    check_files(found.paths["vae"].parent, found.paths)
    settings = {}
    for name, folder in found.paths.items():
        wanted = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(name, "config.json")
        if not (folder / wanted).is_file():
            raise UserError(f"{found.source} is incomplete: {folder / wanted} is missing")
        if wanted == "config.json" and not any(folder.glob("*.safetensors")):
            raise UserError(f"{found.source} is incomplete: no *.safetensors in {folder} (other formats are not read)")
        settings[name] = read_json(folder / wanted)
        check = {"scheduler": check_schedule, "tokenizer": check_code}.get(name, check_network)
        check(folder / wanted, settings[name])
    _check_length(found, settings["tokenizer"], settings["text_encoder"])
    _check_defaults(found)
    return found


def _check_length(found: ModelFolder, tokenizer: dict, text_encoder: dict) -> None:
    """Prompts are padded to the tokenizer's length: no longer than the text encoder takes."""
    length, most = tokenizer.get("model_max_length"), text_encoder.get("max_position_embeddings")
    if not isinstance(length, int | float) or not isinstance(most, int) or not 2 <= length <= most:
        where = found.paths["tokenizer"] / "tokenizer_config.json"
        raise UserError(f"{where}: model_max_length must be 2 to {most}, what the text encoder takes, got {length!r}")


def _check_defaults(found: ModelFolder) -> None:
    """The model's own settings are numbers."""
    for name in DEFAULTS:
        value: Any = found.defaults.get(name)
        numbers = value if name == "guidance_interval" and isinstance(value, list) and len(value) == 2 else [value]
        if value is not None and not all(type(each) in (int, float) and abs(each) < 1e6 for each in numbers):
            raise UserError(f"{found.source}: its {name} is no usable number, got {value!r}")
    if not isinstance(found.defaults.get("training", {}), dict):
        raise UserError(f"{found.source}: 'training' in its ldm.json must be an object")
