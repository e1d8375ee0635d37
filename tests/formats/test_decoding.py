"""Golden pixels: every kind of picture file becomes the levels its format says, or an `ImageError` with a reason."""

import io
import json
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm.formats.decoding import ImageError, fit, look, quiet_decoders
from ldm.formats.image_arrays import decode_described, decode_image, fit_image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def colours(values, mode: str) -> Image.Image:
    """A picture one pixel high."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def row(data: bytes, channels: int = 3, background: int = 255) -> list:
    pixels = decode_image(data, channels, background)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == channels
    return pixels[0].reshape(-1).tolist() if channels == 1 else [tuple(p) for p in pixels[0].tolist()]


def test_grey_and_rgb_come_back_as_they_were():
    assert row(encoded(colours([0, 1, 128, 255], "L")), 1) == [0, 1, 128, 255]
    assert row(encoded(colours([7, 200], "L")), 3) == [(7, 7, 7), (200, 200, 200)]
    rgb = [(255, 0, 0), (1, 2, 3)]
    for kind, options in (("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})):
        assert row(encoded(colours(rgb, "RGB"), kind, **options)) == rgb, kind


def test_colour_becomes_grey_by_rec_601_luma():
    primaries = colours([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], "RGB")
    assert row(encoded(primaries), 1) == [76, 150, 29, 255]


@pytest.mark.parametrize("background", [255, 0, 100])
def test_alpha_is_composited_on_the_background_and_never_turns_black(background):
    ink = colours([(0, 0, 0, 0), (0, 0, 0, 255), (200, 100, 50, 128)], "RGBA")
    mixed = [round((c * 128 + background * 127) / 255) for c in (200, 100, 50)]
    expected = [(background,) * 3, (0, 0, 0), tuple(mixed)]
    assert row(encoded(ink), 3, background) == expected
    assert row(encoded(ink, "TIFF"), 3, background) == expected
    grey = colours([(0, 0), (0, 255), (200, 128)], "LA")
    assert row(encoded(grey), 1, background) == [background, 0, mixed[0]]


def test_alpha_is_kept_where_it_is_asked_for_and_colours_that_nobody_sees_are_not():
    ink = [(9, 8, 7, 0), (0, 0, 0, 255), (200, 100, 50, 128)]
    kept = [(0, 0, 0, 0), *ink[1:]]
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert row(encoded(colours(ink, "RGBA"), kind, **options), 4, 9) == kept, kind
    assert row(encoded(colours([(0, 0), (9, 0), (200, 128)], "LA")), 4) == [(0,) * 4, (0,) * 4, (200, 200, 200, 128)]
    assert row(encoded(colours([(1, 2, 3)], "RGB")), 4) == [(1, 2, 3, 255)]
    assert row(encoded(colours([7], "L")), 4) == [(7, 7, 7, 255)]
    assert row(encoded(colours([7, 9], "L"), transparency=9), 4) == [(7, 7, 7, 255), (0, 0, 0, 0)]
    levels = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    assert row(encoded(levels, "PNG", transparency=257), 4) == [(0, 0, 0, 255), (0, 0, 0, 0), (255,) * 4]


def test_an_image_is_transparent_if_a_pixel_is():
    half, full = (encoded(colours([(1, 2, 3, 255), (1, 2, 3, alpha)], "RGBA")) for alpha in (254, 255))
    assert decode_described(half)[1] == {"format": "PNG", "mode": "RGBA", "transparent": True}
    assert not decode_described(full)[1]["transparent"]
    seen = [json.loads(look(encoded(Image.new("RGBA", (4, 4), (255, 255, 255, 0))), channels)) for channels in (3, 4)]
    assert seen[0]["blank"] and seen[1]["blank"] and seen[0]["digest"] != seen[1]["digest"]
    white = encoded(colours([(255, 255, 255, 0), (255, 255, 255, 255)], "RGBA"))
    assert json.loads(look(white))["blank"] and not json.loads(look(white, 4))["blank"]


@pytest.mark.parametrize(("size", "times"), [(8, 1), (24, 1), (8, 12)])
def test_hidden_colours_do_not_bleed_into_edges_when_resized(size, times):
    """A red square on transparent green: every visible pixel of it stays red, whatever the size."""
    image = np.zeros((16, 16, 4), np.uint8)
    image[...], image[4:12, 3:12] = (0, 255, 0, 0), (255, 0, 0, 255)
    image = image.repeat(times, 0).repeat(times, 1)
    for resize in ("crop", "stretch", "pad"):
        pixels = fit_image(image, size, resize).astype(int)
        seen = pixels[..., 3] > 25
        assert seen.any() and not seen.all()
        assert pixels[seen, 0].min() > 245 and pixels[seen, 1].max() == 0


def test_alpha_is_padded_with_transparency():
    image = np.full((4, 8, 4), 255, np.uint8)
    square = fit_image(image, 8, "pad", background=200)
    assert (square[2:6] == 255).all() and (square[:2] == 0).all() and (square[6:] == 0).all()


def test_a_turned_image_keeps_its_alpha():
    image, exif = colours([(1, 2, 3, 4), (5, 6, 7, 8)], "RGBA"), Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    assert decode_image(encoded(image, exif=exif), 4).tolist() == [[[1, 2, 3, 4]], [[5, 6, 7, 8]]]


def test_palette_with_and_without_transparency():
    image = colours([0, 1, 2], "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert row(encoded(image)) == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert row(encoded(image, transparency=1)) == [(255, 0, 0), (255, 255, 255), (0, 0, 255)]
    assert row(encoded(image, "GIF", transparency=1), 3, 9) == [(255, 0, 0), (9, 9, 9), (0, 0, 255)]
    assert row(encoded(image, transparency=bytes([255, 255, 0])))[2] == (255, 255, 255)


def test_one_colour_declared_transparent():
    assert row(encoded(colours([0, 10], "L"), transparency=0), 1) == [255, 10]
    pair = colours([(1, 2, 3), (4, 5, 6)], "RGB")
    assert row(encoded(pair, transparency=(1, 2, 3)), 3, 0) == [(0, 0, 0), (4, 5, 6)]


def png(bits: int, colour: int, pixels: bytes, width: int, transparent: bytes) -> bytes:
    """A PNG of one row, as other programs write it: Pillow writes neither shallow greys nor 16-bit colour."""
    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_transparent_level_of_any_depth_becomes_the_background():
    assert row(png(2, 0, bytes([0b00011011]), 4, b"\0\1"), 1, 9) == [0, 9, 170, 255]
    assert row(png(4, 0, bytes([0x0A, 0xF3]), 4, b"\0\x0a"), 1, 9) == [0, 9, 255, 51]
    assert row(png(1, 0, bytes([0b01000000]), 2, b"\0\1"), 1, 9) == [0, 9]
    deep = np.array([[0x1234, 0x5678, 0x9ABC], [0x1235, 0x0000, 0xFFFF]], ">u2").tobytes()
    assert row(png(16, 2, deep, 2, deep[:6]), 3, 9) == [(9, 9, 9), (0x12, 0, 0xFF)]


def test_an_opened_image_is_decoded_as_its_file_is_every_time(tmp_path):
    shallow = tmp_path / "shallow.png"
    shallow.write_bytes(png(2, 0, bytes([0b00011011]), 4, b"\0\1"))
    with Image.open(shallow) as image:
        for _ in range(2):
            assert decode_image(image, 1, 9).ravel().tolist() == [0, 9, 170, 255]


def test_one_bit_pictures_use_the_full_range():
    for kind in ("PNG", "TIFF", "PPM", "BMP"):
        assert row(encoded(colours([0, 255], "1"), kind), 1) == [0, 255], kind


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    ramp = np.arange(256, dtype=np.uint16)[None] * 257
    assert row(encoded(Image.fromarray(ramp), kind), 1) == list(range(256))
    assert row(encoded(Image.fromarray(ramp), kind), 3)[128] == (128, 128, 128)


def test_big_endian_sixteen_bit_tiff():
    ramp = np.arange(256, dtype=">u2")[None] * np.array(257, ">u2")
    big = Image.frombytes("I;16B", (256, 1), ramp.astype(">u2").tobytes())
    assert row(encoded(big, "TIFF"), 1) == list(range(256))


def test_sixteen_bit_white_is_zero_tiff_is_inverted():
    data = encoded(Image.fromarray(np.array([[0, 65535]], np.uint16)), "TIFF", tiffinfo={262: 0})
    assert row(data, 1) == [255, 0]


def test_sixteen_bit_grey_with_a_transparent_level():
    data = encoded(Image.fromarray(np.array([[0, 257, 65535]], np.uint16)), "PNG", transparency=257)
    assert row(data, 1, 77) == [0, 77, 255]


def test_ppm_with_an_odd_maximum_is_scaled_to_it():
    assert row(b"P5 3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes(), 1) == [0, 128, 255]
    assert row(b"P5 2 1 15\n" + bytes([0, 15]), 1) == [0, 255]


def test_floats_are_scaled_by_their_full_scale():
    def floats(*values):
        return encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")

    assert row(floats(0, 0.5, 1), 1) == [0, 128, 255]
    assert row(floats(0, 100, 255), 1) == [0, 100, 255]
    assert row(floats(0, 257, 65535), 1) == [0, 1, 255]
    for values, words in (((0, 7.5), "float values up to 7.5"), ((-1, 1), "negative"), ((float("nan"), 0), "finite")):
        with pytest.raises(ImageError, match=words):
            row(floats(*values), 1)


def test_whole_numbers_of_32_bits_use_the_smallest_scale_that_holds_them():
    def whole(*values):
        return encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")

    assert row(whole(0, 200), 1) == [0, 200]
    assert row(whole(0, 65535), 1) == [0, 255]
    assert row(whole(0, 2**31 - 1), 1) == [0, 255]


def test_cmyk_is_converted_in_tiff_and_in_jpeg():
    inks = [(0, 255, 255, 0), (0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 0)]
    expected = [(255, 0, 0), (255, 255, 255), (0, 0, 0), (0, 255, 255)]
    assert row(encoded(colours(inks, "CMYK"), "TIFF")) == expected
    for ink, colour in zip(inks, expected, strict=True):
        flat = decode_image(encoded(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100))
        assert np.abs(flat.astype(int) - colour).max() <= 3


ORIENTED = {  # the stored 2x3 picture 1 2 3 / 4 5 6 as it must be seen, by EXIF orientation
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8) * 40)
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode_image(encoded(stored.convert("RGB"), kind, exif=exif, **options), 1)
    np.testing.assert_array_equal(pixels[..., 0], np.array(ORIENTED[orientation]) * 40)


def test_jpeg_orientation_turns_the_shape():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif)).shape == (30, 20, 3)


def test_broken_exif_does_not_spoil_the_picture():
    assert row(encoded(colours([5], "L"), exif=b"Exif\0\0garbage"), 1) == [5]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode_image(data) == (255, 0, 0)).all()


def test_other_colour_models():
    assert row(encoded(colours([(255, 128, 128)], "YCbCr"), "TIFF")) == [(255, 255, 255)]
    white = decode_image(encoded(colours([(255, 128, 128)], "LAB"), "TIFF"))
    assert white.min() >= 253


def test_the_pixel_cap_is_checked_before_decompression():
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with quiet_decoders(), pytest.raises(ImageError, match="pixels"):
        decode_image(bomb)
    with pytest.raises(ImageError, match=r"10x10 pixels are more than the 99 allowed"):
        decode_image(encoded(Image.new("L", (10, 10))), max_pixels=99)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello, not an image", "not an image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(Image.effect_noise((64, 64), 50))[:900], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "truncated"),
    ],
)
def test_unreadable_bytes_have_a_reason(data, words):
    with pytest.raises(ImageError, match=words):
        decode_image(data)


def test_paths_are_read_too(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(colours([3], "L")))
    assert decode_image(path, 1).tolist() == [[[3]]]
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="empty"):
        decode_image(path)
    with pytest.raises(ImageError, match="no such file"):
        decode_image(tmp_path / "missing.png")


def test_damaged_files_decode_or_raise_image_error_and_nothing_else():
    rng = random.Random(0)
    noise = Image.effect_noise((24, 24), 80)
    rgba = Image.merge("RGBA", (noise,) * 4)
    seeds = [encoded(rgba), encoded(noise, "JPEG"), encoded(noise, "GIF"), encoded(rgba, "WEBP"), encoded(rgba, "TIFF")]
    raised = 0
    with quiet_decoders():
        for trial in range(600):
            data = bytearray(seeds[trial % len(seeds)])
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
            try:
                decode_image(bytes(data[: rng.randint(1, len(data))]) if trial % 3 == 0 else bytes(data), 1)
            except ImageError as error:
                raised += 1
                assert "\n" not in str(error)
                assert str(error)
    assert 100 < raised < 600  # the fault did happen


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for resize in ("crop", "pad", "stretch"):
        np.testing.assert_array_equal(fit_image(pixels, 16, resize), pixels)
    wide = np.concatenate([pixels * 0, pixels, pixels * 0], axis=1)
    np.testing.assert_array_equal(fit_image(wide, 16, "crop"), pixels)  # the centre


@pytest.mark.parametrize("size", [(16, 32), (32, 16), (8, 24)])
def test_a_size_that_is_not_square_is_cropped_to_its_shape(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for resize in ("crop", "pad", "stretch"):
        np.testing.assert_array_equal(fit_image(pixels, size, resize), pixels)
    for axis in (0, 1):  # the centre, whichever side is too long
        longer = np.concatenate([pixels * 0, pixels, pixels * 0], axis=axis)
        np.testing.assert_array_equal(fit_image(longer, size, "crop"), pixels)
    padded = fit_image(np.full((8, 8, 1), 50, np.uint8), size, "pad", 200)[..., 0]
    assert (padded == 50).sum() == min(size) ** 2 and set(np.unique(padded)) == {50, 200}


def test_an_image_goes_to_the_size_of_its_shape():
    sizes = [(8, 32), (16, 16), (32, 8)]
    for index, shape in enumerate([(20, 70), (300, 270), (90, 31)]):
        levels = np.full(shape, 40 * index, np.uint8)
        found = fit(encoded(Image.fromarray(levels), "PNG"), sizes, 1, "crop", 255)
        assert found == bytes([index]) + bytes([40 * index]) * 256


def test_pad_keeps_everything_and_fills_with_the_background():
    fitted = fit_image(np.full((8, 16, 1), 50, np.uint8), 16, "pad", 200)[..., 0]
    assert (fitted[4:12] == 50).all()
    assert (fitted[:4] == 200).all()
    assert (fitted[12:] == 200).all()
    assert fit_image(np.zeros((1, 5000, 3), np.uint8), 16, "pad").shape == (16, 16, 3)


def test_stretch_uses_the_whole_picture():
    halves = np.zeros((8, 32, 1), np.uint8)
    halves[:, 16:] = 255
    fitted = fit_image(halves, 8, "stretch")[..., 0]
    assert fitted[:, :3].max() <= 10
    assert fitted[:, 5:].min() >= 245


def test_shrinking_is_antialiased():
    """A one-pixel checkerboard is mid-grey from afar; picking pixels would give black or white."""
    board = np.indices((256, 256)).sum(0)[..., None].astype(np.uint8) % 2 * 255
    assert np.abs(fit_image(board, 16, "crop").astype(int) - 127.5).max() < 4


def test_the_fast_way_down_stays_close_to_exact_lanczos():
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    photo = Image.fromarray(noise).resize((2000, 1500), Image.Resampling.BICUBIC)
    exact = np.asarray(photo.resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(fit_image(np.asarray(photo), 64, "stretch") - exact).max() <= 3


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_flat_picture_stays_flat_at_any_size(level):
    for shape in ((100, 37), (5, 9), (16, 16)):
        for resize in ("crop", "pad", "stretch"):
            fitted = fit_image(np.full((*shape, 3), level, np.uint8), 16, resize, level)
            assert (fitted == level).all()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="channels must be 1, 3 or 4, got 2"):
        decode_image(b"", 2)
    with pytest.raises(ValueError, match="resize must be"):
        fit_image(np.zeros((2, 2, 1), np.uint8), 2, "zoom")


def test_a_large_jpeg_may_be_decoded_smaller_but_never_below_what_is_enough():
    ramp = np.linspace(0, 255, 640 * 480).reshape(480, 640).astype(np.uint8)
    data = encoded(Image.fromarray(ramp), "JPEG", quality=95)
    assert decode_image(data, 1, enough=120).shape == (120, 160, 1)
    assert decode_image(data, 1, enough=121).shape == (240, 320, 1)
    assert decode_image(data, 1, enough=241).shape == decode_image(data, 1).shape == (480, 640, 1)
    whole, part = (fit_image(decode_image(data, 1, enough=enough), 32, "crop") for enough in (0, 96))
    assert np.abs(whole.astype(int) - part).max() <= 3
    assert decode_image(encoded(Image.fromarray(ramp), "PNG"), 1, enough=8).shape == (480, 640, 1)


def test_a_process_that_decodes_usual_images_loads_neither_numpy_nor_other_decoders():
    program = (
        "import sys\nfrom ldm.formats.decoding_process import TASKS\n"
        "TASKS['fit'](sys.stdin.buffer.read(), [[4, 4]], 3, 'crop', 0)\n"
        "print(*[name for name in ('numpy', 'PIL.WebPImagePlugin', 'PIL.JpegImagePlugin') if name in sys.modules])"
    )
    data = encoded(Image.new("RGB", (9, 9)), "JPEG")
    found = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert found.stdout.split() == [b"PIL.JpegImagePlugin"]
