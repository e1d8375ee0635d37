"""Work that takes a while, in a thread of its own: what a visitor is shown meanwhile, and how they stop it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

from PIL import Image

from ldm.apps.demo.visits import Made

if TYPE_CHECKING:
    from torch import Tensor

PAUSE = 0.1  # seconds between two previews
Previews = Callable[["Tensor"], list[Image.Image]]  # of latents


class Stopped(Exception):
    """The visitor stopped it."""


@dataclass(frozen=True)
class Shown:
    """What the page shows: previews on the way, at the end the images, each with its settings in `info`.

    Attributes:
        captions: of the images, if any has one.
        hints: what a visitor should know of the prompt.
        made: the images once more, with their settings.
        running: whether more follows, and Stop ends it.
    """

    text: str
    previews: list[Image.Image] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    made: Made | None = None
    running: bool = False


class Progress:
    """What a thread at work tells its visitor. Each method raises `Stopped` after `stop`."""

    def __init__(self) -> None:
        self._frames: SimpleQueue[Shown | None] = SimpleQueue()
        self._stopped = Event()

    def stop(self) -> None:
        self._stopped.set()

    def check(self) -> None:
        if self._stopped.is_set():
            raise Stopped

    def say(self, text: str, previews: list[Image.Image] | None = None) -> None:
        self.check()
        self._frames.put(Shown(text, previews or [], running=True))

    def of_steps(self, steps: int, previews: Previews) -> Callable[[int, "Tensor", "Tensor"], None]:
        """The callback of a pipeline that takes so many steps: previews, one in `PAUSE` seconds at most."""
        shown_at = 0.0

        def callback(step: int, timestep: "Tensor", latents: "Tensor") -> None:
            nonlocal shown_at
            self.check()
            if monotonic() - shown_at >= PAUSE:
                self.say(f"step {step + 1} of {steps}", previews(latents))
                shown_at = monotonic()

        return callback

    def shown(self, work: Callable[[], Shown]) -> Iterator[Shown]:
        """Do `work` in a thread: what it says, and its result, or where it was stopped. Raises: what it raises."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            future.add_done_callback(lambda _: self._frames.put(None))
            last = Shown("waiting for the model ...", running=True)
            try:
                yield last
                while (frame := self._frames.get()) is not None:
                    last = frame
                    yield last
                yield future.result()
            except Stopped:
                yield Shown(f"stopped ({last.text})", last.previews)
            finally:  # the visitor may have gone
                self.stop()
