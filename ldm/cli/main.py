"""The `ldm` command. The module of a subcommand is imported only when it is chosen.

A subcommand's module offers `add_parser(subparsers)`, which adds its parser, and `run(args) -> int | None`. A module
with several subcommands tells them apart by `parser.set_defaults(run=...)`.
"""

import argparse
import difflib
import importlib
import os
import sys
from typing import Any, NoReturn

from ldm import __version__
from ldm.utils.errors import UserError
from ldm.utils.runtime import check_utf8, prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision

# name -> (module, one line of help), or for a group name -> ({name: (module, help)}, help)
Registry = dict[str, tuple[Any, str]]
COMMANDS: Registry = {
    "generate": ("ldm.cli.generate", "generate images from a prompt"),
    "edit": (
        {
            "image-to-image": ("ldm.cli.edit", "change an image by a prompt"),
            "inpaint": ("ldm.cli.edit", "generate a part of an image"),
            "invert": ("ldm.cli.edit", "generate an image again with another prompt"),
            "interpolate": ("ldm.cli.edit", "images between two prompts or seeds"),
            "vary": ("ldm.cli.edit", "variations of the image of a seed"),
            "compose": ("ldm.cli.edit", "one image of several prompts, AND and NOT"),
            "weigh": ("ldm.cli.edit", "weight words of a prompt"),
        },
        "edit images, combine and weight prompts",
    ),
    "font": ("ldm.cli.font", "generate a font, a character for each prompt in a file"),
    "sample": ("ldm.cli.sample", "generate many samples into one file"),
    "data": (
        {
            "glyphs": ("ldm.cli.data", "write or push the glyph data set"),
            "check": ("ldm.cli.data", "check a data set of your own before training"),
            "caption": ("ldm.cli.data", "write captions for your images by an image-to-text model"),
        },
        "check, caption, build and publish data sets",
    ),
    "cache": (
        {
            "build": ("ldm.cli.cache", "decode the images and encode the latents that a training reads"),
        },
        "build caches before a training, on several machines at once",
    ),
    "runs": (
        {
            "ls": ("ldm.cli.runs", "list runs"),
            "verify": ("ldm.cli.runs", "check checkpoints, caches and images of a run"),
            "prune": ("ldm.cli.runs", "delete old checkpoints of a run"),
        },
        "list, check and clean up training runs",
    ),
    "train": ("ldm.cli.train", "train a model on a folder of images, or one stage"),
    "new": ("ldm.cli.new", "write a project file for a folder of images"),
    "plan": ("ldm.cli.plan", "fit a training into given minutes and memory"),
    "preview-decoder": ("ldm.cli.preview_decoder", "train a tiny decoder for previews"),
    "export": ("ldm.cli.hub", "export a run as one self-contained model folder"),
    "card": ("ldm.cli.hub", "write the card of an exported model again"),
    "push": ("ldm.cli.hub", "upload a model folder with its card to the Hub"),
    "web": ("ldm.cli.web", "write a page that generates images in the browser"),
    "evaluate": ("ldm.cli.evaluate", "measure prompt adherence and image quality"),
    "likelihood": ("ldm.cli.likelihood", "estimate the likelihood of held-out data under a run"),
    "app": ("ldm.cli.app", "serve a demo of a model in the browser"),
    "space": ("ldm.cli.app", "write the demo as a Space for the Hub"),
    "figures": ("ldm.cli.figures", "draw the figures that explain the method"),
    "doctor": ("ldm.cli.doctor", "check this machine and this installation"),
}
GROUPS = {  # as the help shows them
    "start": ("doctor", "data", "new", "plan"),
    "train": ("train", "cache", "runs", "preview-decoder"),
    "generate": ("generate", "edit", "sample", "font", "app"),
    "evaluate": ("evaluate", "likelihood", "figures"),
    "publish": ("export", "card", "push", "web", "space"),
}
EXAMPLES = {
    "ldm generate horizontal stacked glyph --grid 4x2": "eight images from the included model, in out.png",
    "ldm train my-images --minutes 60": "a model of your own images, each with a .txt caption",
    "ldm app -m my-images-model": "try it in the browser",
}
EXTRAS = {
    "open_clip": "openclip",
    "torchvision": "openclip",
    "rapidocr": "eval",
    "onnx": "onnx",
    "onnxruntime": "eval",
    "skimage": "eval",
    "pylopdf_fonts_zh_cn": "glyphs",
    "tensorboard": "track",
    "mlxtend": "digits",
    "fontTools": "font",
    "contourpy": "font",
    "matplotlib": "viz",
    "umap": "viz",
    "sklearn": "viz",
    "scipy": "viz",
    "xformers": "xformers",
    "gradio": "app",
    "av": "app",
    "peft": "lora",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s: one line, with the nearest name after a typo.

    With `takes_settings`, options are for the help alone: all words go to `words`, which the command parses by
    `ldm.config.overrides`, for every setting is an option there.
    """

    takes_settings = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        stage = bool(args) and args[0] in ("clip", "vae", "ldm")  # which has a help of its own
        if not self.takes_settings or ({"-h", "--help"} & set(args or ()) and not stage):
            return super().parse_known_args(args, namespace)
        found, _ = super().parse_known_args([], namespace)
        found.words = list(args or ())
        return found, []

    def error(self, message: str) -> NoReturn:
        extra = message.removeprefix("unrecognized arguments: ")
        if extra != message and not extra.startswith("-"):
            message += f'; put a text of several words in quotes, such as "one two {extra}"'
        raise UserError(f"{message}; `{self.prog} --help` shows what is allowed")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        what = "command" if isinstance(action, argparse._SubParsersAction) else argparse._get_action_name(action)
        self.error(f"{what} must be one of {', '.join(names)}, got {value!r}{hint}")


class MainParser(Parser):
    """The parser of `ldm` itself, whose help has the commands in groups, and examples."""

    def format_help(self) -> str:
        grouped = [name for names in GROUPS.values() for name in names]
        groups = GROUPS | {"more": tuple(name for name in COMMANDS if name not in grouped)}
        lines = [self.format_usage(), f"{self.description}\n"]
        for title, names in groups.items():
            rows = [f"  {name:<16} {COMMANDS[name][1]}" for name in names if name in COMMANDS]
            lines += [f"{title}:", *rows, ""] if rows else []
        lines += ["examples:", *(f"  {command:<50} {what}" for command, what in EXAMPLES.items())]
        lines += ["", "`ldm COMMAND --help` shows the options of a command; `ldm --version` the version."]
        return "\n".join(lines) + "\n"


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser for this command line: complete where `argv` leads, and with help lines only elsewhere."""
    parser = MainParser(prog="ldm", description="Text-to-image latent diffusion models, trained from scratch.")
    parser.add_argument("--version", action="version", version=f"ldm {__version__}")
    _fill(parser, COMMANDS, argv)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script; always ends in `sys.exit`."""
    prepare_threads()
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")  # we never ask for any: this makes sure
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # those of transformers too: they read the same
    run_main(lambda: _dispatch(sys.argv[1:] if argv is None else argv))


def _fill(parser: argparse.ArgumentParser, registry: Registry, argv: list[str]) -> None:
    """Add every command of `registry`; import the module of the one `argv` chooses, and of no other."""
    parser.set_defaults(help_of=parser)
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    place, _ = registry.get(chosen or "", (None, ""))
    if chosen is not None and isinstance(place, str):
        _add_module(subparsers, chosen, place)  # first: it may bring more commands than the chosen one
    for name, (place, help_line) in registry.items():
        if isinstance(place, dict):
            group = subparsers.add_parser(name, help=help_line, description=help_line.capitalize() + ".")
            _fill(group, place, argv[argv.index(name) + 1 :] if name == chosen else [])
        elif name not in subparsers.choices:
            subparsers.add_parser(name, help=help_line)


def _add_module(subparsers: argparse._SubParsersAction, name: str, place: str) -> None:
    """Let the module add its parser, and remember which function runs it."""
    module = importlib.import_module(place)
    module.add_parser(subparsers)
    parser = subparsers.choices[name]
    if parser.get_default("run") is None:
        parser.set_defaults(run=module.run)


def _dispatch(argv: list[str]) -> int | None:
    check_utf8(argv)
    args = build_parser(argv).parse_args(argv)
    if not hasattr(args, "run"):
        args.help_of.print_help()
        return 0
    patch_torchvision()
    try:
        return args.run(args)
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _missing(error: ModuleNotFoundError) -> Exception:
    """A readable error for a package that an extra would have installed; any other stays as it is."""
    name = (error.name or "").split(".")[0]
    if name not in EXTRAS:
        return error
    return UserError(f"{name} is not installed: pip install -c constraints.txt -e '.[{EXTRAS[name]}]'")
