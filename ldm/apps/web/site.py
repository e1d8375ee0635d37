"""The folder: our page, the model's graphs, weights and tokens as they lie in the model folder, and the runtime."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ldm.apps.web.examples import MAX_EXAMPLES, chips, labels, write_posters
from ldm.apps.web.runtime import CPU, GPU, licences, present
from ldm.pipelines.model_folder import FALLBACKS, HUB_ID, ModelFolder
from ldm.pipelines.onnx_runtime import GRAPHS, graph
from ldm.pipelines.torch_free import TorchFreePipeline, open_torch_free
from ldm.utils.assets import shipped_models
from ldm.utils.atomic_files import exclusive_lock, readable_io_errors, staged
from ldm.utils.errors import UserError
from ldm.utils.untrusted_files import read_json

PAGE = Path(__file__).with_name("page")
SETTINGS = "settings.json"
# what page/tokenizer.js implements; transformers writes it for every CLIPTokenizer
SPACES = {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}
NORMALIZER = {"type": "Sequence", "normalizers": [{"type": "NFC"}, SPACES, {"type": "Lowercase"}]}
BPE: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "</w>",
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def open_model(folder: ModelFolder) -> TorchFreePipeline:
    """The model, if the page can run it. Raises: UserError saying what is missing."""
    missing = [path for path in (graph(folder, component) for component in GRAPHS) if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing: write the model again with `ldm export`, with onnx installed")
    model = open_torch_free(folder)
    if model is None:
        raise UserError(
            f"{folder.source} cannot be drawn in a browser: that takes graphs of these weights (`ldm export`) and a "
            "rectified flow with its DPM-Solver++ scheduler, which is what models here have by default"
        )
    if folder.defaults.get("guidance_rescale"):
        raise UserError(
            f"{folder.source} asks for guidance_rescale, which the page does not do: set it to 0 in ldm.json"
        )
    content = read_json(folder.paths["tokenizer"] / "tokenizer.json")
    ends = (content.get("post_processor") or {}).get("type")
    same = content.get("normalizer") == NORMALIZER and ends == "RobertaProcessing"
    if not same or content["model"] != content["model"] | BPE:
        raise UserError(f"{folder.source} has a tokenizer that the page cannot read: it reads those of CLIP")
    return model


def write_site(folder: ModelFolder, model: TorchFreePipeline, runtime: Path, out: Path) -> list[Path]:
    """Write the folder atomically, in place of an earlier one.

    Args:
        folder, model: of `open_model`.
        runtime: of `ldm.apps.web.runtime.find_runtime`.
        out: the folder to write.

    Returns: its files, sorted. Raises: UserError if it cannot be written.
    """
    place = out.resolve()
    parts = _model_files(folder)
    carried = {f"runtime/{name}": runtime / name for name in present(runtime)}
    with readable_io_errors(out, "choose another folder, or make room"), exclusive_lock(place), staged(place) as stage:
        shutil.copytree(PAGE, stage, dirs_exist_ok=True)
        licence = {f"runtime/{path.name}": path for path in licences()}
        for name, path in (carried | parts | licence).items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, stage / name)
        loaded = [name for name in parts if not name.endswith((".md", "NOTICE"))]
        settings = describe(folder, model)
        settings |= {"files": [_file(stage, name) for name in loaded], "runtimes": _runtimes(stage)}
        settings["posters"] = write_posters(model, settings, stage)
        settings |= _loaded(stage, settings)
        (stage / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return sorted(path for path in place.rglob("*") if path.is_file())


def _file(stage: Path, name: str) -> dict[str, Any]:
    return {"path": name, "bytes": (stage / name).stat().st_size}


def _runtimes(stage: Path) -> dict[str, Any]:
    """What `engine.js` chooses from; "gpu" is None where its files were not at hand."""
    found = {}
    for name, files in (("cpu", CPU), ("gpu", GPU)):
        module, wasm = (f"runtime/{file}" for file in files)
        found[name] = {"module": module, "wasm": _file(stage, wasm)} if (stage / wasm).is_file() else None
    return found


def _loaded(stage: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """How much a visitor loads, and a version of all that `sw.js` keeps: it changes when any of it does."""
    files = [*settings["files"], settings["runtimes"]["cpu"]["wasm"]]
    others = [runtime["wasm"] for runtime in settings["runtimes"].values() if runtime] + settings["posters"]
    names = [file["path"] for file in (*files, *others)]
    total = hashlib.sha256()
    for name in names:
        total.update(name.encode() + hashlib.sha256((stage / name).read_bytes()).digest())
    return {"megabytes": round(sum(file["bytes"] for file in files) / 1e6), "version": total.hexdigest()[:16]}


def describe(folder: ModelFolder, model: TorchFreePipeline) -> dict:
    """What the page has to know of a model: its name, its sampling settings, its files."""
    from ldm.apps.demo.about import has_positions
    from ldm.models.latents import downsampling_factor

    vae, defaults = read_json(folder.paths["vae"] / "config.json"), {**FALLBACKS, **folder.defaults}
    sides = [side * downsampling_factor(vae) for side in model.latent_shape[1:]]
    tokens = model.tokenizer.padding
    training = defaults.get("training", {})
    prompts = [prompt for prompt in training.get("prompts", []) if isinstance(prompt, str)]
    picture = [vae["out_channels"], *sides]
    positions = has_positions(folder.training_config())
    return {
        "name": defaults.get("name") or Path(folder.source).name,
        "model": folder.source if _is_public(folder.source) else None,  # no path of this machine
        "digest": folder.digest(),
        **labels(training.get("data"), picture, positions),
        "prompts": prompts[:MAX_EXAMPLES],
        "chips": chips(training.get("data"), positions),
        "outline": picture[0] == 1,
        "steps": defaults["num_inference_steps"],
        "guidance": defaults["guidance_scale"],
        "interval": list(defaults.get("guidance_interval") or (0, 1)),
        "shape": list(model.latent_shape),
        "picture": picture,
        "scale": model.scale,
        "order": model.scheduler["solver_order"],
        "count": model.scheduler["num_train_timesteps"],
        "shift": model.scheduler.get("flow_shift") or 1.0,
        "length": tokens["length"],
        "pad": tokens["pad_token"],
        "words": "model/tokenizer/tokenizer.json",
        "networks": {
            component: {
                "graph": f"model/{component}/{name}",
                "weights": [f"model/{component}/{path.name}" for path in _weights(folder, component)],
            }
            for component, name in GRAPHS.items()
        },
    }


def check_overwritable(out: Path) -> None:
    """Raises: UserError if `out` is anything but an earlier site, an empty folder or nothing yet."""
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder for the page")
    earlier = (out / SETTINGS).is_file() and (out / "worker.js").is_file()
    if out.is_dir() and any(out.iterdir()) and not earlier:
        raise UserError(f"{out} holds something that is no earlier page of `ldm web`: name a new folder, or empty it")


def _is_public(source: str) -> bool:
    return source in shipped_models() or (HUB_ID.fullmatch(source) is not None and not Path(source).exists())


def _weights(folder: ModelFolder, component: str) -> list[Path]:
    return sorted(folder.paths[component].glob("*.safetensors"))


def _model_files(folder: ModelFolder) -> dict[str, Path]:
    """Name in the site -> file, in the order in which they are loaded."""
    found = {"model/tokenizer/tokenizer.json": folder.paths["tokenizer"] / "tokenizer.json"}
    for component in GRAPHS:
        for path in (graph(folder, component), *_weights(folder, component)):
            found[f"model/{component}/{path.name}"] = path
    home = folder.paths["unet"].parent  # the card has the model's licence, NOTICE those of its data
    return found | {f"model/{name}": home / name for name in ("README.md", "NOTICE") if (home / name).is_file()}
