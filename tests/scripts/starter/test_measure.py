"""The numbers of a starter autoencoder, against what is known of a linear one."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.evaluation.metrics.reconstruction import psnr
from ldm.models.autoencoder import load_vae
from ldm.models.linear_autoencoder import build_linear, fit_encoder
from ldm.models.saving import save_component
from ldm.utils.image_tensors import to_images
from scripts.starter import measure


@pytest.fixture
def folder(tmp_path):
    """Twelve training images and six held out, of two kinds; icons have one grey each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 6)):
        (tmp_path / split).mkdir()
        rows = []
        for i in range(count):
            kind = ("icon", "photo")[i % 2]
            pixels = rng.integers(0, 256, (1, 1, 1) if kind == "icon" else (16, 16, 3)).astype(np.uint8)
            Image.fromarray(np.broadcast_to(pixels, (16, 16, 3)).copy()).save(tmp_path / split / f"{i}.png")
            rows.append({"file_name": f"{i}.png", "kind": kind, "source": f"{kind}s"})
        (tmp_path / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_floors_and_psnr_are_those_of_their_kind(folder):
    vae = build_linear(3, 2, 4, 8, 1)
    fit_encoder(vae, [to_images(measure.read(folder / "train")[0])])
    save_component(vae, folder / "vae")
    assert measure.main([str(folder / "vae"), str(folder), "-o", str(folder / "out")]) == 0
    found = json.loads((folder / "out" / "metrics.json").read_text())
    kinds = found["kinds"]
    assert (found["factor"], found["latent_channels"], kinds["photo"]["images"]) == (2, 4, 3)
    assert kinds["icon"]["own_floor"] > 90  # greys have one component
    assert kinds["photo"]["own_floor"] > kinds["photo"]["floor"]  # no map is better than one's own
    before, rows = measure.read(folder / "validation")
    each = psnr(before, measure.reconstruct(load_vae(folder / "out"), before)[0])
    photos = [i for i, row in enumerate(rows) if row["kind"] == "photo"]
    assert found["sources"]["photos"] == kinds["photo"]["psnr"] == round(float(each[photos].mean()), 2)
    assert len(found["swatches"]) == 12 and found["worst_swatch"] == max(found["swatches"].values())
    assert str(folder) not in (folder / "out" / "config.json").read_text()
    weights = folder / "out" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 0.6 * (folder / "vae" / weights.name).stat().st_size  # fp16


def test_a_folder_that_was_not_built_is_one_line(folder):
    save_component(build_linear(3, 2, 4, 8, 1), folder / "vae")
    with pytest.raises(SystemExit, match="nowhere/validation has no metadata.jsonl: build it"):
        measure.main([str(folder / "vae"), str(folder / "nowhere"), "-o", str(folder / "out")])
