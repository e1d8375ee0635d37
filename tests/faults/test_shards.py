"""Several processes encode one cache, shard by shard: each shard once, the same bytes, and a kill costs one shard."""

import signal
import time
from functools import partial

import numpy as np
import torch
from forked import Child, until

import ldm.training.latent_cache as latents_module
from ldm.config.settings import VaeModel
from ldm.models.autoencoder import build_vae
from ldm.training.latent_cache import cached_latents, encode_share

COUNT, SHARD = 22, 4  # images, and of a shard: six shards, the last of two


class Pictures:
    resolution, channels, has_captions = 16, 1, False
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 1), dtype=np.uint8)
    fingerprint = "pictures"

    def __len__(self):
        return COUNT

    def image(self, i):
        return self.pixels[i]


def encode(
    folder, rank: int = 0, shard: int = SHARD, stays_at: int | None = None, share: tuple[int, int] | None = None
) -> None:
    """As one of several processes, or a share of the work. `stays_at`: the number of the call in which it stays.

    Calls are noted in a file.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae = build_vae(VaeModel(block_out_channels=[8, 16], norm_num_groups=8, latent_channels=2), 1, 16).eval()
    latents_module.SHARD_IMAGES, plain, calls = shard, latents_module._encode, []

    def noted(vae, data, indices):
        calls.append(indices.start)
        if len(calls) == stays_at:
            (folder / f"stays-{rank}").touch()
            time.sleep(600)
        time.sleep(0.05)  # so that the others get some
        with open(folder / "calls", "a") as file:
            file.write(f"{indices.start}\n")
        return plain(vae, data, indices)

    latents_module._encode = noted
    if share is not None:
        latents_module.encoding_batch_size = lambda *_: 2
        return print("missing:", encode_share(vae, Pictures(), folder / "cache", share))
    cached_latents(vae, Pictures(), folder / "cache", batch_size=2, rank=rank)


def content(folder) -> dict[str, bytes]:
    (cache,) = (folder / "cache" / "latents").iterdir()  # no shard and no lock is left
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.name != "verified.json"}


def calls_in(folder) -> list[int]:
    return sorted(map(int, (folder / "calls").read_text().split()))


def started(folder, stays: dict[int, int] | None = None) -> list[Child]:
    """Three processes, some of which stay in a call."""
    stays = stays or {}
    work = [partial(encode, folder, rank, stays_at=stays.get(rank)) for rank in range(3)]
    return [Child(one, folder / f"said-{rank}") for rank, one in enumerate(work)]


def alone(folder) -> dict[str, bytes]:
    folder.mkdir()
    assert Child(partial(encode, folder, shard=1000), folder / "said").wait() == 0
    return content(folder)


def test_three_processes_make_the_cache_of_one(tmp_path):
    for child in started(tmp_path):
        assert child.wait() == 0, child.said()
    assert calls_in(tmp_path) == list(range(0, COUNT, 2))  # every batch once
    assert content(tmp_path) == alone(tmp_path / "alone")


def test_killed_processes_lose_a_shard_each(tmp_path, survived):
    children = started(tmp_path, {1: 2, 2: 4})
    until((tmp_path / "stays-1").exists)
    children[1].kill(signal.SIGKILL)
    children[2].kill(signal.SIGKILL)
    codes = [child.wait() for child in children]
    assert codes == [0, -signal.SIGKILL, -signal.SIGKILL], children[0].said()
    calls = calls_in(tmp_path)
    assert set(calls) == set(range(0, COUNT, 2)) and len(calls) <= COUNT // 2 + 2 * (SHARD // 2)
    assert content(tmp_path) == alone(tmp_path / "alone")
    survived("kills of processes that encode together", 2)


def test_a_damaged_or_interrupted_shard_is_made_again(tmp_path, survived):
    child = Child(partial(encode, tmp_path, stays_at=6), tmp_path / "said")
    until((tmp_path / "stays-0").exists)
    child.kill(signal.SIGKILL)
    child.wait()
    (shards,) = (path for path in (tmp_path / "cache" / "latents").iterdir() if path.is_dir())
    first = shards / "000000"
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    again = Child(partial(encode, tmp_path), tmp_path / "again")
    assert again.wait() == 0, again.said()
    calls = calls_in(tmp_path)
    assert [calls.count(start) for start in (0, 2, 4, 6)] == [2, 2, 1, 1]  # the damaged one, and one that was whole
    assert content(tmp_path) == alone(tmp_path / "alone")
    survived("damaged shard", 1)


def shares(folder, numbers, stays: dict[int, int] | None = None) -> list[Child]:
    """Processes that make these of four parts of the cache, each in its own time."""
    stays = stays or {}
    work = [partial(encode, folder, k, stays_at=stays.get(k), share=(k, 4)) for k in numbers]
    return [Child(one, folder / f"said-{k}") for k, one in zip(numbers, work, strict=True)]


def test_four_parts_make_the_cache_of_one_and_killed_ones_lose_a_shard_each(tmp_path, survived):
    children = shares(tmp_path, (1, 2, 3, 4), {1: 3, 2: 2})  # in the second shard of part 1, and the first of part 2
    until(lambda: (tmp_path / "stays-1").exists() and (tmp_path / "stays-2").exists())
    for child in children[:2]:
        child.kill(signal.SIGKILL)
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 2 + [0, 0]
    assert not list((tmp_path / "cache" / "latents").glob("*/manifest.json"))  # it is absent until it is complete
    again = shares(tmp_path, (2, 1))
    assert [child.wait() for child in again] == [0, 0], again[0].said()
    calls = calls_in(tmp_path)
    assert set(calls) == set(range(0, COUNT, 2)) and len(calls) == COUNT // 2 + 1  # one batch was made twice
    assert Child(partial(encode, tmp_path), tmp_path / "read").wait() == 0 and calls_in(tmp_path) == calls
    assert content(tmp_path) == alone(tmp_path / "alone")
    survived("kills of processes that make parts of a cache", 2)
