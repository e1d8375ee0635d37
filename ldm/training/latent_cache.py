"""The latent cache: each image is encoded once, and training reads the posterior's mean and std from a memory map.

Content-addressed: the folder's name is a digest of the autoencoder's weights and of the pixels, so a changed VAE, data
set or resolution never meets stale latents. Mean and std are kept rather than a sample, so each epoch samples again.
Written in a staged folder with a manifest of sha256 sums, by one process at a time; a damaged cache is rebuilt.

Many images are encoded shard by shard, each in a file of its own, by all processes that need the cache: whoever comes
takes the next shard that nobody works on, which the file system's locks tell. A process that is killed loses its
shard; the cache is the same byte for byte however many there were. Or each of n processes, that need not know of one
another nor run at the same time, makes its n-th part of the shards (`encode_share`); whoever finds them all completes
the cache.
"""

import hashlib
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.data import ImageTextData, is_points
from ldm.data.buckets import buckets_of, by_size, sizes_of
from ldm.models.autoencoder import Autoencoder
from ldm.models.digests import network_digest
from ldm.models.latents import downsampling_factor, posterior, to_model_latents
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.atomic_files import (
    NO_SPACE,
    exclusive_lock,
    read_checksummed,
    readable_io_errors,
    require_free_space,
    try_lock,
    write_checksummed,
)
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import Size, size_of
from ldm.utils.image_tensors import to_images
from ldm.utils.terminal import Count
from ldm.utils.verified_files import verify_once

DTYPE = "<f2"
FORMAT = f"2 {DTYPE}"  # part of every cache key: raise the number when the latents of the same images change
SHORT_OF_MEMORY = "out of memory|not enough memory|can't allocate memory|ALLOC_FAILED"  # as torch, cuBLAS and cuDNN say
NAMES = ("mean", "std")
STAMP = "verified.json"
SHARD_IMAGES = 2048
CACHED_BYTES = 2**23  # of one feature map at full resolution, where encoding on a CPU is fastest


@dataclass(frozen=True)
class Latents:
    """Posterior means and standard deviations, float16 arrays (N, c, h, w), mapped from disk."""

    mean: np.ndarray
    std: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, c, h, w)"""
        return self.mean.shape

    def __reduce__(self) -> tuple:
        # a worker process opens the maps itself instead of receiving a copy of all latents
        if isinstance(self.mean, np.memmap) and self.mean.filename is not None:
            return open_latents, (Path(self.mean.filename).parent,)
        return Latents, (self.mean, self.std)

    def shape_of(self, i: int) -> tuple[int, ...]:
        """(c, h, w) of an item."""
        return self.shape[1:]

    def sample(self, indices: list[int], noise: Tensor) -> Tensor:
        """mean + std * noise of these items: float32 (B, c, h, w) for standard normal noise of that shape."""
        mean, std = (torch.from_numpy(array[indices]).float() for array in (self.mean, self.std))
        return std.mul_(noise).add_(mean)


class BucketLatents:
    """Latents of items of several sizes: those of each bucket, in place of one array for all."""

    def __init__(self, parts: dict[int, Latents], buckets: np.ndarray):
        """`buckets`: (N,) int, the key in `parts` of each item; within a part they are in their order."""
        self.parts, self.buckets = parts, buckets
        self.positions = np.zeros(len(buckets), int)
        for bucket in parts:
            self.positions[buckets == bucket] = np.arange((buckets == bucket).sum())

    def __len__(self) -> int:
        return len(self.buckets)

    def shape_of(self, i: int) -> tuple[int, ...]:
        """(c, h, w) of an item."""
        return self.parts[self.buckets[i]].shape[1:]

    def sample(self, indices: list[int], noise: Tensor) -> Tensor:
        """As `Latents.sample`, of items of one size."""
        return self.parts[self.buckets[indices[0]]].sample(self.positions[indices].tolist(), noise)


def latents_folder(digest: str, data: ImageTextData, cache_dir: Path) -> Path:
    """The cache folder for exactly these pixels and the VAE of this `network_digest`."""
    key = hashlib.sha256(f"latents {FORMAT} {digest} {data.fingerprint}".encode()).hexdigest()[:24]
    return cache_dir / "latents" / key


def encoding_batch_size(vae: Autoencoder, resolution: int | Size) -> int:
    """How many images to encode together: 64, but on a CPU as many as its caches hold, which is 1.3 times as fast."""
    if vae.device.type != "cpu":
        return 64
    return max(1, CACHED_BYTES // (4 * math.prod(size_of(resolution)) * vae.config.block_out_channels[0]))


def cached_latents(
    vae: Autoencoder,
    data: ImageTextData,
    cache_dir: Path,
    batch_size: int | None = None,
    digest: str | None = None,
    rank: int = 0,
) -> Latents | BucketLatents:
    """The latents of a data set, encoded now unless a valid cache of exactly these pixels and weights exists.

    Args:
        batch_size: images encoded together; None = what suits the device.
        digest: the VAE's `network_digest`, where it is known: that of a large VAE takes a second.
        rank: of this process among those that encode together: at which shard it begins, and the first alone speaks.
    Returns: with buckets, `BucketLatents` of one cache for each of them.
    Raises: UserError if the VAE takes other images than these.
    """
    digest = network_digest(vae) if digest is None else digest
    if (buckets := buckets_of(data)) is not None:
        parts = by_size(data).items()
        return BucketLatents(
            {k: _cached_latents(vae, part, cache_dir, batch_size, digest, rank) for k, part in parts}, buckets
        )
    return _cached_latents(vae, data, cache_dir, batch_size, digest, rank)


def _cached_latents(
    vae: Autoencoder, data: ImageTextData, cache_dir: Path, batch_size: int | None, digest: str, rank: int
) -> Latents:
    """As `cached_latents`, of data of one size."""
    folder, work = _prepared(vae, data, cache_dir, batch_size, digest)
    if _fault(folder):
        with readable_io_errors(folder, NO_SPACE):
            shards = _Shards(folder, len(data), work.batch_size)
            if len(shards.ranges) > 1 and not folder.exists():  # a damaged cache is made anew by one process
                shards.encode(work, rank)
            with exclusive_lock(folder, quiet=rank > 0):
                _rebuild(work, folder, shards)
    return open_latents(folder)


def encode_share(
    vae: Autoencoder, data: ImageTextData, cache_dir: Path, share: tuple[int, int], digest: str | None = None
) -> int:
    """Make a part of the shards of a data set's latents, and complete the cache where all shards are there.

    Args:
        share: (number, of how many), from (1, n) to (n, n).
        digest: as of `cached_latents`.
    Returns: how many shards are still missing, those of the other parts; 0 = the cache is complete.
    Raises: as `cached_latents`.
    """
    digest = network_digest(vae) if digest is None else digest
    parts: list[ImageTextData] = [data] if buckets_of(data) is None else [*by_size(data).values()]
    return sum(_encode_share(vae, part, cache_dir, share, digest) for part in parts)


def _encode_share(vae: Autoencoder, data: ImageTextData, cache_dir: Path, share: tuple[int, int], digest: str) -> int:
    """As `encode_share`, of data of one size."""
    folder, work = _prepared(vae, data, cache_dir, None, digest)
    if not _fault(folder):
        return 0
    with readable_io_errors(folder, NO_SPACE):
        shards = _Shards(folder, len(data), work.batch_size)
        if not folder.exists():
            shards.encode(work, 0, range(share[0] - 1, len(shards.ranges), share[1]))
            if missing := shards.missing():
                return missing
        with exclusive_lock(folder):
            _rebuild(work, folder, shards)
    return 0


def check_images(vae: Autoencoder, data: ImageTextData) -> None:
    """Raises: UserError if the VAE takes other images than these."""
    if vae.config.in_channels != data.channels:
        raise UserError(
            f"the VAE takes {vae.config.in_channels}-channel images and the data has {data.channels}: "
            "set data.channels to match, or train a VAE on this data"
        )
    if any(side % (factor := downsampling_factor(vae.config)) for side in size_of(data.resolution)):
        raise UserError(f"data.resolution {data.resolution} is no multiple of the VAE's factor {factor}")


def _prepared(
    vae: Autoencoder, data: ImageTextData, cache_dir: Path, batch_size: int | None, digest: str
) -> tuple[Path, "_Encoding"]:
    """The folder of a cache, and the work that fills it. Raises: UserError if the VAE takes other images."""
    check_images(vae, data)
    work = _Encoding(vae, data, batch_size or encoding_batch_size(vae, data.resolution))
    return latents_folder(digest, data, cache_dir), work


def _fault(folder: Path) -> str | None:
    """Why a cache cannot be used, or None. All of it is read once, not by every process at every start."""
    files = [folder / checkpoint.MANIFEST, *(folder / f"{name}.npy" for name in NAMES)]
    return verify_once(files, folder / STAMP, lambda: checkpoint.verify(folder))


def check_latents(cache_dir: Path) -> dict[Path, str | None]:
    """What is wrong with each cache of latents in a folder, None if nothing: all of them are read."""
    found = {path.parent for path in (cache_dir / "latents").glob(f"[0-9a-f]*/{checkpoint.MANIFEST}")}
    for folder in found:
        with suppress(OSError):  # of a cache that is another user's; the next start verifies others once more
            (folder / STAMP).unlink()
    return {folder: checkpoint.verify(folder) for folder in sorted(found)}


def open_latents(folder: Path) -> Latents:
    """The latents in a folder of the cache."""
    return Latents(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in NAMES))


@dataclass
class _Encoding:
    """What is encoded; `batch_size` is halved while memory is too small."""

    vae: Autoencoder
    data: ImageTextData
    batch_size: int

    def pairs(self, images: range, quiet: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Mean and std of these images in order, batch by batch."""
        start = images.start
        with Count("encoding", len(images), quiet=quiet) as done:
            while start < images.stop:
                indices = range(start, min(start + self.batch_size, images.stop))
                pair = _encode(self.vae, self.data, indices)
                if pair is None and self.batch_size == 1:
                    height, width = size_of(self.data.resolution)
                    raise UserError(
                        f"not enough memory to encode one image of {width} x {height} pixels: lower data.resolution, "
                        "or free the memory that other programs use"
                    )
                if pair is None:
                    self.batch_size = len(indices) // 2 or 1
                    text = f"not enough memory to encode {len(indices)} images at once: trying {self.batch_size}"
                    print(text, flush=True)
                    continue
                if not all(np.isfinite(array).all() for array in pair):
                    raise UserError("the VAE gives latents that are not finite numbers; train it in fp32 or bf16")
                yield pair
                start = indices.stop
                done.add(len(indices))


class _Shards:
    """The parts of a cache that is being built, of whole batches: complete files beside the cache's folder."""

    def __init__(self, folder: Path, count: int, batch_size: int):
        size = batch_size * max(1, SHARD_IMAGES // batch_size)
        self.cache, self.folder = folder, folder.with_name(f"{folder.name}-shards-{size}")
        self.ranges = [range(start, min(start + size, count)) for start in range(0, count, size)]

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}"

    def encode(self, work: _Encoding, rank: int, chosen: range | None = None) -> None:
        """Make every shard that is missing (or of `chosen`); return when none is. First those that nobody is at, from
        `rank` on.
        """
        numbers = [*(range(len(self.ranges)) if chosen is None else chosen)]
        numbers = numbers[rank % len(numbers) :] + numbers[: rank % len(numbers)] if numbers else []
        for number in filter(self._missing, numbers):
            with try_lock(self.path(number)) as free:
                if free and self._missing(number):
                    self._make(number, work, rank)
        for number in filter(self._missing, numbers):  # those that others were at, unless they died
            with exclusive_lock(self.path(number), quiet=True):
                if self._missing(number):
                    self._make(number, work, rank)

    def missing(self) -> int:
        """How many shards have still to be made."""
        return sum(map(self._missing, range(len(self.ranges))))

    def _missing(self, number: int) -> bool:
        """Whether a shard has to be made: neither is it there, nor has somebody finished the cache already."""
        return not self.path(number).exists() and not self.cache.exists()

    def _make(self, number: int, work: _Encoding, rank: int) -> None:
        mean, std = zip(*work.pairs(self.ranges[number], quiet=rank > 0), strict=True)
        write_checksummed(self.path(number), np.stack([np.concatenate(mean), np.concatenate(std)]).tobytes())

    def pairs(self, work: _Encoding) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Mean and std of all images in order, shard by shard; a damaged shard is encoded again."""
        if not self.folder.exists():
            yield from work.pairs(range(self.ranges[-1].stop))
            return
        for number, images in enumerate(self.ranges):
            try:
                mean, std = np.frombuffer(read_checksummed(self.path(number)), DTYPE).reshape(2, len(images), -1)
            except (OSError, ValueError):
                yield from work.pairs(images)
            else:
                yield mean, std


def _rebuild(work: _Encoding, folder: Path, shards: _Shards) -> None:
    """Build the cache, unless another process did while this one waited to be the only one."""
    error = _fault(folder)
    if error is None:
        return
    if folder.exists():
        print(f"latent cache {folder} cannot be used ({error}); rebuilding it", flush=True)
        shutil.rmtree(folder)
    vae, data = work.vae, work.data
    factor = downsampling_factor(vae.config)
    shape = (len(data), vae.config.latent_channels, *(side // factor for side in size_of(data.resolution)))
    require_free_space(folder.parent, len(NAMES) * math.prod(shape) * np.dtype(DTYPE).itemsize, "the latent cache")
    header = {"descr": DTYPE, "fortran_order": False, "shape": shape}
    with checkpoint.with_manifest(folder) as stage, ExitStack() as open_files:
        files = [open_files.enter_context(open(stage / f"{name}.npy", "wb")) for name in NAMES]
        for file in files:  # written front to back, so that a full disk is an error and not a crash of the memory map
            np.lib.format.write_array_header_1_0(file, header)
        for pair in shards.pairs(work):
            for file, array in zip(files, pair, strict=True):
                file.write(array.tobytes())
    shutil.rmtree(shards.folder, ignore_errors=True)


@torch.no_grad()
def _encode(vae: Autoencoder, data: ImageTextData, indices: range) -> tuple[np.ndarray, np.ndarray] | None:
    """Posterior means and stds of these images, (B, c, h, w); None if memory is too small for them together."""
    try:
        images = to_images(np.stack([data.image(i) for i in indices]))
        encoded = posterior(vae, images.to(vae.device, vae.dtype))
        latents = to_model_latents(encoded.mean, vae.config), encoded.std * vae.config.scaling_factor
        mean, std = (values.half().cpu().numpy().astype(DTYPE) for values in latents)
        return mean, std
    except MemoryError:
        pass
    except RuntimeError as error:  # of which torch.OutOfMemoryError is one, and the CPU's has no name of its own
        if not re.search(SHORT_OF_MEMORY, str(error)):
            raise
    torch.cuda.empty_cache()  # does nothing without CUDA
    return None


class Uncached:
    """The data themselves in place of cached latents: float32 (c, h, w) each."""

    def __init__(self, data: ImageTextData):
        self.data, self._sizes, self._buckets = data, sizes_of(data), buckets_of(data)
        points = [data.image(i) for i in range(len(data))] if is_points(data) else []
        self._points = np.stack(points) if points else None  # few numbers, and many in a batch: kept in memory

    def __len__(self) -> int:
        return len(self.data)

    def shape_of(self, i: int) -> tuple[int, ...]:
        """(c, h, w) of an item."""
        return self.data.channels, *self._sizes[0 if self._buckets is None else self._buckets[i]]

    def sample(self, indices: list[int], noise: Tensor) -> Tensor:
        """These items, (B, c, h, w); there is no posterior for the noise to be of."""
        points = self._points
        return to_images(np.stack([self.data.image(i) for i in indices]) if points is None else points[indices])
