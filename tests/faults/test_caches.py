"""A cache is used again for just what it was made of, and never with a bit changed."""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from caches import (
    CHARACTERS,
    KINDS,
    ORIGINALS,
    PICTURES,
    SIDE,
    Work,
    build_latents,
    build_pixels,
    contents,
    prepare,
    read,
    write_pictures,
    write_vae,
)
from PIL import Image
from safetensors.torch import load_file, save_file

import ldm.data.glyphs.rendering as render_module
import ldm.data.image_files.pixel_cache as pixels_module
import ldm.training.latent_cache as latents_module
from ldm.config.settings import VaeModel
from ldm.data import digits
from ldm.data.glyphs.rendering import cached_glyphs, style_font
from ldm.models.autoencoder import build_vae, load_vae
from ldm.models.digests import DECIDING
from ldm.training.latent_cache import cached_latents
from ldm.utils.errors import UserError


@pytest.fixture
def work(monkeypatch) -> Work:
    return Work().watch(monkeypatch)


@pytest.fixture
def project(tmp_path):
    write_pictures(tmp_path / "pictures")
    write_vae(tmp_path / "vae")
    return tmp_path


# ---- keys ----------------------------------------------------------------------------------------------------------


def picture(project, name="03.png"):
    return project / "pictures" / name


def one_pixel(project, monkeypatch):
    pixels = np.array(Image.open(picture(project)))
    pixels[5, 5] ^= 1
    Image.fromarray(pixels).save(picture(project))


def other_bytes(project, monkeypatch):
    """The same pixels in another file: decoded again, and found to be the same."""
    Image.open(picture(project)).save(picture(project), compress_level=0)


def add(project, monkeypatch):
    shutil.copy(picture(project), picture(project, "03b.png"))


def remove(project, monkeypatch):
    picture(project).unlink()


def replace(project, monkeypatch):
    shutil.copy(picture(project, "05.png"), picture(project))


def rename(project, monkeypatch):
    picture(project).rename(picture(project, "03b.png"))


def swap(project, monkeypatch):
    """Two pictures change places, so the order does."""
    picture(project).rename(picture(project, "x.png"))
    picture(project, "05.png").rename(picture(project))
    picture(project, "x.png").rename(picture(project, "05.png"))


def caption(project, monkeypatch):
    picture(project, "03.txt").write_text("other words")


def constant(module, name, value):
    return lambda project, monkeypatch: monkeypatch.setattr(module, name, value)


def vae_bit(project, monkeypatch):
    path = project / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["encoder.conv_in.weight"].view(torch.int32).view(-1)[0] ^= 1
    save_file(tensors, path, {"format": "pt"})


def vae_setting(name, value):
    def change(project, monkeypatch):
        path = project / "vae/config.json"
        config = json.loads(path.read_text())
        assert config[name] != value
        path.write_text(json.dumps({**config, name: value}))

    return change


def nothing(project, monkeypatch):
    pass


ALL, MORE, LESS = PICTURES, PICTURES + 1, PICTURES - 1
# what is changed -> how it is read afterwards, and how many pictures are then decoded and encoded
PICTURE_KEYS = {
    "nothing": (nothing, {}, 0, 0),
    "a caption": (caption, {}, 0, 0),
    "one pixel": (one_pixel, {}, ALL, ALL),
    "the bytes of a file, and no pixel": (other_bytes, {}, ALL, 0),
    "a picture added": (add, {}, MORE, MORE),
    "a picture removed": (remove, {}, LESS, LESS),
    "a picture replaced": (replace, {}, ALL, ALL),
    "a picture renamed": (rename, {}, ALL, ALL),
    "the order": (swap, {}, ALL, ALL),
    "resolution": (nothing, {"resolution": 32}, ALL, ALL),
    "resize": (nothing, {"resize": "pad"}, ALL, ALL),
    "background": (nothing, {"background": 0}, ALL, ALL),
    "flip": (nothing, {"horizontal_flip": True}, 0, 2 * ALL),
    "validation's share": (nothing, {"validation_fraction": 0.3}, 0, None),
    "version of the decoder": (constant(pixels_module, "DECODE_VERSION", 99), {}, ALL, ALL),
    "format of the latents": (constant(latents_module, "FORMAT", "99 <f2"), {}, 0, ALL),
    "one bit of the VAE": (vae_bit, {}, 0, ALL),
    "the VAE's scale": (vae_setting("scaling_factor", 0.5), {}, 0, ALL),
    "the VAE's shift": (vae_setting("shift_factor", 0.25), {}, 0, ALL),
    "the VAE's groups": (vae_setting("norm_num_groups", 4), {}, 0, ALL),
    "the VAE's activation": (vae_setting("act_fn", "gelu"), {}, 0, ALL),
    "the VAE's name and version": (vae_setting("_diffusers_version", "0.0"), {}, 0, 0),
}


@pytest.mark.parametrize("name", PICTURE_KEYS)
def test_what_decides_pixels_or_latents_makes_them_anew_and_nothing_else_does(
    project, monkeypatch, work, survived, name
):
    change, options, decoded, encoded = PICTURE_KEYS[name]
    before = read(project).train
    cached_latents(load_vae(project / "vae"), before, project / "cache")
    assert (work.done().decoded, work.done().encoded) == (PICTURES, 0)  # the first `done` took both
    change(project, monkeypatch)
    after = read(project, **options).train
    latents = cached_latents(load_vae(project / "vae"), after, project / "cache", batch_size=5)
    done = work.done()
    assert done.decoded == decoded
    assert done.encoded == (len(after) if encoded is None else encoded)
    captions = {after.caption(i, np.random.default_rng(0)) for i in range(len(after))}
    assert ("other words" in captions) is (name == "a caption")
    with torch.no_grad():
        images = torch.from_numpy(np.stack([after.image(i) for i in range(len(after))])).permute(0, 3, 1, 2)
        expected = load_vae(project / "vae").encode(images / 127.5 - 1).latent_dist.mean
    np.testing.assert_allclose(latents.mean, expected, atol=5e-3)
    if decoded or encoded != 0:
        survived("caches: a key changed, and the cache was built anew", 1)


def test_channels_make_pixels_anew_and_a_vae_of_others_is_refused(project, work, survived):
    read(project)
    coloured = read(project, channels=3).train
    assert work.done().decoded == 2 * PICTURES
    with pytest.raises(UserError, match="1-channel images and the data has 3"):
        cached_latents(load_vae(project / "vae"), coloured, project / "cache")
    survived("caches: a key changed, and the cache was built anew", 1)


@pytest.mark.parametrize("key", ["font", "characters", "resolution", "version"])
def test_what_decides_glyphs_renders_them_anew(tmp_path, monkeypatch, work, survived, key):
    arguments = {"font": style_font("hei"), "characters": CHARACTERS, "resolution": SIDE, "cache_dir": tmp_path}
    cached_glyphs(**arguments)
    cached_glyphs(**arguments)
    assert work.done().rendered == len(CHARACTERS)
    changes = {"font": style_font("song"), "characters": CHARACTERS[::-1], "resolution": 20}
    if key == "version":
        monkeypatch.setattr(render_module, "RENDERER_VERSION", 99)
    cached_glyphs(**{**arguments, **({key: changes[key]} if key in changes else {})})
    assert work.done().rendered == len(CHARACTERS)
    survived("caches: a key changed, and the cache was built anew", 1)


@pytest.mark.parametrize("key", ["originals", "version", "file"])
def test_what_decides_digits_traces_them_anew(tmp_path, monkeypatch, work, survived, key):
    digits.handwriting(ORIGINALS, tmp_path)
    digits.handwriting(ORIGINALS, tmp_path)
    assert work.done().traced == len(ORIGINALS)
    if key == "version":
        monkeypatch.setattr(digits, "VERSION", 99)
    if key == "file":
        monkeypatch.setattr(digits, "file_digest", lambda: "of another file")
    chosen = ORIGINALS[1:] if key == "originals" else ORIGINALS
    digits.handwriting(chosen, tmp_path)
    assert work.done().traced == len(chosen)
    survived("caches: a key changed, and the cache was built anew", 1)


def test_every_setting_of_a_vae_is_in_its_weights_or_in_the_key_or_decides_nothing_of_latents():
    """A setting that a later version of the library adds has to be thought about."""
    seen_in_weights = {
        *("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"),
        *("layers_per_block", "latent_channels", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"),
        *("num_vq_embeddings", "vq_embed_dim", "norm_type"),
    }
    of_no_matter = {"sample_size", "force_upcast", "latents_mean", "latents_std", "lookup_from_codebook"}
    for kind in ("kl", "vq"):
        vae = build_vae(VaeModel(kind=kind, block_out_channels=[8, 16], norm_num_groups=8), 1, SIDE)
        settings = {name for name in vae.config if not name.startswith("_")}
        assert settings <= seen_in_weights | of_no_matter | set(DECIDING)


# ---- touched, moved, damaged -----------------------------------------------------------------------------------------


def test_what_is_touched_or_moved_is_not_made_again(project, work, survived):
    build = lambda place: cached_latents(load_vae(place / "vae"), read(place).train, place / "cache")  # noqa: E731
    build(project)
    work.done()
    for path in [*project.rglob("*")]:
        os.utime(path, (1, 1))
    build(project)
    (project / "pictures").rename(project / "elsewhere")
    (project / "elsewhere").rename(project / "pictures")
    moved = project / "moved"
    moved.mkdir()
    for part in ("pictures", "cache", "vae"):
        (project / part).rename(moved / part)
    build(moved)
    assert work.done() == Work()
    survived("caches: touched or moved, and nothing was made again", 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_found(tmp_path, work, trials, survived, kind):
    project, count = prepare(tmp_path, kind), trials(8, 100)
    KINDS[kind](project)
    cache, rng = project / "cache", random.Random(0)
    good = contents(cache)
    for trial in range(count):
        name = sorted(good)[trial % len(good)]
        data = bytearray(good[name])
        place = rng.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        (cache / name).write_bytes(data)
        work.done()
        KINDS[kind](project)
        assert work.done().total > 0, f"bit {place} of {name} was not noticed"
        assert contents(cache) == good
    survived("caches: a bit flipped, found, and the cache built anew", count)


def test_a_map_that_is_open_outlives_a_cache_that_is_built_anew(tmp_path, work):
    project = prepare(tmp_path, "latents")
    build_latents(project)
    build_pixels(tmp_path)
    arrays = sorted(tmp_path.rglob("cache/**/*.npy"))
    maps = [np.load(path, mmap_mode="r") for path in arrays]
    copies, inodes = [np.array(array) for array in maps], [path.stat().st_ino for path in arrays]
    for path in [*tmp_path.rglob("cache/**/*manifest*")]:
        path.write_text("{}")
    build_latents(project)
    assert work.done().encoded == 2 * PICTURES
    for path, array, copy, inode in zip(arrays, maps, copies, inodes, strict=True):
        np.testing.assert_array_equal(array, copy)
        np.testing.assert_array_equal(np.load(path), copy)
        assert path.stat().st_ino != inode


# ---- numbers and memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])  # the last is too large for float16
def test_latents_that_are_no_numbers_never_get_into_a_cache(project, survived, value):
    vae, data = load_vae(project / "vae"), read(project).train
    before = contents(project / "cache")
    with torch.no_grad():
        vae.quant_conv.bias[0] = value
    with pytest.raises(UserError, match="not finite.*fp32"):
        cached_latents(vae, data, project / "cache")
    assert contents(project / "cache") == before
    survived("caches: latents that are no finite numbers, refused", 1)


def test_a_vae_saved_in_half_precision_encodes_in_single(project):
    load_vae(project / "vae").half().save_pretrained(project / "half")
    vae = load_vae(project / "half")
    assert vae.dtype == torch.float32
    assert np.isfinite(cached_latents(vae, read(project).train, project / "cache").mean).all()


def cpu_error() -> RuntimeError:
    """What torch raises on a CPU, as it raises it."""
    try:
        torch.empty(2**50)
    except RuntimeError as error:
        return error
    raise AssertionError("2 PiB were there")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), cpu_error(), MemoryError()], ids=type)
@pytest.mark.parametrize("most", [5, 2, 1])
def test_a_short_memory_halves_the_batch_and_changes_nothing(project, monkeypatch, survived, most, error):
    """Memory for `most` pictures at once."""
    vae, data = load_vae(project / "vae"), read(project).train
    good = cached_latents(vae, data, project / "undisturbed", batch_size=8)
    original, fired = latents_module.posterior, []

    def posterior(vae, images):
        if len(images) > most:
            fired.append(len(images))
            raise error
        return original(vae, images)

    monkeypatch.setattr(latents_module, "posterior", posterior)
    found = cached_latents(vae, data, project / "cache", batch_size=8)
    assert fired == [size for size in (8, 4, 2) if size > most]
    for name in ("mean", "std"):
        np.testing.assert_allclose(getattr(found, name), getattr(good, name), rtol=2**-10, atol=2**-14)
    survived("caches: memory too short for a batch, which was halved", len(fired))


def test_a_memory_too_short_for_one_picture_says_what_to_lower_and_other_errors_pass(project, monkeypatch):
    vae, data = load_vae(project / "vae"), read(project).train

    errors = [RuntimeError("an illegal memory access was encountered")] + 4 * [torch.OutOfMemoryError("out of memory")]
    monkeypatch.setattr(latents_module, "posterior", lambda vae, images: (_ for _ in ()).throw(errors.pop()))
    with pytest.raises(UserError, match="16 x 16 pixels: lower data.resolution"):
        cached_latents(vae, data, project / "cache", batch_size=16)
    assert len(errors) == 1  # halved from 12 to 6, 3 and 1
    with pytest.raises(RuntimeError, match="illegal memory access"):
        cached_latents(vae, data, project / "cache")
    assert not list((project / "cache").rglob("*latents/*"))
