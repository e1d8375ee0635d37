"""Packages of a few made-up icons, as those that `scripts/build_emoji.py` reads, and the set that it makes of them."""

import io
import json
import re
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

from scripts import build_emoji
from scripts.build_emoji import COLOURS, SETS, SHAPES, SIZE

PAINT = dict(
    zip(COLOURS, ("#de2f38", "#f58b1a", "#fdcb46", "#70b044", "#4084dc", "#9858be", "#7c5038", "#28282a"), strict=True)
)
# name: category, colour, left edge of the box; two of them are held out by name, "axe" and "taco"
OTHERS = {
    "axe": ("Objects", "#607080", 10),
    "hammer": ("Objects", "#506080", 14),
    "taco": ("Food & Drink", "#d0a030", 6),
    "red-apple": ("Food & Drink", "#e03030", 8),
    "tulip": ("Animals & Nature", "#e060a0", 20),
    "grinning-face": ("Smileys & Emotion", "#ffcc22", 4),
    "flag-aland-islands": ("Flags", "#2040c0", 2),
}
PAIRS = {
    f"{colour}-{shape}": ("Symbols", PAINT[colour], 5 * i) for i, shape in enumerate(SHAPES, 1) for colour in COLOURS
}
ROWS = PAIRS | OTHERS
SHADES = {"noto": 0, "twemoji": 1, "fluent": 2, "openmoji": 3}  # the styles are different sizes


def write_packages(folder: Path, **licences: str) -> Path:
    """The tarballs of `SETS` in a folder; `licences` by style replaces what a package states."""
    folder.mkdir(parents=True, exist_ok=True)
    for icon_set in SETS:
        licence = licences.get(icon_set.style, icon_set.licence)
        with tarfile.open(build_emoji.tarball(icon_set, folder), "w:gz") as archive:
            for name, content in _package(icon_set.style, licence).items():
                data = json.dumps(content).encode()
                entry = tarfile.TarInfo(f"package/{name}.json")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return folder


def _package(style: str, licence: str) -> dict[str, dict]:
    own = {name.replace("black-square", "black-large-square"): row for name, row in ROWS.items()}
    icons = {
        name: {"body": f'<rect x="{left + SHADES[style]}" fill="{fill}"/>'} for name, (_, fill, left) in own.items()
    }
    icons |= {
        "axe-dark-skin-tone": dict(icons["axe"]),
        "woman-axe": dict(icons["axe"]),
        "copy-of-axe": dict(icons["axe"]),
        "invisible": {"body": '<rect x="3" fill="#ffffff"/>'},
        "old": icons["taco"] | {"hidden": True},
    }
    categories: dict[str, list[str]] = {"Extras Openmoji": ["extra"]}
    for name in icons:
        categories.setdefault(own[name][0] if name in own else "Objects", []).append(name)
    codes = {f"1f{i + 256:03x}": name for i, name in enumerate(own)}
    codes |= {"1f100-1f3ff": "axe-dark-skin-tone", "1f469-200d-1f100": "woman-axe", "1fa00": "invisible"}
    codes |= {"1fa01": "old", "1fa02": "copy-of-axe"}
    return {
        "package": {"license": licence},
        "info": {
            "name": style.title(),
            "author": {"name": "Somebody", "url": "https://example.org"},
            "license": {"title": licence, "spdx": licence, "url": "https://example.org/licence"},
        },
        "icons": {"width": 64, "height": 64, "icons": icons},
        "metadata": {"categories": categories},
        "chars": codes,
    }


def render(svg: str) -> Image.Image:
    """A box in the place of resvg, which the tests do without."""
    found = re.search(r'<rect x="(\d+)" fill="(#\w+)"/>', svg)
    assert found is not None
    image = Image.new("RGB", (SIZE, SIZE), "white")
    left = int(found[1])
    ImageDraw.Draw(image).rectangle((left, 8, SIZE - 1 - left, 52), fill=found[2])
    return image


def tiny_set(folder: Path, monkeypatch, *flags: str) -> Path:
    """A set of 31 names in four styles."""
    monkeypatch.setattr(build_emoji, "render", render)
    build_emoji.main([str(folder / "emoji"), "--npm", str(write_packages(folder / "npm")), *flags])
    return folder / "emoji"
