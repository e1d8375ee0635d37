"""Outlines to a font that installs: TrueType (.ttf, quadratic curves) or OpenType with CFF (.otf, cubic ones).

Every image fills the em: it is 1000 units wide and high, from the descent at -120 to the ascent at 880, as in
fonts of Chinese characters, with equal advances in lines across and down. The same outlines give the same bytes.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldm.apps.font.vectorize import Contour, Outline

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

EM = 1000
ASCENT, DESCENT = 880, -120
BEND = 1.0  # units by which TrueType's quadratic curves may lie off the cubic ones
VERSION = "1.000"
KINDS = (".ttf", ".otf")
PRIVATE = range(0xE000, 0xF900)  # code points of the Private Use Area, which nobody else gives a meaning
SPACE = 0x20
FRAME = ((100, -20), (100, 780), (900, 780), (900, -20)), ((150, 30), (850, 30), (850, 730), (150, 730))  # of .notdef


def build_font(
    outlines: Mapping[int, Outline], family: str, kind: str = ".ttf", description: str = "", licence: str = ""
) -> "TTFont":
    """Assemble a font.

    Args:
        outlines: of images of equal width and height, by the code point that each is to stand for; one without
            contours becomes an empty character. A space of half an em comes by itself.
        family: the font's name in menus, in any script; its style is Regular and its version 1.000.
        kind: ".ttf" or ".otf".
        description, licence: for the name table; left out where empty.
    Returns: a font to `save`.
    Raises: ValueError: no outlines, an empty family, or another kind.
    """
    from fontTools.fontBuilder import FontBuilder

    if not outlines or not family.strip() or kind not in KINDS:
        raise ValueError(f"a font needs outlines, a family name and a kind of {KINDS}, got {family!r} and {kind!r}")
    cmap = {SPACE: "space"} | {code: name_of(code) for code in sorted(outlines)}
    shapes = {name_of(code): outline for code, outline in sorted(outlines.items())}
    order = [".notdef", *dict.fromkeys(cmap.values())]
    advances = {name: EM // 2 if name == "space" and name not in shapes else EM for name in order}
    quadratic = kind == ".ttf"
    builder = FontBuilder(EM, isTTF=quadratic)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(cmap)
    names = _names(family, description, licence)
    if quadratic:
        glyphs = {name: _quadratic(shapes.get(name), name) for name in order}
        builder.setupGlyf(glyphs)
        tops = {name: getattr(glyph, "yMax", 0) for name, glyph in glyphs.items()}
        lefts = {name: getattr(glyph, "xMin", 0) for name, glyph in glyphs.items()}
    else:
        charstrings = {name: _cubic(shapes.get(name), name, advances[name]) for name in order}
        ascii_name = in_ascii(family)
        builder.setupCFF(names["psName"], {"FullName": ascii_name, "FamilyName": ascii_name}, charstrings, {})
        bounds = {name: charstring.calcBounds(None) or (0, 0, 0, 0) for name, charstring in charstrings.items()}
        tops, lefts = ({name: round(box[i]) for name, box in bounds.items()} for i in (3, 0))
    builder.setupHorizontalMetrics({name: (advances[name], lefts[name]) for name in order})
    builder.setupVerticalMetrics({name: (EM, ASCENT - tops[name]) for name in order})
    _finish(builder, names, quadratic)
    return builder.font


def name_of(code: int) -> str:
    """The glyph name of a code point in Adobe's Glyph List specification: uniE000, u1F600; 'space' for U+0020."""
    return "space" if code == SPACE else f"uni{code:04X}" if code < 0x10000 else f"u{code:X}"


def _finish(builder: Any, names: dict[str, str], quadratic: bool) -> None:
    """The tables about the font as a whole."""
    from fontTools.misc.timeTools import timestampFromString

    builder.setupHorizontalHeader(ascent=ASCENT, descent=DESCENT)
    builder.setupVerticalHeader(ascent=EM // 2, descent=-EM // 2)
    if not quadratic:
        builder.setupVerticalOrigins({}, ASCENT)
    builder.setupNameTable(names, mac=False)
    builder.setupOS2(
        version=4,  # the first with a bit that asks for the Typo metrics, the second of the two here
        fsSelection=0b0100_0000 | 0b1000_0000,
        fsType=0,  # may be embedded and installed
        sTypoAscender=ASCENT,
        sTypoDescender=DESCENT,
        sTypoLineGap=0,
        usWinAscent=ASCENT,
        usWinDescent=-DESCENT,
        sCapHeight=ASCENT,
        sxHeight=EM // 2,
    )
    builder.font["OS/2"].recalcUnicodeRanges(builder.font)
    builder.setupPost(isFixedPitch=0, underlinePosition=-75, underlineThickness=50)
    then = timestampFromString("Sat Jan  1 00:00:00 2000")  # the same whenever it is built
    builder.updateHead(created=then, modified=then, fontRevision=float(VERSION))
    builder.font.recalcTimestamp = False


def in_ascii(family: str) -> str:
    """A family's name for PostScript, which has no other letters: without accents; the name table has it as it is."""
    plain = unicodedata.normalize("NFKD", family).encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"[^ -~]|[()<>\[\]{}/%]", "", plain).split()) or "Drawn"


def _names(family: str, description: str, licence: str) -> dict[str, str]:
    plain = re.sub(r"[^A-Za-z0-9]", "", in_ascii(family))[:50] or "Drawn"  # PostScript allows no more
    names = {
        "familyName": family,
        "styleName": "Regular",
        "uniqueFontIdentifier": f"{VERSION};{plain}-Regular",
        "fullName": family,
        "version": f"Version {VERSION}",
        "psName": f"{plain}-Regular",
        "description": description,
        "licenseDescription": licence,
    }
    return {name: text for name, text in names.items() if text}


def _quadratic(outline: Outline | None, name: str) -> Any:
    """A glyph of the glyf table: outer contours clockwise, as the outlines have them."""
    from fontTools.pens.cu2quPen import Cu2QuPen
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    _draw(outline, name, Cu2QuPen(pen, max_err=BEND))
    return pen.glyph()


def _cubic(outline: Outline | None, name: str, advance: int) -> Any:
    """A charstring of the CFF table: outer contours counter-clockwise."""
    from fontTools.pens.reverseContourPen import ReverseContourPen
    from fontTools.pens.t2CharStringPen import T2CharStringPen

    pen = T2CharStringPen(advance, None)
    _draw(outline, name, ReverseContourPen(pen))
    return pen.getCharString()


def _draw(outline: Outline | None, name: str, pen: Any) -> None:
    """Draw an outline in the em; without one, the frame of .notdef, or nothing."""
    from fontTools.pens.transformPen import TransformPen

    if name == ".notdef":
        frame = tuple(Contour(path[0], tuple((point,) for point in (*path[1:], path[0]))) for path in FRAME)
        Outline(EM, EM, frame).draw(pen)
    elif outline is not None:
        scale = EM / max(outline.width, outline.height)
        pen = TransformPen(pen, (scale, 0, 0, -scale, (EM - scale * outline.width) / 2, ASCENT))
        outline.draw(pen)
