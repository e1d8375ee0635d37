"""Build a set of small colour images with captions: about 6,000 emoji in four styles, from openly licensed packages.

    pip install resvg-py pillow          # in an environment of its own: nothing of ldm is imported
    python scripts/build_emoji.py emoji                            # all four styles
    python scripts/build_emoji.py emoji-free --without-share-alike # without OpenMoji

Sources, fetched by `npm pack` (`npm` has to be installed) at the versions in `SETS`; each package states its licence,
which is compared with the one expected here:

    style     package                          drawn by      licence
    noto      @iconify-json/noto               Google        Apache-2.0
    openmoji  @iconify-json/openmoji           OpenMoji      CC-BY-SA-4.0
    fluent    @iconify-json/fluent-emoji-flat  Microsoft     MIT
    twemoji   @iconify-json/twemoji            Twitter       CC-BY-4.0

Skin tones, families, gendered variants, hidden icons and images that show nothing on white are left out, and so is
each second image of a style that is equal to a first. Emoji of one code point have one name in all styles.

Written: train/, validation/ and test/ with RGB PNGs on white and a metadata.jsonl each (file_name, text: a list of
captions, name, group, style), heldout.json (the rules and all names held out) and NOTICE. Held out are

    validation/  names whose `hash_fraction` is below HELD_OUT, in all styles,
    test/        six of the 24 pairs of heart, circle, square and a colour (`is_held_out_pair`), in all styles.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

SIZE = 64
HELD_OUT = 0.06
SHAPES = ("heart", "circle", "square")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
HELD_OUT_SHIFTS = (1, 4)
SHOWN = 0.004  # an image with a smaller fraction of pixels that differ from white shows nothing
CATEGORIES = {
    "Activities": "activity",
    "Animals Nature": "animal",
    "Flags": "flag",
    "Food Drink": "food",
    "Objects": "object",
    "People Body": "people",
    "Smileys Emotion": "face",
    "Symbols": "symbol",
    "Travel Places": "travel",
}
PLANTS = frozenset(
    "bouquet cherry-blossom white-flower lotus rosette rose wilted-flower hibiscus sunflower blossom tulip hyacinth "
    "seedling potted-plant evergreen-tree deciduous-tree palm-tree cactus sheaf-of-rice herb shamrock four-leaf-clover "
    "maple-leaf fallen-leaf leaf-fluttering-in-wind mushroom leafless-tree".split()
)
WEATHER = re.compile(
    r"\b(moon|sun|star|cloud|rainbow|umbrella|snowflake|snowman|tornado|fog|wind|high-voltage|comet|cyclone|droplet|"
    r"water-wave|fire|milky-way|thermometer|ringed-planet)\b(?!-engine)"
)
CLOCK = re.compile(r"\b(oclock|thirty|watch|stopwatch|clock|hourglass)\b")
NO_FACE = re.compile(r"heart|mark|bubble|balloon|hundred|symbol|collision|^dizzy$|^sweat|dash|hole|zzz|letter")


@dataclass(frozen=True)
class IconSet:
    """A package of icons in Iconify's JSON format, the licence it must state, and the name of its style here."""

    package: str
    version: str
    licence: str
    style: str

    @property
    def share_alike(self) -> bool:
        return "-SA-" in self.licence


SETS = (
    IconSet("@iconify-json/noto", "1.2.9", "Apache-2.0", "noto"),
    IconSet("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "twemoji"),
    IconSet("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "fluent"),
    IconSet("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0", "openmoji"),
)


@dataclass(frozen=True)
class Icon:
    """An emoji of one style. `name` is the same in all styles: "red-apple"."""

    name: str
    group: str
    style: str
    svg: str

    @property
    def split(self) -> str:
        pair = pair_of(self.name)
        if pair:
            return "test" if is_held_out_pair(*pair) else "train"
        return "validation" if hash_fraction(self.name) < HELD_OUT else "train"


# ---- what is held out -----------------------------------------------------------------------------------------------


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name: the first 56 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56


def pair_of(name: str) -> tuple[str, str] | None:
    """("heart", "red") of "red-heart"; None for what is no heart, circle or square in one of the eight colours."""
    colour, _, shape = name.partition("-")
    return (shape, colour) if shape in SHAPES and colour in COLOURS else None


def is_held_out_pair(shape: str, colour: str) -> bool:
    """Two colours of each shape, no colour twice: (colour - shape) mod 8 is 1 or 4, counted in the order above."""
    return (COLOURS.index(colour) - SHAPES.index(shape)) % len(COLOURS) in HELD_OUT_SHIFTS


# ---- reading the packages -------------------------------------------------------------------------------------------


def fetch(sets: tuple[IconSet, ...], folder: Path) -> None:
    """`npm pack` each set that is not in the folder yet."""
    for each in sets:
        if not tarball(each, folder).is_file():
            command = ["npm", "pack", f"{each.package}@{each.version}", "--pack-destination", str(folder), "--silent"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def tarball(icon_set: IconSet, folder: Path) -> Path:
    return folder / f"{icon_set.package.removeprefix('@').replace('/', '-')}-{icon_set.version}.tgz"


def read_package(icon_set: IconSet, folder: Path) -> dict[str, Any]:
    """The contents of info.json, icons.json, metadata.json and chars.json by name.

    Raises: SystemExit: package.json or info.json states another licence than the one expected.
    """
    with tarfile.open(tarball(icon_set, folder)) as archive:
        names = ("package", "info", "icons", "metadata", "chars")
        found = {name: json.load(archive.extractfile(f"package/{name}.json")) for name in names}  # type: ignore[arg-type]
    stated = {found["package"]["license"], found["info"]["license"]["spdx"]}
    if stated != {icon_set.licence}:
        sys.exit(f"error: {icon_set.package} states {', '.join(sorted(stated))}, not {icon_set.licence}: do not use it")
    return found


def shared_names(packages: list[dict[str, Any]]) -> dict[str, str]:
    """The name of each code point, by the first package that has it."""
    names: dict[str, str] = {}
    for package in packages:
        for code, name in package["chars"].items():
            names.setdefault(code, plain(name))
    return names


def plain(name: str) -> str:
    """The black and the white square are called as those of other colours are."""
    return re.sub(r"^(black|white)-large-square$", r"\1-square", name)


def is_variant(code: str) -> bool:
    """Whether a code such as "1f9d1-200d-1f3a8" is a skin tone, a family, a gendered or turned variant, or a letter
    that is only used in pairs.
    """
    points = [int(point, 16) for point in code.split("-")]
    joined = set(points) if 0x200D in points else set()
    skin = any(0x1F3FB <= point <= 0x1F3FF for point in points)
    return (
        skin
        or bool(joined & {0x2640, 0x2642, 0x1F468, 0x1F469, 0x1F9D2, 0x27A1})
        or (len(points) == 1 and (0x1F1E6 <= points[0] <= 0x1F1FF or 0x1F9B0 <= points[0] <= 0x1F9B3))
    )


def shared_groups(packages: list[dict[str, Any]], names: dict[str, str]) -> dict[str, str]:
    """The group of each name, by the first package that has a category for it; others are left out."""
    groups: dict[str, str] = {}
    for package in packages:
        categories = package["metadata"]["categories"].items()
        category_of = {own: CATEGORIES.get(each.replace(" & ", " ")) for each, members in categories for own in members}
        for code, own in package["chars"].items():
            if category := category_of.get(own):
                groups.setdefault(names[code], group_of(names[code], category))
    return groups


def icons_of(
    icon_set: IconSet, package: dict[str, Any], names: dict[str, str], groups: dict[str, str]
) -> Iterator[Icon]:
    """The icons of a set that are kept, in the order of their names."""
    icons, codes = package["icons"], defaultdict(list)
    for code, own in package["chars"].items():
        codes[names[code]].append((code, own))
    for name, found in sorted(codes.items()):
        own = found[0][1]
        hidden = icons["icons"].get(own, {"hidden": True}).get("hidden")
        if name in groups and not hidden and not any(is_variant(code) for code, _ in found):
            yield Icon(name, groups[name], icon_set.style, svg_of(icons, own))


def svg_of(icons: dict[str, Any], name: str) -> str:
    """An SVG document of SIZE x SIZE pixels."""
    icon = icons["icons"][name]
    box = [icon.get(key, icons.get(key, default)) for key, default in (("left", 0), ("top", 0))]
    box += [icon.get(key, icons.get(key, 16)) for key in ("width", "height")]
    body = icon["body"].replace("currentColor", "#000")
    view = " ".join(map(str, box))
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {space} viewBox="{view}" width="{SIZE}" height="{SIZE}">{body}</svg>'


# ---- captions -------------------------------------------------------------------------------------------------------


def group_of(name: str, group: str) -> str:
    """The group that a caption names: the package's category, divided further by the emoji's name."""
    if group == "animal" and name in PLANTS:
        return "plant"
    if group == "travel" and CLOCK.search(name):
        return "object"
    if group == "travel" and WEATHER.search(name) and "beach" not in name:
        return "weather"
    if group == "face" and NO_FACE.search(name) and not re.search(r"face|\bcat\b", name):
        return "symbol"  # hearts, bubbles, marks
    return group


def words_of(name: str, group: str) -> str:
    """ "flag-france" -> "flag of France", "red-apple" -> "red apple"."""
    if group == "flag" and name.startswith("flag-"):
        small = ("and", "of", "the")
        words = name.removeprefix("flag-").split("-")
        return "flag of " + " ".join(word if word in small else word.capitalize() for word in words)
    words = re.sub(r"\b(m[ae]n|wom[ae]n)s\b", r"\1's", name.replace("-", " "))
    return words.replace("oclock", "o'clock")


def captions_of(icon: Icon) -> list[str]:
    """Several natural forms; all but the last name the style."""
    words, style = words_of(icon.name, icon.group), icon.style
    article = "an" if words[0].lower() in "aeiou" else "a"
    return [
        f"{article} {words} emoji, {style} style",
        f"{words}, {icon.group}, {style} style",
        f"{words} in {style} style",
        f"{'an' if style[0] in 'aeiou' else 'a'} {style} style emoji: {words}",
        f"{article} {words} emoji, {icon.group}",
    ]


# ---- images ---------------------------------------------------------------------------------------------------------


def render(svg: str) -> Image.Image:
    """SVG -> RGB (SIZE, SIZE) on white, by resvg."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    if drawn.size != (SIZE, SIZE):
        drawn = drawn.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")


def shows_something(image: Image.Image) -> bool:
    """Whether enough pixels differ visibly from white."""
    darkest = ImageChops.invert(image.convert("L")).point(lambda value: 255 if value > 24 else 0)
    return darkest.histogram()[255] >= SHOWN * SIZE * SIZE


def write_icons(icons: Iterator[Icon], output: Path) -> dict[str, list[dict[str, Any]]]:
    """Write the images of one style; return the rows of metadata.jsonl by split."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    seen: set[bytes] = set()
    for icon in icons:
        image = render(icon.svg)
        pixels = image.tobytes()
        if pixels in seen or not shows_something(image):
            continue
        seen.add(pixels)
        file = f"{icon.style}-{icon.name}.png"
        folder = output / icon.split
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / file)
        facts = {"name": icon.name, "group": icon.group, "style": icon.style}
        rows[icon.split].append({"file_name": file, "text": captions_of(icon), **facts})
    return rows


# ---- the folder -----------------------------------------------------------------------------------------------------


def heldout_of(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What heldout.json says."""
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS if is_held_out_pair(shape, colour)]
    return {
        "rule_of_names": f"the first 56 bits of the SHA-256 of the name, over 2^56, are below {HELD_OUT}; no such pair",
        "names": sorted({row["name"] for row in rows["validation"]}),
        "rule_of_pairs": f"(colour - shape) mod 8 is in {HELD_OUT_SHIFTS}, counted in the order of colours and shapes",
        "shapes": SHAPES,
        "colours": COLOURS,
        "pairs": pairs,
    }


def notice_of(counts: dict[IconSet, int], packages: list[dict[str, Any]]) -> str:
    """Sources, authors, licences and what was changed."""
    parts = [
        "These images were made from the icon sets below. Changes: icons were selected and renamed, and rendered from\n"
        f"SVG to {SIZE} x {SIZE} pixels on white. Captions follow from the icons' names. Each image has the licence\n"
        "of its style, which its file name begins with.\n"
    ]
    for (icon_set, count), package in zip(counts.items(), packages, strict=True):
        info = package["info"]
        parts.append(
            f"{icon_set.style}: {info['name']} by {info['author']['name']} ({info['author']['url']})\n"
            f"  licence: {info['license']['title']} ({info['license']['url']})\n"
            f"  package: {icon_set.package} {icon_set.version}, images: {count}\n"
        )
    return "\n".join(parts)


def build(sets: tuple[IconSet, ...], npm: Path, output: Path) -> dict[str, int]:
    """Write the data set; return the number of images of each split."""
    packages = [read_package(each, npm) for each in sets]
    names, counts = shared_names(packages), {}
    groups = shared_groups(packages, names)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for icon_set, package in zip(sets, packages, strict=True):
        own = write_icons(icons_of(icon_set, package, names, groups), output)
        counts[icon_set] = sum(map(len, own.values()))
        for split, some in own.items():
            rows[split] += some
        print(f"{icon_set.style}: {counts[icon_set]} images", flush=True)
    for split, some in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (output / split / "metadata.jsonl").write_text(text, encoding="utf-8")
    (output / "heldout.json").write_text(json.dumps(heldout_of(rows), indent=1) + "\n", encoding="utf-8")
    (output / "NOTICE").write_text(notice_of(counts, packages), encoding="utf-8")
    return {split: len(some) for split, some in rows.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write: new, or empty")
    parser.add_argument("--without-share-alike", action="store_true", help="leave OpenMoji out (CC-BY-SA-4.0)")
    parser.add_argument("--npm", type=Path, help="keep the packages here and use those that are there already")
    args = parser.parse_args(argv)
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        sys.exit(f"error: {args.output} exists and is not an empty folder: name another, or remove it")
    sets = tuple(each for each in SETS if not (args.without_share_alike and each.share_alike))
    with tempfile.TemporaryDirectory() as scratch:
        npm = args.npm or Path(scratch)
        npm.mkdir(parents=True, exist_ok=True)
        fetch(sets, npm)
        found = build(sets, npm, args.output)
    print(f"{args.output}: " + ", ".join(f"{count} {split}" for split, count in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
