"""The verdict that opens a report: for each of a few measures chance level, this model and real images, and a sentence.

Numbers are shown as they are, so that a bar means the same in every report: the direction that is good is said beside
it. What a model is compared with is called "chance" and "real images" everywhere, whatever a measure is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ldm.evaluation.html import percent

FEW = 100  # images, below which it is not said how far above chance a fraction is
SAME = 0.05  # of the way from chance to real images: nearer than this to the latter is "about as good"
HARDLY = 0.1  # of that way: less is "hardly better than chance"
DIRECTIONS = {True: "Higher is better.", False: "Lower is better."}


class Mark(NamedTuple):
    """One line of a bar: whose value it is, its kind ("chance", "model", "real"), the value, and how it is written."""

    name: str
    kind: str
    value: float
    text: str


class Bar(NamedTuple):
    """A measure: title, what the number says, whether higher is better, and two or three marks."""

    title: str
    sentence: str
    higher: bool
    marks: Sequence[Mark]
    full: float = 1.0  # the value of a bar that is full

    def width(self, mark: Mark) -> float:
        """Percent of the bar that the mark's value fills."""
        return 100 * min(1.0, max(0.0, mark.value / self.full)) if self.full else 0.0

    @property
    def direction(self) -> str:
        return DIRECTIONS[self.higher]


def share_bar(title: str, what: str, found: dict[str, Any], higher: bool = True) -> Bar:
    """A bar of a fraction.

    Args:
        what: follows the percentage: 'of images have the layout that the prompt names'.
        found: "share" or "value", "interval", and perhaps "floor" (chance), "ceiling" (real images), "weak" (whether
            the latter is no reference) and "n".
    """
    value = found["share"] if "share" in found else found["value"]
    low, top = found.get("floor"), found.get("ceiling")
    said = ": ".join(filter(None, [f"{percent(value)} {what}", standing_of(found, higher)]))
    marks = [("chance", "chance", low), ("this model", "model", value), ("real images", "real", top)]
    shown = [Mark(name, kind, one, percent(one)) for name, kind, one in marks if one is not None]
    return Bar(title, f"{said}.", higher, shown)


def standing_of(found: dict[str, Any], higher: bool = True) -> str:
    """As `standing`, of a fraction as `share_bar` takes it; of few images no more than whether it is above chance."""
    value: float = found["share"] if "share" in found else found["value"]
    low, top = found.get("floor"), found.get("ceiling")
    if top is not None and found.get("weak"):
        said = standing(value, low, None, found.get("interval"), higher)
        return f"{said}; real images reach too little by this measure to compare with"
    said = standing(value, low, top, found.get("interval"), higher)
    if low is not None and found.get("n", FEW) < FEW and not said.startswith("no better"):
        return f"better than chance; n = {found['n']} is too small to say more"
    return said


def number_bar(title: str, sentence: str, marks: Sequence[tuple[str, str, float]], form: str, higher: bool) -> Bar:
    """A bar of numbers with a unit of their own, drawn beside the largest of them; marks: (name, kind, value)."""
    shown = [Mark(name, kind, value, form.format(value)) for name, kind, value in marks]
    return Bar(title, sentence, higher, shown, max(mark.value for mark in shown))


def standing(
    value: float,
    chance: float | None,
    real: float | None,
    interval: Sequence[float] | None = None,
    higher: bool = True,
) -> str:
    """Where a value stands between chance level and real images: 'no better than chance', '64% of the way ...'.

    Args:
        chance, real: None where there is no such value ("" where there is neither); interval: of the value, 95%.
        higher: whether a higher value is better.
    """
    if chance is not None and interval and interval[0] <= chance <= interval[1]:
        return "no better than chance, as far as so many images can tell"
    if chance is None or real is None or chance == real:
        return _beside_one(value, chance, real, higher)
    way = (value - chance) / (real - chance)
    if way <= 0:
        return "no better than chance"
    if way > 1 + SAME:
        return "above real images by this measure"
    if way < HARDLY:
        return f"hardly better than chance, {way:.0%} of the way from it to real images"
    return "about as good as real images" if way >= 1 - SAME else f"{way:.0%} of the way from chance to real images"


def _beside_one(value: float, chance: float | None, real: float | None, higher: bool) -> str:
    """The words where one of the references is missing."""
    if real is not None:
        worse = value < real if higher else value > real
        return f"worse than real images, {percent(real)}" if worse else f"no worse than real images, {percent(real)}"
    if chance is None:
        return ""
    better = value > chance if higher else value < chance
    return f"better than chance, {percent(chance)}" if better else "no better than chance"
