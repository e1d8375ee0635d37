"""Our training step against diffusers' `train_text_to_image`: same U-Net, batch, precision and pictures.

    python benchmarks/train_step.py --stack light --peer-script train_text_to_image.py
    python benchmarks/train_step.py --device cuda --precision bf16 --batch 256 --steps-per-round 20

Both programs run whole in one process and halt after each step. First our trainer is given the very batches of the
peer and has to give its losses; then each works on its own, by turns, and is timed. Without `--peer-script` the
peer's loop is retold with the same stock modules. `--stack heavy` has an autoencoder as dear as the U-Net's training.
"""

import argparse
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

from peer_training import retold, script, script_arguments
from protocol import ceilings, compared, markdown, quiet, ratio_text, rounds, timed, write_report
from stacks import STACKS, build_unet, ldm_settings, write_pictures, write_stack
from stepping import Parts, Program, part_seconds

from ldm.utils.errors import UserError
from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision

TOLERANCE = {"no": 1e-3, "bf16": 2e-2, "fp16": 2e-2}  # of a loss in a common step, relative; a tenth in the first
EPOCHS = (1, 2, 5, 10)


def main() -> None:
    args = arguments()
    prepare_threads(args.threads)
    if args.torchvision:
        sys.path.append(str(args.torchvision))
    patch_torchvision()
    results = measure(args)
    print(table(results))
    write_report(args.output / f"train_step_{args.stack}.json", results)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", choices=STACKS, default="light")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps-per-round", type=int, default=1, help="20 or more on a GPU")
    parser.add_argument("--check-steps", type=int, default=5, help="common steps whose losses have to agree")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0, help="of our loader; the peer's are in its arguments")
    parser.add_argument("--compile", action="store_true", help="torch.compile ours")
    parser.add_argument("--peer-script", type=Path, help="a copy of diffusers' train_text_to_image.py")
    parser.add_argument("--peer-arguments", default="", help="further flags of that script, in one string")
    parser.add_argument("--torchvision", type=Path, help="a folder to import torchvision from, if need be")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="models, pictures, caches")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"))
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict:
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    model = write_stack(args.work / f"stack-{args.stack}", args.stack)
    pictures = write_pictures(args.work / f"pictures-{args.pictures}", args.pictures)
    clock = "wall" if args.device == "cuda" or args.threads != 1 else "cpu"
    before, ours = ceilings(args.device), Ours(model, pictures, args)
    programs = {"peer": Program(peer(model, pictures, args)), "ours": Program(ours.run)}
    try:
        losses = common_steps(programs, ours, args.check_steps, TOLERANCE[args.precision])
        steps = {name: partial(several, each, args.steps_per_round) for name, each in programs.items()}
        timings = rounds(steps, args.rounds)
        parts = {name: parts_of(each) for name, each in programs.items()}
    finally:
        for program in programs.values():
            program.stop()
    limits = {name: max(value, before[name]) for name, value in ceilings(args.device).items()}
    if clock == "wall" and args.device == "cpu":
        timings = quiet(timings)
    cache = cache_cost(model, pictures, args, clock)
    results = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "peer": "script" if args.peer_script else "retold",
        "clock": clock,
        "ceilings": limits,
        "losses": losses,
        "timings": timings,
        "parts": parts,
        "step": compared(timings, "peer", clock),
        "flops": args.batch * args.steps_per_round * unet_flops(),
        "cache_seconds_per_picture": cache,
    }
    return results | {"epochs": epochs(results, args)}


# ---- the two programs ----------------------------------------------------------------------------------------------


def peer(model: Path, pictures: Path, args: argparse.Namespace):
    if args.peer_script is None:
        return retold(model, pictures, args.batch, args.precision)
    words = script_arguments(model, pictures, args.work / "peer", args.batch, args.precision)
    return script(args.peer_script, words + shlex.split(args.peer_arguments))


class Ours:
    """Our trainer on the same U-Net: the real one, but that it halts, and that a batch can be put in its hands."""

    def __init__(self, model: Path, pictures: Path, args: argparse.Namespace):
        self.model = model
        self.given: dict | None = None  # a batch to take instead of its own
        self.folder = args.work / f"ours-{args.stack}"
        shutil.rmtree(self.folder, ignore_errors=True)
        options = {"batch_size": args.batch, "mixed_precision": args.precision, "num_steps": 10**6}
        options |= {"num_workers": args.workers, "compile": args.compile, "threads": args.threads}
        flips = {"files": {"validation_fraction": 0.0, "horizontal_flip": True}}
        self.settings = ldm_settings(model, pictures, self.folder, cache=args.work / "cache", data=flips, **options)

    def run(self, pause) -> None:
        from diffusers import UNet2DConditionModel

        from ldm.data import build
        from ldm.training.distributed import start_world
        from ldm.training.tasks.denoising import denoising_task
        from ldm.training.trainer import Trainer

        def batch(samples, rows):
            own, given = plain_batch(samples, rows), self.given
            schedule = task.module.process.schedule
            return own if given is None else given | {"times": schedule.from_timestep(given["times"])}

        class Halting(Trainer):
            def _report(self):  # nothing is drawn here
                pass

            def _step(self, *args):
                super()._step(*args)
                pause()

        self.folder.mkdir(parents=True)
        unet = UNet2DConditionModel.from_pretrained(self.model, subfolder="unet")
        data, device = build(self.settings.data), start_world().device
        task = denoising_task(self.settings, data, self.folder, device, unet=unet)
        plain_batch, task.batch = task.batch, batch
        Halting(task, self.settings, self.folder).fit("never")


def several(program: Program, steps: int) -> None:
    for _ in range(steps):
        program.step()


# ---- the same losses first -----------------------------------------------------------------------------------------


def common_steps(programs: dict[str, Program], ours: Ours, count: int, tolerance: float) -> list[dict[str, float]]:
    """Losses of `count` steps in which ours eats the peer's latents, noise, times and tokens. Needs no workers.

    Raises: UserError: if they differ, for then the two do not train the same thing.
    """
    losses = []
    for step in range(count):
        with Spy() as spy:
            programs["peer"].step()
        ours.given, theirs = spy.batch, spy.loss
        with Spy() as spy:
            programs["ours"].step()
        losses.append({"peer": theirs, "ours": spy.loss})
        if abs(spy.loss / theirs - 1) > (tolerance if step else tolerance / 10):
            raise UserError(f"step {step}: the losses differ, peer {theirs:.6f}, ours {spy.loss:.6f}")
    ours.given = None
    return losses


class Spy:
    """Reads the batch and the loss of a step from the stock methods they pass through."""

    def __enter__(self) -> "Spy":
        from accelerate import Accelerator
        from diffusers import DDPMScheduler
        from transformers import CLIPTextModel

        self.batch: dict = {}
        self.loss = 0.0
        self._places = [(DDPMScheduler, "add_noise"), (CLIPTextModel, "__call__"), (Accelerator, "backward")]
        self._own = [(owner, name, vars(owner).get(name), getattr(owner, name)) for owner, name in self._places]
        (_, _, _, add_noise), (_, _, _, encode), (_, _, _, backward) = self._own

        def see_noise(scheduler, latents, noise, timesteps):
            self.batch |= {"latents": latents.float().cpu(), "noise": noise.float().cpu(), "times": timesteps.cpu()}
            return add_noise(scheduler, latents, noise, timesteps)

        def see_tokens(encoder, input_ids, *args, **kwargs):
            self.batch["input_ids"] = input_ids.cpu()
            return encode(encoder, input_ids, *args, **kwargs)

        def see_loss(accelerator, loss, **kwargs):
            self.loss = loss.item()
            backward(accelerator, loss, **kwargs)

        for (owner, name), seen in zip(self._places, (see_noise, see_tokens, see_loss)):
            setattr(owner, name, seen)
        return self

    def __exit__(self, *_) -> None:
        for owner, name, own, _ in self._own:
            delattr(owner, name) if own is None else setattr(owner, name, own)


# ---- parts, FLOPs, epochs ------------------------------------------------------------------------------------------


def parts_of(program: Program, steps: int = 3) -> dict:
    """Timings of the parts of a few further steps."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.training_utils import EMAModel
    from torch.utils.data.dataloader import _BaseDataLoaderIter
    from transformers import CLIPTextModel

    from ldm.training.ema import EMA

    methods = {
        "data": [(_BaseDataLoaderIter, "__next__")],
        "encode pictures": [(AutoencoderKL, "encode")],
        "encode text": [(CLIPTextModel, "__call__")],
        "U-Net forward": [(UNet2DConditionModel, "__call__")],
        "backward": [(Accelerator, "backward")],
        "clip and optimizer": [
            (Accelerator, "clip_grad_norm_"), (AcceleratedOptimizer, "step"), (AcceleratedOptimizer, "zero_grad"),
        ],
        "EMA": [(EMAModel, "step"), (EMA, "step")],
    }  # fmt: skip
    with Parts(methods) as parts:
        whole = [timed(program.step) for _ in range(steps)]
    return {"steps": steps, "whole": whole, **parts.take()}


def unet_flops() -> int:
    """Of one picture, forward and backward; a multiplication with its addition is two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        unet = build_unet()
        unet(torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, 77, 256)).sample.sum().backward()
    return counter.get_total_flops()


def cache_cost(model: Path, pictures: Path, args: argparse.Namespace, clock: str) -> float:
    """Seconds to decode and encode a picture and its mirror image once and for all: 64 of them, from nothing."""
    import torch

    from ldm.data import build
    from ldm.models.autoencoder import load_vae
    from ldm.training.latent_cache import cached_latents

    folder = args.work / "cold"
    shutil.rmtree(folder, ignore_errors=True)
    few = write_pictures(args.work / "pictures-64", 64)
    data = {"files": {"validation_fraction": 0.0, "horizontal_flip": True}}
    settings = ldm_settings(model, few, folder, data=data)
    vae = load_vae(model / "vae").to(torch.device(args.device))
    cost = timed(lambda: cached_latents(vae, build(settings.data).train, folder / "cache"))
    return getattr(cost, clock) / 64


def epochs(results: dict, args: argparse.Namespace) -> dict[str, float]:
    """Peer's seconds over ours for whole trainings of few epochs, the cache of pictures and mirror images included."""
    seconds = {name: entry["seconds"]["median"] for name, entry in results["step"].items()}
    picture = {name: value / (args.batch * args.steps_per_round) for name, value in seconds.items()}
    cache = results["cache_seconds_per_picture"]
    found = {str(count): count * picture["peer"] / (cache + count * picture["ours"]) for count in EPOCHS}
    saved = picture["peer"] - picture["ours"]
    return found | {"break_even": cache / saved if saved > 0 else float("inf")}


# ---- the table -----------------------------------------------------------------------------------------------------


def table(results: dict) -> str:
    clock, step = results["clock"], results["step"]
    names = [name for name in results["parts"]["peer"] if name not in ("steps", "whole")] + ["other"]
    rows = [[part, *(part_seconds(results["parts"][who], part, clock) for who in ("peer", "ours"))] for part in names]
    medians = {who: step[who]["seconds"]["median"] for who in ("peer", "ours")}
    rows.append(["**whole round**", *medians.values()])
    precision = "fp32" if results["arguments"]["precision"] == "no" else "bf16"
    peak = results["ceilings"][f"gemm_{precision}"]
    rates = {who: results["flops"] / seconds / 1e9 for who, seconds in medians.items()}
    rows.append(["U-Net GFLOP/s (share of the peak)", *(f"{rate:.3g} ({rate / peak:.0%})" for rate in rates.values())])
    images = int(results["arguments"]["batch"]) * int(results["arguments"]["steps_per_round"])
    rows.append(["images/s", *(images / seconds for seconds in medians.values())])
    ratio, epoch = step["ours"]["ratio"], results["epochs"]
    differences = [abs(each["ours"] / each["peer"] - 1) for each in results["losses"]]
    lines = [
        f"Ours does {ratio_text(ratio)} times the peer's steps per second; win: {ratio['win']}.",
        f"Losses of {len(differences)} common steps differ by at most {max(differences, default=0):.1e} (relative).",
        "With the cache of pictures and mirror images: "
        + ", ".join(f"{epoch[str(count)]:.2f} times at {count} epochs" for count in EPOCHS)
        + f"; even after {epoch['break_even']:.1f} epochs.",
    ]
    head = [f"{clock} seconds, {results['arguments']['stack']} stack", f"peer ({results['peer']})", "ours"]
    return markdown(head, rows) + "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main)
