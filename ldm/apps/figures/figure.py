"""What a figure is made from, and what it is once it is finished."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image


@dataclass(frozen=True)
class Setting:
    """What every figure is made from."""

    model: str | None = None  # exported folder, run or Hub id; None = the shipped model
    cache_dir: Path = Path("cache")  # rendered glyphs
    quick: bool = False  # few samples and steps: proves that the figure can be made, shows little


@dataclass(frozen=True)
class Drawing:
    """A finished figure: the page, the numbers it shows, and the frames of an animation if there is one."""

    figure: "Figure"
    numbers: dict[str, Any]
    frames: "list[Image.Image] | None" = None  # saved as NAME.gif beside NAME.png
