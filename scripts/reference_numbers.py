"""Prove that a change of the code changed no number: what two trees compute, item by item, beside each other.

    python scripts/reference_numbers.py make before --tree ../the-tree-before   # about eight minutes of one core
    python scripts/reference_numbers.py make after                              # --tree: the tree this script lies in
    python scripts/reference_numbers.py compare before after                    # exit code 1 if anything differs

`make` runs commands (`ldm ...`, `train_*.py ...`) and calls `load_pipeline(...)` of the tree, nothing else of it, so
that the same script runs on trees whose modules lie elsewhere. All happens in OUT/work on one thread of the CPU in
float32. What a step leaves (pictures, weights, losses, metrics, texts) becomes items: OUT/numbers.json says the sha256
and a few moments of each, OUT/arrays keeps the values. `--only PATTERN` makes the steps whose name matches, with the
steps they need; `--list` shows them all. A step that fails is an item with an error, and the exit code is 1.

`compare` calls an item equal (to the bit), close (every float within 1e-5 of the other, relative where it is above 1,
and every pixel within one grey level), or different. Both sides have to be made on one machine: other CPUs round
otherwise.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]  # texts are arrays of dtype U
TOLERANCE = 1e-5
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "true",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",
}
# of JSON objects and lines of a log: what differs from run to run, or names the release
VOLATILE = re.compile(r"(.*_)?(seconds|minutes|date|versions?|hardware|watts|memory|path|folder)|.*per_second")

# ---- what is made ----------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """Commands in a row, and the files they leave whose content is recorded."""

    name: str
    commands: list[str]
    files: list[str]  # patterns in OUT/work
    needs: tuple[str, ...] = ()


TINY = """
seed: 0
data: {source: pictures, resolution: 16, channels: 3, cache_dir: cache, files: {validation_fraction: 0.25}}
train: {num_steps: 50, batch_size: 8, mixed_precision: "no", ema_decay: 0.9, log_every: 1, sample_every: 25,
        save_every: 25, threads: 1, report_to: [none]}
optim: {lr: 2.0e-3, warmup_steps: 4}
clip: # 514 entries are bytes alone: the trainer of the tokenizer breaks ties otherwise in every process
  model: {vocab_size: 514, context_length: 16, width: 16, layers: 1, heads: 2, embed_dim: 16, vision_width: 16,
          vision_layers: 2, vision_heads: 2, patch_size: 4}
vae:
  model: {block_out_channels: [8, 16], norm_num_groups: 4, latent_channels: 4, codebook_size: 32}
ldm:
  vae: runs/tiny/vae
  text: {source: runs/tiny/clip}
  alignment: {source: runs/tiny/clip}
  model: {block_out_channels: [8, 16], norm_num_groups: 4, attention_levels: [1], heads: 2}
  sampling: {num_inference_steps: 4, guidance_scale: 2.0, per_prompt: 1, prompts: [a red bar, a blue bar]}
"""
POINTS = """
extends: TREE/configs/toy-8-gaussians.yaml
data: {toy: {size: 2000}}
train: {num_steps: 50, batch_size: 128, ema_decay: 0.9, log_every: 1, sample_every: 0, save_every: 25,
        report_to: [none]}
optim: {warmup_steps: 4}
ldm: {mlp: {width: 32, layers: 2}, sampling: {num_inference_steps: 8}}
"""
SMOKE = """
extends: TREE/configs/smoke.yaml
data: {glyphs: {styles: [hei], limit: 64}}
train: {num_steps: 50, mixed_precision: "no", save_every: 25, log_every: 1, threads: 1}
clip: {train: {num_steps: 50}, model: {vocab_size: 514}}
vae: {train: {num_steps: 50}}
ldm: {train: {num_steps: 50}}
"""
DIGITS = """
extends: TREE/configs/digits-pixel.yaml
data: {resolution: 16, digits: {limit: 60, copies: 1}}
train: {num_steps: 50, batch_size: 8, mixed_precision: "no", ema_decay: 0.9, log_every: 1, sample_every: 0,
        save_every: 25, threads: 1, report_to: [none]}
clip: {train: {num_steps: 50, batch_size: 8}, model: {vocab_size: 514, width: 16, layers: 1, embed_dim: 16,
       vision_width: 16, vision_layers: 1}}
ldm:
  text: {source: runs/digits/clip}
  train: {num_steps: 50, batch_size: 8, save_every: 25, sample_every: 0}
  model: {block_out_channels: [8, 16], attention_levels: [1], norm_num_groups: 4}
  sampling: {num_inference_steps: 4, per_prompt: 1}
"""
CONFIGS = {"tiny": TINY, "points": POINTS, "smoke": SMOKE, "digits": DIGITS}
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 230), "white": (250, 250, 250)}

PROMPTS = {  # of each shipped model: two, and words to weigh
    "glyphs": ("horizontal stacked glyph with the water radical", "enclosed glyph", "glyph with the (water:1.5) radical"),
    "glyphs-fast": ("vertical stacked glyph", "single glyph", "vertical (stacked:0.5) glyph"),
    "digits": ("a red 7 on a white ground", "a thick blue 3", "a (red:1.5) 7"),
}
STOCK_SAMPLERS = "dpmpp_2m dpmpp_3m unipc ddim euler ddpm euler_ancestral dpmpp_2m_sde".split()
OWN_SAMPLERS = [*STOCK_SAMPLERS, "ddpm_large", "heun", "heun_edm", "dpmpp_3m_taylor"]
TIME_GRIDS = "uniform trailing leading linspace quadratic karras logsnr align_your_steps".split()
CALLS: dict[str, dict[str, Any]] = {  # of a pipeline
    "plain": {},
    "pil": {"output_type": "pil"},
    "latents": {"output_type": "latent"},
    "default-steps": {"num_inference_steps": None},
    "batches": {"num_images_per_prompt": 3, "batch_size": 2, "num_inference_steps": 2},
    "guidance-off": {"guidance_scale": 1.0},
    "guidance-8": {"guidance_scale": 8.0},
    "negative": {"guidance_scale": 3.0, "negative_prompt": 1},
    "interval": {"guidance_scale": 3.0, "guidance_interval": (0.2, 0.8)},
    "rescale": {"guidance_scale": 3.0, "guidance_rescale": 0.7},
    "cfg-zero": {"guidance_scale": 3.0, "cfg_zero": True, "zero_init": 0.3},
    "unconditional": {"prompt": None},
    **{f"sampler-{name}": {"sampler": name} for name in STOCK_SAMPLERS},
}

UNETS = {  # flags of train_ldm.py
    "flow": "",
    "modulation": "--model.conditioning modulation",
    "concatenation": "--model.conditioning concatenation",
    "no-pooled-text": "--model.pooled-text false --model.mid-block false --model.layers-per-block 2",
    "linear": "--noise.process linear --noise.prediction-type epsilon --sampling.sampler ddim",
    "cosine": "--noise.process cosine --noise.prediction-type v_prediction --noise.zero-terminal-snr true",
    "karras": "--noise.process karras --noise.prediction-type v_prediction --sampling.sampler euler",
    "variance": "--noise.process cosine --noise.prediction-type epsilon --noise.learned-variance true "
    "--sampling.sampler ddpm",
    "muon": "--optim.name muon --optim.schedule cosine",
    "dropout": "--model.dropout 0.2 --train.gradient-accumulation-steps 2 --train.gradient-checkpointing true",
    "new-text": "--text.source new --text.width 16",
    "text-learns": "--text.train true",
    "unconditional": "--text.source none",
    "aligned": "--alignment.weight 0.5",
    "pixels": "--vae identity",
    "vq-latents": "--vae runs/vq/vae",
    "student": "--distill.teacher runs/flow/ldm --distill.steps 2 --sampling.guidance-scale 1 --sampling.sampler euler",
    "guidance-folded": "--distill.teacher runs/flow/ldm --distill.steps 0 --sampling.guidance-scale 1",
    "lora": "--start.model runs/flow/ldm --start.lora-rank 2 --start.lora-text true",
    "finetuned": "--start.model runs/flow/ldm --text.train true",
}
UNET_NEEDS = {"vq-latents": "vae-vq", **dict.fromkeys(("student", "guidance-folded", "lora", "finetuned"), "ldm-flow")}
VAES = {
    "tiny": "",
    "adversarial": "--loss.adversarial 0.1 --loss.adversarial-start 0.2",
    "crop": "--crop 8 --optim.schedule constant",
    "vq": "--model.kind vq --loss.revive-after 5",
}
NOISES = {  # flags of points, through the small network of points
    **{name: f"--noise.process {name} --noise.prediction-type v_prediction" for name in ("scaled_linear", "sigmoid")},
    "sample": "--noise.process linear --noise.prediction-type sample",
    **{f"times-{name}": f"--noise.timesteps {name}" for name in ("logit_normal", "cosmap", "log_normal")},
    **{f"weight-{name}": f"--noise.weight {name}" for name in ("min_snr", "soft_min_snr", "p2", "sigmoid", "debiased")},
    "weight-edm": "--noise.process karras --noise.prediction-type v_prediction --noise.weight edm",
    "weight-learned": "--noise.weight learned --noise.stratified false --noise.shift 2",
    "variance": "--noise.process cosine --noise.prediction-type epsilon --noise.learned-variance true",
    "classes": "--data.toy.captions true --text.source new --text.width 16",
}


def steps() -> Iterator[Step]:
    yield from drawings()
    yield from trainings()
    yield from uses_of_runs()


def drawings() -> Iterator[Step]:
    """Pictures of the shipped models, by the pipeline and by the commands."""
    for model, (one, two, weighed) in PROMPTS.items():
        for engine in ("torch", "onnx"):
            yield Step(f"draw-{model}-{engine}", [f"draw {model} {engine}"], [f"draw-{model}-{engine}.npz"])
        for name, command in edits(model, one, two, weighed).items():
            output = f"{name}-{model}.png"
            needs = () if name.startswith("generate") else (f"generate-{model}",)
            yield Step(f"{name}-{model}", [f"{command} -m {model} -o {output}"], [output], needs)
        samplers = [f"--sampler {name}" for name in OWN_SAMPLERS] if model == "glyphs-fast" else ["--sampler heun"]
        for flags in samplers:
            name = f"sample-{model}-{flags.split()[1]}"
            command = f"ldm sample TREE/models/{model} -n 2 --steps 3 --prompt '{one}' {flags} -o {name}.npy"
            yield Step(name, [command], [f"{name}.npy"])


def edits(model: str, one: str, two: str, weighed: str) -> dict[str, str]:
    """Commands that make one PNG; `generate` is fresh: without torch it has to be a process of its own."""
    source, few = f"generate-{model}.png", "--steps 4 --seed 5"
    return {
        "generate": f"fresh ldm generate '{one}' --seed 3",
        "generate-grid": f"fresh ldm generate --grid 2x2 --scale 2 {few}",
        "generate-torch": f"ldm generate '{one}' --negative '{two}' --interval 0.1 0.8 --rescale 0.5 {few}",
        "image-to-image": f"ldm edit image-to-image {source} '{two}' --strength 0 0.5 1 {few}",
        "inpaint": f"ldm edit inpaint {source} '{two}' --box 8 0 32 32 --resample 2 -n 2 {few}",
        "invert": f"ldm edit invert {source} '{two}' --was '{one}' --rounds 2 {few}",
        "interpolate": f"ldm edit interpolate '{one}' '{two}' --to-seed 9 --frames 3 --words slerp {few}",
        "vary": f"ldm edit vary '{one}' -n 2 --amount 0.4 {few}",
        "compose": f"ldm edit compose '{one}' --and '{two}:0.7' --not '{two}:0.2' {few}",
        "weigh": f"ldm edit weigh '{weighed}' {few}",
    }


def trainings() -> Iterator[Step]:
    """Fifty steps of everything that can be trained; a resumed run has to end as the whole one did."""
    yield training("clip", "tiny", "tiny", "", "pictures")
    for name, flags in VAES.items():
        yield training("vae", "tiny", name, flags, "pictures")
    for name, flags in UNETS.items():
        yield training("ldm", "tiny", name, flags, "clip-tiny", "vae-tiny", UNET_NEEDS.get(name, "clip-tiny"))
    for name, flags in {"points": "", **NOISES}.items():
        yield training("ldm", "points", f"points-{name}", flags)
    for part, needs in (("clip", ()), ("vae", ()), ("ldm", ("clip-smoke", "vae-smoke"))):
        yield training(part, "smoke", "smoke", "", *needs)
    yield training("clip", "digits", "digits", "")
    yield training("ldm", "digits", "digits", "", "clip-digits")
    for part, name, flags in (("clip", "tiny", ""), ("vae", "vq", VAES["vq"]), ("ldm", "dropout", UNETS["dropout"])):
        whole = training(part, "tiny", name, flags)
        again = [f"rewind runs/{name}/{part}", *whole.commands]
        yield Step(f"{whole.name}-resumed", again, whole.files, (whole.name,))


def training(part: str, config: str, name: str, flags: str, *needs: str) -> Step:
    run = f"runs/{name}/{part}"
    kept = [f"{run}/final/**/*", f"{run}/checkpoints/step-00000050/*.safetensors", f"{run}/log.jsonl", f"{run}/samples/*"]
    return Step(f"{part}-{name}", [f"train_{part}.py {config}.yaml --name {name} {flags}"], kept, needs)


def uses_of_runs() -> Iterator[Step]:
    yield from samples_and_likelihoods()
    yield from measurements()
    yield Step("preview", ["ldm preview-decoder runs/flow/ldm --steps 50"], ["runs/flow/ldm/preview/*"], ("ldm-flow",))
    for dtype in ("fp32", "both"):
        command = f"ldm export runs/lora/ldm -o export-{dtype} --dtype {dtype} --prompt 'a red bar' --license cc0-1.0"
        yield Step(f"export-{dtype}", [command], [f"export-{dtype}/**/*"], ("ldm-lora",))
    command = "ldm generate 'a red bar' -m runs/flow/ldm --lora runs/lora/ldm:0.5 --weak runs/student/ldm -o lora.png"
    yield Step("generate-lora-weak", [command], ["lora.png"], ("ldm-lora", "ldm-student"))
    yield Step("font", ["ldm font prompts.txt -m glyphs-fast -o drawn.ttf --proof proof.png"], ["drawn.ttf", "proof.png"])
    outline = "ldm generate 'enclosed glyph' -m glyphs-fast -n 2 --svg -o outline.png"
    yield Step("outline", [outline], ["outline.svg", "outline.png"])
    yield Step("data-check", ["ldm data check pictures --json check.json"], ["check.json"], ("pictures",))
    yield Step("data-glyphs", ["ldm data glyphs --out set --resolution 32 --limit 64"], ["set/**/*.parquet"])


def samples_and_likelihoods() -> Iterator[Step]:
    """Our own samplers and time grids on points; the bound and the exact likelihood."""
    runs = {"points-points": OWN_SAMPLERS, "points-scaled_linear": ["ddim", "ddpm", "dpmpp_2m"], "points-variance": ["ddpm"]}
    for run, samplers in runs.items():
        plans = [*((name, "uniform") for name in samplers), *((samplers[0], name) for name in TIME_GRIDS[1:])]
        for sampler, grid in plans:
            name = f"sample-{run}-{sampler}-{grid}"
            command = f"ldm sample runs/{run}/ldm -n 200 --sampler {sampler} --grid {grid} -o {name}.npy"
            yield Step(name, [command], [f"{name}.npy"], (f"ldm-{run}",))
    measured = ("points-points", "points-variance", "points-classes", "flow", "variance")
    for run in measured:
        command = f"ldm likelihood runs/{run}/ldm --exact --limit 8 --steps 20 --ode-steps 5 -o likelihood-{run}.json"
        yield Step(f"likelihood-{run}", [command], [f"likelihood-{run}.json"], (f"ldm-{run}",))


def measurements() -> Iterator[Step]:
    """`ldm evaluate` in its quickest forms, of points, own pictures, digits and glyphs."""
    for model, flags in {
        "runs/points-points/ldm": "--samples 500",
        "runs/points-classes/ldm": "--samples 500",
        "runs/flow/ldm": "--samples 8",
        "TREE/models/digits": "--samples 2 --steps 4",
        "TREE/models/glyphs-fast": "--samples 1 --steps 1",
    }.items():
        name = model.removesuffix("/ldm").split("/")[-1]
        needs = (f"ldm-{name}",) if model.startswith("runs") else ()
        command = f"ldm evaluate {model} {flags} -o report-{name}"
        yield Step(f"evaluate-{name}", [command], [f"report-{name}/metrics.json"], needs)


def write_inputs(tree: Path) -> None:
    """Configs, prompts and captioned pictures, in the current folder."""
    from PIL import Image

    for name, text in CONFIGS.items():
        Path(f"{name}.yaml").write_text(text.replace("TREE", str(tree)))
    Path("prompts.txt").write_text("enclosed glyph\nvertical stacked glyph\tU+0041\nsingle glyph\n")
    rng = np.random.default_rng(0)
    Path("pictures").mkdir(exist_ok=True)
    for i in range(64):
        colour = list(COLOURS)[i % len(COLOURS)]
        picture = rng.normal(10, 4, (16, 16, 3))
        top = rng.integers(1, 9)
        picture[top : top + 5, 2:14] += COLOURS[colour]
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(f"pictures/{i:02}.png")
        Path(f"pictures/{i:02}.txt").write_text(f"a {colour} bar\na bar that is {colour}")


# ---- how it is made --------------------------------------------------------------------------------------------------


def make(out: Path, tree: Path, only: str) -> int:
    """Run the chosen steps in OUT/work and record what they leave. Returns the exit code."""
    out, tree = out.resolve(), tree.resolve()
    if out.exists():
        sys.exit(f"{out} is there already: name a new folder")
    os.environ.update(ENVIRONMENT, PYTHONPATH=str(tree))
    (out / "work").mkdir(parents=True)
    os.chdir(out / "work")
    warm_up(tree)
    write_inputs(tree)
    items: dict[str, Any] = {}
    for step in chosen(only):
        start = time.monotonic()
        items |= record(step, out, tree)
        print(f"{time.monotonic() - start:6.1f} s  {step.name}", flush=True)
    machine = {"machine": platform.platform(), "cpu": cpu(), "python": platform.python_version()}
    (out / "numbers.json").write_text(json.dumps({"made_on": machine, "items": items}, indent=1))
    wrong = [f"{name}: {item['error']}" for name, item in items.items() if "error" in item]
    print(f"{out / 'numbers.json'}: {len(items)} items, {len(wrong)} errors", *wrong, sep="\n  ")
    return 1 if wrong else 0


def chosen(only: str) -> list[Step]:
    """The steps whose name matches and what they need, in order."""
    table = list(steps())
    wanted = {step.name for step in table if fnmatch(step.name, only)}
    for step in reversed(table):
        wanted |= set(step.needs) if step.name in wanted else set()
    if not wanted:
        sys.exit(f"no step matches {only!r}: see --list")
    return [step for step in table if step.name in wanted]


def warm_up(tree: Path) -> None:
    """Import once what every step would take ten seconds to import; each then runs in a fork of this process."""
    sys.path.insert(0, str(tree))
    import ldm

    if not Path(ldm.__file__).is_relative_to(tree):
        sys.exit(f"ldm came from {ldm.__file__}, not from {tree}")
    ldm.load_pipeline(tree / "models" / "glyphs-fast", engine="torch")
    import accelerate  # noqa: F401
    import transformers

    transformers.CLIPModel, transformers.CLIPImageProcessor  # imported when named


def record(step: Step, out: Path, tree: Path) -> dict[str, Any]:
    """Run a step. Returns its items: a fingerprint for each file, or an error."""
    log = out / "logs" / f"{step.name}.txt"
    log.parent.mkdir(exist_ok=True)
    for command in step.commands:
        if code := run(shlex.split(command.replace("TREE", str(tree))), tree, log):
            return {step.name: {"error": f"exit code {code} of {command}: see {log}"}}
    files = sorted({path for pattern in step.files for path in Path().glob(pattern) if path.is_file()})
    missing = [pattern for pattern in step.files if not any(path.match(pattern) for path in files)]
    found = {step.name: {"error": f"it left no {', '.join(missing)}"}} if missing else {}
    for path in files:
        name = f"{step.name}/{path.as_posix()}"
        try:
            arrays = {key: value for key, value in READERS.get(path.suffix, read_text)(path).items()}
            found[name] = fingerprint(arrays)
            keep(out / "arrays" / f"{name}.npz", arrays)
        except Exception as error:
            found[name] = {"error": f"{path} cannot be read: {error!r}"}
    return found


def run(words: list[str], tree: Path, log: Path) -> int:
    """The exit code of a command: `ldm ...`, `train_*.py ...`, one of `OWN`, or `fresh` and one of the former two."""
    if words[0] == "fresh":
        with log.open("a") as stream:
            return subprocess.call([sys.executable, "-m", *words[1:]], stdout=stream, stderr=subprocess.STDOUT)
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code: Any = 70
    try:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1), os.dup2(stream.fileno(), 2)
        code = enter(words, tree)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def enter(words: list[str], tree: Path) -> int:
    if words[0] in OWN:
        OWN[words[0]](*words[1:])
        return 0
    sys.argv = words
    if words[0] == "ldm":
        runpy.run_module("ldm", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(tree / words[0]), run_name="__main__")
    return 0


def draw(model: str, engine: str) -> None:
    """Pictures of `CALLS`, and what the pipeline encodes and decodes, into draw-MODEL-ENGINE.npz."""
    import torch

    from ldm import load_pipeline

    torch.set_num_threads(1)
    pipeline = load_pipeline(model, engine=engine)
    one, two, _ = PROMPTS[model]
    found = {}
    for name, changes in CALLS.items():
        asked = {"prompt": [one, two], "seed": 7, "num_inference_steps": 3, "output_type": "np", **changes}
        asked |= {"negative_prompt": two} if "negative_prompt" in changes else {}
        images = pipeline(**asked).images
        found[name] = np.stack([np.asarray(image) for image in images])
    path: list = []
    pipeline(one, seed=1, num_inference_steps=3, callback=lambda step, timestep, latents: path.append(latents.clone()))
    found["callback"] = torch.stack(path).numpy()
    found["states"] = pipeline.encode_prompt([one, two, ""]).numpy()
    latents = pipeline.encode(torch.from_numpy(found["plain"]).permute(0, 3, 1, 2))
    found |= {"encoded": latents.numpy(), "decoded": pipeline.decode(latents).detach().numpy()}
    np.savez(f"draw-{model}-{engine}.npz", **found)


def rewind(folder: str) -> None:
    """A finished run as if it had been stopped behind its last checkpoint but one."""
    *_, newest = sorted(Path(folder, "checkpoints").glob("step-*"))
    for gone in (Path(folder, "final"), newest):
        shutil.rmtree(gone)


OWN: dict[str, Callable[..., None]] = {"draw": draw, "rewind": rewind}

# ---- what is recorded ------------------------------------------------------------------------------------------------


def read_text(path: Path) -> Arrays:
    return {"text": np.array(masked(path.read_text()))}


def read_png(path: Path) -> Arrays:
    from PIL import Image

    with Image.open(path) as image:
        told = masked(json.dumps(getattr(image, "text", {}), sort_keys=True))
        return {"pixels": np.asarray(image), "told": np.array(told)}


def read_json(path: Path) -> Arrays:
    return numbers_of(json.loads(path.read_text()))


def read_log(path: Path) -> Arrays:
    return numbers_of([json.loads(line) for line in path.read_text().splitlines()])


def read_weights(path: Path) -> Arrays:
    from safetensors.numpy import load_file

    return load_file(path)


def read_arrays(path: Path) -> Arrays:
    loaded = np.load(path)
    return dict(loaded) if path.suffix == ".npz" else {"array": loaded}


def read_parquet(path: Path) -> Arrays:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    return {"rows": np.array(json.dumps(rows, default=lambda value: hashlib.sha256(value).hexdigest()))}


def read_font(path: Path) -> Arrays:
    from fontTools.ttLib import TTFont

    xml = path.with_suffix(".xml")
    TTFont(path).saveXML(xml)
    return read_text(xml)


READERS: dict[str, Callable[[Path], Arrays]] = {
    ".png": read_png,
    ".json": read_json,
    ".jsonl": read_log,
    ".safetensors": read_weights,
    ".npz": read_arrays,
    ".npy": read_arrays,
    ".onnx": lambda path: {"bytes": np.frombuffer(path.read_bytes(), np.uint8)},
    ".parquet": read_parquet,
    ".ttf": read_font,
}


def masked(text: str) -> str:
    """Without dates, versions of ours, and the folders that the two sides have each their own of."""
    text = text.replace(os.environ["PYTHONPATH"], "TREE").replace(str(Path.cwd()), "WORK")
    return re.sub(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?", "DATE", re.sub(r"\b0\.[12]\.0\b", "VERSION", text))


def numbers_of(value: Any) -> Arrays:
    """All numbers of a JSON value in the order of its sorted keys, and the value without them."""
    numbers: list[float] = []

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(value[key]) for key in sorted(value) if not VOLATILE.fullmatch(key)}
        if isinstance(value, list):
            return [without(each) for each in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append(value)
            return "#"
        return masked(value) if isinstance(value, str) else value

    rest = json.dumps(without(value), ensure_ascii=False, indent=0)
    return {"numbers": np.array(numbers, np.float64), "rest": np.array(rest)}


def fingerprint(arrays: Arrays) -> dict[str, Any]:
    """sha256 of names, types, shapes and bytes, and moments and three projections of all numbers together."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}\0".encode() + np.ascontiguousarray(array).tobytes())
    shapes = [list(array.shape) for array in arrays.values()]
    found: dict[str, Any] = {"sha256": total.hexdigest(), "arrays": len(arrays)}
    found |= {"shape": shapes[0]} if len(arrays) == 1 else {}
    numeric = [array.astype(np.float64).ravel() for _, array in sorted(arrays.items()) if array.dtype.kind != "U"]
    if numeric and (flat := np.concatenate(numeric)).size:
        waves = [np.cos((k + 1) * np.arange(flat.size)) for k in range(3)]
        found |= {"size": flat.size, "mean": flat.mean(), "std": flat.std(), "min": flat.min(), "max": flat.max()}
        found["projections"] = [float(flat @ wave / np.sqrt(flat.size)) for wave in waves]
    return found


def keep(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez_compressed(stream, **{name.replace("/", "|"): array for name, array in arrays.items()})


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor()


# ---- how two are compared --------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    verdict: str  # "equal", "close" or "different"
    what: str = ""


def compare(one: Path, two: Path) -> int:
    """Print the items that are not equal to the bit. Returns 1 if any is different, else 0."""
    sides = [json.loads((out / "numbers.json").read_text()) for out in (one, two)]
    if sides[0]["made_on"] != sides[1]["made_on"]:
        print(f"note: made on different machines: {sides[0]['made_on']} and {sides[1]['made_on']}")
    names = sorted({*sides[0]["items"], *sides[1]["items"]})
    found = {name: compare_item(name, [one, two], [side["items"].get(name) for side in sides]) for name in names}
    for verdict in ("close", "different"):
        for name, difference in found.items():
            if difference.verdict == verdict:
                print(f"{verdict:10} {name}: {difference.what}")
    counts = {v: sum(d.verdict == v for d in found.values()) for v in ("equal", "close", "different")}
    print(f"{len(found)} items: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["different"] else 0


def compare_item(name: str, outs: list[Path], items: list[dict | None]) -> Difference:
    for out, item in zip(outs, items, strict=True):
        if item is None or "error" in item:
            return Difference("different", f"{out}: {item['error'] if item else 'it is missing'}")
    if items[0]["sha256"] == items[1]["sha256"]:
        return Difference("equal")
    return compare_arrays(*(read_arrays(out / "arrays" / f"{name}.npz") for out in outs))


def compare_arrays(one: Arrays, two: Arrays) -> Difference:
    """The worst of all arrays."""
    if one.keys() != two.keys():
        return Difference("different", f"only in one of them: {', '.join(sorted(one.keys() ^ two.keys()))}")
    differences = [compare_array(name, one[name], two[name]) for name in one]
    unequal = [each for each in differences if each.verdict != "equal"]
    return max(unequal, key=lambda each: each.verdict == "different", default=Difference("equal"))


def compare_array(name: str, one: np.ndarray, two: np.ndarray) -> Difference:
    if one.dtype.kind == two.dtype.kind == "U":
        pairs = zip(str(one).splitlines(), str(two).splitlines(), strict=False)
        first = next((f"{a!r} and {b!r}" for a, b in pairs if a != b), "one goes on longer")
        return Difference("equal") if str(one) == str(two) else Difference("different", f"{name}: {first[:200]}")
    if one.dtype != two.dtype or one.shape != two.shape:
        return Difference("different", f"{name}: {one.dtype} {one.shape} and {two.dtype} {two.shape}")
    if np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
        return Difference("equal")
    a, b = one.astype(np.float64), two.astype(np.float64)
    apart = np.where(np.isnan(a) & np.isnan(b), 0, np.abs(a - b))
    limit = 1.0 if one.dtype == np.uint8 else TOLERANCE * np.maximum(1, np.abs(a))
    what = f"{name}: {np.count_nonzero(apart)} of {apart.size} differ, by at most {apart.max():.3g}"
    return Difference("close" if (apart <= limit).all() else "different", what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="compute all items into a new folder")
    maker.add_argument("out", type=Path)
    maker.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1], help="whose code is run")
    maker.add_argument("--only", default="*", metavar="PATTERN", help="steps whose name matches, such as 'draw-*'")
    commands.add_parser("list", help="name the steps")
    comparer = commands.add_parser("compare", help="compare two such folders")
    comparer.add_argument("one", type=Path)
    comparer.add_argument("two", type=Path)
    args = parser.parse_args()
    if args.command == "list":
        print(*(f"{step.name}: {'; '.join(step.commands)}" for step in steps()), sep="\n")
        return 0
    return make(args.out, args.tree, args.only) if args.command == "make" else compare(args.one, args.two)


if __name__ == "__main__":
    sys.exit(main())
