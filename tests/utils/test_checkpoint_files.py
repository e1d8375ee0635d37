"""A checkpoint is whole or absent, and says so itself."""

import json

import pytest
import torch

from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {name: {"w": torch.randn(3, 4, generator=generator)} for name in ("model", "optimizer")}


def write(folder, step):
    path = folder / checkpoint.name(step)
    checkpoint.save(path, tensors(), {"step": step})
    return path


def test_what_was_saved_is_what_is_loaded(tmp_path):
    groups, state = checkpoint.load(write(tmp_path, 7))
    assert state == {"step": 7}
    for name, group in tensors().items():
        torch.testing.assert_close(groups[name]["w"], group["w"], rtol=0, atol=0)


@pytest.mark.parametrize("victim", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_any_damage_is_found_and_the_one_before_is_taken(tmp_path, victim, damage):
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    file = bad / victim
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 64
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-5])
    else:
        file.unlink()
    assert checkpoint.verify(bad) is not None
    assert checkpoint.newest(tmp_path) == good
    with pytest.raises(UserError, match="cannot be used"):
        checkpoint.load(bad)


def test_a_failure_while_writing_leaves_the_old_folder_and_no_trace(tmp_path):
    path = write(tmp_path, 3)
    with pytest.raises(RuntimeError), checkpoint.staged(path) as stage:
        (stage / "half.txt").write_text("half")
        raise RuntimeError("power cut")
    assert checkpoint.verify(path) is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_staged_folder_replaces_an_older_one_as_a_whole(tmp_path):
    for content in ("old", "new"):
        with checkpoint.staged(tmp_path / "final") as stage:
            (stage / f"{content}.txt").write_text(content)
    assert sorted(p.name for p in (tmp_path / "final").iterdir()) == ["manifest.json", "new.txt"]


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 2, 10, 3):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, 2)
    assert [p.name for p in checkpoint.saved(tmp_path)] == ["step-00000003", "step-00000010"]
    write(tmp_path, 11)
    checkpoint.prune(tmp_path, 1, spare="step-00000003")
    assert [p.name for p in checkpoint.saved(tmp_path)] == ["step-00000003", "step-00000011"]


def test_another_format_is_named(tmp_path):
    path = write(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    assert "format 99" in checkpoint.verify(path)


def test_an_unwritable_place_is_one_readable_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "below", 1)
