"""What counts as equal, close and different; and that the table of steps can be run in its order."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    """The script as a module; it finds its table of steps beside itself."""
    sys.path.insert(0, str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("reference_numbers", SCRIPTS / "reference_numbers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPTS))
    del sys.modules["reference_steps"]


def written(script, out: Path, **items) -> Path:
    """A folder as `make` leaves it, of arrays by item; an error where an item is a text."""
    found = {}
    for name, arrays in items.items():
        found[name] = {"error": arrays} if isinstance(arrays, str) else script.fingerprint(arrays)
        if not isinstance(arrays, str):
            script.keep(out / "arrays" / f"{name}.npz", arrays)
    out.mkdir(exist_ok=True)
    (out / "numbers.json").write_text(json.dumps({"made_on": {}, "items": found}))
    return out


GREY = np.full((2, 2), 100, np.uint8)
FLOATS = np.array([0.0, 0.5, 1000.0, np.nan], np.float32)


@pytest.mark.parametrize(
    "one, two, verdict, what",
    [
        (FLOATS, FLOATS.copy(), "equal", ""),
        (FLOATS, FLOATS + np.float32([9e-6, 0, 0, 0]), "close", "1 of 4 differ, by at most 9e-06"),
        (FLOATS, FLOATS + np.float32([0, 2e-5, 0, 0]), "different", "at most 2"),
        (FLOATS, FLOATS + np.float32([0, 0, 5e-3, 0]), "close", ""),  # five millionths of it
        (FLOATS, np.nan_to_num(FLOATS), "different", ""),  # a number where there was none
        (np.float32([np.inf]), np.float32([-np.inf]), "different", ""),
        (np.float32([0.0]), np.float32([-0.0]), "close", "0 of 1 differ"),  # other bits, no other number
        (FLOATS, FLOATS.astype(np.float64), "different", "float64"),
        (FLOATS, FLOATS[:3], "different", "(3,)"),
        (GREY, GREY + np.uint8(1), "close", "4 of 4 differ, by at most 1"),
        (GREY, GREY - np.uint8(2), "different", "by at most 2"),
        (np.arange(3), np.arange(3) + 1, "different", ""),
        (np.array("a\nb"), np.array("a\nb"), "equal", ""),
        (np.array("a\nb"), np.array("a\nc"), "different", "'b' and 'c'"),
        (np.array("a"), np.array("a\nb"), "different", "one is longer"),
    ],
)
def test_two_arrays(script, tmp_path, one, two, verdict, what):
    sides = [written(script, tmp_path / str(i), item={"x": array}) for i, array in enumerate((one, two))]
    items = [json.loads((side / "numbers.json").read_text())["items"]["item"] for side in sides]
    found = script.compare_item("item", sides, items)
    assert found.verdict == verdict and what in found.what
    assert (items[0]["sha256"] == items[1]["sha256"]) == (verdict == "equal")


def test_other_words_are_not_other_numbers(script):
    one = {"numbers": FLOATS, "words": np.array("a\nb")}
    other = {"numbers": FLOATS + np.float32([9e-6, 0, 0, 0]), "words": np.array("a\nc")}
    assert script.compare_arrays(one, other) == ("reworded", "words: 'b' and 'c'")
    assert script.compare_arrays(one, {**other, "numbers": FLOATS + 1}).verdict == "different"


def test_the_worst_of_an_item_is_told(script):
    one = {"a": FLOATS, "b": GREY, "c": np.zeros(2)}
    found = script.compare_arrays(one, {"a": FLOATS + np.float32(1e-7), "b": GREY + np.uint8(7), "c": np.zeros(2)})
    assert found.verdict == "different" and found.what.startswith("b: ")
    assert "only in one of them: c" in script.compare_arrays(one, {"a": FLOATS, "b": GREY}).what


def test_two_folders(script, tmp_path, capsys):
    """What is missing or failed on either side is different; the exit code says so."""
    one = written(script, tmp_path / "1", same={"x": FLOATS}, grey={"x": GREY}, gone={"x": GREY}, bad="exit code 2")
    near = written(script, tmp_path / "2", same={"x": FLOATS}, grey={"x": GREY + np.uint8(1)})
    assert script.compare(one, near) == 1
    told = capsys.readouterr().out
    assert "gone: " in told and "it is missing" in told and "exit code 2" in told
    assert told.splitlines()[-1] == "4 items: 1 equal, 1 close, 0 reworded, 2 different"
    fine = written(script, tmp_path / "3", same={"x": FLOATS}, grey={"x": GREY})
    assert script.compare(fine, near) == 0


def test_numbers_of_json_without_times(script):
    value = {"b": [1, {"seconds": 3}], "a": 0.5, "c": {"timesteps": 7, "used": True, "none": None, "told": "a word"}}
    found = script.numbers_of(value)
    assert found["numbers"].tolist() == [0.5, 1, 7]
    rest = {"timesteps": "number", "used": True, "none": None, "told": "text"}
    assert json.loads(str(found["structure"])) == {"a": "number", "b": ["number", {}], "c": rest}
    assert str(found["words"]) == "a word"


def test_numbers_of_a_text(script, tmp_path, monkeypatch):
    """Of a drawing's path too; days and our version are left out."""
    monkeypatch.setenv("PYTHONPATH", "/the/tree")
    (tmp_path / "a.svg").write_text('<path d="M1.5,-2L3e-2 4Z"/> by ldm 0.1.0 in /the/tree on 2026-11-22')
    found = script.read_text(tmp_path / "a.svg")
    assert found["numbers"].tolist() == [1.5, -2, 0.03, 4]
    assert str(found["words"]) == '<path d="M#,#L# #Z"/> by ldm VERSION in TREE on DATE'


def test_each_step_has_a_name_of_its_own_and_comes_behind_what_it_needs(script):
    seen = set()
    for step in script.steps():
        assert step.name not in seen and seen.issuperset(step.needs)
        seen.add(step.name)
    assert [step.name for step in script.chosen(["preview"])] == ["clip-tiny", "vae-tiny", "ldm-flow", "preview"]
    with pytest.raises(SystemExit, match="nothing-like-it"):
        script.chosen(["nothing-like-it"])
