"""How long until a model draws what it is told: our trainer against the loop of diffusers' train_text_to_image.py.

    python benchmarks/time_to_quality.py             all seeds of both; what is finished is kept and not done again
    python benchmarks/time_to_quality.py --pilot     the peer's learning rates and precisions, to choose its best one
    python benchmarks/time_to_quality.py --table     the table of what there is, nothing trained

Both teach the same U-Net from the same starting weights on the same glyphs and captions (one in ten is empty), with
the autoencoder and the text encoder of one finished model, in batches of one size. Ours: rectified flow, logit-normal
times, cached latents, precision by `auto`; its seconds include the encoding of the cache. The peer's loop is written
here over stock modules: in every step it reads PNG files, encodes pixels and captions, predicts eps at uniform steps
of the scaled-linear process, clips to norm 1, takes an AdamW step at a constant rate and follows with EMAModel. Left
out of it, in its favour: torchvision's transforms (the files have the right size), `datasets`, logging, checkpoints.

The clock, CPU seconds of this process, stands still while pictures are drawn and judged, from EMA weights and with the
same solver, steps and guidance for both. The goal is reached when of each great layout's pictures a share of `--target`
or more have that layout by the glyph classifier, in a small sample and then in a larger one, of which the Frechet
distance is taken. The peer is stopped at `--cap` times our seconds; what can be claimed is then a lower bound.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol import markdown, paired_ratio, ratio_text, write_report

from ldm.models.latents import downsampling_factor
from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = ("horizontal", "vertical")  # four glyphs in five have one of them
SCREEN, CONFIRM = 2**31, 2**32  # seeds of the pictures
CAPTIONS = 10  # of each glyph, for the peer: one of them is drawn in each step
PEER = {"lr": 1e-4, "precision": "no"}  # the script's defaults
PILOT = [PEER, {"lr": 8e-4, "precision": "no"}, {"lr": 8e-4, "precision": "bf16"}]  # the second has our rate


class Finished(Exception):
    """The goal or the end of the time: training stops here."""


@dataclass
class Race:
    """The clock and the judge of one training.

    Attributes: seconds, of training so far; step: of the next look; found: a row for each look; reached: the last one's
    numbers once the goal is, else None.
    """

    args: argparse.Namespace
    limit: float = float("inf")
    seconds: float = 0.0
    step: int = 0
    found: list[dict] = field(default_factory=list)
    reached: dict | None = None
    _since: float = field(default_factory=time.process_time)

    def stop_clock(self) -> None:
        self.seconds += time.process_time() - self._since

    def start_clock(self) -> None:
        self._since = time.process_time()

    def look(self, step: int, pipeline: Callable[[], Any]) -> None:
        """Score the present weights if it is time to. Raises: Finished."""
        if step < self.step:
            return
        self.stop_clock()
        self.step = max(step + self.args.every, round(1.2 * step))
        if step:
            row = {"step": step, "seconds": self.seconds} | self._judged(pipeline(), self.args.screen, SCREEN)[0]
            self.found.append(row)
            print(json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
            if self._enough(row):
                confirmed, images = self._judged(pipeline(), self.args.confirm, CONFIRM)
                print(f"  of {self.args.confirm} each: {confirmed}", flush=True)
                if self._enough(confirmed):
                    self.reached = {"step": step, "seconds": self.seconds} | confirmed | distance(images, self.args)
            if self.reached or self.seconds > self.limit:
                raise Finished
        self.start_clock()

    def _enough(self, shares: dict) -> bool:
        return min(shares[layout] for layout in LAYOUTS) >= self.args.target

    def _judged(self, pipeline, each: int, seed: int):
        """The share of each layout's pictures that have it, and all pictures, uint8 (n, h, w)."""
        import numpy as np

        from ldm.data.glyphs.captions import layout_phrase
        from ldm.evaluation.glyphs.classifier import GlyphClassifier
        from ldm.pipelines.generation import SamplingOptions, generate_pixels

        prompts = [layout_phrase(layout) for layout in LAYOUTS for _ in range(each)]
        seeds = range(seed, seed + len(prompts))
        images = generate_pixels(
            pipeline, prompts, seeds, SamplingOptions(self.args.sampling_steps, self.args.guidance)
        )
        images = images.mean(axis=3).round().astype(np.uint8)
        seen = np.array(GlyphClassifier().predict(images).layouts).reshape(len(LAYOUTS), each)
        return {layout: float((row == layout).mean()) for layout, row in zip(LAYOUTS, seen, strict=True)}, images


def distance(images, args: argparse.Namespace) -> dict[str, float]:
    """Frechet and kernel distance to unseen glyphs of the two layouts, by the classifier's features, and their floor.

    The floor is that of as many real training glyphs. Of few pictures the Frechet distance is large throughout.
    """
    import numpy as np

    from ldm.data import build
    from ldm.evaluation.glyphs.classifier import GlyphClassifier
    from ldm.evaluation.metrics.distribution_distances import frechet_distance, kernel_distance

    def pictures(split, most: int | None = None):
        chosen = [i for i in range(len(split)) if split.meta(i)["structure"] in LAYOUTS][:most]
        return np.stack([split.image(i)[..., 0] for i in chosen])

    every = settings_of(args, 0)
    data = build(every.data.model_copy(update={"glyphs": every.data.glyphs.model_copy(update={"limit": 0})}))
    embed = GlyphClassifier().embed
    real, floor = embed(pictures(data.validation)), embed(pictures(data.train, len(images)))
    drawn = embed(images)
    return {
        "fd": frechet_distance(drawn, real),
        "kid": kernel_distance(drawn, real),
        "floor_fd": frechet_distance(floor, real),
    }


# ---- ours ----------------------------------------------------------------------------------------------------------


def settings_of(args: argparse.Namespace, seed: int):
    from ldm.config.loading import load

    parts = {"vae": str(args.parts), "text": {"source": str(args.parts)}}
    model = {"block_out_channels": args.widths, "norm_num_groups": 16}
    train = {
        "num_steps": args.steps,
        "batch_size": args.batch,
        "sample_every": args.every,
        "save_every": args.steps + 1,
    }
    optim = {"lr": args.lr, "warmup_steps": 50}
    data = {"cache_dir": str(args.output / "cache"), "glyphs": {"limit": args.glyphs}}
    given = {"seed": seed, "data": data, "model": model, "optim": optim, "train": train | {"report_to": ["none"]}}
    return load("ldm", args.config, parts | given)


def ours(seed: int, folder: Path, args: argparse.Namespace) -> dict:
    """Train with `Trainer` and `LdmTask`, as train_ldm.py does, until the goal."""
    import torch

    from ldm.data import build
    from ldm.models.digests import weights_digest
    from ldm.training.tasks.denoising import denoising_task
    from ldm.training.trainer import Trainer

    race = Race(args)

    def report(place: Path, label: str) -> dict[str, float]:
        if label.endswith("-ema"):
            race.look(int(label.split("-")[0]), task.pipeline)
        return {}

    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of(args, seed)
    data = build(settings.data)  # glyphs are rendered before the clock starts, and latents are encoded after it has
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"cache_dir": folder / "cache"})})
    race.start_clock()
    task = denoising_task(settings, data, folder, torch.device("cpu"))
    task.report = report
    race.stop_clock()
    facts = {"encoding_seconds": race.seconds, "start": weights_digest(task.module.unet)}
    trainer = Trainer(task, settings, folder)
    facts["precision"] = trainer.accelerator.mixed_precision
    race.start_clock()
    try:
        trainer.fit("never")
        race.stop_clock()
    except Finished:
        pass
    return facts | outcome(race)


def outcome(race: Race) -> dict:
    last = race.found[-1]
    speed = last["step"] * race.args.batch / last["seconds"]
    return {"reached": race.reached, "seconds": race.seconds, "images_per_second": speed, "looks": race.found}


# ---- the peer ------------------------------------------------------------------------------------------------------


def write_pictures(args: argparse.Namespace) -> Path:
    """The training glyphs as PNG files with `CAPTIONS` captions each, drawn and dropped as our trainer does."""
    from PIL import Image

    from ldm.data import build
    from ldm.training.task import SampleRef, captions_of

    folder, settings = args.output / "pictures", settings_of(args, 0)
    if not (folder / "captions.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train = build(settings.data).train
        for i in range(len(train)):
            Image.fromarray(train.image(i)[..., 0]).save(folder / f"{i:06d}.png")
        captions = [
            captions_of([(train, SampleRef(i, n)) for n in range(CAPTIONS)], settings.seed, settings.caption_dropout)
            for i in range(len(train))
        ]
        (folder / "captions.json").write_text(json.dumps(captions))
    return folder


def batches(folder: Path, tokenizer, batch_size: int) -> Iterator[tuple]:
    """Endless shuffled batches, read and tokenized in this process (the script's default): pixels, token ids."""
    import random

    import numpy as np
    import torch
    from PIL import Image

    captions = json.loads((folder / "captions.json").read_text())

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(captions)

        def __getitem__(self, i: int):
            with Image.open(folder / f"{i:06d}.png") as image:
                pixels = torch.from_numpy(np.array(image.convert("L")))[None].float() / 255
            words = tokenizer(
                random.choice(captions[i]), max_length=tokenizer.model_max_length, padding="max_length",
                truncation=True, return_tensors="pt",
            )  # fmt: skip
            return pixels * 2 - 1, words.input_ids[0]

    loader = torch.utils.data.DataLoader(Pictures(), shuffle=True, batch_size=batch_size)
    while True:
        yield from loader


def peer(seed: int, args: argparse.Namespace, choice: dict, limit: float) -> dict:
    """The peer's loop until the goal or `limit` seconds, at `choice` of learning rate and precision."""
    import random

    import torch
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    from ldm.models.autoencoder import load_vae
    from ldm.models.digests import weights_digest
    from ldm.models.text_encoder import load_text
    from ldm.models.unet import build_unet
    from ldm.training.data_order import derive_seed

    settings, pictures = settings_of(args, seed), write_pictures(args)
    vae = load_vae(args.parts).requires_grad_(False)
    text_encoder, tokenizer = load_text(args.parts)
    text_encoder.requires_grad_(False)
    torch.manual_seed(derive_seed(seed, 1))  # the weights that ours starts from
    side = settings.data.resolution // downsampling_factor(vae.config)
    unet = build_unet(settings.model, vae.config.latent_channels, side, text_encoder.config.hidden_size).train()
    facts = {"start": weights_digest(unet)} | choice
    ema = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    drawer = _drawer(vae, text_encoder, tokenizer, unet, ema)
    random.seed(seed)
    torch.manual_seed(seed)
    half = choice["precision"] == "bf16"
    frozen = (vae.to(torch.bfloat16), text_encoder.to(torch.bfloat16)) if half else (vae, text_encoder)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=choice["lr"], betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    process = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    race = Race(args, limit)
    race.start_clock()
    try:
        for step, batch in enumerate(batches(pictures, tokenizer, args.batch)):
            race.look(step, drawer)
            _peer_step(unet, *frozen, process, batch, optimizer, half)
            ema.step(unet.parameters())
    except Finished:
        pass
    return facts | outcome(race)


def _peer_step(unet, vae, text_encoder, process, batch, optimizer, half: bool) -> None:
    import torch

    pixels, input_ids = batch
    latents = vae.encode(pixels.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, process.config.num_train_timesteps, (len(latents),))
    noisy = process.add_noise(latents, noise, timesteps)
    states = text_encoder(input_ids, return_dict=False)[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        prediction = unet(noisy, timesteps, states, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _drawer(vae, text_encoder, tokenizer, unet, ema) -> Callable[[], Any]:
    """Gives a pipeline of the EMA weights as they are when it is called, in float32, in networks of its own."""
    import copy

    from ldm.config.settings import NoiseOptions
    from ldm.pipelines.diffusers_schedulers import export_scheduler
    from ldm.pipelines.pipeline import Pipeline

    parts = [copy.deepcopy(part) for part in (vae, text_encoder)]
    own = copy.deepcopy(unet)
    noise = NoiseOptions(process="scaled_linear", prediction_type="epsilon", timesteps="uniform")

    def pipeline():
        ema.copy_to(own.parameters())
        return Pipeline(*parts, tokenizer, own, export_scheduler(noise))

    return pipeline


# ---- all of it -----------------------------------------------------------------------------------------------------


def kept(path: Path, measure: Callable[..., dict], *given) -> dict:
    """What `path` holds; `measure(*given)`, kept there, if it is not there yet."""
    if not path.exists():
        print(f"== {path}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure(*given), indent=1))
    return json.loads(path.read_text())


def compete(args: argparse.Namespace) -> None:
    """Every seed: ours to the goal, then the peer."""
    for seed in args.seeds:
        folder = args.output / f"seed-{seed}"
        own = kept(folder / "ours.json", ours, seed, folder / "ours", args)
        choice = {"lr": args.peer_lr, "precision": args.peer_precision}
        theirs = kept(folder / "peer.json", peer, seed, args, choice, args.cap * own["seconds"])
        if own["start"] != theirs["start"]:
            raise RuntimeError(f"{folder}: the two did not start from the same weights")


def pilot(args: argparse.Namespace) -> None:
    """The peer at each choice, from the weights of the first seed: how far it comes in the same seconds."""
    rows = []
    for choice in PILOT:
        path = args.output / "pilot" / f"{choice['lr']}-{choice['precision']}.json"
        row = kept(path, peer, args.seeds[0], args, choice, args.pilot_seconds)
        last = row["looks"][-1]
        rows.append([choice["lr"], choice["precision"], last["seconds"], last["step"], *(last[n] for n in LAYOUTS)])
    print(markdown(["learning rate", "precision", "CPU s", "steps", *LAYOUTS], rows))


def report(args: argparse.Namespace) -> None:
    """Print the table of the finished seeds, and write it with everything else."""
    pairs = {}
    for seed in args.seeds:
        files = [args.output / f"seed-{seed}" / f"{name}.json" for name in ("ours", "peer")]
        if all(file.exists() for file in files):
            pairs[seed] = [json.loads(file.read_text()) for file in files]
    rows = [
        line(seed, name, row)
        for seed, pair in pairs.items()
        for name, row in zip(("ours", "diffusers' loop"), pair, strict=True)
    ]
    head = ["seed", "trainer", "CPU s", "steps", "images/s", *LAYOUTS, "FD", "KID", "floor of FD"]
    table = markdown(head, rows)
    results: dict = {"arguments": {k: str(v) for k, v in vars(args).items()}, "seeds": pairs}
    if len(pairs) > 1:
        ratio = paired_ratio(
            [theirs["seconds"] for _, theirs in pairs.values()], [o["seconds"] for o, _ in pairs.values()]
        )
        bound = "at least " if any(theirs["reached"] is None for _, theirs in pairs.values()) else ""
        table += f"\nOurs reaches {args.target:.0%} of both layouts {bound}{ratio_text(ratio)} times sooner.\n"
        results["ratio"] = ratio
    print(table)
    write_report(args.output / "time_to_quality.json", results)
    (args.output / "time_to_quality.md").write_text(table)


def line(seed: int, name: str, row: dict) -> list:
    """A row of the table; of a training that was stopped, its last look and '-' for the distances."""
    last, end = row["reached"] or row["looks"][-1], row["reached"] or {}
    distances = [end.get("fd", "-"), end.get("kid", "-"), end.get("floor_fd", "-")]
    seconds = row["seconds"] if row["reached"] else f"> {row['seconds']:.3g}"
    return [seed, name, seconds, last["step"], row["images_per_second"], *(last[n] for n in LAYOUTS), *distances]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/time_to_quality"), help="where all is kept")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "glyphs-cpu.yaml")
    parser.add_argument("--parts", type=Path, default=ROOT / "models" / "glyphs", help="autoencoder and text encoder")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128], help="of the U-Net")
    parser.add_argument("--glyphs", type=int, default=1000, help="training glyphs")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=800, help="that our learning rate is planned for")
    parser.add_argument("--lr", type=float, default=8e-4, help="our learning rate")
    parser.add_argument("--peer-lr", type=float, default=8e-4, help="the better one of --pilot")
    parser.add_argument("--peer-precision", choices=("no", "bf16"), default="no", help="the better one of --pilot")
    parser.add_argument("--target", type=float, default=0.8, help="share of the pictures of each layout")
    parser.add_argument("--every", type=int, default=40, help="steps between looks at first; later a fifth of all")
    parser.add_argument("--screen", type=int, default=24, help="pictures of each layout in a look")
    parser.add_argument("--confirm", type=int, default=64, help="pictures of each layout that decide")
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--cap", type=float, default=4.0, help="the peer stops at so many times our seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pilot", action="store_true", help="try the peer's choices for --pilot-seconds each")
    parser.add_argument("--pilot-seconds", type=float, default=150)
    parser.add_argument("--table", action="store_true", help="only gather and print what is finished")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    prepare_threads(args.threads)
    patch_torchvision()
    args.output, args.parts = args.output.resolve(), args.parts.resolve()
    if args.pilot:
        return pilot(args)
    if not args.table:
        compete(args)
    report(args)


if __name__ == "__main__":
    run_main(main)
