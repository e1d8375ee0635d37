"""The ComfyUI nodes over stubs of the three modules that they use of it: lists, types, progress, interruption."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tiny_model import FLOW, tiny_folder

import ldm

SOURCE = Path(__file__).resolve().parents[2] / "integrations" / "comfyui" / "__init__.py"


class Interrupted(Exception):
    """What ComfyUI raises when somebody presses Cancel."""


@pytest.fixture
def comfy(tmp_path, monkeypatch):
    """A stub of ComfyUI with a models/diffusers folder, and the nodes loaded as it loads them."""
    state = SimpleNamespace(models=tmp_path / "models" / "diffusers", bars=[], cancelled=False)
    state.models.mkdir(parents=True)

    class ProgressBar:
        def __init__(self, total):
            state.bars.append([(0, total)])

        def update_absolute(self, value, total=None, preview=None):
            state.bars[-1].append((value, total))

    def throw_exception_if_processing_interrupted():
        if state.cancelled:
            raise Interrupted

    management = SimpleNamespace(
        get_torch_device=lambda: torch.device("cpu"),
        throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted,
    )
    for name, content in (
        ("folder_paths", {"get_folder_paths": lambda kind: [str(state.models)] if kind == "diffusers" else []}),
        ("comfy.utils", {"ProgressBar": ProgressBar}),
        ("comfy.model_management", vars(management)),
        ("comfy", {}),
    ):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["comfy"].utils = sys.modules["comfy.utils"]
    sys.modules["comfy"].model_management = sys.modules["comfy.model_management"]
    spec = importlib.util.spec_from_file_location("ldm_comfyui", SOURCE)
    state.nodes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(state.nodes)
    return state


def test_every_node_has_what_comfyui_reads(comfy):
    assert comfy.nodes.NODE_CLASS_MAPPINGS.keys() == comfy.nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in comfy.nodes.NODE_CLASS_MAPPINGS.values():
        required = node.INPUT_TYPES()["required"]
        code = getattr(node, node.FUNCTION).__code__
        assert list(required) == list(code.co_varnames[1 : code.co_argcount])
        assert all(isinstance(kind, tuple) and isinstance(kind[0], str | list) for kind in required.values())
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and isinstance(node.CATEGORY, str)


def test_a_folder_is_listed_opened_and_generates_as_the_pipeline_does(comfy):
    folder = tiny_folder(comfy.models / "mine" / "tiny", FLOW)
    (comfy.models / "other").mkdir()
    (comfy.models / "other" / "model_index.json").write_text("{}")  # of another program
    names = comfy.nodes.LoadModel.INPUT_TYPES()["required"]["model"][0]
    assert "mine/tiny" in names and "other" not in names and "glyphs" in names
    (model,) = comfy.nodes.LoadModel().load("mine/tiny")
    (images,) = comfy.nodes.Generate().generate(model, "water", "fire", 3, 2, 2.5, 2)
    assert images.shape == (2, 16, 16, 3) and images.dtype == torch.float32
    expected = ldm.load_pipeline(folder)(
        "water",
        negative_prompt="fire",
        num_inference_steps=2,
        guidance_scale=2.5,
        num_images_per_prompt=2,
        seed=3,
        output_type="pt",
    ).images
    torch.testing.assert_close(images, expected.permute(0, 2, 3, 1).expand(-1, -1, -1, 3))
    assert comfy.bars == [[(0, 2), (1, 2), (2, 2)]]


def test_steps_0_and_guidance_minus_1_are_the_models_own_and_cancel_ends_it(comfy):
    model = ldm.load_pipeline(tiny_folder(comfy.models / "tiny"))
    (images,) = comfy.nodes.Generate().generate(model, "water", "", 3, 0, -1.0, 1)
    expected = model("water", seed=3, output_type="pt").images
    torch.testing.assert_close(images, expected.permute(0, 2, 3, 1).expand(-1, -1, -1, 3))
    comfy.cancelled = True
    with pytest.raises(Interrupted):
        comfy.nodes.Generate().generate(model, "water", "", 3, 0, -1.0, 1)


def test_the_nodes_are_a_hundred_lines_at_most():
    assert len(SOURCE.read_text().splitlines()) <= 100
