"""`ldm cache`: build the caches that a training reads, before it or on several machines at once."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from ldm.data import Splits


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "build",
        help="decode the images and encode the latents that a training reads",
        description="Decode the images of a project, and encode them by its finished autoencoder, as `ldm train ldm` "
        "does at its start. With --shard several jobs, on machines with one disk and one type of device, each "
        "encode some of the shards; they need not run at the same time, and the last to finish completes the cache.",
        epilog="Exit code: 0 = done, 2 = impossible. The same command continues what was interrupted.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="project file (.yaml)")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="job I of N, from 1/N to N/N (default: 1/1)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.set_defaults(run=run_build)


def run_build(args: argparse.Namespace) -> int:
    share = share_from(args.shard)
    from ldm.config.loading import load, run_dir

    settings: Any = load("ldm", args.config)
    run = run_dir(settings, "ldm")
    import torch

    from ldm.data import build

    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {args.device!r} is unknown or not here: use cpu, cuda, cuda:N or mps") from error
    data = build(settings.data)
    print(f"images: {sum(len(part) for part in parts_of(data))}, in {settings.data.cache_dir}", flush=True)
    if settings.vae == "identity" or not settings.cache_latents:
        print("latents: none, for ldm.vae is identity or ldm.cache_latents false")
        return 0
    missing = encode(settings.vae, run, data, settings.data.cache_dir, share, device)
    if missing:
        print(f"latents: job {args.shard} is done; {missing} shards are left to the others, on devices of this type")
    else:
        print(f"latents: complete, in {settings.data.cache_dir / 'latents'}")
    return 0


def share_from(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8). Raises: UserError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--shard must be I/N with I from 1 to N, such as 1/4, got {text!r}")
    return number, count


def parts_of(data: "Splits") -> list:
    """The splits that a denoiser is trained and validated on."""
    return [part for part in (data.train, data.validation, data.mixture) if part is not None]


def encode(vae: str, run: Path, data: "Splits", cache_dir: Path, share: tuple[int, int], device) -> int:
    """Make this share of the latents; how many shards are still missing."""
    from ldm.models.digests import network_digest
    from ldm.training.latent_cache import encode_share
    from ldm.training.tasks.components import resolve_vae

    network = resolve_vae(vae, run, data.train).to(device)
    digest = network_digest(network)
    return sum(encode_share(network, part, cache_dir, share, digest) for part in parts_of(data))
