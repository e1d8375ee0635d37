"""Text encoder, U-Net and decoder as ONNX graphs in a model folder, for `onnx_runtime` and for other runtimes.

A graph points into the safetensors file of its component instead of holding the weights again: ONNX calls it external
data. So a folder grows by less than a megabyte, and new weights in the same places are computed with too.
"""

import hashlib
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ldm.pipelines.onnx_runtime import GRAPHS, layout
from ldm.pipelines.pipeline import Pipeline

OPSET = 20
SMALL = 256  # numbers; smaller constants stay in the graph


class _TextStates(nn.Module):
    def __init__(self, text_encoder):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.text_encoder(input_ids=input_ids)[0]


class _Prediction(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states=states, return_dict=False)[0]


class _Picture(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, return_dict=False)[0]


def write_graphs(pipeline: Pipeline, folder: Path) -> None:
    """Write the graphs of a float32 pipeline beside the weights in an exported `folder`. Needs onnx."""
    import onnx

    length = pipeline.tokenizer.model_max_length
    ids = torch.full((2, length), pipeline.tokenizer.pad_token_id)
    sample, timestep = torch.randn(2, *pipeline.latent_shape), torch.tensor([500.0, 500.0])
    with torch.no_grad():
        states = pipeline.text_encoder(ids)[0]
    parts: dict[str, tuple[nn.Module, dict[str, Tensor], str]] = {
        "text_encoder": (_TextStates(pipeline.text_encoder), {"input_ids": ids}, "states"),
        "unet": (
            _Prediction(pipeline.unet),
            {"sample": sample, "timestep": timestep, "states": states},
            "prediction",
        ),
        "vae": (_Picture(pipeline.vae), {"latents": sample}, "picture"),
    }
    for component, (module, inputs, output) in parts.items():
        model = _traced(module.eval(), inputs, output)
        _tie(model, folder / component)
        model.metadata_props.add(key="weights_layout", value=layout(folder / component))
        onnx.save(model, folder / component / GRAPHS[component])


def _traced(module: nn.Module, inputs: dict[str, Tensor], output: str):
    """The ONNX model of a module; only the number of rows is left open.

    By the exporter that traces a TorchScript: the one for `torch.export` takes 30 times as long for the same graph.
    """
    import onnx

    written = io.BytesIO()
    with _quiet():
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            written,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={name: {0: "rows"} for name in (*inputs, output)},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(written.getvalue())
    for node in model.graph.node:  # files and lines of whoever exported
        node.doc_string = ""
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks concern itself."""
    its = logging.getLogger("torch.onnx")
    level = its.level
    its.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        its.setLevel(level)


# ---- weights --------------------------------------------------------------------------------------------------------


def _tie(model, component: Path) -> None:
    """Replace every large constant that is a tensor of the component's safetensors, or its transpose, by that."""
    import onnx
    from onnx import helper

    known = _stored(component)
    made = []
    for constant in [one for one in model.graph.initializer if math.prod(one.dims) >= SMALL]:
        found = known.get(_digest(onnx.numpy_helper.to_array(constant)))
        if found is None:
            continue
        entry, transposed = found
        name, last = constant.name, constant.name
        if transposed:
            made.append(helper.make_node("Transpose", [f"{name}.stored"], [last], perm=[1, 0]))
            last = f"{name}.stored"
        if entry["dtype"] != "F32":
            made.append(helper.make_node("Cast", [f"{name}.{entry['dtype']}"], [last], to=onnx.TensorProto.FLOAT))
            last = f"{name}.{entry['dtype']}"
        constant.CopyFrom(_outside(last, entry))
    nodes = [*reversed(made), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _outside(name: str, entry: dict):
    """A constant that lies in another file."""
    import onnx

    kinds = {"F32": onnx.TensorProto.FLOAT, "F16": onnx.TensorProto.FLOAT16}
    tensor = onnx.TensorProto(name=name, dims=entry["shape"], data_type=kinds[entry["dtype"]])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        tensor.external_data.add(key=key, value=str(entry[key]))
    return tensor


def _stored(component: Path) -> dict[str, tuple[dict, bool]]:
    """The tensors of a component by the digest of their values: where they lie, and whether transposed."""
    found: dict[str, tuple[dict, bool]] = {}
    for path in sorted(component.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        for entry in (entry for name, entry in header.items() if name != "__metadata__"):
            if entry["dtype"] not in ("F32", "F16"):
                continue
            first, end = (start + offset for offset in entry["data_offsets"])
            values = np.frombuffer(content[first:end], "<f4" if entry["dtype"] == "F32" else "<f2")
            values = values.reshape(entry["shape"]).astype(np.float32)
            place = {**entry, "location": path.name, "offset": first, "length": end - first}
            found[_digest(values)] = (place, False)
            if values.ndim == 2:
                found.setdefault(_digest(values.T), (place, True))
    return found


def _digest(values: np.ndarray) -> str:
    head = f"{values.dtype}{values.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()
