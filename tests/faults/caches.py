"""The four caches, each small: how to build one, what is in it, and how much work was done for it."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import ldm.data.glyphs.rendering as render_module
import ldm.training.latent_cache as latents_module
from ldm.config.settings import DataOptions, VaeModel
from ldm.data import Splits, build, digits
from ldm.data.glyphs.rendering import cached_glyphs, style_font
from ldm.formats import decode_workers as workers
from ldm.models.autoencoder import build_vae, load_vae

PICTURES, SIDE = 12, 16
CHARACTERS = "\u6c34\u706b\u6728\u91d1\u571f\u65e5\u6708\u5c71\u77f3\u7530"
ORIGINALS = list(range(12))


@dataclass
class Work:
    """How often the costly part of each cache was done."""

    decoded: int = 0
    encoded: int = 0
    rendered: int = 0
    traced: int = 0

    @property
    def total(self) -> int:
        return self.decoded + self.encoded + self.rendered + self.traced

    def watch(self, monkeypatch) -> "Work":
        def counted(module, name, field, amount=lambda *args: 1):
            original = getattr(module, name)

            def call(*args, **options):
                setattr(self, field, getattr(self, field) + amount(*args))
                return original(*args, **options)

            monkeypatch.setattr(module, name, call)

        counted(workers.Worker, "__call__", "decoded")
        counted(latents_module, "_encode", "encoded", lambda vae, data, indices: len(indices))
        counted(render_module, "render", "rendered", lambda font, characters, resolution: len(characters))
        counted(digits, "trace", "traced")
        return self

    def done(self) -> "Work":
        """What was done since the last call."""
        was = Work(**vars(self))
        self.__init__()
        return was


def write_pictures(folder: Path, count: int = PICTURES, side: int = SIDE) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"picture {i}")


def write_vae(folder: Path) -> None:
    torch.manual_seed(0)
    model = VaeModel(block_out_channels=[8, 16], norm_num_groups=8, latent_channels=2)
    build_vae(model, 1, SIDE).save_pretrained(folder)


def read(project: Path, resolution: int = SIDE, channels: int = 1, **files) -> Splits:
    """The pictures of a project, all of them for training."""
    values = {"source": str(project / "pictures"), "cache_dir": project / "cache"}
    return build(
        DataOptions(**values, resolution=resolution, channels=channels, files={"validation_fraction": 0.0, **files})
    )


def build_pixels(project: Path) -> None:
    data = read(project).train
    assert len(data) == PICTURES and data.image(0).shape == (SIDE, SIDE, 1)


def build_latents(project: Path) -> None:
    """The pixels are read from a cache beside this one, whose fate is not looked at here."""
    data = read(project / "..").train
    found = latents_module.cached_latents(load_vae(project / "../vae"), data, project / "cache", batch_size=2)
    assert len(found) == PICTURES and np.isfinite(found.mean).all()


def build_glyphs(project: Path) -> None:
    folder, _ = cached_glyphs(style_font("hei"), CHARACTERS, SIDE, project / "cache")
    assert np.load(folder / "images.npy").shape == (len(CHARACTERS), SIDE, SIDE)


def build_digits(project: Path) -> None:
    assert len(digits.handwriting(ORIGINALS, project / "cache")) == len(ORIGINALS)


KINDS: dict[str, Callable[[Path], None]] = {
    "pixels": build_pixels,
    "latents": build_latents,
    "glyphs": build_glyphs,
    "digits": build_digits,
}


def prepare(root: Path, kind: str) -> Path:
    """A project in which `KINDS[kind]` can build its cache, in the folder `cache`, and nothing else lies there."""
    project = root / kind
    place = root if kind == "latents" else project
    write_pictures(place / "pictures")
    write_vae(place / "vae")
    if kind == "latents":
        project.mkdir()
        read(root)
    return project


def contents(cache: Path) -> dict[str, bytes]:
    """Every file of a cache, hidden ones too, by its relative name; but no locks and no memories of sources."""
    left_out = (".lock", ".source")
    files = [path for path in sorted(cache.rglob("*")) if path.is_file() and path.suffix not in left_out]
    return {str(path.relative_to(cache)): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def fork(work: Callable[[], None], told: Path) -> int:
    """The process id of a child that does this and ends with 0, or with 1 and a traceback in `told`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(told, "w") as quiet:
            os.dup2(quiet.fileno(), 1)
            os.dup2(quiet.fileno(), 2)
            work()
            code = 0
    except BaseException:
        told.with_suffix(".fault").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Exit code of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> bool:
    """SIGKILL a child; whether it was still at work."""
    os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL
