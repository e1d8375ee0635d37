"""The images that `ldm evaluate` scores, generated from the fixed prompts, and the real glyphs beside them."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldm.config.settings import DataOptions
from ldm.data import evenly_spaced_indices
from ldm.data.glyphs.dataset import GlyphData
from ldm.data.glyphs.dataset import splits as glyph_splits
from ldm.evaluation.comparison import Scores
from ldm.evaluation.feature_extractors import ClipEmbedder, FeatureExtractor, VisionModel
from ldm.evaluation.glyphs.adherence import Predictions, Scorer, prompt_specs
from ldm.evaluation.glyphs.classifier import GlyphClassifier, unseen
from ldm.evaluation.glyphs.composition import Recombiner
from ldm.evaluation.glyphs.prompts import DESCRIBED, PromptSpec, glyph_prompts
from ldm.evaluation.glyphs.style_probe import StyleProbe
from ldm.evaluation.ocr import GlyphReader, OcrResult
from ldm.pipelines.generation import SamplingOptions, generate_pixels
from ldm.pipelines.model_folder import recorded_config
from ldm.utils.untrusted_files import section

SET = 1_000_000  # image i of set s is generated from seed + s * SET + i
STYLES = ("hei", "song")
PROBED = 1000  # real glyphs that the style probe is fitted to

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is generated."""

    samples: int = 72  # images per layout, over all sets
    sets: int = 3  # independent sets of seeds
    seed: int = 0
    sampling: SamplingOptions = SamplingOptions()

    @property
    def per_prompt(self) -> dict[str, int]:
        """Images of each prompt in each set, by section."""
        layout = -(-self.samples // self.sets)
        half, third, quarter, eighth = (-(-layout // part) for part in (2, 3, 4, 8))
        counts = {"layout": layout, "radical": third, "pair": half, "style": half, "character": 1, "named": 1}
        return counts | {"later": third, "place": quarter, "component_seen": eighth, "component_unseen": eighth}

    def prompts(self, section: str) -> list[PromptSpec]:
        """The prompts of a section, or the first of them where few images are wanted."""
        few = {"character": self.characters, "named": 3 * self.samples, "place": self.samples}
        few |= dict.fromkeys(("component_seen", "component_unseen"), max(2, self.samples // 2))
        return glyph_prompts((section,))[: few.get(section)]

    @property
    def characters(self) -> int:
        """How many characters are described, and on how many the autoencoder is measured."""
        return 7 * self.samples

    def as_json(self) -> dict:
        """What decides the images; the batch size does not."""
        return {"samples": self.samples, "sets": self.sets, "seed": self.seed, **self.sampling.as_json()}


@dataclass(frozen=True)
class GeneratedSet:
    """One section's images, ordered by set, prompt and number."""

    specs: list[PromptSpec]
    sets: np.ndarray  # int64 (n,)
    images: np.ndarray  # uint8 (n, h, w), dark on white

    @property
    def numbered(self) -> list[tuple[int, PromptSpec]]:
        """The distinct prompts with their numbers."""
        return list(enumerate(dict.fromkeys(self.specs)))

    @cached_property
    def prompts(self) -> np.ndarray:
        """The number of each image's prompt, int64 (n,)."""
        numbers = {spec: i for i, spec in self.numbered}
        return np.array([numbers[spec] for spec in self.specs])


@dataclass(frozen=True)
class ModelResults:
    """A model's images, what the classifier predicts for them, and their scores, by section."""

    digest: str
    samples: dict[str, GeneratedSet]
    predictions: dict[str, Predictions]
    scores: dict[str, Scores]  # measure -> float64 (n,), nan where the prompt does not specify it

    def only(self, sections: tuple[str, ...]) -> "ModelResults":
        """Those of some sections."""
        return ModelResults(
            self.digest,
            {name: self.samples[name] for name in sections},
            {name: self.predictions[name] for name in sections},
            {name: self.scores[name] for name in sections},
        )


def generate_section(pipeline, name: str, plan: Plan) -> GeneratedSet:
    """All images of a section of the prompt file."""
    prompts, count = plan.prompts(name), plan.per_prompt[name]
    specs = [spec for _ in range(plan.sets) for spec in prompts for _ in range(count)]
    sets = np.repeat(np.arange(plan.sets), len(prompts) * count)
    seeds = [plan.seed + s * SET + i for s in range(plan.sets) for _ in prompts for i in range(count)]
    if name in DESCRIBED:  # each of its images has a prompt of its own, and so a noise of its own
        seeds = [plan.seed + s * SET + i for s in range(plan.sets) for i in range(len(prompts) * count)]
    images = generate_pixels(pipeline, [spec.prompt for spec in specs], seeds, plan.sampling)
    log.info("%s: %d images of %d prompts", name, len(images), len(prompts))
    return GeneratedSet(specs, sets, images.mean(axis=3).round().astype(np.uint8))


class RealScores(NamedTuple):
    """Real glyphs that neither the generator nor the classifier was trained on, and the scores of each (n,)."""

    specs: list[PromptSpec]
    scores: Scores


class Reference:
    """Real glyphs and the evaluation networks: `both`, the splits in both styles, and `own`, in the model's styles."""

    def __init__(self, pipeline, options: DataOptions, features: str | None = None, clip: ClipEmbedder | None = None):
        """`options`: where rendered glyphs are cached, and which; size, channels and styles are the model's own.

        `features`: one more feature extractor, see `VisionModel`; `clip`: a CLIP trained on such captions.

        Raises: UserError when the font package, the OCR or the classifier is missing.
        """
        self.classifier, self.reader, self.clip = GlyphClassifier(), GlyphReader(), clip
        self.more = VisionModel(features) if features else None
        channels, side, _ = pipeline.image_shape
        shape = {"resolution": side, "channels": channels}
        self.both, self.own = (
            glyph_splits(options.model_copy(update=shape | {"glyphs": options.glyphs.model_copy(update={"styles": s})}))
            for s in (list(STYLES), styles_of(pipeline))
        )
        train = self.both["train"]
        fit = evenly_spaced_indices(len(train), PROBED)
        probe = StyleProbe(glyph_images(train, fit), [train.meta(i)["style"] for i in fit.tolist()])
        self.scorer = Scorer(self.classifier, probe)

    @cached_property
    def real(self) -> RealScores:
        """In both styles."""
        specs, images = [], []
        for data in (self.both["test"], self.both["heldout"]):
            chosen = [i for i, (row, *_) in enumerate(data.items) if unseen(row)]
            complete = prompt_specs(data)
            specs += [complete[i] for i in chosen]
            images.append(glyph_images(data, chosen))
        return RealScores(specs, self.scorer.scores(self.scorer(np.concatenate(images)), specs))

    def described(self, specs: Iterable[PromptSpec]) -> tuple[list[PromptSpec], list[int]]:
        """Which of `own["test"]` are the characters that prompts describe: the prompt of each, and its number."""
        asked = {spec.codepoint: spec for spec in specs}
        items = self.own["test"].items
        chosen = [i for i, (row, *_) in enumerate(items) if row.codepoint in asked]
        return [asked[items[i][0].codepoint] for i in chosen], chosen

    @cached_property
    def read_test(self) -> OcrResult:
        """What the OCR reads in `own["test"]`."""
        return self.reader.read(glyph_images(self.own["test"]))

    @cached_property
    def recombiner(self) -> Recombiner:
        """Of the model's own styles."""
        return Recombiner(self.own["train"])

    @cached_property
    def features(self) -> list[FeatureExtractor]:
        """The networks by whose features sets of images uint8 (n, h, w) are compared."""
        return [
            FeatureExtractor("glyph encoder", self.classifier.card["sha256"][:16], self.classifier.embed),
            FeatureExtractor("OCR", self.reader.digest, self.reader.embed),
            *([self.more.extractor] if self.more else []),
        ]


def clip_of(pipeline, path: Path | None) -> ClipEmbedder | None:
    """The CLIP run at `path`, else the one beside the run that the model is of, else None."""
    if path is not None:
        return ClipEmbedder(path)
    run = pipeline.folder.paths["unet"].parents[1] if pipeline.folder else None
    beside = run.parent / "clip" if run else None
    return ClipEmbedder(beside) if beside and (beside / "final" / "clip").is_dir() else None


def styles_of(pipeline) -> list[str]:
    """The styles in the model's training data, as far as its folder says; both if it does not."""
    config = pipeline.folder.training_config() if pipeline.folder else recorded_config(pipeline.defaults)
    styles = section(config, "data", "glyphs").get("styles")
    return [style for style in STYLES if style in (styles or STYLES)] or list(STYLES)


def glyph_images(data: GlyphData, chosen: Iterable[int] | None = None) -> np.ndarray:
    """Glyphs of a split, all or some: uint8 (n, h, w)."""
    return np.stack([data.image(int(i))[..., 0] for i in (range(len(data)) if chosen is None else chosen)])
