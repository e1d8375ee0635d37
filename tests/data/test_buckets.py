"""Images of several sizes: each at the size nearest to its shape, from the files or from the cache."""

import io

import numpy as np
import pytest
from own_data import tree
from PIL import Image

import ldm.data.image_files.pixel_cache as pixels_module
from ldm.data import Splits, build, evenly_spaced_indices
from ldm.data.buckets import at_one_size, buckets_of, by_size, of_one_size, sizes_of
from ldm.data.image_files.dataset import file_splits
from ldm.utils.errors import UserError

SIZES = [(16, 64), (24, 40), (32, 32), (40, 24), (64, 16)]  # the buckets of 32 pixels in steps of 8


def picture(i: int) -> np.ndarray:
    """Image i, of the size of bucket i % 5: random pixels."""
    return np.random.default_rng(i).integers(0, 256, (*SIZES[i % 5], 3), np.uint8)


def fill(root, count=20, times=1) -> None:
    for i in range(count):
        stream = io.BytesIO()
        Image.fromarray(picture(i).repeat(times, 0).repeat(times, 1)).save(stream, "PNG")
        (root / f"{i:03}.png").write_bytes(stream.getvalue())


@pytest.fixture
def bucketed(options):
    def make(root, **files):
        return options(root, channels=3, resolution=32, bucket_step=8, **files)

    return make


def test_every_image_comes_back_at_the_size_of_its_shape(root, bucketed, monkeypatch):
    fill(root)
    before = tree(root)
    for _ in range(2):  # the second time from the cache
        found = file_splits(bucketed(root, horizontal_flip=True))
        for name, data in found.items():
            assert (data.resolution, sizes_of(data)) == (32, SIZES)
            for i, identity in enumerate(data.ids):
                number, flipped = int(identity[:3]), identity.endswith("|flip")
                expected = picture(number)[:, ::-1] if flipped else picture(number)
                np.testing.assert_array_equal(data.image(i), expected)
                assert buckets_of(data)[i] == number % 5
                assert name == "train" or not flipped
        monkeypatch.setattr(pixels_module, "map_pictures", lambda *_, **__: pytest.fail("decoded again"))
    assert tree(root) == before


@pytest.mark.parametrize("harm", ["flip a bit", "cut", "sizes exchanged"])
def test_a_damaged_cache_of_buckets_is_built_again(root, bucketed, harm):
    fill(root, 6)
    file_splits(bucketed(root))
    array, manifest = (next((root.parent / "cache").glob(f"*{end}")) for end in (".npy", ".manifest"))
    if harm == "sizes exchanged":
        text = manifest.read_text()
        assert '"sizes": [0, 1,' in text
        manifest.write_text(text.replace('"sizes": [0, 1,', '"sizes": [4, 1,'))
    else:
        content = bytearray(array.read_bytes())
        content[-100] ^= 1
        array.write_bytes(content[:-50] if harm == "cut" else content)
    for data in file_splits(bucketed(root)).values():
        for i, identity in enumerate(data.ids):
            np.testing.assert_array_equal(data.image(i), picture(int(identity[:3])))


def test_buckets_decide_the_fingerprint_and_their_absence_leaves_it(root, bucketed, options):
    fill(root, 5)
    plain = options(root, channels=3, resolution=32)
    prints = [file_splits(each)["train"].fingerprint for each in (plain, bucketed(root))]
    assert prints[0] != prints[1] and "buckets" not in pixels_module.transform(plain)


def test_a_fixed_height_and_width(root, options):
    fill(root, 5, times=2)
    chosen = options(root, channels=3, resolution=[24, 40])
    for data in file_splits(chosen).values():
        assert data.resolution == (24, 40) and buckets_of(data) is None
        assert {data.image(i).shape for i in range(len(data))} == {(24, 40, 3)}


def test_parts_of_one_size_hold_every_item_once(root, bucketed):
    fill(root)
    data = file_splits(bucketed(root))["train"]
    parts = list(of_one_size(data, range(len(data)), 2))
    assert all(len(part) <= 2 and len({data.image(i).shape for i in part}) == 1 for part in parts)
    assert sorted(i for part in parts for i in part) == list(range(len(data)))
    for k, part in by_size(data).items():
        assert part.resolution in (SIZES[k], 32) and len({part.fingerprint, data.fingerprint}) == 2
        assert all(part.image(i).shape == (*SIZES[k], 3) for i in range(len(part)))
    assert sum(len(part) for part in by_size(data).values()) == len(data)


def test_data_of_one_size_are_taken_in_their_order(root, options):
    fill(root)
    data = file_splits(options(root, channels=3))["train"]
    chosen = evenly_spaced_indices(len(data), 7)
    assert list(of_one_size(data, chosen, 4)) == [chosen[:4].tolist(), chosen[4:].tolist()]
    splits = Splits(data, data)
    assert at_one_size(splits) == splits


def test_for_comparisons_all_images_have_one_size(root, bucketed):
    fill(root)
    splits = build(bucketed(root))
    data = at_one_size(splits).train
    assert {data.image(i).shape for i in range(len(data))} == {(32, 32, 3)}
    square = next(i for i in range(len(data)) if int(data.ids[i][:3]) % 5 == 2)
    np.testing.assert_array_equal(data.image(square), splits.train.image(square))
    assert (data.fingerprint, data.ids) == (splits.train.fingerprint, splits.train.ids)


def test_data_that_the_package_makes_are_square(options):
    with pytest.raises(UserError, match="data.source glyphs makes square images: set data.resolution to one number"):
        build(options("glyphs", resolution=[24, 40]))
