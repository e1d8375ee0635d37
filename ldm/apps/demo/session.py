"""What the tabs of the demo do, without the page: every input is checked here, one request is computed at a time.

The page is built from the files of the model alone. Torch and the networks take longer to load than the page to open,
so nothing here imports them before the first request that needs them.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ldm.apps.demo import limits
from ldm.apps.demo.about import About
from ldm.apps.demo.progress import Progress, Shown
from ldm.apps.demo.visits import Made, Visits
from ldm.formats.decoding import ImageError
from ldm.formats.image_arrays import decode_image, fit_image
from ldm.models.lora_formats import as_options, split_scale
from ldm.pipelines.generation import generate_job
from ldm.pipelines.image_metadata import EDIT_KEY, KEY, SIZE, complete, entries
from ldm.pipelines.image_shapes import Shape, image_shape, resized, size_step
from ldm.pipelines.model_folder import FALLBACKS, resolve_model
from ldm.pipelines.sampler_recipes import RECIPES, kind_of
from ldm.pipelines.torch_free import read_tokenizer
from ldm.utils.errors import UserError
from ldm.utils.image_grid import enlarged
from ldm.utils.image_sizes import Size, size_of
from ldm.utils.transparency import on_white
from ldm.utils.untrusted_files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.pipelines.pipeline import Pipeline, PipelineOutput

log = logging.getLogger(__name__)

OWN = "the model's own"  # sampler
SIDE = 256  # pixels; images are enlarged to about this, every pixel by a whole number
PREVIEWS = 4  # images of which previews are shown
WELCOME = 4  # images of the first example
Sent = str | None  # a file of a visitor's
Verb = Callable[..., "PipelineOutput"]
JOB = {"grid": "1x1", "interval": None, "rescale": None, "cfg_zero": None, "zero_init": None, "weak": None}


class Session:
    """One model, and what visitors do with it.

    Args:
        model: as for `load_pipeline`. No visitor can change it.
        cache_dir: of rendered glyphs.
        lora: PATH[:SCALE] of adapters.
        private: whether images name model and adapters without the folders that they lie in.
    Raises: UserError if there is no such model, or if its files or the adapters are not usable.
    """

    def __init__(
        self,
        model: str | None = None,
        cache_dir: Path = Path("cache"),
        lora: str | None = None,
        private: bool = False,
    ):
        self.model, self.cache_dir, self.lora = model, cache_dir, as_options(lora)
        self.known_as = {"model": model, "lora": lora}
        if private:
            self.known_as = {what: path and _without_folders(path) for what, path in self.known_as.items()}
        self.private, self.folder = private, resolve_model(model)
        self.defaults: dict[str, Any] = {**FALLBACKS, **self.folder.defaults}
        self._loading = Lock()
        self._pipeline: Pipeline | None = None
        self._busy = Lock()  # the networks are one visitor's at a time, whatever the queue does
        self._running: dict[str, Progress] = {}
        self.visits = Visits()
        self._welcoming = Lock()
        self._welcome: Shown | None = None
        if lora is not None:
            self.load()  # only the networks tell whether adapters fit

    # ---- what the files tell ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return str(self.defaults.get("name") or Path(self.model or "model").name)

    @cached_property
    def samplers(self) -> list[str]:
        kind = kind_of(read_json(self.folder.paths["scheduler"] / "scheduler_config.json"))
        if kind != "tabled":
            return [OWN, *RECIPES[kind]]
        from ldm.pipelines.diffusers_schedulers import samplers_for

        return [OWN, *samplers_for(self.pipeline.scheduler)]  # they depend on the numbers in the table

    @cached_property
    def config(self) -> dict:
        """The settings that the model was trained with, {} where its folder has none."""
        return self.folder.training_config()

    @cached_property
    def about(self) -> About:
        """What the model generates, and which words it knows."""
        return About(self.config, self.defaults, self.image_shape, self._tokenizer)

    @cached_property
    def _tokenizer(self) -> Any:
        """What `Words` needs of the tokenizer."""
        try:
            own = read_tokenizer(self.folder)
        except UserError:  # of another form: transformers says whether it can be read
            return self.pipeline.tokenizer
        return SimpleNamespace(backend_tokenizer=own, model_max_length=own.truncation["max_length"])

    @cached_property
    def _shapes(self) -> tuple[Shape, int]:
        """Shape of an image, and what heights and widths are multiples of."""
        vae, unet = (read_json(self.folder.paths[name] / "config.json") for name in ("vae", "unet"))
        try:
            return image_shape(vae, unet), size_step(vae, unet)
        except (AttributeError, KeyError, TypeError, ValueError):  # left out: the libraries know what then
            return self.pipeline.image_shape, self.pipeline.size_step

    @property
    def image_shape(self) -> Shape:
        """(C, H, W) of an image."""
        return self._shapes[0]

    @property
    def size_step(self) -> int:
        """What heights and widths are multiples of."""
        return self._shapes[1]

    @cached_property
    def digest(self) -> str:
        """The model folder's, with that of the adapters."""
        return self.pipeline.digest if self.lora else self.folder.digest()

    @property
    def examples(self) -> list[str]:
        """The sample prompts of the model's training."""
        return self.about.examples

    # ---- the model --------------------------------------------------------------------------------------------------

    @property
    def pipeline(self) -> "Pipeline":
        """The model, loaded when it is first asked for. Raises: UserError, which tells others no path of the host."""
        with self._loading:
            if self._pipeline is None:
                from ldm.pipelines.loading import load_pipeline

                try:
                    self._pipeline = load_pipeline(self.folder, **self.lora)
                except UserError as error:
                    if not self.private:
                        raise
                    log.error("%s", error)
                    raise UserError("the model cannot be loaded; the log of the app says why") from None
            return self._pipeline

    def load(self) -> None:
        """Load the model, unless that is done. Raises: UserError."""
        _ = self.pipeline

    # ---- generating -------------------------------------------------------------------------------------------------

    def job(self, prompt, negative, guidance, steps, sampler, seed, height=None, width=None) -> dict[str, Any]:
        """The settings of one image, as `ldm generate` writes them into it. Raises: UserError."""
        sampler = limits.choice("sampler", sampler, self.samplers)
        size = {
            name: None if side in (None, its) else limits.whole(name, side)
            for name, side, its in zip(SIZE, (height, width), self.size, strict=True)
        }
        job = {
            **size,
            **self.known_as,
            "prompt": limits.text("prompt", prompt),
            "negative": limits.text("negative prompt", negative),
            "seed": limits.whole("seed", seed),
            "steps": limits.whole("steps", steps),
            "guidance": limits.real("guidance", guidance),
            "sampler": None if sampler == OWN else sampler,
            "scale": max(1, SIDE // max(self._size_of(size))),
            "digest": self.digest,
        }
        job |= JOB
        complete(job, self.defaults)
        return job

    @cached_property
    def size(self) -> Size:
        """(height, width) of an image in pixels, unless another is asked for."""
        return size_of(self.image_shape[1:])

    @property
    def scale(self) -> int:
        return max(1, SIDE // max(self.size))

    def draw(self, visitor: str, job: dict, number: Any) -> Iterator[Shown]:
        """Generate `number` images from seeds job["seed"] + i: previews, then all of them, or why there are none.

        A visitor who goes away, or whose `stop` is called, ends it at the next step. Raises: UserError.
        """
        count, size = limits.whole("number", number), self._size_of(job)
        if size != self.size:
            limits.check_pixels(count, *size)
        return self._drawing(visitor, job, count)

    def _size_of(self, job: dict) -> Size:
        """(height, width) of the images of a job. Raises: UserError for a size that the model cannot generate."""
        try:
            return size_of(resized(self.image_shape, self.size_step, job["height"], job["width"])[1:])
        except ValueError as error:
            raise UserError(str(error)) from None

    def draw_on(
        self, visitor: str, job: dict, number: Any, picture: Sent, layers: Sequence[str] | None, strength: Any
    ) -> Iterator[Shown]:
        """As `draw`, from an image: all of it, or only what is painted over and the rest kept.

        Args:
            picture: a file.
            layers: files of its size with paint in them, transparent elsewhere; None = all of the image is changed.
            strength: 0 to 1, how much of it is forgotten.
        """
        share, decoded = limits.real("strength", strength), self._decoded(picture)
        told: dict[str, Any] = {"verb": "image-to-image", "strength": share}
        given = [self._fitted(decoded)]
        if layers is not None:
            mask = fit_image(painted(layers, decoded.shape[:2]), self.size, "pad", 0)
            told |= {"verb": "inpaint", "painted": round(float((mask > 127).mean()), 4)}
            given.append(mask)

        def verb(**options: Any) -> "PipelineOutput":
            from ldm.pipelines.editing import image_to_image, inpaint

            edit: Verb = image_to_image if layers is None else inpaint
            return edit(self.pipeline, *given, strength=share, **options)

        return self._drawing(visitor, job, limits.whole("number", number), verb, told)

    def seen(self, picture: Sent) -> Image.Image:
        """A file as the model sees it, of the model's size, enlarged as its own images are."""
        pixels = self._fitted(self._decoded(picture))
        return enlarged(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), self.scale)

    def between(self, visitor: str, job: dict, frames: Any, second: Any, last_seed: Any) -> Iterator[Shown]:
        """As `draw`, images between job["prompt"] and the second prompt, job["seed"] and another."""
        second, last_seed = limits.text("second prompt", second), limits.whole("seed", last_seed)

        def verb(prompt: str | None, seed: int, num_images_per_prompt: int, **options: Any) -> "PipelineOutput":
            from ldm.pipelines.editing import interpolate

            return interpolate(self.pipeline, prompt, second, num_images_per_prompt, seed, last_seed, **options)

        told = {"verb": "interpolate", "second": second, "last_seed": last_seed}
        return self._drawing(visitor, job, limits.whole("frames", frames), verb, told)

    def _decoded(self, picture: Sent) -> np.ndarray:
        if picture is None:
            raise UserError("choose an image first")
        return decoded(picture, self.image_shape[0], 255)

    def _fitted(self, pixels: np.ndarray) -> np.ndarray:
        """An image as uint8 (height, width, C), padded with white; one that we enlarged, exactly as it was."""
        times = len(pixels) // self.size[0]
        if times and np.array_equal(pixels[::times, ::times].repeat(times, 0).repeat(times, 1), pixels):
            pixels = pixels[::times, ::times]
        return fit_image(pixels, self.size, "pad", 255)

    def _drawing(
        self, visitor: str, job: dict, count: int, verb: Verb | None = None, told: dict | None = None
    ) -> Iterator[Shown]:
        """Generate by the pipeline, or by an editing operation whose settings are in `told`."""

        def work(progress: Progress) -> Shown:
            images = generate_job(verb or self.pipeline, job, count, self._callback(progress, job))
            return self._shown(images, job, told)

        return self._working(visitor, work)

    def _working(self, visitor: str, work: Callable[[Progress], Shown]) -> Iterator[Shown]:
        """Do `work` for a visitor, when nobody else is served."""
        progress = self._running[visitor] = Progress()

        def alone() -> Shown:
            with self._busy:
                progress.check()
                if self._pipeline is None:
                    progress.say("loading the model ...")
                    self.load()
                return work(progress)

        try:
            yield from progress.shown(alone)
        finally:
            if self._running.get(visitor) is progress:
                del self._running[visitor]

    def _callback(self, progress: Progress, job: dict) -> Callable[[int, "Tensor", "Tensor"], None]:
        return progress.of_steps(job["steps"], lambda latents: self._previews(latents[:PREVIEWS]))

    def _shown(self, images: list[Image.Image], job: dict, told: dict | None) -> Shown:
        """The images with their settings."""
        seeds = range(job["seed"], job["seed"] + len(images))
        own = [{"seed": seed} if told is None else {**told, "picture": i} for i, seed in enumerate(seeds)]
        jobs = [{**job, **each} for each in own]
        made = Made(images, jobs, KEY if told is None else EDIT_KEY)
        text = f"{len(images)} image{'s' * (len(images) > 1)}"
        if told is None:
            text += f", seed {seeds[0]}" if len(images) == 1 else f", seeds {seeds[0]} to {seeds[-1]}"
        remembered = [remembering(image, one, made.key) for image, one in zip(images, jobs, strict=True)]
        return Shown(text, images=remembered, hints=self.about.hints(job["prompt"]), made=made)

    # ---- what a visitor made ----------------------------------------------------------------------------------------

    def remembered(self, visitor: str, drawing: Iterator[Shown]) -> Iterator[Shown]:
        """As `drawing`; its images are kept in `visits`."""
        for shown in drawing:
            if shown.made:
                self.visits.remember(visitor, shown.made)
            yield shown

    def forget(self, visitor: str) -> None:
        """A visitor went away."""
        self.stop(visitor)
        self.visits.forget(visitor)

    def welcome(self) -> Shown:
        """Images to begin with, made once: those in the model's folder, else of the first example."""
        with self._welcoming:
            if self._welcome is None:
                try:
                    self._welcome = self._from_gallery() or self._of_example()
                except UserError as error:  # of a model whose own settings are beyond the limits
                    self._welcome = Shown(str(error))
            return self._welcome

    def _from_gallery(self) -> Shown | None:
        """The images that lie beside an exported model for its card."""
        from ldm.hub.gallery import pictures

        home, images = self.folder.paths["unet"].parent, []
        try:
            found = pictures(home)
            for each in found:
                with Image.open(home / each["file"]) as image:
                    image.load()
                images.append(enlarged(image, self.scale) if image.size == self.size[::-1] else image)
        except (UserError, OSError, ValueError, Image.DecompressionBombError):  # images of another program, say
            return None
        prompts = "; ".join(each["prompt"] or "(no prompt)" for each in found)
        return Shown(f"Examples that lie beside the model: {prompts}", images=images) if images else None

    def _of_example(self) -> Shown:
        prompt = self.examples[0] if self.examples else None
        defaults = self.defaults
        job = self.job(prompt, None, defaults["guidance_scale"], defaults["num_inference_steps"], OWN, 0)
        with self._busy:
            images = generate_job(self.pipeline, job, WELCOME)
        shown = [remembering(image, {**job, "seed": i}) for i, image in enumerate(images)]
        return Shown(f"An example: “{prompt}”, seeds 0 to {WELCOME - 1}" if prompt else "Examples", images=shown)

    def stop(self, visitor: str) -> None:
        """Stop what this visitor is generating."""
        if visitor in self._running:
            self._running[visitor].stop()

    def _previews(self, latents: "Tensor") -> list[Image.Image]:
        pixels = (self.pipeline.preview(latents).permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
        return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]

    # ---- attention --------------------------------------------------------------------------------------------------

    @cached_property
    def _in_torch(self) -> "Pipeline":
        """The same model in torch: ONNX graphs show no attention."""
        from ldm.pipelines.loading import load_pipeline

        return load_pipeline(self.folder, engine="torch", **self.lora)

    def attention(self, visitor: str, job: dict) -> Iterator[Shown]:
        """As `draw`: the image, and over it the attention of each word. Raises: UserError without a prompt."""
        if job["prompt"] is None:
            raise UserError("write a prompt: there are no words to look for")
        return self._working(visitor, lambda progress: self._attention(job, self._callback(progress, job)))

    def _attention(self, job: dict, callback: Callable) -> Shown:
        from ldm.apps.figures.attention import overlay, word_maps

        options = {"num_inference_steps": job["steps"], "guidance_scale": job["guidance"], "sampler": job["sampler"]}
        options |= {"negative_prompt": job["negative"], "callback": callback}
        image, words, maps = word_maps(self._in_torch, job["prompt"], job["seed"], **options)
        ink = 1 - np.asarray(on_white(image).convert("L").resize(maps.shape[1:]), float) / 255
        tinted = [enlarged(Image.fromarray((overlay(each, ink) * 255).astype(np.uint8)), 4) for each in maps]
        shares = [f"{word}: {each.mean():.0%}" for word, each in zip(words, maps, strict=True)]
        text, hints = f"{len(words)} tokens, seed {job['seed']}", self.about.hints(job["prompt"])
        images, captions = [remembering(image, job), *tinted], ["the image", *shares]
        return Shown(text, images=images, captions=captions, hints=hints)

    # ---- nearest training glyph ------------------------------------------------------------------------------------

    @cached_property
    def _training_glyphs(self):
        """The glyphs that the model was trained on, and the pool that others are compared with."""
        from ldm.config.settings import DataOptions, GlyphOptions
        from ldm.data.glyphs.dataset import splits
        from ldm.evaluation.glyphs.novelty import Pool
        from ldm.evaluation.glyphs.samples import glyph_images, styles_of

        if self.config.get("data", {}).get("source") != "glyphs":
            raise UserError("only for models that were trained on the glyphs that come with ldm")
        options = GlyphOptions(styles=styles_of(self.pipeline))
        try:
            data = splits(DataOptions(glyphs=options, cache_dir=self.cache_dir))["train"]
        except ModuleNotFoundError:
            raise UserError("the host has no glyph fonts: pip install -c constraints.txt -e '.[glyphs]'") from None
        return data, Pool(glyph_images(data))

    def nearest(self, visitor: str, job: dict, number: Any) -> Iterator[Shown]:
        """As `draw`: images, each followed by the training glyph most like it; and what that says."""
        count = limits.whole("number", number)
        return self._working(visitor, lambda progress: self._nearest(job, count, progress))

    def _nearest(self, job: dict, count: int, progress: Progress) -> Shown:
        from ldm.evaluation.glyphs.novelty import COPY, nearest_glyphs

        progress.say("preparing the training glyphs ...")
        data, pool = self._training_glyphs
        images = generate_job(self.pipeline, job, count, self._callback(progress, job))
        progress.say("comparing with the training glyphs ...")
        found = nearest_glyphs(np.stack([np.asarray(image.convert("L")) for image in images]), pool)
        shown, captions, copies = [], [], 0
        for i, image in enumerate(images):
            near, alike = data.meta(int(found.index[i])), float(found.similarity[i])
            copies += alike >= COPY
            verdict = "a copy of" if alike >= COPY else "nearest"
            theirs = Image.fromarray(data.image(int(found.index[i]))[..., 0])
            seed = job["seed"] + i
            shown += [remembering(image, {**job, "seed": seed}), enlarged(theirs, max(1, SIDE // theirs.height))]
            captions += [f"seed {seed}", f"{verdict} {near['char']} {near['codepoint']}: {alike:.2f}"]
        of_them = f"copies of one of {len(pool):,} training glyphs ({COPY} alike or more; 1 = the same)"
        return Shown(f"{copies} of {count} are {of_them}", images=shown, captions=captions)


def decoded(file: str, channels: int, background: int) -> np.ndarray:
    """What a visitor sent, as uint8 (H, W, channels). Raises: UserError, which tells no path of the host."""
    try:
        return decode_image(Path(file), channels, background, limits.MAX_PIXELS)
    except ImageError as error:
        raise UserError(f"the picture cannot be used: {error}; give a PNG or a JPEG") from None


def painted(layers: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """Where there is paint in files of height and width `size`: uint8 (H, W, 1), white there. Raises: UserError."""
    if len(layers) > limits.MAX_LAYERS:
        raise UserError(f"{limits.MAX_LAYERS} layers of paint are allowed, got {len(layers)}")
    mask = np.zeros((*size, 1), np.uint8)
    for layer in layers:
        on_white, on_black = (decoded(layer, 1, ground).astype(int) for ground in (255, 0))
        if on_white.shape != mask.shape:
            raise UserError(f"paint must have the picture's size {size}, got {on_white.shape[:2]}")
        mask[on_white - on_black < 255] = 255  # where nothing is painted, one ground is seen or the other
    if not mask.any():
        raise UserError("paint over what is to be drawn anew first")
    return mask


def _without_folders(path: str) -> str:
    """The name alone of a file or folder that is here, its :SCALE kept; a Hub id as it is."""
    place = Path(split_scale(path)[0]).expanduser()
    return Path(path).name if place.exists() else path


def remembering(image: Image.Image, job: dict, key: str = KEY) -> Image.Image:
    """The image enlarged by job["scale"], its settings in its `info`: under `KEY` for `ldm generate --from`."""
    image = enlarged(image, job["scale"])
    image.info.update(entries(job, key))
    return image
