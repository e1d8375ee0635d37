"""The images of the starter autoencoders: what is held out, licences, sources, and how the trainer reads them."""

import io
import json
import re
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ldm.config.settings import DataOptions
from ldm.data import build
from scripts.starter import images
from scripts.starter.images import ICON_SETS, PHOTOS, IconSet, Photo, srgb

SETS = (IconSet("known", "1.0.0", "MIT"), IconSet("other", "1.0.0", "CC0-1.0", held_out=True))
TWO = (
    Photo("pictures", "data/sea.png", "Somebody", "CC0-1.0", "data/README"),
    Photo("pictures", "data/hill.png", "Somebody", "CC0-1.0", "data/README", held_out=True),
)


def add(archive, name, content):
    entry = tarfile.TarInfo(f"package/{name}.json")
    data = json.dumps(content).encode()
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def icon_package(file, title, licence, count):
    """Icons of one colour each; the first is there twice, another is hidden."""
    icons = {f"{title}-{i}": {"body": f"#{40 * i:02x}8040"} for i in range(count)}
    icons |= {"again": dict(icons[f"{title}-0"]), "old": {"body": "#123456", "hidden": True}}
    author = {"name": "Somebody", "url": "https://example.org"}
    with tarfile.open(file, "w:gz") as archive:
        add(archive, "package", {"license": licence})
        add(archive, "info", {"name": title, "author": author, "license": {"spdx": licence}})
        add(archive, "icons", {"width": 64, "height": 64, "icons": icons})


def drawn(svg, ground):
    """Half of the picture in the icon's colour, in the place of resvg, which the tests do without."""
    image = Image.new("RGB", (images.SIZE, images.SIZE), ground)
    image.paste(re.search(r"#\w{6}", svg)[0], (0, 0, 40, 64))
    image.putpixel((63, 63), (1, 2, 3))
    return image


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The packages of two icon sets and two photographs, one of each held out."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    icon_package(folder / "iconify-json-known-1.0.0.tgz", "Known", "MIT", 5)
    icon_package(folder / "iconify-json-other-1.0.0.tgz", "Other", "CC0-1.0", 3)
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "pictures-2.0-cp38-none-any.whl", "w") as wheel:
        for photo in TWO:
            content = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (300, 520, 3), np.uint8)).save(content, "PNG")
            wheel.writestr(photo.file, content.getvalue())
    for name, value in (("ICON_SETS", SETS), ("PHOTOS", TWO), ("render", drawn), ("TILES", 4), ("ICONS", 4)):
        monkeypatch.setattr(images, name, value)
    monkeypatch.setattr(images, "PACKAGES", {"pictures": ("pip", "2.0")})
    return folder


def test_what_is_held_out_comes_from_other_sources_and_the_trainer_reads_it(downloads, tmp_path):
    images.main([str(tmp_path / "out"), "--downloads", str(downloads)])
    rows = {
        split: [json.loads(line) for line in (tmp_path / "out" / split / "metadata.jsonl").read_text().splitlines()]
        for split in ("train", "validation")
    }
    assert Counter(row["source"] for row in rows["train"]) == {"known": 4, "sea": 4}  # at most ICONS and TILES
    # three icons, none twice and none hidden; of 300 x 520 pixels, scaled to 256 x 444, 4 x 6 tiles
    assert Counter(row["source"] for row in rows["validation"]) == {"other": 3, "hill": 24}
    splits = build(DataOptions(source=str(tmp_path / "out"), resolution=64, channels=3, cache_dir=tmp_path / "cache"))
    assert (len(splits.train), len(splits.validation)) == (8, 27)
    trained, measured = (tmp_path / "out" / "SOURCES").read_text().split("Measured with, and not trained on:")
    assert "Known by Somebody (https://example.org); MIT; npm @iconify-json/known 1.0.0; images: 4" in trained
    assert "hill by Somebody; CC0-1.0, by data/README; pip pictures 2.0, data/hill.png; tiles: 24" in measured


def test_a_package_under_another_licence_stops_it(downloads, tmp_path):
    icon_package(downloads / "iconify-json-known-1.0.0.tgz", "Known", "CC-BY-SA-4.0", 2)
    with pytest.raises(SystemExit, match="@iconify-json/known states CC-BY-SA-4.0, not MIT: do not use it"):
        images.main([str(tmp_path / "out"), "--downloads", str(downloads)])


def test_no_source_asks_for_share_alike_and_none_is_on_both_sides():
    licences = {source.licence for source in (*ICON_SETS, *PHOTOS)}
    assert licences == {"MIT", "Apache-2.0", "CC0-1.0", "CC-BY-4.0", "CC-BY-2.0", "public domain"}
    names = [source.name for source in (*ICON_SETS, *PHOTOS)]
    assert len(set(names)) == len(names)


def test_light_becomes_srgb():
    """Middle grey, 0.214 of the light, is half of the scale; the ends stay."""
    np.testing.assert_allclose(srgb(np.array([0.0, 0.2140411, 1.0])), [0, 0.5, 1], atol=1e-6)
