"""Folders from strangers: nothing in them runs, leads out or asks for more than they bring; one line says what is odd.

Every artefact goes through the public doors in a process of its own with little memory and little time.
"""

import csv
import json
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import hostile
import numpy as np
import pytest
from forked import Child
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_model import tiny_folder

from ldm.cli.main import main
from ldm.hub.export import export
from ldm.pipelines.loading import load_pipeline

MEMORY, SECONDS = 1.5 * 2**30, 60  # more than the process has when it starts; of CPU time


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = export(tiny_folder(tmp_path_factory.mktemp("tiny") / "tiny"), tmp_path_factory.mktemp("model") / "model")
    load_pipeline(folder)("a", num_inference_steps=1)  # everything is imported before the forks
    load_pipeline(folder, engine="torch")("a", num_inference_steps=1)
    return folder


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def python_door(folder: Path) -> None:
    load_pipeline(folder, engine="torch")("a", num_inference_steps=2, seed=0)


def behind(door, output: Path) -> SimpleNamespace:
    """Go through a door, a function or the words of an `ldm` command, in a child: its exit code and what it said."""

    def go():
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (int(size + MEMORY),) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        door() if callable(door) else main([str(word) for word in door])

    child = Child(go, output)
    return SimpleNamespace(code=child.wait(), text=child.said())


def doors(folder: Path, out: Path) -> dict:
    return {
        "generate": ["generate", "a", "-m", folder, "-o", out / "a.png", "--steps", "2"],
        "python": lambda: python_door(folder),
        "export": ["export", folder, "-o", out / "again"],
        "push": ["push", folder, "user/name", "--dry-run"],
        "doctor": ["doctor", folder, "--limit", "8"],
    }


def one_line(said) -> bool:
    return said.code == 2 and f"\n{said.text}".count("\nerror: ") == 1 and "Traceback" not in said.text


def some(cases: dict, number: int) -> list:
    return list(cases.items())[:number]


@pytest.mark.slow
def test_what_is_foreign_in_a_folder_is_passed_over(model, tmp_path, canary, trials, survived):
    cases = some(hostile.PASSED_OVER, trials(4, 99))
    before = [each.tobytes() for each in load_pipeline(model)("a", num_inference_steps=2, seed=0).images]
    for number, (name, spoil) in enumerate(cases):
        folder = tmp_path / f"model{number}"
        shutil.copytree(model, folder)
        spoil(folder, canary)
        for door, words in doors(folder, tmp_path).items():
            if door == "doctor" and number:
                continue
            said = behind(words, tmp_path / "said")
            assert said.code == 0, (name, door, said.text)
        assert not canary.exists(), name
        after = [each.tobytes() for each in load_pipeline(folder)("a", num_inference_steps=2, seed=0).images]
        assert before == after, name
    survived("hostile: passed over", len(cases))


def test_what_cannot_be_trusted_is_refused_in_one_line(model, tmp_path, canary, trials, survived):
    cases = some(hostile.REFUSED, trials(14, 99))
    for number, (name, spoil) in enumerate(cases):
        folder = tmp_path / f"case{number}" / "model"
        shutil.copytree(model, folder)
        spoil(folder, canary)
        for door, words in doors(folder, tmp_path / f"case{number}").items():
            if door == "push" or (door == "doctor" and number % 10):
                continue  # a dry run only lists names
            said = behind(words, tmp_path / "said")
            by_graph = "graph" in name and door != "generate"  # torch draws without it
            if by_graph or door == "doctor":
                assert said.code in (0, 1, 2) and "Traceback" not in said.text, (name, door, said.text)
            else:
                assert one_line(said), (name, door, said.code, said.text[-3000:])
        assert not canary.exists(), name
        assert not (tmp_path / f"case{number}" / "again").exists() or "graph" in name, name
    survived("hostile: refused", len(cases))


# ---- runs, pictures, data --------------------------------------------------------------------------------------------

YAML = {
    "python objects": "name: !!python/object/apply:os.system ['touch {canary}']\n",
    "python modules": "ldm: !!python/name:os.system\n",
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
    "a mile deep": "[" * 50_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", YAML)
def test_a_runs_settings_run_nothing(model, tmp_path, canary, name, survived):
    run = tmp_path / "run"
    shutil.copytree(model, run / "final")
    (run / "final" / "model_index.json").unlink()
    (run / "config.yaml").write_text(YAML[name].format(canary=canary) if "python" in name else YAML[name])
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001" / "optimizer.bin").write_bytes(hostile.dangerous(canary))
    (run / "optimizer.pt").write_bytes(hostile.dangerous(canary))
    more = {"evaluate": ["evaluate", run, "-o", tmp_path / "report", "--samples", "1"]} if name != "laughs" else {}
    for door, words in {**doors(run, tmp_path), **more}.items():
        said = behind(words, tmp_path / "said")
        assert said.code in (0, 1, 2) and "Traceback" not in said.text, (door, said.text)
        assert name == "laughs" or door == "doctor" or one_line(said), (door, said.text)
    assert not canary.exists()
    survived("hostile: runs", 1)


def test_a_checkpoint_of_pickles_is_no_weak_model(model, tmp_path, canary, survived):
    from ldm.utils.checkpoint_files import MANIFEST

    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(hostile.dangerous(canary))
    (folder / MANIFEST).write_text(json.dumps({"files": {}}))
    words = ["generate", "a", "-m", model, "--weak", folder, "--guidance", "2", "-o", tmp_path / "a.png"]
    said = behind(words, tmp_path / "said")
    assert one_line(said) and not canary.exists(), said.text
    survived("hostile: runs", 1)


def picture(path: Path, **text: str) -> Path:
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value, zip=True)
    Image.new("L", (4, 4)).save(path, pnginfo=info)
    return path


def test_a_picture_names_no_model_out_of_the_way_and_no_bomb_opens(tmp_path, canary, survived):
    told = {"prompt": "a", "seed": 0, "steps": 2, "guidance": 1.0, "grid": "1x1", "scale": 1}
    pictures = [
        picture(tmp_path / "a.png", ldm=json.dumps({**told, "model": "u/n@../../../../canary"})),
        picture(tmp_path / "b.png", ldm=json.dumps({**told, "model": {"a": 1}})),
        picture(tmp_path / "c.png", ldm=json.dumps({**told, "scale": 10**9})),
        picture(tmp_path / "d.png", ldm=json.dumps({**told, "guidance": "a", "steps": "b"})),
        picture(tmp_path / "e.png", ldm=" " * (200 * 2**20)),
        picture(tmp_path / "f.png", ldm="[" * 100_000),
        picture(tmp_path / "g.png", ldm=json.dumps({**told, "interval": "ab", "prompt": 3})),
    ]
    bomb = tmp_path / "h.png"
    data = bytearray(pictures[0].read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height
    bomb.write_bytes(data)
    for path in (*pictures, bomb):
        said = behind(["generate", "--from", path, "-o", tmp_path / "out.png"], tmp_path / "said")
        assert one_line(said), (path.name, said.text[-3000:])
    assert not canary.exists()
    survived("hostile: pictures", len(pictures) + 1)


def data_folder(folder: Path, canary: Path) -> Path:
    """A good picture beside all that must not be opened."""
    folder.mkdir()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(hostile.dangerous(canary))
    for name in ("data.py", "dataset.py", f"{folder.name}.py"):
        (folder / name).write_text(hostile.python(canary))
    (folder / "cache.pkl").write_bytes(hostile.dangerous(canary))
    (folder / "bad.txt").write_text(f"$(touch {canary}) `touch {canary}`")
    return folder


def test_a_data_folder_runs_nothing(tmp_path, canary, survived):
    said = behind(["data", "check", data_folder(tmp_path / "pictures", canary)], tmp_path / "said")
    assert said.code in (0, 1) and "bad.png" in said.text and "Traceback" not in said.text, said.text
    assert not canary.exists()
    survived("hostile: data", 5)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png", "C:\\x.png"])
def test_a_table_of_pictures_leads_nowhere_else(tmp_path, canary, name, survived):
    Image.new("L", (16, 16)).save(tmp_path / "secret.png")
    folder = data_folder(tmp_path / "pictures", canary)
    with (folder / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file_name", "text"], [name, "a"]])
    said = behind(["data", "check", folder], tmp_path / "said")
    assert one_line(said) and "leads out of the folder" in said.text
    survived("hostile: data", 1)


def test_parquet_with_pickles_in_it_runs_none(tmp_path, canary, survived):
    import pyarrow as pa
    import pyarrow.parquet as pq

    told = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": hostile.dangerous(canary),
    }
    fields = [pa.field("image", pa.binary(), metadata=told), pa.field("text", pa.string())]
    cells = [pa.array([hostile.dangerous(canary)] * 9, pa.binary()), pa.array(["a"] * 9)]
    pq.write_table(pa.table(cells, schema=pa.schema(fields)), tmp_path / "set.parquet")
    said = behind(["data", "check", tmp_path / "set.parquet"], tmp_path / "said")
    assert said.code in (0, 1, 2) and "Traceback" not in said.text, said.text
    assert not canary.exists()
    survived("hostile: data", 2)


def test_the_canary_sings_where_code_runs(tmp_path, canary):
    """Else none of the above could fail."""
    import pickle

    pickle.loads(hostile.dangerous(canary))
    assert canary.exists()
    canary.unlink()
    (tmp_path / "evil.py").write_text(hostile.python(canary))
    behind(lambda: sys.path.insert(0, str(tmp_path)) or (__import__("evil") and None), tmp_path / "said")
    assert canary.exists()
