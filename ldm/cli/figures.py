"""`ldm figures`: the images that explain the method, each from one function and one line in `FIGURES`.

To add a figure: write a function `name(setting: Setting) -> Drawing` in one of the modules here (a dash in the figure's
name is an underscore in the function's), and give it a line below. A figure needs only what the project ships: the
model, the glyph table and the font package; numbers in it are printed as well, and kept in the PNG's metadata.
"""

import argparse
import difflib
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.apps.figures.figure import Drawing, Setting
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    pass

# name -> (module in ldm.apps.figures, one line of help)
FIGURES: dict[str, tuple[str, str]] = {
    "gaussian": ("gaussian", "a 1-D Gaussian fitted by maximum likelihood, and the likelihood surface"),
    "forward": ("forward_process", "a glyph turning into noise under every schedule"),
    "schedules": (
        "forward_process",
        "signal and logarithmic signal-to-noise ratio over time, shifted and rescaled too",
    ),
    "pixel-space": ("embeddings", "glyphs as points in pixel space, laid out by UMAP, coloured by layout"),
    "latent-space": ("embeddings", "the same for the latents of the autoencoder"),
    "marginals": ("embeddings", "the cloud of all glyphs at growing noise, in one fixed embedding"),
    "reconstruction": ("reconstruction", "what the autoencoder keeps of easy and of dense glyphs"),
    "reverse": (
        "reverse_process",
        "noise turning into a glyph: x_t and the estimate of x0, as a strip and as an animation",
    ),
    "loss": ("reverse_process", "how hard each time is: the model's error against trivial predictors"),
    "guidance": ("reverse_process", "one prompt and one noise, over guidance scales and numbers of steps"),
    "field": ("toy_fields", "where sampling moves a point of the plane, over the exact density, and complete paths"),
    "learned-field": ("learned_field", "the same for a small network, trained on the spot, beside the exact field"),
    "paths": ("toy_fields", "the same points under four samplers, with few steps and with more"),
    "convergence": ("toy_fields", "how fast each sampler's error falls with its steps: its order"),
    "elbo": ("toy_fields", "what each step of the chain costs in nats, and how the bound closes in on the truth"),
    "solvers": ("reverse_process", "one prompt and one noise, over samplers and numbers of steps"),
    "attention": ("attention", "where each word of a prompt attends"),
    "student": ("distillation", "the same noise through a teacher of many guided steps and its student of four"),
    "obedience": ("adherence_baseline", "the measures of adherence for real glyphs whose captions are permuted"),
    "sensitivity": ("metric_sensitivity", "the measures of fidelity for real glyphs that are corrupted more and more"),
}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "figures",
        help="make the figures that explain the method",
        description="Make the figures that explain the method, and print the numbers in them.",
        epilog=_listed(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="one or several, see below")
    parser.add_argument("-o", "--output", type=Path, default=Path("figures"), help="folder (default: figures)")
    parser.add_argument("--all", action="store_true", help="make them all (about ten minutes on one core)")
    parser.add_argument("--list", action="store_true", help="only list their names")
    parser.add_argument("-m", "--model", help="exported folder, LDM run or Hub id (default: the shipped model)")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="rendered glyphs (default: cache)")
    parser.add_argument("--quick", action="store_true", help="few samples: only shows that it works")
    parser.set_defaults(run=run)


def _listed() -> str:
    width = max(map(len, FIGURES)) + 2
    return "\n".join(f"{name:{width}}{line}" for name, (_, line) in FIGURES.items())


def run(args: argparse.Namespace) -> int:
    if args.list:
        print(_listed())
        return 0
    names = list(FIGURES) if args.all else args.names
    _check(names)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} is not a folder that can be written: {error.strerror}") from None
    setting = Setting(args.model, args.cache_dir, args.quick)
    for name in names:
        _draw_and_save(name, setting, args.output)
    return 0


def _check(names: list[str]) -> None:
    if not names:
        raise UserError(f"name a figure, or give --all: {', '.join(FIGURES)}")
    for name in names:
        if name not in FIGURES:
            near = difflib.get_close_matches(name, FIGURES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"figure must be one of {', '.join(FIGURES)}, got {name!r}{hint}")


def function_of(name: str) -> Callable[[Setting], Drawing]:
    """The function that makes a figure. Raises: KeyError for an unknown name."""
    module, _ = FIGURES[name]
    return getattr(importlib.import_module(f"ldm.apps.figures.{module}"), name.replace("-", "_"))


def _draw_and_save(name: str, setting: Setting, folder: Path) -> None:
    from ldm.apps.figures.plot_style import quiet, save

    start = time.perf_counter()
    with quiet():
        drawing = function_of(name)(setting)
        for path in save(drawing, folder, name):
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB in {time.perf_counter() - start:.1f} s", flush=True)
    for label, value in drawing.numbers.items():
        print(f"  {label}: {value:.4g}" if isinstance(value, float) else f"  {label}: {value}", flush=True)
