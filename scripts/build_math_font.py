"""The font of the formulas: what the pages need of STIX Math, under another name as its licence asks.

`python scripts/build_math_font.py STIXMath-Regular.otf docs/assets/math.woff2` (Debian's package fonts-stix has the
source; needs fonttools and brotli).
"""

import sys

from fontTools import subset
from fontTools.ttLib import TTFont

NAME = "Ldm Math"
FAMILY, FULL, POSTSCRIPT, PREFERRED = 1, 4, 6, 16  # of the name table
RANGES = (  # first and last code point: Latin, accents and Greek; operators; bold, italic, script, double-struck
    (0x20, 0x7E), (0xA0, 0xFF), (0x131, 0x131), (0x237, 0x237), (0x2C6, 0x2DD), (0x300, 0x36F), (0x370, 0x3FF),
    (0x2000, 0x206F), (0x20D0, 0x20FF), (0x2100, 0x214F), (0x2190, 0x22FF), (0x2308, 0x230B), (0x27E6, 0x27EF),
    (0x1D400, 0x1D467), (0x1D49C, 0x1D4CF), (0x1D538, 0x1D56B), (0x1D6A4, 0x1D71B),
)  # fmt: skip


def main(source: str, target: str) -> None:
    font = TTFont(source)
    options = subset.Options(flavor="woff2", layout_features=["*"], notdef_outline=True, name_IDs=["*"])
    options.drop_tables += ["FFTM"]
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[code for first, last in RANGES for code in range(first, last + 1)])
    subsetter.subset(font)
    for record in font["name"].names:  # copyright and licence stay
        if record.nameID in (FAMILY, FULL, PREFERRED):
            record.string = NAME
        elif record.nameID == POSTSCRIPT:
            record.string = NAME.replace(" ", "")
    subset.save_font(font, target, options)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} STIXMath-Regular.otf OUT.woff2")
    main(*sys.argv[1:])
