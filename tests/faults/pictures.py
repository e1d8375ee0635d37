"""Pictures to be damaged, ways to damage them, and pictures made to harm whoever decodes them."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def seeds() -> dict[str, bytes]:
    """One sound picture of every kind that Pillow writes and the package reads: name -> contents."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 4), np.uint8)
    rgba = Image.fromarray(noise)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette, bits = rgb.quantize(16), grey.convert("1")
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    real = Image.fromarray(noise[..., 0].astype(np.float32) / 255)
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)], "duration": [9, 9, 9]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    made = {
        **{f"{mode}.png": encoded(rgba.convert(mode), "PNG") for mode in ("L", "LA", "RGB", "RGBA")},
        **{f"{name}.tif": encoded(rgb, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_deflate")},
        **{f"{i}.png": encoded(im, "PNG") for i, im in enumerate((palette, bits, deep))},
        **{f"{i}.tif": encoded(im, "TIFF") for i, im in enumerate((palette, bits, deep, real, rgba, rgb))},
        **{f"{i}.ppm": encoded(im, "PPM") for i, im in enumerate((rgb, grey, bits, deep))},
        **{f"{i}.bmp": encoded(im, "BMP") for i, im in enumerate((rgb, grey, bits, palette))},
        "cmyk.tif": encoded(rgb.convert("CMYK"), "TIFF"),
        "trns.png": encoded(palette, "PNG", transparency=bytes(range(0, 160, 10))),
        "key.png": encoded(rgb, "PNG", transparency=(1, 2, 3)),
        "animated.png": encoded(rgb, "PNG", **frames),
        "text.png": encoded(rgb, "PNG", exif=exif, icc_profile=bytes(600)),
        "grey.jpg": encoded(grey, "JPEG"),
        "rgb.jpg": encoded(rgb, "JPEG", exif=exif),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "several.mpo": encoded(rgb, "MPO", save_all=True, append_images=[grey]),
        "lossy.webp": encoded(rgba, "WEBP"),
        "lossless.webp": encoded(rgba, "WEBP", lossless=True, exif=exif),
        "animated.webp": encoded(rgb, "WEBP", **frames),
        "animated.gif": encoded(rgb, "GIF", **frames),
        "plain.gif": encoded(palette, "GIF", transparency=3),
        "rle.bmp": rle_bitmap(24, 20, b"\x18\1\0\0" * 20 + b"\0\1"),
        "rgb.qoi": encoded(rgb, "QOI"),
        "plain.ppm": b"P3 2 2 99\n" + b"1 2 3 " * 4,
        "odd.ppm": b"P5 24 20 1000\n" + noise[..., :2].tobytes(),
    }
    optional = {"rgb.avif": ("AVIF", {}), "rgb.jp2": ("JPEG2000", {}), "rgb.j2k": ("JPEG2000", {"no_jp2": True})}
    return made | {n: encoded(rgb, kind, **more) for n, (kind, more) in optional.items() if kind in Image.SAVE}


# ---- damage --------------------------------------------------------------------------------------------------------

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def flip_bits(data: bytearray, rng: random.Random, _) -> None:
    for _ in range(rng.choice((1, 1, 3, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_head(data: bytearray, rng: random.Random, _) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(min(len(data), 100))] = rng.randrange(256)


def cut_off(data: bytearray, rng: random.Random, _) -> None:
    del data[rng.randrange(len(data)) :]


def cut_out(data: bytearray, rng: random.Random, _) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 40)]


def zero_fill(data: bytearray, rng: random.Random, _) -> None:
    start, count = rng.randrange(len(data)), rng.choice((1, 4, 64, 4096))
    data[start : start + count] = bytes(len(data[start : start + count]))


def repeat(data: bytearray, rng: random.Random, _) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randint(1, 60)] * rng.randint(1, 50)


def splice(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    other = rng.choice(others)
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def edit_length(data: bytearray, rng: random.Random, _) -> None:
    layout = rng.choice((">I", "<I", ">H", "<H"))
    size = struct.calcsize(layout)
    place = rng.randrange(max(1, min(len(data), 400) - size))
    data[place : place + size] = struct.pack(layout, rng.choice(EXTREMES) % 256**size)


def edit_chunk(data: bytearray, rng: random.Random, _) -> None:
    """One byte of one chunk of a PNG, with the checksum made good again; of anything else, a length."""
    starts, place = [], 8
    while data[:4] == b"\x89PNG" and place + 12 <= len(data):
        starts.append(place)
        place += 12 + struct.unpack(">I", data[place : place + 4])[0]
    starts = starts[:-1]  # the last may be cut off, and IEND has nothing to edit
    if not starts:
        return edit_length(data, rng, None)
    start = rng.choice(starts)
    size = struct.unpack(">I", data[start : start + 4])[0]
    data[start + 4 + rng.randrange(4 + size)] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
    data[start + 8 + size : start + 12 + size] = struct.pack(">I", zlib.crc32(data[start + 4 : start + 8 + size]))


DAMAGES: tuple[Callable, ...] = (
    flip_bits, flip_head, cut_off, cut_out, zero_fill, repeat, splice, edit_length, edit_chunk, edit_chunk,
)  # fmt: skip


def damaged(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A picture harmed once or twice; never the picture as it was."""
    harmed = bytearray(data)
    while bytes(harmed) == data or (len(harmed) > 8 and rng.random() < 0.3):
        rng.choice(DAMAGES)(harmed, rng, others)
    return bytes(harmed)


# ---- pictures that are made to harm --------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, before: bytes = b"", pixels: bytes | None = None) -> bytes:
    """A grey PNG with chunks before its pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes((width + 1) * height)) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def many_zeros(mebibytes: int) -> bytes:
    """So many zeros in a thousandth of the room."""
    packer = zlib.compressobj(9)
    return b"".join([packer.compress(bytes(2**20)) for _ in range(mebibytes)] + [packer.flush()])


def rle_bitmap(width: int, height: int, body: bytes) -> bytes:
    offset = 14 + 40 + 1024
    head = b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0) + bytes(1024) + body


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again; each costs a pass over the whole picture."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


def tiff(width: int, height: int, data: bytes, compression: int, **tags: int) -> bytes:
    """A grey TIFF with one tile or strip; tags by their number: t322=64."""
    entries = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    place, size = (324, 325) if 322 in entries else (273, 279)
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries |= {place: start, size: len(data)}
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + data


def qoi(width: int, height: int, body: bytes) -> bytes:
    return b"qoif" + struct.pack(">IIBB", width, height, 4, 0) + body + bytes(7) + b"\1"


def wide_webp(side: int) -> bytes:
    """Two frames of eight pixels on a canvas of that side."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=[9, 9]))
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = 2 * struct.pack("<I", side - 1)[:3]
    return bytes(data)


def many_frames(kind: str, count: int) -> bytes:
    frames = [Image.new("L", (8, 8), i % 256) for i in range(count)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def crafted() -> dict[str, tuple[bytes, str]]:
    """name -> (contents, a pattern of the reason for which it is left out; "" = it is used)."""
    sound, zeros = png(8, 8), many_zeros(256)
    cut = "not an image in a known format"
    return {
        "empty.png": (b"", "the file is empty"),
        "one_byte.png": (b"\x89", cut),
        "text.png": (b"This is no picture.\n" * 50, cut),
        "page.jpg": (b"<!doctype html><title>404</title>", cut),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", cut),
        "pdf.png": (b"%PDF-1.7\n", cut),
        "zip.png": (b"PK\3\4" + bytes(30), cut),
        "array.png": (b"\x93NUMPY\1\0" + bytes(90), cut),
        "wrong_suffix.jpg": (sound, ""),
        "trailing.png": (sound + b"PK\3\4" + bytes(500), ""),
        "leading.png": (b"\n" + sound, cut),
        "no_end.png": (sound[:-12], ""),
        "no_pixels.png": (sound[:33] + sound[-12:], "cannot load this image|truncated|SyntaxError|not enough"),
        "bad_checksum.png": (sound[:29] + bytes(4) + sound[33:], cut),
        "no_width.png": (png(0, 8), cut),
        "no_height.png": (png(8, 0), cut),
        "huge_sides.png": (png(2**31 - 1, 2**31 - 1, pixels=b""), "more pixels than allowed"),
        "many_pixels.png": (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "pixels"),
        "text_bomb.png": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zeros)), "too large"),
        "unicode_bomb.png": (png(8, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)), "too large"),
        "profile_bomb.png": (png(8, 8, chunk(b"iCCP", b"a\0\0" + zeros)), "too large"),
        "texts.png": (png(8, 8, chunk(b"zTXt", b"a\0\0" + many_zeros(1)) * 99), "Too much memory used in text"),
        "pixels_bomb.png": (png(8, 8, pixels=zeros), ""),
        "frames.png": (many_frames("PNG", 500), ""),
        "frames.gif": (many_frames("GIF", 500), ""),
        "frames.tif": (many_frames("TIFF", 100), ""),
        "large_screen.gif": (b"GIF89a\xff\xff\xff\xff" + encoded(Image.new("P", (8, 8)), "GIF")[10:], "more pixels"),
        "endless_row.bmp": (rle_bitmap(89_000_000, 1, b"\1\1\0\0\0\1"), "takes more than 2 s to decode"),
        "many_runs.bmp": (rle_bitmap(3000, 3000, b"\1\1" * 9_000_000), "takes more than 2 s|not enough"),
        "delta.bmp": (rle_bitmap(89_000_000, 1, b"\0\2\0\xff\0\1"), "not enough memory|takes more than"),
        "many_scans.jpg": (many_scans(6000, 1000), "takes more than 2 s to decode"),
        "large.png": (png(9000, 9000), "not enough memory"),  # honest, and more than half a GiB
        "giant_tile.tif": (tiff(16, 16, zeros, 8, t322=32_768, t323=32_768), "decoder error|not enough memory"),
        "wider_tile.tif": (tiff(16, 16, zeros, 8, t322=65_536, t323=65_536), "decoder error|not enough memory"),
        "giant_strip.tif": (tiff(16, 16, zeros, 8, t278=2**31 - 1), ""),
        "no_data.tif": (tiff(16, 16, b"", 1, t278=16), "truncated|decoder|not enough"),
        "circle.tif": (tiff(2, 2, bytes(4), 1, t278=2)[:-8] + struct.pack("<I", 8) + bytes(4), ""),
        "wide_canvas.webp": (wide_webp(16_000), "pixels"),
        "slow.qoi": (qoi(3000, 3000, b"\x6b" * 9_000_000), "takes more than 2 s to decode"),
        "short.qoi": (qoi(3000, 3000, b"\xfd"), "not enough"),
        "slow.ppm": (b"P5 3000 3000 999\n" + bytes(18_000_000), "takes more than 2 s to decode"),
        "blank_header.ppm": (b"P6" + b" " * 5_000_000, "Reached EOF|takes more than"),
        "no_white.ppm": (b"P5 2 2 0\n" + bytes(4), "maxval"),
        "negative.ppm": (b"P2 2 2 9\n-1 2 3 4\n", "negative"),
        "long_number.ppm": (b"P2 2 2 255\n" + b"1" * 99, "Token too long"),
    }  # fmt: skip
