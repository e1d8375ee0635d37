"""Which latent space? One table over pixel space, KL and VQ autoencoders with f = 4, 8, 16, on 64-pixel glyphs.

    python benchmarks/autoencoders.py                        all rows; what is finished is kept and not done again
    python benchmarks/autoencoders.py kl-f4 vq-f4 --table    the table of what there is, nothing trained

Per row: an autoencoder trained for a fixed number of steps (about the same compute for all), how well and how fast it
codes and in how few bits, and a small U-Net, the same for all rows, trained on its latents for the same CPU seconds,
with what the glyph classifier and the OCR say of its pictures. Encoding and decoding are timed in rounds over all
rows, so that a busy moment of the machine falls on all alike. Writes autoencoders.json, autoencoders.md and PNG sheets.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from ldm.utils.errors import UserError
from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "benchmarks" / "autoencoders.yaml"
WIDTHS = [16, 32, 64, 64, 64]  # of the autoencoders, as many as f asks for
CHANNELS = {"kl-f4": 4, "kl-f8": 8, "kl-f16": 16, "vq-f4": 4, "vq-f8": 4, "vq-f16": 4}
ROWS = ["identity", *CHANNELS]
PROMPTS = {"horizontal": "horizontal stacked glyph", "vertical": "vertical stacked glyph"}
BATCH = 32  # of the U-Nets
LEVELS = {4: 3, 8: 4, 16: 5}


def main() -> None:
    args = arguments()
    prepare_threads(args.threads)
    patch_torchvision()
    rows = args.rows or ROWS
    if unknown := [row for row in rows if row not in ROWS]:
        raise UserError(f"rows must be of {', '.join(ROWS)}, got {', '.join(unknown)}")
    if not args.table:
        for row in rows:
            autoencoder(row, args)
            judged(row, args)
        budget(args)
        for row in rows:
            generated(row, args)
        timed(rows, args)
    table(rows, args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/autoencoders"), help="where everything is kept")
    parser.add_argument("--config", type=Path, default=CONFIG, help="what all rows have in common")
    parser.add_argument("--vae-steps", type=int, default=350, help="training steps of each autoencoder")
    parser.add_argument("--ldm-seconds", type=float, default=120, help="CPU seconds of training for each U-Net")
    parser.add_argument("--samples", type=int, default=64, help="pictures per prompt")
    parser.add_argument("--rounds", type=int, default=7, help="of timing")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--table", action="store_true", help="only gather and print what is finished")
    return parser.parse_args()


# ---- stages: each leaves a file in the row's folder and is skipped where that file is ------------------------------


def autoencoder(row: str, args: argparse.Namespace) -> None:
    """Train the row's autoencoder, unless it is finished."""
    from ldm.data import build
    from ldm.training.tasks.vae import VaeTask

    if row == "identity" or (args.output / row / "vae" / "final").is_dir():
        return
    settings = vae_settings(row, args)
    data = build(settings.data)
    _train(lambda run: VaeTask(settings, data), settings, args.output / row / "vae")


def vae_settings(row: str, args: argparse.Namespace):
    from ldm.config.loading import load

    kind, factor = row.split("-f")
    model = {"kind": kind, "latent_channels": CHANNELS[row], "block_out_channels": WIDTHS[: LEVELS[int(factor)]]}
    return load("vae", args.config, {"model": model, "train": {"num_steps": args.vae_steps}})


def judged(row: str, args: argparse.Namespace) -> None:
    """PSNR, SSIM, OCR and rate on 512 validation glyphs: report.json beside the autoencoder."""
    from ldm.config.loading import load
    from ldm.data import build
    from ldm.evaluation.autoencoder_report import write_report

    run = args.output / row / "vae"
    if not (run / "report.json").is_file():
        run.mkdir(parents=True, exist_ok=True)
        write_report(_vae(row, args), build(load("vae", args.config).data).validation, run)


def generated(row: str, args: argparse.Namespace) -> None:
    """Train the row's U-Net for the set CPU seconds, then judge what it draws: generation.json."""
    import torch

    from ldm.data import build
    from ldm.training.tasks.denoising import denoising_task

    folder = args.output / row
    if (folder / "generation.json").is_file():
        return
    facts = json.loads((args.output / "steps.json").read_text())[row]
    settings = _ldm_settings(row, args, num_steps=facts["steps"])
    if not (folder / "ldm" / "final").is_dir():
        data = build(settings.data)

        def quiet(run: Path):  # validation and sample grids would cost as much as the training
            task = denoising_task(settings, data, run, torch.device("cpu"))
            task.report = lambda folder, label: {}
            return task

        _train(quiet, settings, folder / "ldm")
    numbers = facts | _draw(folder, args) | {"real": _real(args)}
    _write(folder / "generation.json", numbers)
    print(f"{row}: {numbers}", flush=True)


def budget(args: argparse.Namespace) -> None:
    """How many steps of each row's U-Net fit into the CPU seconds: steps.json, measured once for all rows in turn.

    Rows of one factor, whose U-Nets differ in a few channels at the ends, get the same number.
    """
    from ldm.training.cost_estimate import measure_cost

    path = args.output / "steps.json"
    if path.is_file():
        return
    subjects = {row: subject(row, args) for row in ROWS}
    seconds, found = _cpu_seconds(subjects), {}
    for row, subject_ in subjects.items():
        least = min(value for other, value in seconds.items() if factor_of(other) == factor_of(row))
        steps, cost = max(1, round(args.ldm_seconds / least)), measure_cost(subject_)
        found[row] = {"steps": steps, "pictures": steps * BATCH, "cpu_seconds": args.ldm_seconds}
        found[row] |= {"parameters": cost.exported, "flops_per_picture": cost.flops}
    _write(path, found)


def subject(row: str, args: argparse.Namespace):
    """The U-Net of a row, as planning measures it."""
    import torch

    from ldm.models.unet import build_unet
    from ldm.training.cost_estimate import ProbeTarget, text_size

    settings = _ldm_settings("identity", args)
    channels, side = CHANNELS.get(row, 1), settings.data.resolution // factor_of(row)
    tokens, width = text_size(settings, None)

    def loss(unet, batch: int, device):
        latents = torch.zeros(batch, channels, side, side, device=device)
        text = torch.zeros(batch, tokens, width, device=device)
        return unet(latents, torch.zeros(batch, device=device), text).sample.float().square().mean()

    return ProbeTarget(lambda: build_unet(settings.model, channels, side, width), loss, row)


def factor_of(row: str) -> int:
    return 1 if row == "identity" else int(row.split("-f")[1])


def _ldm_settings(row: str, args: argparse.Namespace, **train):
    from ldm.config.loading import load

    source = "identity" if row == "identity" else str(args.output / row / "vae")
    return load("ldm", args.config, {"vae": source, "train": {"batch_size": BATCH} | train})


def timed(rows: list[str], args: argparse.Namespace) -> None:
    """CPU milliseconds per picture to encode and to decode 16 glyphs: medians over rounds through all rows."""
    import torch

    from ldm.config.loading import load
    from ldm.data import build
    from ldm.models.latents import posterior
    from ldm.training.data_order import image_batches

    images = next(image_batches(build(load("vae", args.config).data).validation, 16, limit=16))
    vaes = {row: _vae(row, args) for row in rows}
    found: dict[str, dict[str, list[float]]] = {row: {"encode": [], "decode": []} for row in rows}
    with torch.no_grad():
        for round_ in range(args.rounds + 1):
            for row, vae in vaes.items():
                started = time.process_time()
                z = posterior(vae, images).mode()
                between = time.process_time()
                vae.decode(z)
                ended = time.process_time()
                if round_:  # the first warms up
                    found[row]["encode"].append(1000 * (between - started) / len(images))
                    found[row]["decode"].append(1000 * (ended - between) / len(images))
    for row, seconds in found.items():
        summary = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
        _write(args.output / row / "timing.json", summary | {"rounds": args.rounds, "batch": len(images)})


def _train(build, settings, run: Path) -> None:
    from ldm.training.distributed import start_world
    from ldm.training.trainer import Trainer

    start_world()
    run.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    Trainer(build(run), settings, run).fit("auto")
    _write(run / "cost.json", {"cpu_seconds_of_last_start": round(time.process_time() - started, 1)})


def _cpu_seconds(subjects: dict, rounds: int = 4) -> dict[str, float]:
    """Least CPU seconds of one training step of each, on zeros, in rounds through all, in the training's precision."""
    import torch

    from ldm.models.unet import choose_attention
    from ldm.training.cost_estimate import timed_step
    from ldm.training.distributed import precision

    device, batch = torch.device("cpu"), BATCH
    half = torch.bfloat16 if precision("auto", device) == "bf16" else None
    models = {row: each.build().train() for row, each in subjects.items()}
    seconds: dict[str, list[float]] = {row: [] for row in subjects}
    for model in models.values():
        choose_attention(model, "auto", device, half is not None)
    for _ in range(rounds):
        for row, model in models.items():
            started = time.process_time()
            timed_step(subjects[row], model, batch, device, half)
            seconds[row].append(time.process_time() - started)
    return {row: min(values) for row, values in seconds.items()}


def _vae(row: str, args: argparse.Namespace):
    from ldm.models.autoencoder import load_vae
    from ldm.models.identity_autoencoder import IdentityAutoencoder

    return IdentityAutoencoder().eval() if row == "identity" else load_vae(args.output / row / "vae")


# ---- what the U-Net draws ------------------------------------------------------------------------------------------


def _draw(folder: Path, args: argparse.Namespace) -> dict:
    """Layout agreement and OCR confidence of `samples` pictures per prompt, and a sheet of some."""
    import numpy as np

    from ldm.evaluation.glyphs.classifier import GlyphClassifier
    from ldm.evaluation.glyphs.novelty import READABLE
    from ldm.evaluation.metrics.proportions import proportion
    from ldm.evaluation.ocr import GlyphReader
    from ldm.pipelines.loading import load_pipeline
    from ldm.utils.image_grid import image_grid, save_png

    pipeline, classifier, reader = load_pipeline(folder / "ldm", device="cpu"), GlyphClassifier(), GlyphReader()
    numbers, shown, started = {}, [], time.process_time()
    drawn = {}
    for layout, prompt in PROMPTS.items():
        images = pipeline(prompt, num_images_per_prompt=args.samples, seed=0, output_type="np").images
        drawn[layout] = (np.asarray(images).mean(axis=3) * 255).round().astype(np.uint8)
    seconds = (time.process_time() - started) / (args.samples * len(PROMPTS))
    for layout, images in drawn.items():
        agrees = [found == classifier.layout_class(layout) for found in classifier.predict(images).layouts]
        confidence = reader.read(images)[1]
        numbers[layout] = {
            "agreement": proportion(agrees),
            "confidence": round(float(confidence.mean()), 4),
            "readable": proportion(confidence >= READABLE),
        }
        shown += list(images[:12])
    save_png(image_grid(shown, 12), folder / "drawn.png")
    return {**numbers, "draw_cpu_milliseconds": round(1000 * seconds, 1), "samples": args.samples}


def _real(args: argparse.Namespace) -> dict:
    """The same numbers for as many real validation glyphs of each layout: what perfect pictures would get."""
    import numpy as np

    from ldm.config.loading import load
    from ldm.data import build
    from ldm.evaluation.glyphs.classifier import GlyphClassifier
    from ldm.evaluation.metrics.proportions import proportion
    from ldm.evaluation.ocr import GlyphReader

    path = args.output / "real.json"
    if path.is_file():
        return json.loads(path.read_text())
    data, classifier, reader = build(load("vae", args.config).data).validation, GlyphClassifier(), GlyphReader()
    numbers = {}
    for layout in PROMPTS:
        chosen = [i for i in range(len(data)) if data.meta(i)["structure"] == layout][: args.samples]
        images = np.stack([data.image(i)[..., 0] for i in chosen])
        agrees = [found == classifier.layout_class(layout) for found in classifier.predict(images).layouts]
        confidence = round(float(reader.read(images)[1].mean()), 4)
        numbers[layout] = {"agreement": proportion(agrees), "confidence": confidence}
    _write(path, numbers)
    return numbers


# ---- the table -----------------------------------------------------------------------------------------------------

HEADS = [
    "latents", "numbers", "PSNR dB", "SSIM", "OCR same", "bits/pixel", "codes used", "perplexity", "encode ms",
    "decode ms", "U-Net steps", "GFLOP/picture", "horizontal", "vertical", "OCR confidence", "draw ms",
]  # fmt: skip


def table(rows: list[str], args: argparse.Namespace) -> None:
    """Print the table of what is finished; write it as JSON and Markdown."""
    found = {row: record for row in rows if (record := _record(row, args))}
    if not found:
        raise UserError(f"nothing is finished in {args.output}: run without --table first")
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(cells(row, record)) + " |" for row, record in found.items()]
    text = "\n".join(lines) + "\n\n" + notes(found, args) + "\n"
    _write(args.output / "autoencoders.json", found)
    (args.output / "autoencoders.md").write_text(text)
    print(text)


def _record(row: str, args: argparse.Namespace) -> dict:
    """Everything that the stages left of a row."""
    folder = args.output / row
    places = {"report": "vae/report.json", "generation": "generation.json", "timing": "timing.json"}
    return {name: json.loads((folder / p).read_text()) for name, p in places.items() if (folder / p).is_file()}


def cells(row: str, record: dict) -> list[str]:
    """One line of the table; '-' for what is not finished or does not apply."""
    report, drawn, timing = (record.get(name, {}) for name in ("report", "generation", "timing"))
    rate = report.get("rate", {})
    bits = _number(rate.get("bits_per_pixel"), 3)
    if "entropy_bits_per_pixel" in rate:
        bits += f" ({rate['entropy_bits_per_pixel']:.3f})"
    numbers = (64 // factor_of(row)) ** 2 * CHANNELS.get(row, 1)
    confidence = [drawn[layout]["confidence"] for layout in PROMPTS if layout in drawn]
    return [
        row,
        str(numbers),
        "exact" if row == "identity" else _number(report.get("psnr"), 1),
        _number(report.get("ssim"), 3),
        _percent(report.get("ocr", {}).get("same_after")),
        bits,
        _percent(rate.get("codes_used")),
        _number(rate.get("perplexity"), 0),
        _number(timing.get("encode"), 2),
        _number(timing.get("decode"), 2),
        str(drawn.get("steps", "-")),
        _number(drawn["flops_per_picture"] / 1e9 if drawn else None, 3),
        *(_share(drawn.get(layout, {}).get("agreement")) for layout in PROMPTS),
        _number(sum(confidence) / len(confidence) if confidence else None, 2),
        _number(drawn.get("draw_cpu_milliseconds"), 0),
    ]


def notes(found: dict, args: argparse.Namespace) -> str:
    """What a reader must know to judge the numbers."""
    generations = [record["generation"] for record in found.values() if "generation" in record]
    lines = [
        f"Budget: {args.vae_steps} steps of 8 pictures per autoencoder, {args.ldm_seconds:g} CPU seconds of one core a "
        "U-Net: far too little for good pictures, so this compares beginnings. One seed; no spread is known.",
        "Reconstruction: 512 validation glyphs; OCR same: of those it reads rightly before. Bits per pixel: the KL to "
        "N(0, 1) for kl, log2 of the codebook for vq (in brackets with the entropy of the codes' use), 8 for pixels.",
        "Times are CPU milliseconds per picture on one core, medians of rounds through all rows, batches of 16.",
    ]
    if generations:
        counts, real = sorted({each["samples"] for each in generations}), generations[0]["real"]
        n = " or ".join(map(str, counts))
        drawn = f"Drawn: {n} pictures per prompt, 10 steps, guidance 3; layout agreement with its 95% Wilson interval. "
        means = [f"{layout} {_percent(real[layout]['agreement']['share'])}" for layout in PROMPTS]
        confidence = sum(real[layout]["confidence"] for layout in PROMPTS) / len(PROMPTS)
        lines.append(f"{drawn}Real glyphs get {', '.join(means)} and OCR confidence {confidence:.2f}.")
    return "\n".join(f"- {line}" for line in lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _share(value: dict | None) -> str:
    return "-" if value is None else f"{value['share']:.0%} [{value['interval'][0]:.0%}, {value['interval'][1]:.0%}]"


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
