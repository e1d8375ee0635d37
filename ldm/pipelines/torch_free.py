"""Generating without torch: the shipped model's first image in under a second from a cold start.

The same arithmetic as `ldm.pipelines.pipeline` in numpy, over the graphs of `onnx_runtime`: text padded to the
tokenizer's length, guidance by one call for both halves, DPM-Solver++ of first or second order over flow sigmas as
diffusers' scheduler takes it. Whatever goes beyond that (other samplers and processes, a GPU) needs the pipeline.

Its loop and noise stand beside those of `ldm.diffusion.sampling` (torch) and of `ldm/apps/web/page/sampler.js` and
`noise.js` (browser); tests hold all three equal.
"""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ldm.pipelines.model_folder import ModelFolder
from ldm.pipelines.onnx_runtime import Engine, open_engine
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import size_of
from ldm.utils.untrusted_files import read_json

log = logging.getLogger(__name__)
CUT = "prompt cut after %d tokens, so these words were lost: %r (of %r)"
SCHEDULER = "DPMSolverMultistepScheduler"
# what its settings have to be for `_levels` and `_denoise` to take its steps
FITS = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "euler_at_final": False,
    "thresholding": False,
    "use_dynamic_shifting": False,
    "variance_type": None,
}


class Level(NamedTuple):
    """As `ldm.diffusion.time_grids.Level`, which needs torch."""

    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """ln(alpha / sigma): -inf for pure noise, inf for data."""
        if self.alpha == 0 or self.sigma == 0:
            return -math.inf if self.alpha == 0 else math.inf
        return math.log(self.alpha / self.sigma)


@dataclass(frozen=True)
class TorchFreePipeline:
    """A model that needs no torch; see `open_torch_free`."""

    engine: Engine
    tokenizer: Any  # tokenizers.Tokenizer
    scheduler: dict  # scheduler_config.json
    latent_shape: tuple[int, int, int]  # (c, h, w)
    scale: float  # of the VAE's latents

    def generate(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        steps: int,
        guidance_scale: float,
        interval: tuple[float, float],
        seed: int,
        callback: Callable[[int], None] | None = None,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Images uint8 (B, H, W, C), one for each prompt, from seed + i; `callback` receives every index."""
        cond = self._encode(prompts)
        uncond = self._encode(negatives) if guidance_scale != 1 else None
        noise = np.concatenate([seeded_normal(seed + i, self.latent_shape)[None] for i in range(len(prompts))])
        images = []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            predict = self._guided(cond[part], None if uncond is None else uncond[part], guidance_scale, interval)
            z0 = self._denoise(predict, noise[part], steps, callback)
            images.append(np.clip(self.engine.decode(z0 / self.scale) / 2 + 0.5, 0, 1))
        return (np.concatenate(images).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)

    def _encode(self, prompts: Sequence[str]) -> np.ndarray:
        unique = list(dict.fromkeys(prompts))
        encoded = self.tokenizer.encode_batch(unique)
        for prompt, one in zip(unique, encoded, strict=True):
            if one.overflowing:
                lost = self.tokenizer.decode([i for rest in one.overflowing for i in rest.ids])
                log.warning(CUT, len(one.ids), lost.replace("</w>", " ").strip(), prompt)
        embeds = self.engine.encode_text(np.array([one.ids for one in encoded], np.int64))
        return embeds[[unique.index(prompt) for prompt in prompts]]

    def _guided(
        self, cond: np.ndarray, uncond: np.ndarray | None, scale: float, interval: tuple[float, float]
    ) -> Callable[[np.ndarray, int], np.ndarray]:
        """(x_t, timestep) -> guided prediction; see `ldm.diffusion.guidance`."""

        def predict(x_t: np.ndarray, timestep: int) -> np.ndarray:
            if uncond is None or not interval[0] - 1e-6 <= self._time(timestep) <= interval[1] + 1e-6:
                return self.engine.predict(x_t, np.full(len(x_t), timestep, np.float32), cond)
            both = self.engine.predict(
                np.concatenate([x_t, x_t]),
                np.full(2 * len(x_t), timestep, np.float32),
                np.concatenate([uncond, cond]),
            )
            without, prompted = np.split(both, 2)
            return without + np.float32(scale) * (prompted - without)

        return predict

    def _denoise(
        self,
        predict: Callable[[np.ndarray, int], np.ndarray],
        x_t: np.ndarray,
        steps: int,
        callback: Callable[[int], None] | None,
    ) -> np.ndarray:
        """The loop of `ldm.diffusion.sampling.denoising_loop`, with the step of `samplers.DPMSolver2M`."""
        levels, timesteps = self._levels(steps)
        previous = None
        for index, (t, s) in enumerate(itertools.pairwise(levels)):
            x0_hat = x_t - np.float32(t.sigma) * predict(x_t, timesteps[index])
            last = s.sigma == 0 or (steps < 15 and index + 1 == steps)  # of first order, as in diffusers
            past = None if last or self.scheduler["solver_order"] == 1 else previous
            x_t = dpm_solver_step(x_t, x0_hat, t, s, past).astype(np.float32)
            previous = (t, x0_hat)
            if callback is not None:
                callback(index)
        return x_t

    def _levels(self, steps: int) -> tuple[list[Level], list[int]]:
        """The scheduler's levels, one more than steps, and the network's timesteps."""
        count = self.scheduler["num_train_timesteps"]
        t = 1 - np.linspace(1, 1 / count, steps + 1)[::-1][:-1]
        sigmas = self._shift * t / (1 + (self._shift - 1) * t)
        levels = [Level(1 - float(sigma), float(sigma)) for sigma in (*sigmas.astype(np.float32), 0.0)]
        return levels, [int(sigma * count) for sigma in sigmas]  # cut in float64, as diffusers does

    def _time(self, timestep: int) -> float:
        """t of a timestep: the inverse of the flow's shift."""
        u = timestep / 1000
        return u / (self._shift - (self._shift - 1) * u)

    @property
    def _shift(self) -> float:
        return self.scheduler.get("flow_shift") or 1.0


def dpm_solver_step(
    x_t: np.ndarray, x0_hat: np.ndarray, t: Level, s: Level, previous: tuple[Level, np.ndarray] | None
) -> np.ndarray:
    """x_s by DPM-Solver++: `samplers.DPMSolver2M.step`, of first order without a previous (level, x0_hat)."""
    ratio = s.sigma / t.sigma
    x_s = ratio * x_t + (s.alpha - ratio * t.alpha) * x0_hat
    if previous is None:
        return x_s
    level, before = previous
    difference = (x0_hat - before) * ((s.lam - t.lam) / (t.lam - level.lam))
    return x_s + 0.5 * s.alpha * (1 - t.alpha * s.sigma / (s.alpha * t.sigma)) * difference


def open_torch_free(folder: ModelFolder) -> TorchFreePipeline | None:
    """The model in a folder, or None where it needs the pipeline."""
    engine = open_engine(folder)
    if engine is None or folder.classes["scheduler"] != SCHEDULER:
        return None
    scheduler = read_json(folder.paths["scheduler"] / "scheduler_config.json")
    if any(scheduler.get(name) != value for name, value in FITS.items()) or scheduler.get("solver_order") not in (1, 2):
        return None
    unet, vae = (read_json(folder.paths[name] / "config.json") for name in ("unet", "vae"))
    vocabulary = folder.paths["tokenizer"] / "tokenizer.json"
    if vae.get("shift_factor") or not _is_size(unet.get("sample_size")) or not vocabulary.is_file():
        return None
    if "in_channels" not in unet or unet.get("out_channels") != unet["in_channels"]:
        return None
    tokenizer = read_tokenizer(folder)
    if tokenizer.padding["length"] != engine.length:
        return None
    shape = (unet["in_channels"], *size_of(unet["sample_size"]))
    return TorchFreePipeline(engine, tokenizer, scheduler, shape, vae.get("scaling_factor", 1.0))


def _is_size(value: Any) -> bool:
    """Whether it is a side, or [height, width]."""
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(side, int) for side in sides)


def read_tokenizer(folder: ModelFolder) -> Any:
    """The tokenizer in tokenizer.json, cutting and padding to its length. Raises: UserError."""
    from tokenizers import Tokenizer, decoders

    vocabulary = folder.paths["tokenizer"] / "tokenizer.json"
    try:
        settings = read_json(folder.paths["tokenizer"] / "tokenizer_config.json")
        length, pad = settings["model_max_length"], settings["pad_token"]
        tokenizer = Tokenizer.from_file(str(vocabulary))
        tokenizer.decoder = decoders.ByteLevel()  # for lost words
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    except Exception as error:  # the library raises nothing narrower; no such key is no better
        raise UserError(f"tokenizer in {vocabulary} could not be loaded: {str(error).splitlines()[0]}") from error
    return tokenizer


def seeded_normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """What `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` gives, to a rounding error; float32.

    torch draws 24 bits a number from the Mersenne twister and takes pairs that lie eight apart through the Box-Muller
    transform, 16 numbers at a time; a rest of fewer than 16 is drawn again over the last 16. It draws fewer than 16
    numbers in another way, which is not here.
    """
    size = int(np.prod(shape))
    if size < 16:
        raise ValueError(f"a shape of 16 numbers or more is needed, got {shape}")
    rest = size % 16
    words = np.random.RandomState(seed % 2**32).bytes(4 * (size + (16 if rest else 0)))
    drawn = (np.frombuffer(words, "<u4") & 0xFFFFFF).astype(np.float32) / np.float32(2**24)
    values = np.empty(size, np.float32)
    values[: size - rest] = _box_muller(drawn[: size - rest])
    if rest:
        values[-16:] = _box_muller(drawn[size:])
    return values.reshape(shape)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    first, second = uniform.reshape(-1, 2, 8).transpose(1, 0, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
