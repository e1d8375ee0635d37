"""From files to batches, in pictures a second of one core, against the transform chain of diffusers' scripts.

    python benchmarks/data.py --sizes 256 1024 --torchvision FOLDER
    python benchmarks/data.py --only-batches            # without the peer

The peer decodes, resizes, crops and tokenizes each picture in each epoch, by `datasets` and torchvision (without it,
by Pillow in the same way). Ours does the first part once (cold), encodes once, and then reads latents from a memory
map (cached); both are timed as what a training loop gets: batches of tensors with token ids. Of a large batch of ours
the captions and tokens are timed alone, and all of it.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from peer_training import Photos
from protocol import compared, markdown, ratio_text, rounds, write_report
from stacks import RESOLUTION, caption, ldm_settings, write_pictures, write_stack

from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision

BATCH, LARGE = 16, 512
EACH = 5  # captions of a picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024], help="of the JPEGs")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-batches", action="store_true", help=f"only the preparation of batches of {LARGE}")
    parser.add_argument("--torchvision", type=Path, help="a folder to import torchvision from, if need be")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="models, pictures, caches")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    prepare_threads(1)
    prepared = preparing(args)
    print(markdown(["of prepared batches, one core", "captions/s", "ms", "at least"], prepared), flush=True)
    if args.only_batches:
        return write_report(args.output / "data-batches.json", {"batches": prepared})
    if args.torchvision:
        sys.path.append(str(args.torchvision))
    torchvision = patch_torchvision() != "absent"
    results = {str(size): measure(size, torchvision, args) for size in args.sizes}
    results["glyphs"] = {"rendering": rendering(args)}
    print(table(results))
    write_report(args.output / "data.json", {"torchvision": torchvision, "rates": results, "batches": prepared})


def measure(size: int, torchvision: bool, args: argparse.Namespace) -> dict:
    """Timings of one epoch of `--pictures` JPEGs of a size, and what they say in pictures a second."""
    pictures = write_pictures(args.work / f"pictures-{args.pictures}-{size}", args.pictures, size)
    model = write_stack(args.work / "stack-light", "light")
    variants = {
        "peer": partial(exhaust, peer_epoch(model, pictures, torchvision)),
        "cold": partial(decode_all, model, pictures, args.work / "cold-data"),
        "cached": partial(exhaust, cached_epochs(model, pictures, args.work / "cached-data", 20)),
    }
    timings = rounds(variants, args.rounds)
    found = compared(timings, "peer")
    counts = {"peer": args.pictures, "cold": args.pictures, "cached": 20 * args.pictures}
    for name, entry in found.items():
        times = counts[name] / args.pictures
        entry["ratio"] |= {key: times * entry["ratio"][key] for key in ("median", "lower", "upper")}
        entry["pictures_per_second"] = counts[name] / entry["seconds"]["median"]
    return found


def exhaust(epoch: Callable[[], Iterator]) -> None:
    for _ in epoch():
        pass


def peer_epoch(model: Path, pictures: Path, torchvision: bool) -> Callable[[], Iterator]:
    from torch.utils.data import DataLoader
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    data = (TransformedPhotos if torchvision else Photos)(pictures, tokenizer)
    return lambda: iter(DataLoader(data, BATCH, shuffle=True))


class TransformedPhotos(Photos):
    """The same pictures through torchvision's own transforms, row by row as `datasets` hands them out."""

    def __init__(self, folder: Path, tokenizer, resolution: int = RESOLUTION):
        from torchvision import transforms

        super().__init__(folder, tokenizer, resolution)
        self.chain = transforms.Compose([
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.LANCZOS),
            transforms.RandomCrop(resolution),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ])  # fmt: skip

    def transform(self, image):
        return self.chain(image)


def decode_all(model: Path, pictures: Path, folder: Path) -> None:
    """Ours from nothing: read, decode, resize, digest and write the picture cache."""
    from ldm.data import build

    shutil.rmtree(folder, ignore_errors=True)
    build(ldm_settings(model, pictures, folder).data)


def cached_epochs(model: Path, pictures: Path, run: Path, epochs: int) -> Callable[[], Iterator]:
    """Ours ever after: what the trainer's loader gives, latents, noise, times and tokens."""
    import torch
    from torch.utils.data import DataLoader

    from ldm.data import build
    from ldm.training.data_order import Batches, batch_slices
    from ldm.training.tasks.denoising import denoising_task

    run.mkdir(parents=True, exist_ok=True)
    steps = epochs * len(list(pictures.glob("*.jpg"))) // BATCH
    settings = ldm_settings(model, pictures, run, batch_size=BATCH, num_steps=steps)
    task = denoising_task(settings, build(settings.data), run, torch.device("cpu"))
    batches = Batches(task, 0)
    return lambda: iter(DataLoader(batches, sampler=batch_slices(settings.train, 0, 0, 1), batch_size=None))


def preparing(args: argparse.Namespace) -> list[list[object]]:
    """What a core prepares of batches of `LARGE` from cached latents: captions a second, and milliseconds a batch."""
    import torch

    from ldm.data import build
    from ldm.models.tokenizer import TokenRows
    from ldm.training.data_order import Batches, batch_slices
    from ldm.training.task import captions_of
    from ldm.training.tasks.denoising import denoising_task

    pictures, count = write_pictures(args.work / "described-64", 64, 128), 20
    described = [{"file_name": f"{i:05d}.jpg", "text": [caption(EACH * i + j) for j in range(EACH)]} for i in range(64)]
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in described))
    run = args.work / "prepared"
    run.mkdir(parents=True, exist_ok=True)
    settings = ldm_settings(
        write_stack(args.work / "stack-light", "light"), pictures, run, batch_size=LARGE, num_steps=count
    )
    settings = settings.model_copy(update={"caption_dropout": 0.1})
    task = denoising_task(settings, build(settings.data), run, torch.device("cpu"))
    batches, slices = Batches(task, 0), list(batch_slices(settings.train, 0, 0, 1))
    train, forgetful = task.components.train.data, TokenRows(task.components.tokenizer, limit=0)
    items = [[(train, one) for one in batches.samples(rows)] for rows in slices]

    def tokens(rows: TokenRows) -> None:
        for batch in items:
            rows(captions_of(batch, 0, 0.1))

    variants = {
        f"captions of {EACH} each and tokens": partial(tokens, task.token_rows),
        "the same, every caption tokenized anew in each batch": partial(tokens, forgetful),
        "a complete batch (latents 4 x 16 x 16, noise, times, tokens)": lambda: [batches[rows] for rows in slices],
    }
    found = []
    for name, timings in rounds(variants, args.rounds).items():
        each = [one.cpu / count for one in timings]
        seconds = statistics.median(each)
        found.append([name, LARGE / seconds, 1000 * seconds, 1000 * min(each)])
    return found


def rendering(args: argparse.Namespace) -> dict | None:
    """Glyphs drawn from their font, from nothing; None where the fonts are not installed."""
    from ldm.config.settings import DataOptions
    from ldm.data import build
    from ldm.utils.errors import UserError

    count, folder = 500, args.work / "cold-glyphs"

    def draw() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        build(DataOptions.model_validate({"resolution": RESOLUTION, "cache_dir": folder, "glyphs": {"limit": count}}))

    random.seed(0)
    try:
        seconds = compared(rounds({"rendering": draw}, 3), "rendering")["rendering"]["seconds"]
    except UserError:
        return None
    pictures = sum(len(part) for part in vars(build(
        DataOptions.model_validate({"resolution": RESOLUTION, "cache_dir": folder, "glyphs": {"limit": count}})
    )).values() if part is not None)  # fmt: skip
    return {"seconds": seconds, "pictures_per_second": pictures / seconds["median"]}


def table(results: dict) -> str:
    rows: list[list[object]] = []
    for source, variants in results.items():
        for name, entry in variants.items():
            if entry is not None:
                ratio = ratio_text(entry["ratio"]) if "ratio" in entry else "-"
                what = source if name == "rendering" else f"{source} x {source} JPEG"
                rows.append([what, name, entry["pictures_per_second"], ratio])
    return markdown(["pictures", "path", "pictures/s of one core", "times the peer (quartiles)"], rows)


if __name__ == "__main__":
    run_main(main)
