"""What ships with the project is found in a wheel's place first, then in the checkout's."""

import pytest

from ldm.models.autoencoder import load_vae
from ldm.models.pretrained import VAE, locate
from ldm.pipelines.model_folder import resolve_model
from ldm.utils import assets
from ldm.utils.errors import UserError


def test_the_package_comes_before_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "PACKAGE", tmp_path / "ldm")
    with pytest.raises(UserError, match="models/glyphs"):
        assets.shipped_model()
    for root in (tmp_path, tmp_path / "ldm"):
        folder = root / "models" / "glyphs"
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
        assert assets.shipped_model() == folder


def test_the_presets_are_found():
    assert (assets.shipped_configs() / "glyphs.yaml").is_file()


def test_shipped_models_go_by_their_names():
    assert assets.shipped_models() == ["digits", "emoji", "glyphs", "glyphs-fast"]
    for name in assets.shipped_models():
        assert resolve_model(name).paths["unet"] == assets.shipped_model(name) / "unet"


def test_a_folder_comes_before_an_included_model_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert assets.model_path("glyphs") == assets.shipped_model() and str(assets.model_path("user/name")) == "user/name"
    (tmp_path / "glyphs").mkdir()
    assert str(assets.model_path("glyphs")) == "glyphs"
    with pytest.raises(UserError, match="glyphs-fast"):
        resolve_model("glyph-fast")


def test_shipped_autoencoders_go_by_their_names():
    names = assets.shipped_autoencoders()
    assert names and all(name.startswith("autoencoders/f") for name in names)
    for name in names:
        folder = locate(name, VAE)
        assert folder == assets.shipped_autoencoder(name)
        vae = load_vae(folder)
        assert 2 ** (len(vae.config.encoder_block_out_channels) - 1) == int(name.removeprefix("autoencoders/f"))
    assert assets.shipped_autoencoder("autoencoders/f3") is None and assets.shipped_autoencoder("../models") is None


def test_a_folder_of_ones_own_comes_before_a_shipped_autoencoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / assets.shipped_autoencoders()[0]
    own.mkdir(parents=True)
    assert locate(assets.shipped_autoencoders()[0], VAE).resolve() == own
