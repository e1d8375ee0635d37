"""`ldm font`: a file of prompts to a font of the characters they describe."""

import argparse
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.apps.font.font_file import KINDS, PRIVATE, build_font
from ldm.apps.font.vectorize import Outline, area, trace
from ldm.cli.common import add_options, check_guidance, check_number, check_writable
from ldm.pipelines.generation import generate_with
from ldm.pipelines.image_metadata import complete, empty_job
from ldm.pipelines.model_folder import ModelFolder, resolve_model
from ldm.utils.atomic_files import atomic_write, readable_io_errors
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SIZES = (16, 24, 48)  # pixels per em of the lines on a specimen
NODES = 384  # side of the outline with its nodes there


@dataclass(frozen=True)
class Line:
    """One line of the prompts file."""

    number: int
    prompt: str
    code: int


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "font",
        help="generate a font, a character for each prompt in a file",
        description="Generate a glyph for each line of a file, trace them and assemble an installable font.",
        epilog="A line is a prompt, or a prompt, a tab and the character (or U+XXXX) it stands for. Others get U+E000 "
        "and up. Empty lines and lines that begin with # are skipped. Line i is generated from seed + i.",
    )
    parser.add_argument("prompts", metavar="PROMPTS.txt", help="UTF-8 text, one character a line")
    parser.add_argument("-o", "--output", required=True, metavar="FONT", help=".ttf, or .otf for cubic curves (CFF)")
    add_options(parser, "model")
    parser.add_argument("--name", help="name of the font family (default: the output's name)")
    add_options(parser, "seed", default=0)
    add_options(parser, "steps", "guidance", "device")
    help_text = "also write an image of every character, lines of text and nodes"
    parser.add_argument("--proof", metavar="PNG", help=help_text)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    output, proof = (path and Path(path).expanduser() for path in (args.output, args.proof))
    _check(args, output, proof)
    lines = read_prompts(Path(args.prompts))
    from fontTools import ttLib  # noqa: F401  # a missing extra is reported before the work

    folder = resolve_model(args.model)
    family = args.name or output.stem
    _require_font(folder, lines, family, output.suffix.lower())
    job = empty_job() | {"prompt": [line.prompt for line in lines]}
    job |= {name: getattr(args, name) for name in ("seed", "steps", "guidance")}
    complete(job, folder.defaults)
    images = generate_with(folder, job, device=args.device)
    outlines = {line.code: trace(image) for line, image in zip(lines, images, strict=True)}
    data = _font(folder, outlines, family, output.suffix.lower())
    _write(output, data, "--output")
    if proof is not None:
        page = io.BytesIO()
        proof_sheet(data, outlines).save(page, format="PNG")
        _write(proof, page.getvalue(), "--proof")
    _report(lines, outlines)
    nodes = sum(outline.num_nodes for outline in outlines.values()) / len(outlines)
    print(f"{output}: {family}, {len(outlines)} characters of {nodes:.0f} nodes each, {len(data):,} bytes")
    return 0


def _require_font(folder: ModelFolder, lines: list[Line], family: str, ending: str) -> None:
    """Write a font of empty characters before the work. Raises: UserError, if that fails."""
    try:
        _font(folder, {line.code: Outline(1, 1, ()) for line in lines}, family, ending)
    except Exception as error:  # fontTools has no common base for its own
        raise UserError(f"no {ending} font can be named {family!r}: {error}; give another --name") from error


def _font(folder: ModelFolder, outlines: dict[int, Outline], family: str, ending: str) -> bytes:
    """The font's file, with the model in its description."""
    name, licence = _card(folder)
    description = f"Drawn from words by the model {name} ({folder.digest()})."
    terms = f"The card of the model {name} names the licence {licence}." if licence else ""
    data = io.BytesIO()
    build_font(outlines, family, ending, description, terms).save(data)
    return data.getvalue()


def read_prompts(path: Path) -> list[Line]:
    """The lines of a prompts file, each with its own code point. Raises: UserError naming the line that is wrong."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name a text file, one prompt a line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    rows = [(number, *row.partition("\t")[::2]) for number, row in enumerate(re.split(r"\r\n|\r|\n", text), 1)]
    rows = [(number, prompt.strip(), character) for number, prompt, character in rows]
    rows = [row for row in rows if (row[1] or row[2].strip()) and not row[1].startswith("#")]
    if not rows:
        raise UserError(f"{path} holds no prompts: write one a line")
    chosen: dict[int, int] = {}  # code point -> line
    for number, prompt, character in rows:
        if not prompt:
            raise UserError(f"{path}, line {number}: no prompt before the tab")
        if character.strip():
            code = code_point(character, f"{path}, line {number}")
            if code in chosen:
                raise UserError(f"{path}, line {number}: U+{code:04X} is already line {chosen[code]}; give another")
            chosen[code] = number
    free = [code for code in PRIVATE if code not in chosen]
    if len(rows) - len(chosen) > len(free):
        raise UserError(
            f"{path}: {len(rows) - len(chosen)} lines without a character of their own are too many: "
            f"U+E000 to U+F8FF have room for {len(free)}"
        )
    own = {number: code for code, number in chosen.items()}
    rest = iter(free)
    return [Line(number, prompt, own[number] if number in own else next(rest)) for number, prompt, _ in rows]


def code_point(text: str, where: str) -> int:
    """The code point that 'a' or 'U+0061' names. Raises: UserError if that is no character a font can have."""
    kept = text.strip()
    named = re.fullmatch(r"[Uu]\+([0-9A-Fa-f]{1,6})", kept)
    code = int(named[1], 16) if named else ord(kept) if len(kept) == 1 else -1
    control = code < 0x20 or 0x7F <= code < 0xA0
    if control or 0xD800 <= code < 0xE000 or code > 0x10FFFF or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
        raise UserError(f"{where}: after the tab one character or its code point (U+4E00) is needed, got {kept[:20]!r}")
    return code


def proof_sheet(font: bytes, outlines: dict[int, Outline]) -> "Image.Image":
    """Every character of a font with its code point, lines set in it, and its richest outlines with their nodes."""
    from PIL import Image, ImageDraw, ImageFont

    from ldm.utils.image_grid import image_grid

    def set_in(text: str, size: int) -> Image.Image:
        face = ImageFont.truetype(io.BytesIO(font), size, layout_engine=ImageFont.Layout.BASIC)
        line = Image.new("L", (size * len(text), size), 255)
        ImageDraw.Draw(line).text((0, size * 0.88), text, fill=0, font=face, anchor="ls")
        return line

    codes = sorted(outlines)
    cells = image_grid([set_in(chr(code), 64) for code in codes], 12, [f"U+{code:04X}" for code in codes], pad=4)
    text = "".join(map(chr, codes[: max(1, cells.width // SIZES[-1])]))
    richest = sorted(outlines.values(), key=lambda outline: -outline.num_nodes)[: max(1, cells.width // NODES)]
    parts = [
        cells,
        *(set_in(text, size) for size in SIZES),
        image_grid([_with_nodes(each) for each in richest], 2, pad=0),
    ]
    page = Image.new("RGB", (max(part.width for part in parts), sum(part.height + 10 for part in parts)), "white")
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height + 10
    return page


def _with_nodes(outline: Outline) -> "Image.Image":
    """The outline filled with grey, with its nodes as squares, and its handles as thin lines that end in dots."""
    from PIL import Image, ImageDraw

    scale = NODES / max(outline.width, outline.height)
    page = Image.new("RGB", (NODES, NODES), "white")
    pen = ImageDraw.Draw(page)
    for ink in (True, False):  # holes after what they are in
        for polygon in outline.polygons():
            if (area(polygon) > 0) == ink:
                pen.polygon([(scale * x, scale * y) for x, y in polygon], fill="#c8c8c8" if ink else "white")
    for contour in outline.contours:
        here = contour.start
        for *handles, there in contour.segments:
            for node, handle in zip((here, there), handles, strict=False):
                (x, y), (u, v) = ((scale * a, scale * b) for a, b in (node, handle))
                pen.line((x, y, u, v), fill="#2166ac")
                pen.ellipse((u - 1.5, v - 1.5, u + 1.5, v + 1.5), fill="#2166ac")
            x, y = scale * there[0], scale * there[1]
            pen.rectangle((x - 2, y - 2, x + 2, y + 2), fill="#b2182b")
            here = there
    return page


def _check(args: argparse.Namespace, output: Path, proof: Path | None) -> None:
    """Fail before the work, not after it."""
    check_writable(output, KINDS)
    if proof is not None:
        check_writable(proof, option="--proof")
    check_number("seed", args.seed, 0, 2**62)
    check_number("steps", args.steps, 1, 1000)
    check_guidance(args.guidance)
    name = output.stem if args.name is None else args.name
    if not (name.strip() and name.isprintable()):
        whose = "--name must be" if args.name is not None else "the font is called as its file: give --name,"
        raise UserError(f"{whose} a name that can be printed, got {name!r}")


def _write(path: Path, data: bytes, option: str) -> None:
    with readable_io_errors(path, f"give another {option}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)


def _card(folder: ModelFolder) -> tuple[str, str]:
    """The model's name, and the licence in the header of its card, or "" if it names none."""
    card = folder.paths["unet"].parent / "README.md"
    header = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2] if card.is_file() else []
    found = re.search(r"^license:\s*(\S+)", "".join(header), re.M)
    return str(folder.defaults.get("name") or Path(folder.source).name), found[1] if found else ""


def _report(lines: list[Line], outlines: dict[int, Outline]) -> None:
    """Which character is which, on standard output, and which are empty, on standard error."""
    for line in lines:
        print(f"U+{line.code:04X}\t{chr(line.code)}\t{line.prompt}")
    empty = [f"U+{code:04X}" for code, outline in outlines.items() if not outline.contours]
    if empty:
        print(f"note: {len(empty)} images were blank, so these are empty: {' '.join(empty[:20])}", file=sys.stderr)
