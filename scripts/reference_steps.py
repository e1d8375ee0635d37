"""What `reference_numbers.py` makes: drawings, trainings, exports and measurements, small enough for minutes.

A step is a few commands in a row and the files they leave. Commands are what users type (`ldm ...`, `train_*.py ...`);
'fresh' before one means a process of its own, and `draw` and `rewind` are functions of `reference_numbers.py`.
TREE stands for the tree whose code is run. A fifth of a second of learning is enough: what is asked is whether
numbers are the same, not whether they are good.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Step(NamedTuple):
    name: str
    commands: list[str]
    files: list[str]  # patterns of what is recorded; each has to match
    needs: tuple[str, ...] = ()  # names of earlier steps


# ---- inputs ----------------------------------------------------------------------------------------------------------

TINY = """
seed: 0
data: {source: pictures, resolution: 16, channels: 3, cache_dir: cache, files: {validation_fraction: 0.4}}
train: {num_steps: 50, batch_size: 4, mixed_precision: "no", ema_decay: 0.9, log_every: 1, sample_every: 0,
        save_every: 25, threads: 1, report_to: [none]}
optim: {lr: 2.0e-3, warmup_steps: 4}
clip: # 514 entries are bytes alone: the tokenizer's trainer breaks ties in another order in each process
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
GLYPHS = """
extends: TREE/configs/smoke.yaml
data: {glyphs: {limit: 64}}
train: {num_steps: 50, batch_size: 4, mixed_precision: "no", save_every: 25, log_every: 1, threads: 1}
clip: {train: {num_steps: 50, batch_size: 8}, model: {vocab_size: 514}}
vae: {train: {num_steps: 50}}
ldm: {train: {num_steps: 50}, sampling: {judged: 2}}
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
  sampling: {num_inference_steps: 4, per_prompt: 1, judged: 2}
"""
CONFIGS = {"tiny": TINY, "points": POINTS, "glyphs": GLYPHS, "digits": DIGITS}
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 230), "white": (250, 250, 250)}


def write_inputs(tree: Path) -> None:
    """Configs, prompts and 64 captioned pictures of bars, in the current folder."""
    from PIL import Image

    for name, text in CONFIGS.items():
        Path(f"{name}.yaml").write_text(text.replace("TREE", str(tree)))
    Path("prompts.txt").write_text("enclosed glyph\nvertical stacked glyph\tU+0041\nsingle glyph\n")
    rng = np.random.default_rng(0)
    Path("pictures").mkdir()
    for i in range(64):
        colour = list(COLOURS)[i % len(COLOURS)]
        picture = rng.normal(10, 4, (16, 16 + i % 5, 3))  # not all of them square
        top = rng.integers(1, 9)
        picture[top : top + 5, 2:14] += COLOURS[colour]
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(f"pictures/{i:02}.png")
        Path(f"pictures/{i:02}.txt").write_text(f"a {colour} bar\na bar that is {colour}")


# ---- drawings --------------------------------------------------------------------------------------------------------

PROMPTS = {  # two, and one with a weight, for each shipped model and for the runs below
    "glyphs": ("horizontal stacked glyph with the water radical", "enclosed glyph", "the (water:1.5) radical"),
    "glyphs-fast": ("vertical stacked glyph", "single glyph", "vertical (stacked:0.5) glyph"),
    "digits": ("a red 7 on a white ground", "a thick blue 3", "a (red:1.5) 7"),
    "runs": ("a red bar", "a blue bar", "a (red:2) bar"),
}
STOCK_SAMPLERS = "dpmpp_2m dpmpp_3m unipc ddim euler ddpm euler_ancestral dpmpp_2m_sde".split()
OWN_SAMPLERS = [*STOCK_SAMPLERS, "ddpm_large", "heun", "heun_edm", "dpmpp_3m_taylor"]
TIME_GRIDS = "uniform trailing leading linspace quadratic karras logsnr align_your_steps".split()
GUIDED = {"guidance_scale": 3.0}
CALLS: dict[str, dict[str, Any]] = {  # changes to a call of the pipeline with two prompts and three steps
    "plain": {},
    "pil": {"output_type": "pil"},
    "latent": {"output_type": "latent"},
    "batches": {"num_images_per_prompt": 3, "batch_size": 2, "num_inference_steps": 2},
    "guidance-off": {"guidance_scale": 1.0},
    "guidance-8": {"guidance_scale": 8.0},
    "negative": {**GUIDED, "negative_prompt": "a plain glyph"},
    "interval": {**GUIDED, "guidance_interval": (0.2, 0.8)},
    "rescale": {**GUIDED, "guidance_rescale": 0.7},
    "cfg-zero": {**GUIDED, "cfg_zero": True, "zero_init": 0.3},
    "unconditional": {"prompt": None},
}


def drawings() -> Iterator[Step]:
    """Pictures of the shipped models, by the pipeline and by the commands."""
    for model in ("glyphs", "glyphs-fast", "digits"):
        for engine in ("torch", "onnx"):
            yield drawing(f"draw-{model}-{engine}", model, engine, STOCK_SAMPLERS)
        for name, command in edits(model, *PROMPTS[model]).items():
            output = f"{name}-{model}.png"
            needs = () if name.startswith("generate") else (f"generate-{model}",)
            yield Step(f"{name}-{model}", [f"{command} -m {model} -o {output}"], [output], needs)
        for sampler in OWN_SAMPLERS if model == "glyphs-fast" else ["heun"]:
            name, prompt = f"sample-{model}-{sampler}", PROMPTS[model][0]
            command = f"ldm sample TREE/models/{model} -n 2 --steps 3 --prompt '{prompt}' --sampler {sampler}"
            yield Step(name, [f"{command} -o {name}.npy"], [f"{name}.npy"])


def drawing(name: str, model: str, engine: str, samplers: list[str], *needs: str) -> Step:
    return Step(name, [f"draw {model} {engine} {name}.npz {' '.join(samplers)}"], [f"{name}.npz"], needs)


def edits(model: str, one: str, two: str, weighed: str) -> dict[str, str]:
    """Commands that make one PNG. Plain `generate` is fresh: it does without torch, in a process of its own."""
    source, few = f"generate-{model}.png", "--steps 4 --seed 5"
    return {
        "generate": f"fresh ldm generate '{one}' --seed 3",
        "generate-grid": f"fresh ldm generate --grid 2x2 --scale 2 {few}",
        "generate-guided": f"ldm generate '{one}' --negative '{two}' --interval 0.1 0.8 --rescale 0.5 {few}",
        "image-to-image": f"ldm edit image-to-image {source} '{two}' --strength 0 0.5 1 {few}",
        "inpaint": f"ldm edit inpaint {source} '{two}' --box 8 0 32 32 --resample 2 -n 2 {few}",
        "invert": f"ldm edit invert {source} '{two}' --was '{one}' --rounds 2 --steps 4",
        "interpolate": f"ldm edit interpolate '{one}' '{two}' --to-seed 9 --frames 3 --words slerp {few}",
        "vary": f"ldm edit vary '{one}' -n 2 --amount 0.4 {few}",
        "compose": f"ldm edit compose '{one}' --and '{two}:0.7' --not '{two}:0.2' {few}",
        "weigh": f"ldm edit weigh '{weighed}' {few}",
    }


# ---- trainings -------------------------------------------------------------------------------------------------------

VAES = {  # flags of train_vae.py
    "tiny": "--train.sample-every 25",
    "adversarial": "--loss.adversarial 0.1 --loss.adversarial-start 0.2",
    "crop": "--crop 8 --optim.schedule constant --data.files.horizontal-flip true",
    "vq": "--model.kind vq --loss.revive-after 5",
}
UNETS = {  # flags of train_ldm.py
    "flow": "--train.sample-every 25",
    "modulation": "--model.conditioning modulation",
    "concatenation": "--model.conditioning concatenation",
    "no-pooled-text": "--model.pooled-text false --model.mid-block false --model.layers-per-block 2",
    "linear": "--noise.process linear --noise.prediction-type epsilon --sampling.sampler ddim",
    "cosine": "--noise.process cosine --noise.prediction-type v_prediction --noise.zero-terminal-snr true",
    "karras": "--noise.process karras --noise.prediction-type v_prediction --sampling.sampler euler",
    "variance": "--noise.process cosine --noise.prediction-type epsilon --noise.learned-variance true "
    "--sampling.sampler ddpm --sampling.time-grid leading",
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
    "finetuned": "--start.model runs/flow/ldm --text.train true --train.ema-decay 0",
}
NEEDS = {"vq-latents": "vae-vq", **dict.fromkeys(("student", "guidance-folded", "lora", "finetuned"), "ldm-flow")}
NOISES = {  # flags of train_ldm.py, of points
    "points": "",
    **{name: f"--noise.process {name} --noise.prediction-type v_prediction" for name in ("scaled_linear", "sigmoid")},
    "sample": "--noise.process linear --noise.prediction-type sample",
    **{f"times-{name}": f"--noise.timesteps {name}" for name in ("logit_normal", "cosmap", "log_normal")},
    **{f"weight-{name}": f"--noise.weight {name}" for name in ("min_snr", "soft_min_snr", "p2", "sigmoid", "debiased")},
    "weight-edm": "--noise.process karras --noise.prediction-type v_prediction --noise.weight edm",
    "weight-learned": "--noise.weight learned --noise.stratified false --noise.shift 2",
    "points-variance": UNETS["variance"],
    "classes": "--data.toy.captions true --text.source new --text.width 16",
}
RESUMED = {("clip", "tiny"): "", ("vae", "vq"): VAES["vq"], ("ldm", "dropout"): UNETS["dropout"]}


def trainings() -> Iterator[Step]:
    """Fifty steps of whatever can be trained; some are stopped at the half, and end as the whole ones did."""
    yield training("clip", "tiny", "tiny")
    for name, flags in VAES.items():
        yield training("vae", "tiny", name, flags)
    for name, flags in UNETS.items():
        yield training("ldm", "tiny", name, flags, "clip-tiny", "vae-tiny", *([NEEDS[name]] if name in NEEDS else []))
    for name, flags in NOISES.items():
        yield training("ldm", "points", name, flags)
    for part, config in (("clip", "glyphs"), ("vae", "glyphs"), ("clip", "digits")):
        yield training(part, config, config)
    yield training("ldm", "glyphs", "glyphs", "", "clip-glyphs", "vae-glyphs")
    yield training("ldm", "digits", "digits", "", "clip-digits")
    for (part, name), flags in RESUMED.items():
        resumed = training(part, "tiny", f"{name}-resumed", flags, f"{part}-{name}")
        rewind = f"rewind runs/{name}/{part} runs/{name}-resumed/{part}"
        yield resumed._replace(commands=[rewind, *resumed.commands])


def training(part: str, config: str, name: str, flags: str = "", *needs: str) -> Step:
    left = ["final/*/*", "checkpoints/step-00000050/*.safetensors", "log.jsonl"]
    left += ["samples/*"] * (part != "clip") + ["report.json", "reconstructions.png"] * (part == "vae")
    files = [f"runs/{name}/{part}/{file}" for file in left]
    return Step(f"{part}-{name}", [f"train_{part}.py {config}.yaml --name {name} {flags}"], files, needs)


# ---- what is done with runs ------------------------------------------------------------------------------------------

DRAWN = {  # runs, and what other samplers diffusers has for their noise
    "linear": STOCK_SAMPLERS,
    "cosine": ["ddpm", "ddim"],
    "karras": [name for name in STOCK_SAMPLERS if name != "unipc"],
    "variance": ["ddpm"],
    **{name: [] for name in ("flow", "vq-latents", "pixels", "new-text", "unconditional")},
}
SAMPLED = {"points": OWN_SAMPLERS, "scaled_linear": ["ddim", "ddpm", "dpmpp_2m_sde"], "points-variance": ["ddpm"]}
EVALUATED = {
    "runs/points/ldm": "--samples 500",
    "runs/classes/ldm": "--samples 500",
    "runs/flow/ldm": "--samples 24",
    "TREE/models/digits": "--samples 1 --steps 2",
    "TREE/models/glyphs-fast": "--samples 1 --steps 1",
}


def uses() -> Iterator[Step]:
    """Samples, likelihoods, metrics, exports, outlines and data sets."""
    for run, samplers in DRAWN.items():
        yield drawing(f"draw-{run}", f"runs/{run}/ldm", "torch", samplers, f"ldm-{run}")
    for run, samplers in SAMPLED.items():
        plans = [*((name, "uniform") for name in samplers), *((samplers[0], name) for name in TIME_GRIDS[1:])]
        for sampler, grid in plans:
            name = f"sample-{run}-{sampler}-{grid}"
            command = f"ldm sample runs/{run}/ldm -n 200 --sampler {sampler} --grid {grid} -o {name}.npy"
            yield Step(name, [command], [f"{name}.npy"], (f"ldm-{run}",))
    for run in ("points", "points-variance", "classes", "flow", "variance"):
        command = f"ldm likelihood runs/{run}/ldm --exact --limit 8 --steps 20 --ode-steps 5 -o likelihood-{run}.json"
        yield Step(f"likelihood-{run}", [command], [f"likelihood-{run}.json"], (f"ldm-{run}",))
    for model, flags in EVALUATED.items():
        name = model.removesuffix("/ldm").split("/")[-1]
        needs = (f"ldm-{name}",) if model.startswith("runs") else ()
        command = f"ldm evaluate {model} {flags} -o report-{name}"
        yield Step(f"evaluate-{name}", [command], [f"report-{name}/metrics.json"], needs)
    yield from small_uses()


def small_uses() -> Iterator[Step]:
    yield Step("preview", ["ldm preview-decoder runs/flow/ldm --steps 50"], ["runs/flow/ldm/preview/*"], ("ldm-flow",))
    for dtype in ("fp32", "both"):
        command = f"ldm export runs/lora/ldm -o export-{dtype} --dtype {dtype} --prompt 'a red bar' --license cc0-1.0"
        yield Step(f"export-{dtype}", [command], [f"export-{dtype}/**/*"], ("ldm-lora",))
    yield drawing("draw-export", "export-fp32", "onnx", [], "export-fp32")
    command = "ldm generate 'a red bar' -m runs/flow/ldm --lora runs/lora/ldm:0.5 --weak runs/student/ldm -o lora.png"
    yield Step("generate-lora-weak", [command], ["lora.png"], ("ldm-lora", "ldm-student"))
    font = "ldm font prompts.txt -m glyphs-fast -o drawn.ttf --proof proof.png"
    yield Step("font", [font], ["drawn.ttf", "proof.png"])
    outline = "ldm generate 'enclosed glyph' -m glyphs-fast -n 2 --svg -o outline.png"
    yield Step("outline", [outline], ["outline.svg", "outline.png"])
    yield Step("figures", ["ldm figures gaussian convergence elbo --quick -o figures"], ["logs/figures.txt"])
    yield Step("data-check", ["ldm data check pictures --json check.json"], ["check.json"])
    yield Step("data-glyphs", ["ldm data glyphs --out set --resolution 32 --limit 64"], ["set/**/*.parquet"])


def steps() -> list[Step]:
    """All, each behind those it needs."""
    return [*drawings(), *trainings(), *uses()]
