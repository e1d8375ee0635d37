"""The notebooks for Colab and Kaggle: what they install is here; on a CPU with a tiny model they train and generate."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.cli import main as cli

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = (
    "--data.resolution 16 --train.num_steps 6 --train.batch_size 8 --clip.model.width 16 --clip.model.heads 2 "
    "--clip.model.embed_dim 16 --clip.model.vision_width 16 --clip.model.vision_heads 2 --clip.model.vocab_size 600 "
    "--vae.model.block_out_channels 8 8 8 --vae.model.latent_channels 4 --vae.crop 8 "
    "--ldm.model.block_out_channels 8 16 --ldm.model.norm_num_groups 4 --ldm.model.heads 2 "
    "--ldm.model.attention_levels 1 --ldm.sampling.num_inference_steps 2"
)


def read(path: Path) -> "nbformat.NotebookNode":
    return nbformat.read(path, as_version=4)


def cell(notebook, name: str) -> str:
    return next(each.source for each in notebook.cells if each.id == name)


def test_there_is_one_for_each_platform_and_the_page_links_them():
    assert [path.stem for path in NOTEBOOKS] == ["colab", "kaggle"]
    page = (ROOT / "docs/cloud.md").read_text(encoding="utf-8")
    assert all(f"(notebooks/{path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_valid_and_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [each for each in notebook.cells if each.cell_type == "code"]
    assert len(code) <= 7 and not any(each.outputs or each.execution_count for each in code)
    names = re.findall(r"^(\w+) = ", cell(notebook, "parameters"), re.M)
    used = set(re.findall(r"\$(\w+)|\{(\w+)\}", "\n".join(each.source for each in code)))
    assert {a or b for a, b in used} - {"1"} == set(names), "every setting of the first cell is used, and no other"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_installs_the_tested_versions_and_its_commands_exist(path):
    notebook = read(path)
    install = cell(notebook, "install")
    assert 'git clone --quiet "$1"' in install and "-c ldm-source/constraints.txt" in install
    extras = re.search(r"ldm-source\[([\w,]+)\]", install)[1].split(",")
    assert all(re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M) for extra in extras)
    assert "torchvision==" in (ROOT / "constraints.txt").read_text(), "the one that goes with the torch there"
    for each in notebook.cells:
        for line in re.findall(r"^!?ldm (.+)$", each.source if each.cell_type == "code" else "", re.M):
            words = shlex.split(line.replace("$SETTINGS", "").replace("$MINUTES", "60"))
            cli.build_parser(words).parse_known_args(words)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_trains_on_a_folder_and_generates(path, tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from run_notebook import execute

    images, rng = tmp_path / "images", np.random.default_rng(0)
    images.mkdir()
    for i in range(48):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(f"noise number {i}\n")
    notebook = read(path)
    notebook.cells = [
        each for each in notebook.cells if not {"install", "platform"} & set(each.metadata.get("tags", []))
    ]
    values = {
        "REPOSITORY": str(ROOT),
        "IMAGES": str(images),
        "NAME": "mine",
        "MINUTES": 30,
        "SETTINGS": TINY,
        "PROMPT": "noise",
    }
    given = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    next(each for each in notebook.cells if each.id == "parameters").source = given
    done = execute(notebook, tmp_path, timeout=3000)
    shown = [
        each.id for each in done.cells if any("image/png" in out.get("data", {}) for out in each.get("outputs", []))
    ]
    assert shown == ["grid", "prompt"]
    assert (tmp_path / "mine-model/model_index.json").is_file()
