"""A wheel, in an empty folder that is no checkout: from 50 images to a model that could be uploaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.runs.test_train_folder import OPTIONS, discs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as its wheel holds it, in a folder of its own; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], capture_output=True, text=True)
    if "matching distribution found for hatchling" in built.stderr:
        pytest.skip("hatchling, which builds the wheel, is not to be had here")
    assert built.returncode == 0, built.stderr[-3000:]
    wheel = next(folder.glob("ldm-*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, capture_output=True)
    return folder / "site"


def test_every_command_works_where_there_is_no_checkout(installed, tmp_path):
    discs(tmp_path / "discs")
    values = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def ldm(*words):
        words = [sys.executable, "-m", "ldm", *map(str, words)]
        done = subprocess.run(words, cwd=tmp_path, env=values, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import ldm; print(ldm.__file__)"], cwd=tmp_path, env=values, capture_output=True
    )
    assert Path(where.stdout.decode().strip()).is_relative_to(installed)
    ldm("new", "discs", "--minutes", 60, *OPTIONS)
    assert (tmp_path / "discs.yaml").is_file()
    said = ldm("train", "discs")
    assert "plan: discs.yaml, as made before" in said and "export: discs-model" in said
    ldm("generate", "a red disc", "-m", "discs-model", "-o", "disc.png")
    assert Image.open(tmp_path / "disc.png").size == (16, 16)
    ldm("evaluate", "runs/discs/ldm", "-o", "report", "--samples", 4)
    assert (tmp_path / "report/index.html").is_file() and (tmp_path / "report/metrics.json").is_file()
    said = ldm("push", "discs-model", "somebody/discs", "--dry-run")
    assert "somebody/discs" in said and "unet/diffusion_pytorch_model.safetensors" in said
    assert not [path for path in installed.rglob("*") if path.name in ("runs", "cache")]  # nothing is written there
