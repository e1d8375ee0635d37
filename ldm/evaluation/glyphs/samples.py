"""The pictures that `ldm evaluate` judges, drawn from the fixed prompts, and the real glyphs beside them."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from ldm.config.settings import DataOptions
from ldm.data import spread
from ldm.data.glyphs.dataset import GlyphData
from ldm.data.glyphs.dataset import splits as glyph_splits
from ldm.evaluation.feature_extractors import ClipJudge, VisionModel
from ldm.evaluation.generation import Drawing, draw
from ldm.evaluation.glyphs.adherence import Judge, Judged, asked_of
from ldm.evaluation.glyphs.classifier import GlyphClassifier, unseen
from ldm.evaluation.glyphs.prompts import Asked, glyph_prompts
from ldm.evaluation.glyphs.style_probe import StyleProbe
from ldm.evaluation.ocr import GlyphReader
from ldm.utils.untrusted_files import read_yaml

SET = 1_000_000  # picture i of set s is drawn from seed + s * SET + i
STYLES = ("hei", "song")
PROBED = 1000  # real glyphs that the style probe is fitted to

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is drawn."""

    samples: int = 72  # pictures for each layout, over all sets
    sets: int = 3  # independent sets of seeds
    seed: int = 0
    drawing: Drawing = Drawing()

    @property
    def each(self) -> dict[str, int]:
        """Pictures of each prompt in each set, by section."""
        layout = -(-self.samples // self.sets)
        return {"layout": layout, "radical": -(-layout // 3), "pair": -(-layout // 2), "style": -(-layout // 2)} | {
            "character": 1
        }

    @property
    def characters(self) -> int:
        """How many characters are described, and of how many the autoencoder's pictures are looked at."""
        return 7 * self.samples


@dataclass(frozen=True)
class Drawn:
    """One section's pictures, in order of set, prompt and number."""

    asked: list[Asked]
    sets: np.ndarray  # int64 (n,)
    images: np.ndarray  # uint8 (n, h, w), dark on white

    @property
    def numbered(self) -> list[tuple[int, Asked]]:
        """The different prompts with their numbers."""
        return list(enumerate(dict.fromkeys(self.asked)))

    @cached_property
    def prompts(self) -> np.ndarray:
        """The number of each picture's prompt, int64 (n,)."""
        places = {one: i for i, one in self.numbered}
        return np.array([places[one] for one in self.asked])


def draw_section(pipeline, name: str, plan: Plan) -> Drawn:
    """All pictures of a section of the prompt file."""
    prompts = glyph_prompts((name,))[: plan.characters if name == "character" else None]
    each = plan.each[name]
    asked = [one for _ in range(plan.sets) for one in prompts for _ in range(each)]
    sets = np.repeat(np.arange(plan.sets), len(prompts) * each)
    seeds = [plan.seed + s * SET + i for s in range(plan.sets) for _ in prompts for i in range(each)]
    if name == "character":  # each of its pictures has a prompt of its own, and so a noise of its own
        seeds = [plan.seed + s * SET + i for s in range(plan.sets) for i in range(len(prompts) * each)]
    images = draw(pipeline, [one.prompt for one in asked], seeds, plan.drawing)
    log.info("%s: %d pictures of %d prompts", name, len(images), len(prompts))
    return Drawn(asked, sets, images.mean(axis=3).round().astype(np.uint8))


class Reference:
    """Real glyphs and the judges: `both`, the splits in both styles, and `own`, in those that the model was taught."""

    def __init__(self, pipeline, options: DataOptions, features: str | None = None, clip: ClipJudge | None = None):
        """`options`: where rendered glyphs are kept, and which; size, channels and styles are the model's own.

        `features`: one more feature net, see `VisionModel`; `clip`: both towers of a CLIP that has read such captions.

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
        fit = spread(len(train), PROBED)
        probe = StyleProbe(pictures(train, fit), [train.meta(i)["style"] for i in fit.tolist()])
        self.judge = Judge(self.classifier, probe)

    @cached_property
    def real(self) -> tuple[list[Asked], Judged, dict[str, np.ndarray]]:
        """Characters that neither model nor judge has seen, in both styles: what they are, how judged, their scores."""
        asked, images = [], []
        for name in ("test", "heldout"):
            data = self.both[name]
            chosen = [i for i, (row, *_) in enumerate(data.items) if unseen(row)]
            whole = asked_of(data)
            asked += [whole[i] for i in chosen]
            images.append(pictures(data, chosen))
        judged = self.judge(np.concatenate(images))
        return asked, judged, self.judge.scores(judged, asked)

    @cached_property
    def features(self) -> dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]:
        """Name of each feature net -> its digest, and pictures uint8 (n, h, w) to features float32 (n, d)."""
        return {
            "glyph encoder": (self.classifier.card["sha256"][:16], self.classifier.embed),
            "OCR": (self.reader.digest, self.reader.embed),
            **({type(self.more.model).__name__: (self.more.digest, self.more.embed)} if self.more else {}),
        }


def clip_of(pipeline, named: Path | None) -> ClipJudge | None:
    """The CLIP run that is named, else the one beside the run that the model is of, else None."""
    if named is not None:
        return ClipJudge(named)
    run = pipeline.folder.paths["unet"].parents[1] if pipeline.folder else None
    beside = run.parent / "clip" if run else None
    return ClipJudge(beside) if beside and (beside / "final" / "clip").is_dir() else None


def styles_of(pipeline) -> list[str]:
    """The styles that the model's data had, as far as its folder says; both if it does not."""
    training = pipeline.defaults.get("training")
    config = yaml.safe_load(training.get("config") or "{}") if isinstance(training, dict) else {}
    if pipeline.folder is not None and (found := read_yaml(pipeline.folder.paths["unet"].parents[1] / "config.yaml")):
        config = found
    styles = config.get("data", {}).get("glyphs", {}).get("styles") if isinstance(config, dict) else None
    return [style for style in STYLES if style in (styles or STYLES)] or list(STYLES)


def pictures(data: GlyphData, chosen: Iterable[int] | None = None) -> np.ndarray:
    """Glyphs of a split, all or some: uint8 (n, h, w)."""
    return np.stack([data.image(int(i))[..., 0] for i in (range(len(data)) if chosen is None else chosen)])
