"""Our autoencoder's training step against diffusers' `train_autoencoderkl`: same network, batch and pictures.

    python benchmarks/autoencoder_step.py --stack light
    python benchmarks/autoencoder_step.py --adversarial --device cuda --precision bf16 --steps-per-round 20

The peer's loop is retold, see `peer_autoencoder.py`. The losses are each program's own: the peer's perceptual term is
a VGG's and outside the graph, so that it trains nothing; ours has smaller features and real gradients. With
`--adversarial` both train against a discriminator from the first step: the peer by turns, ours both in every step.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path

from peer_autoencoder import VggDistance, retold
from protocol import compared, markdown, quiet, ratio_text, rounds, timed, write_report
from stacks import RESOLUTION, STACKS, write_pictures
from stepping import Parts, Program, part_seconds

from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", choices=STACKS, default="light")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--adversarial", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps-per-round", type=int, default=2, help="even; 20 or more on a GPU")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="pictures and caches")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    prepare_threads(args.threads)
    patch_torchvision()
    results = measure(args)
    print(table(results, args))
    write_report(args.output / f"autoencoder_step_{args.stack}{'_adversarial' * args.adversarial}.json", results)


def measure(args: argparse.Namespace) -> dict:
    pictures = write_pictures(args.work / f"pictures-{args.pictures}", args.pictures)
    start = 0 if args.adversarial else 50001
    peer = retold(args.stack, pictures, args.batch, args.precision, start)
    programs = {"peer": Program(peer), "ours": Program(partial(ours, pictures, args))}
    clock = "wall" if args.device == "cuda" or args.threads != 1 else "cpu"
    try:
        timings = rounds({name: partial(several, each, args) for name, each in programs.items()}, args.rounds)
        parts = {name: parts_of(each) for name, each in programs.items()}
    finally:
        for program in programs.values():
            program.stop()
    if clock == "wall" and args.device == "cpu":
        timings = quiet(timings)
    arguments = {name: str(value) for name, value in vars(args).items()}
    step = compared(timings, "peer", clock)
    return {"arguments": arguments, "clock": clock, "timings": timings, "parts": parts, "step": step}


def several(program: Program, args: argparse.Namespace) -> None:
    for _ in range(args.steps_per_round):
        program.step()


def ours(pictures: Path, args: argparse.Namespace, pause) -> None:
    """The real trainer and task; the settings give the peer's network."""
    from ldm.config.settings import VaeSettings
    from ldm.data import build
    from ldm.training.tasks.vae import VaeTask
    from ldm.training.trainer import Trainer

    folder = args.work / "ours-vae"
    shutil.rmtree(folder, ignore_errors=True)
    model = {"block_out_channels": STACKS[args.stack], "layers_per_block": 2, "norm_num_groups": 32}
    train = {"num_steps": 10**6, "batch_size": args.batch, "mixed_precision": args.precision, "ema_decay": 0.0}
    quiet_run = {"report_to": ["none"], "log_every": 10**6, "save_every": 10**6, "sample_every": 0}
    settings = VaeSettings(
        model=model | {"mid_attention": True, "latent_channels": 4},
        data={
            "source": str(pictures), "resolution": RESOLUTION, "channels": 3, "cache_dir": args.work / "cache",
            "files": {"horizontal_flip": True},
        },
        loss={"adversarial": 0.1 * args.adversarial, "adversarial_start": 0.0},
        train=train | quiet_run,
    )  # fmt: skip

    class Halting(Trainer):
        def _report(self):
            pass

        def _step(self, *arguments):
            super()._step(*arguments)
            pause()

    Halting(VaeTask(settings, build(settings.data)), settings, folder).fit("never")


def parts_of(program: Program, steps: int = 4) -> dict:
    import torch
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from diffusers import AutoencoderKL
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    from ldm.models.reconstruction_losses import PatchDiscriminator, RandomFeatures

    methods = {
        "data": [(_BaseDataLoaderIter, "__next__")],
        "encode": [(AutoencoderKL, "encode")],
        "decode": [(AutoencoderKL, "decode")],
        "perceptual": [(VggDistance, "__call__"), (RandomFeatures, "__call__")],
        "adaptive weight": [(torch.autograd, "grad")],
        "discriminator": [(PatchDiscriminator, "__call__"), (torch.nn.Sequential, "__call__")],
        "backward": [(Accelerator, "backward")],
        "clip and optimizer": [
            (Accelerator, "clip_grad_norm_"), (AcceleratedOptimizer, "step"), (AcceleratedOptimizer, "zero_grad"),
        ],
    }  # fmt: skip
    with Parts(methods) as parts:
        whole = [timed(program.step) for _ in range(steps)]
    return {"steps": steps, "whole": whole, **parts.take()}


def table(results: dict, args: argparse.Namespace) -> str:
    clock, step = results["clock"], results["step"]
    named = {name: None for parts in results["parts"].values() for name in parts if name not in ("steps", "whole")}
    rows: list[list[object]] = [
        [part, *(part_seconds(results["parts"][who], part, clock) for who in ("peer", "ours"))]
        for part in (*named, "other", "whole")
    ]
    images = args.batch * args.steps_per_round
    rows.append(["images/s", *(images / step[who]["seconds"]["median"] for who in ("peer", "ours"))])
    ratio = step["ours"]["ratio"]
    head = [f"{clock} seconds a step, {args.stack} stack", "peer (retold)", "ours"]
    return markdown(head, rows) + (
        f"\nOurs trains {ratio_text(ratio)} times the peer's images per second; win: {ratio['win']}.\n"
    )


if __name__ == "__main__":
    run_main(main)
