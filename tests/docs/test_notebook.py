"""The notebook runs in a fresh kernel, offline, and its cells give the pictures that it ships with."""

import base64
import importlib.util
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs/quickstart.ipynb"
sys.path.insert(0, str(ROOT / "scripts"))
try:
    from run_notebook import execute
finally:
    sys.path.remove(str(ROOT / "scripts"))

DRAWN = """
assert first.size == (64, 64) and first.mode == "L"
assert [len(each) for each in (images, rows, plain, without_grass, anything, previews)] == [32, 3, 8, 8, 8, 8]
assert np.asarray(previews[-1]).shape == (64, 64) and [len(row) for row in rows] == [8, 8, 8]
assert (np.asarray(frames[0]) == np.asarray(pipeline(
    "horizontal stacked glyph with the water radical", seed=3).images[0])).mean() > 0.99
assert len(edited) == 5 and toy.covariance.shape == (1, 1)
"""
TRAINED = """
assert clouds[1].shape == (4000, 2) and (np.linalg.norm(clouds[2].mean(0) - EightGaussians().means[1]) < 0.3)
ink = 255 - np.stack([np.asarray(each, float) for each in samples])  # 8 of each: filled, then hollow
assert ink.shape == (48, 32, 32) and ink[:24].mean() > 1.3 * ink[24:].mean()
assert len(ours) == len(theirs) == 4 and apart < 2
"""


def read() -> "nbformat.NotebookNode":
    return nbformat.read(NOTEBOOK, as_version=4)


def is_slow(cell) -> bool:
    return "slow" in cell.metadata.get("tags", [])


def pictures(notebook) -> dict[str, np.ndarray]:
    """The picture that each cell gave, by the cell's id."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                shown = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                found[cell.id] = np.asarray(shown.convert("RGB"), float)
    return found


def run_with(cells, more: str, folder: Path) -> dict[str, np.ndarray]:
    """Run a copy of these cells and then the checks; the pictures that came of them."""
    notebook = read()
    notebook.cells = [*cells, nbformat.v4.new_code_cell(more)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return pictures(execute(notebook, folder, timeout=3600))  # a busy machine takes its time: no result, no failure


def test_the_notebook_is_whole_small_and_says_nothing_of_the_machine_it_ran_on():
    notebook, text = read(), NOTEBOOK.read_text(encoding="utf-8")
    nbformat.validate(notebook)
    assert notebook.nbformat == 4 and notebook.nbformat_minor >= 5 and len(text) < 1_000_000
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == list(
        range(1, sum(cell.cell_type == "code" for cell in notebook.cells) + 1)
    ), "every cell was run, in order: python scripts/run_notebook.py docs/quickstart.ipynb"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    told = " ".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert not re.search(r"/(home|root|tmp|opt|usr|work)/|[\d.]+ s\b|0x[0-9a-f]{6,}|Warning", told)
    assert not any(set(output.get("data", {})) - {"image/png", "text/plain"} for output in outputs)
    assert len(pictures(notebook)) >= 12


@pytest.mark.slow
def test_what_draws_gives_the_pictures_that_are_shown(tmp_path):
    cells = [cell for cell in read().cells if not is_slow(cell)]
    shown, drawn = pictures(read()), run_with(cells, DRAWN, tmp_path)
    assert set(drawn) == {cell.id for cell in cells} & set(shown)
    for name, picture in drawn.items():
        assert picture.shape == shown[name].shape, name
        assert abs(picture - shown[name]).mean() < 2, f"{name} differs: python scripts/run_notebook.py {NOTEBOOK.name}"


@pytest.mark.slow
def test_the_whole_notebook_trains_exports_and_draws_what_is_shown(tmp_path):
    """Trained anew on another machine, points and shapes are others that look alike."""
    shown, drawn = pictures(read()), run_with(read().cells, DRAWN + TRAINED, tmp_path)
    assert set(drawn) == set(shown)
    for cell in read().cells:
        if cell.id in shown:
            most = 30 if is_slow(cell) else 2
            assert drawn[cell.id].shape == shown[cell.id].shape, cell.id
            assert abs(drawn[cell.id] - shown[cell.id]).mean() < most, cell.id


@pytest.mark.parametrize("code", ["1 / 0", "%%bash\nldm generate -o no.txt"])
def test_a_cell_that_fails_ends_the_run(tmp_path, code):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    with pytest.raises(Exception, match="ZeroDivisionError|CalledProcessError"):
        execute(notebook, tmp_path)


def test_every_name_that_it_imports_from_ldm_is_there():
    """Cells that train run only in the slow tests."""
    source = "\n".join(cell.source for cell in read().cells if cell.cell_type == "code")
    imports = re.findall(r"^from (ldm[\w.]*) import (.+)$", source, re.M)
    assert len(imports) >= 4
    for module, names in imports:
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}")
