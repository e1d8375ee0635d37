"""`ldm font`: a file of prompts to a font of the characters they describe."""

import argparse
import io
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldm.apps.font.font_file import KINDS, PRIVATE, build_font
from ldm.apps.font.vectorize import Outline, area, trace
from ldm.cli.common import check_writable, wants_gpu
from ldm.pipelines.model_folder import FALLBACKS, ModelFolder, locate
from ldm.pipelines.torch_free import open_light
from ldm.utils.atomic_files import telling, write_whole
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SIZES = (16, 24, 48)  # pixels per em of the lines on a proof sheet
NODES = 384  # side of the outline with its nodes there


@dataclass(frozen=True)
class Line:
    """One line of the prompts file."""

    number: int
    prompt: str
    code: int


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "font",
        help="draw a font, a character for each prompt in a file",
        description="Draw a glyph for each line of a file, trace them and assemble an installable font.",
        epilog="A line is a prompt, or a prompt, a tab and the character (or U+XXXX) it is to stand for. The others "
        "stand for U+E000 on. Empty lines and lines that begin with # are left out. Line i is drawn from seed + i.",
    )
    parser.add_argument("prompts", metavar="PROMPTS.txt", help="UTF-8 text, one character a line")
    parser.add_argument("-o", "--output", required=True, metavar="FONT", help=".ttf, or .otf for cubic curves (CFF)")
    parser.add_argument("-m", "--model", help="exported folder, LDM run or Hub id (default: the shipped model)")
    parser.add_argument("--name", help="of the font's family (default: the output's name)")
    parser.add_argument("--seed", type=int, default=0, help="of the first line (default: 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="how strictly to follow the prompts; 1 = off")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.add_argument(
        "--proof", metavar="PNG", help="also write a sheet with every character, lines set in it, nodes"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    output, proof = (path and Path(path).expanduser() for path in (args.output, args.proof))
    _check(args, output, proof)
    lines = read_prompts(Path(args.prompts))
    from fontTools import ttLib  # noqa: F401  # a missing extra is told before the work

    folder = locate(args.model)
    pictures = draw(folder, [line.prompt for line in lines], args.seed, args.steps, args.guidance, args.device)
    outlines = {line.code: trace(picture) for line, picture in zip(lines, pictures, strict=True)}
    name, licence = _card(folder)
    description = f"Drawn from words by the model {name} ({folder.digest()})."
    terms = f"The card of the model {name} names the licence {licence}." if licence else ""
    family = args.name or output.stem
    font = build_font(outlines, family, output.suffix.lower(), description, terms)
    data = io.BytesIO()
    font.save(data)
    _write(output, data.getvalue(), "--output")
    if proof is not None:
        picture = io.BytesIO()
        proof_sheet(data.getvalue(), outlines).save(picture, format="PNG")
        _write(proof, picture.getvalue(), "--proof")
    _tell(lines, outlines)
    nodes = sum(outline.num_nodes for outline in outlines.values()) / len(outlines)
    print(f"{output}: {family}, {len(outlines)} characters of {nodes:.0f} nodes each, {len(data.getvalue()):,} bytes")
    return 0


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


def draw(
    folder: ModelFolder,
    prompts: list[str],
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    device: str | None = None,
) -> np.ndarray:
    """A picture for each prompt, from seed + i: uint8 (n, H, W) or (n, H, W, C); None = the model's own setting."""
    settings = {**FALLBACKS, **folder.defaults}
    steps = settings["num_inference_steps"] if steps is None else steps
    guidance = float(settings["guidance_scale"] if guidance is None else guidance)
    light = None if wants_gpu(device) or settings.get("guidance_rescale") else open_light(folder)
    if light is not None:
        first, last = settings.get("guidance_interval") or (0, 1)
        return light.draw(prompts, [""] * len(prompts), steps, guidance, (first, last), seed)
    from ldm.pipelines.loading import load_pipeline

    try:
        pipeline = load_pipeline(folder.source if folder.source != "the shipped model" else None, device=device)
        images = pipeline(
            prompts, num_inference_steps=steps, guidance_scale=guidance, seed=seed, output_type="np"
        ).images
    except ValueError as error:
        raise UserError(str(error)) from None
    return (images * 255).round().astype(np.uint8)


def proof_sheet(font: bytes, outlines: dict[int, Outline]) -> "Image.Image":
    """Every character of a font with its code point, lines set in it, and its richest outlines with their nodes."""
    from PIL import Image, ImageDraw, ImageFont

    from ldm.utils.image_grid import sheet

    def set_in(text: str, size: int) -> Image.Image:
        face = ImageFont.truetype(io.BytesIO(font), size, layout_engine=ImageFont.Layout.BASIC)
        line = Image.new("L", (size * len(text), size), 255)
        ImageDraw.Draw(line).text((0, size * 0.88), text, fill=0, font=face, anchor="ls")
        return line

    codes = sorted(outlines)
    cells = sheet([set_in(chr(code), 64) for code in codes], 12, [f"U+{code:04X}" for code in codes], pad=4)
    text = "".join(map(chr, codes[: max(1, cells.width // SIZES[-1])]))
    richest = sorted(outlines.values(), key=lambda outline: -outline.num_nodes)[: max(1, cells.width // NODES)]
    parts = [cells, *(set_in(text, size) for size in SIZES), sheet([_with_nodes(each) for each in richest], 2, pad=0)]
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
    for name, least, most in (("seed", 0, 2**62), ("steps", 1, 1000)):
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} must be a whole number from {least} to {most}, got {value}")
    if args.guidance is not None and not 0 <= args.guidance < math.inf:
        raise UserError(f"--guidance must be 0 or more, got {args.guidance}")
    if args.name is not None and not (args.name.strip() and args.name.isprintable()):
        raise UserError(f"--name must be a name that can be printed, got {args.name!r}")


def _write(path: Path, data: bytes, option: str) -> None:
    with telling(path, f"give another {option}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)


def _card(folder: ModelFolder) -> tuple[str, str]:
    """The model's name, and the licence in the header of its card, or "" if it names none."""
    card = folder.paths["unet"].parent / "README.md"
    header = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2] if card.is_file() else []
    found = re.search(r"^license:\s*(\S+)", "".join(header), re.M)
    return str(folder.defaults.get("name") or Path(folder.source).name), found[1] if found else ""


def _tell(lines: list[Line], outlines: dict[int, Outline]) -> None:
    """Which character is which, on standard output, and which are empty, on standard error."""
    for line in lines:
        print(f"U+{line.code:04X}\t{chr(line.code)}\t{line.prompt}")
    empty = [f"U+{code:04X}" for code, outline in outlines.items() if not outline.contours]
    if empty:
        print(f"note: {len(empty)} pictures were blank, so these are empty: {' '.join(empty[:20])}", file=sys.stderr)
