"""How long until an autoencoder reaches a PSNR: ours of `configs/folder-cpu.yaml`, or diffusers' `train_autoencoderkl`.

    python benchmarks/time_to_psnr.py emoji --target 30

Both train on the images of a folder (an `imagefolder` of the datasets package), by turns, with latents of one size,
and are measured on the same validation images, ours with its EMA weights. The peer's loop is retold, see
`peer_autoencoder.py`, with the rate and losses of its defaults. It ends when both are there, or when the peer has had
`--most` times our seconds.
"""

import argparse
import shutil
import time
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from linear_decoder import psnr
from peer_autoencoder import retold
from protocol import machine, markdown, write_report
from stepping import Program
from torch import Tensor

from ldm.config.loading import load
from ldm.config.settings import VaeSettings
from ldm.data import build
from ldm.models.linear_autoencoder import pca_psnr
from ldm.training.data_order import image_batches
from ldm.training.tasks.vae import VaeTask
from ldm.training.trainer import Trainer
from ldm.utils.assets import shipped_configs
from ldm.utils.runtime import prepare_threads, run_main

TURN = 10.0  # CPU seconds of training between two looks
HELD_OUT = 128


class Learner:
    """A training that is paid by the CPU second, and looked at for free."""

    def __init__(self, program: Program, target: float):
        self.program, self.target, self.seconds = program, target, 0.0
        self.curve: list[tuple[float, float]] = []  # CPU seconds, PSNR

    @property
    def there(self) -> bool:
        return bool(self.curve) and self.curve[-1][1] >= self.target

    def turn(self, look) -> None:
        until = self.seconds + TURN
        while self.seconds < until:
            start = time.process_time()
            self.program.step()
            self.seconds += time.process_time() - start
        self.curve.append((round(self.seconds, 1), round(look(), 2)))
        print(f"{self.curve[-1][0]:.0f} s  {self.curve[-1][1]:.2f} dB", flush=True)


class Halting(Trainer):
    """Our trainer, which waits after each step."""

    def __init__(self, *arguments, pause):
        super().__init__(*arguments)
        self._pause = pause

    def _report(self) -> None:
        pass

    def _step(self, *arguments) -> None:
        super()._step(*arguments)
        self._pause()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of colour images, with train/ and validation/")
    parser.add_argument("--target", type=float, default=30, help="dB")
    parser.add_argument("--most", type=float, default=20, help="times our seconds that the peer has")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    prepare_threads(1)
    settings = settings_of(args)
    task = VaeTask(settings, build(settings.data))
    held_out = torch.cat([*image_batches(task.data.validation, limit=HELD_OUT)])
    peer_vae = peer_of(settings)
    trainer: list[Halting] = []
    ours = Learner(Program(partial(run_ours, task, settings, args.work / "time-to-psnr", trainer)), args.target)
    loop = retold("", args.source, settings.train.batch_size, "no", 50001, peer_vae, task.data.train.resolution)
    peer = Learner(Program(loop), args.target)
    while not ours.there or (not peer.there and peer.seconds < args.most * ours.seconds):
        if not ours.there:
            ours.turn(lambda: psnr_of_ema(trainer[0], task.model, held_out))
        if not peer.there:
            peer.turn(lambda: psnr(peer_vae, held_out))
    for one in (ours, peer):
        one.program.stop()
    report(ours, peer, task, held_out, settings, args)


def settings_of(args: argparse.Namespace) -> VaeSettings:
    quiet_run = {"log_every": 10**6, "save_every": 10**6, "sample_every": 0, "report_to": ["none"]}
    changes = {
        "data": {"source": str(args.source), "channels": 3, "cache_dir": str(args.work / "cache")},
        "train": {"num_steps": 10**6, "mixed_precision": "no"} | quiet_run,
        "optim": {"schedule": "constant"},
    }
    return load("vae", shipped_configs() / "folder-cpu.yaml", changes)


def peer_of(settings: VaeSettings) -> AutoencoderKL:
    """The script's kind of network, as wide as our default, with latents of our size."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=settings.model.latent_channels,
        norm_num_groups=8,
    )


def run_ours(task: VaeTask, settings: VaeSettings, folder: Path, trainer: list, pause) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    trainer.append(Halting(task, settings, folder, pause=pause))
    trainer[0].fit("never")


def psnr_of_ema(trainer: Trainer, vae, images: Tensor) -> float:
    with trainer.exported_weights():
        return psnr(vae, images)


def report(ours: Learner, peer: Learner, task: VaeTask, held_out: Tensor, settings: VaeSettings, args) -> None:
    train = torch.cat([*image_batches(task.data.train, limit=2000)])
    floor = pca_psnr(train, held_out, settings.model.factor, settings.model.latent_channels)
    ratio = peer.seconds / ours.seconds
    rows = [[name, f"{one.seconds:.0f}", f"{one.curve[-1][1]:.2f}"] for name, one in (("ours", ours), ("peer", peer))]
    print(markdown(["", "CPU seconds", "PSNR, dB"], rows))
    print(f"{'' if peer.there else 'more than '}{ratio:.1f} times sooner; the linear map has {floor:.1f} dB")
    found = {"ours": ours.curve, "peer": peer.curve, "ratio": ratio, "reached": peer.there, "floor": floor}
    write_report(args.work / "time_to_psnr.json", found | machine())


if __name__ == "__main__":
    run_main(main)
