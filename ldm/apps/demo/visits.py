"""What the last visitors generated: for downloads, links, the history and editing. None of it is written to disk."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ldm.pipelines.image_metadata import KEY
from ldm.utils.errors import UserError

VISITORS = 32  # whose images are kept
HISTORY = 12  # rounds of one visitor
THUMBNAIL = 96  # pixels, of the history


@dataclass(frozen=True)
class Made:
    """Images as the model generated them, not enlarged, and the settings of each."""

    images: list[Image.Image]
    jobs: list[dict[str, Any]]
    key: str = KEY  # under which a PNG has them


@dataclass
class Recent:
    """The last images of a visitor; of each round, the last first, a small image, its settings and the number."""

    made: Made
    history: list[tuple[Image.Image, dict[str, Any], int]] = field(default_factory=list)


class Visits:
    """The images of the last `VISITORS` visitors."""

    def __init__(self) -> None:
        self.found: OrderedDict[str, Recent] = OrderedDict()

    def remember(self, visitor: str, made: Made) -> None:
        """Keep the images of a visitor until the next ones."""
        small = made.images[0].copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        before = self.found.pop(visitor, None)
        rounds = [(small, made.jobs[0], len(made.images)), *(before.history if before else [])][:HISTORY]
        self.found[visitor] = Recent(made, rounds)
        while len(self.found) > VISITORS:
            self.found.popitem(last=False)

    def recent(self, visitor: str) -> Recent | None:
        """What a visitor made last; None if nothing, or too long ago."""
        return self.found.get(visitor)

    def chosen(self, visitor: str, index: Any) -> tuple[Image.Image, dict[str, Any], str]:
        """One of the images that a visitor made last: not enlarged, its settings and their key. Raises: UserError."""
        recent = self.recent(visitor)
        if recent is None:
            raise UserError("generate an image first")
        made, last = recent.made, len(recent.made.images) - 1
        if not isinstance(index, int) or not 0 <= index <= last:
            raise UserError(f"choose one of the {last + 1} images")
        return made.images[index], made.jobs[index], made.key

    def forget(self, visitor: str) -> None:
        self.found.pop(visitor, None)
