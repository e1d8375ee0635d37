"""What one's own images are trained on: the usable ones, divided, with and without mirrored copies."""

import logging
import subprocess
import sys

import numpy as np
import pytest
from own_data import everything, fill, png, tree
from PIL import Image

from ldm.data.image_files.dataset import divide, drawn, file_splits
from ldm.formats.records import Sample
from ldm.utils.errors import UserError

# bad pictures


def test_bad_pictures_are_listed_and_left_out(root, options, caplog):
    fill(root, 20)
    (root / "3.png").write_bytes(png(3)[:40])
    (root / "4.png").unlink()
    (root / "4.png").symlink_to(root / "gone.png")
    (root / "5.txt").write_bytes(b"\xc4\xe3\xba\xc3")
    before = tree(root)
    caplog.set_level(logging.WARNING)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        data = everything(file_splits(options(root, max_bad_fraction=0.15)))
        assert data == {f"{i}.png": (i, "") for i in range(20) if i not in (3, 4, 5)}
        assert "3 of 20 images are left out: 3.png (" in caplog.text
        assert "its .txt caption is not UTF-8 (byte 0): convert it, for example by `iconv -f GB18030" in caplog.text
    with pytest.raises(UserError, match=r"3 of 20 images .*max_bad_fraction allows 14.0%\): 3.png \(") as caught:
        file_splits(options(root, max_bad_fraction=0.14))
    assert "ldm data check" in str(caught.value)
    assert tree(root) == before


def test_nothing_but_bad_pictures_is_an_error_at_any_limit(root, options):
    (root / "a.png").write_bytes(b"junk")
    with pytest.raises(UserError, match="1 of 1 images"):
        file_splits(options(root, max_bad_fraction=1.0))


def test_transparency_is_kept_through_the_cache(root, options):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 4), np.uint8)
    pixels[..., :2, 3] = 0
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(root / f"{i}.png")
    pixels[pixels[..., 3] == 0] = 0  # what nobody sees
    for _ in range(2):  # the second time from the cache
        data = file_splits(options(root, channels=4, validation_fraction=0, horizontal_flip=True))["train"]
        assert data.channels == 4 and len(data) == 4
        for i, name in enumerate(data.ids):
            expected = pixels[int(name[0])]
            assert (data.image(i) == (expected[:, ::-1] if "flip" in name else expected)).all()
    flat = file_splits(options(root, channels=3, validation_fraction=0))["train"]
    assert flat.fingerprint != data.fingerprint and (flat.image(0)[:, :2] == 255).all()


def test_a_transparent_drawing_does_not_become_black(root, options):
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 16))
    image.save(root / "ink.png")
    for channels in (1, 3):
        pixels = file_splits(options(root, channels=channels))["train"].image(0)
        assert pixels.shape == (16, 16, channels)
        assert (pixels[:, :8] == 0).all()
        assert (pixels[:, 8:] == 255).all()


# splits


def test_adding_pictures_moves_none_to_the_other_side(root, options):
    fill(root, 40)
    before = file_splits(options(root, validation_fraction=0.3))
    for i in range(40, 80):
        (root / f"{i}.png").write_bytes(png(i))
    after = file_splits(options(root, validation_fraction=0.3))
    assert set(before["train"].ids) < set(after["train"].ids)
    assert set(before["validation"].ids) < set(after["validation"].ids)
    assert not set(after["train"].ids) & set(after["validation"].ids)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_both_sides_always_have_a_picture(count, fraction):
    rows = divide([Sample(f"{i}") for i in range(count)], fraction)
    assert rows["train"]
    assert rows["validation"]
    assert set(rows["train"]) | set(rows["validation"]) == set(range(count))
    if count > 1 and fraction > 0:
        assert not set(rows["train"]) & set(rows["validation"])
    if fraction == 0:
        assert len(rows["train"]) == count


def test_the_validation_share_is_about_what_was_asked():
    rows = divide([Sample(f"{i}.png") for i in range(4000)], 0.1)
    assert abs(len(rows["validation"]) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5


def test_flips_double_the_train_split_alone(root, options):
    for i in range(6):
        ramp = np.arange(16, dtype=np.uint8)[None].repeat(16, 0) * (i + 1)
        Image.fromarray(ramp).save(root / f"{i}.png")
    plain = file_splits(options(root))
    flipped = file_splits(options(root, horizontal_flip=True))
    count = len(plain["train"])
    assert flipped["train"].ids == plain["train"].ids + [f"{name}|flip" for name in plain["train"].ids]
    for i in range(count):
        np.testing.assert_array_equal(flipped["train"].image(i), plain["train"].image(i))
        np.testing.assert_array_equal(flipped["train"].image(count + i), plain["train"].image(i)[:, ::-1])
    assert flipped["train"].fingerprint != plain["train"].fingerprint
    assert flipped["validation"].fingerprint == plain["validation"].fingerprint


def test_reading_data_does_not_import_torch():
    code = "import sys, ldm.data.image_files.dataset, ldm.data.inspection; "
    code += "sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_one_caption_takes_no_random_number():
    assert drawn((), None) == "" and drawn(("one",), None) == "one"
    rng = np.random.default_rng(0)
    assert {drawn(("one", "two"), rng) for _ in range(20)} == {"one", "two"}
