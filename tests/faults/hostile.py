"""Hostile model folders: each function takes a whole, harmless export and spoils it; `canary` appears if code ran."""

import json
import os
import pickle
import struct
from pathlib import Path

HUGE = 10**12


class Payload:
    """Unpickled, it runs a command."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def dangerous(canary: Path) -> bytes:
    return pickle.dumps({"state_dict": Payload(canary)})


def python(canary: Path) -> str:
    """A module that does it when imported."""
    names = "EvilPipeline = EvilModel = EvilTokenizer = AutoencoderKL = object"
    return f"import os\nos.system('touch {canary}')\n{names}\n"


def change(path: Path, **keys) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def weights(folder: Path, part: str) -> Path:
    return folder / part / ("model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors")


def header(path: Path, edit) -> None:
    """Rewrite the header of a safetensors file; the data stay."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    told = json.dumps(edit(json.loads(data[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told + data[8 + length :])


def graph(folder: Path, location: str | None = None, domain: str = "", bomb: bool = False) -> None:
    """The U-Net's graph anew: it keeps the mark by which it is taken for one of these weights."""
    from onnx import TensorProto, helper

    from ldm.pipelines.onnx_runtime import layout

    taken = [helper.make_tensor_value_info(name, 1, None) for name in ("sample", "timestep", "states")]
    tensor = helper.make_tensor("w", 1, [1], [1.0])
    if location is not None:
        tensor = TensorProto(name="w", dims=[4], data_type=1, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Evil" if domain else "Add", ["sample", "w"], ["prediction"], domain=domain)]
    if bomb:
        tensor = helper.make_tensor("w", TensorProto.INT64, [2], [HUGE, 1000])
        nodes = [
            helper.make_node("ConstantOfShape", ["w"], ["big"]),
            helper.make_node("Add", ["sample", "big"], ["prediction"]),
        ]
    body = helper.make_graph(nodes, "g", taken, [helper.make_tensor_value_info("prediction", 1, None)], [tensor])
    sets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(body, opset_imports=sets, ir_version=9)
    model.metadata_props.add(key="weights_layout", value=layout(folder / "unet"))
    (folder / "unet" / "model.onnx").write_bytes(model.SerializeToString())


# ---- what has to be passed over: the model draws, from the right files -----------------------------------------------


def beside(name):
    def spoil(folder: Path, canary: Path) -> None:
        for part in ("unet", "vae", "text_encoder", "tokenizer"):
            (folder / part / name).write_bytes(dangerous(canary))

    return spoil


def array_of_objects(folder, canary):
    import numpy as np

    np.save(folder / "unet" / "weights.npy", np.array([Payload(canary)], dtype=object), allow_pickle=True)


def module_of_its_own(folder, canary):
    (folder / "evil.py").write_text(python(canary))
    (folder / "vae" / "evil.py").write_text(python(canary))
    index = json.loads((folder / "model_index.json").read_text())
    change(folder / "model_index.json", vae=["evil", index["vae"][1]])


def class_in_a_config(folder, canary):
    (folder / "unet" / "evil.py").write_text(python(canary))
    change(folder / "unet" / "config.json", _class_name="evil.EvilModel")


def template(folder, canary):
    text = "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}".replace("CANARY", str(canary))
    change(folder / "tokenizer" / "tokenizer_config.json", chat_template=text)
    (folder / "tokenizer" / "chat_template.jinja").write_text(text)


PASSED_OVER = {
    "pickle as pytorch_model.bin": beside("pytorch_model.bin"),
    "pickle as diffusion_pytorch_model.bin": beside("diffusion_pytorch_model.bin"),
    "pickle as model.pt": beside("model.pt"),
    "pickle as model.ckpt": beside("model.ckpt"),
    "pickle as weights.pkl": beside("weights.pkl"),
    "pickle as training_args.bin": beside("training_args.bin"),
    "pickle as flax_model.msgpack": beside("flax_model.msgpack"),
    "an array of objects": array_of_objects,
    "a component of a module in the folder": module_of_its_own,
    "a config that names another class": class_in_a_config,
    "a chat template": template,
    "a config that was loaded from elsewhere": lambda folder, canary: change(
        folder / "unet" / "config.json", _name_or_path="/etc"
    ),
    "a tokenizer of another class": lambda folder, canary: change(
        folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"
    ),
}

# ---- what has to be refused ------------------------------------------------------------------------------------------


def instead(part, name):
    def spoil(folder: Path, canary: Path) -> None:
        weights(folder, part).unlink()
        (folder / part / name).write_bytes(dangerous(canary))

    return spoil


def custom_pipeline(folder, canary):
    (folder / "pipeline.py").write_text(python(canary))
    change(folder / "model_index.json", custom_pipeline="pipeline")


def pipeline_class(name):
    def spoil(folder: Path, canary: Path) -> None:
        (folder / "pipeline.py").write_text(python(canary))
        change(folder / "model_index.json", _class_name=name)

    return spoil


def remote_code(part, file="config.json", **keys):
    def spoil(folder: Path, canary: Path) -> None:
        (folder / part / "evil.py").write_text(python(canary))
        change(folder / part / file, **keys)

    return spoil


def set_to(path, **keys):
    return lambda folder, canary: change(folder / path, **keys)


def link(path, target):
    def spoil(folder: Path, canary: Path) -> None:
        place = folder / path
        kept = folder.parent / "elsewhere"
        place.rename(kept)
        place.symlink_to(kept if target is None else target)

    return spoil


def pipe(folder, canary):
    os.mkfifo(folder / "unet" / "more.json")


def shards(folder, canary):
    kept = folder.parent / "outside.safetensors"
    kept.write_bytes(weights(folder, "unet").read_bytes())
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../outside.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def endless_header(folder, canary):
    with weights(folder, "unet").open("wb") as stream:
        stream.write(struct.pack("<Q", 200 * 2**20))
        stream.truncate(201 * 2**20)  # sparse


def renamed(folder, canary):
    """Widths that other tensors bear out, of weights that are not there: the library would make them."""
    header(weights(folder, "text_encoder"), lambda told: {f"other.{name}": entry for name, entry in told.items()})
    with weights(folder, "vae").open("rb") as stream:
        assert stream.read(1)
    change(folder / "text_encoder" / "config.json", intermediate_size=4096, hidden_size=4096, vocab_size=4096)


def shape(of):
    return lambda folder, canary: header(
        weights(folder, "unet"), lambda told: {**told, "conv_in.weight": {**told["conv_in.weight"], **of}}
    )


def overlap(folder, canary):
    def edit(told):
        first = next(entry for name, entry in told.items() if name != "__metadata__")
        return {
            name: ({**entry, "data_offsets": first["data_offsets"]} if "shape" in entry else entry)
            for name, entry in told.items()
        }

    header(weights(folder, "unet"), edit)


def cut(folder, canary):
    path = weights(folder, "vae")
    path.write_bytes(path.read_bytes()[:-1000])


def deep(path):
    return lambda folder, canary: (folder / path).write_text("[" * 200_000)


def long_text(folder, canary):
    with (folder / "ldm.json").open("wb") as stream:
        stream.truncate(2**40)  # sparse


REFUSED = {
    "a pickle instead of the U-Net": instead("unet", "diffusion_pytorch_model.bin"),
    "a pickle instead of the text encoder": instead("text_encoder", "pytorch_model.bin"),
    "a pickle called safetensors": lambda folder, canary: weights(folder, "vae").write_bytes(dangerous(canary)),
    "remote code of a text encoder": remote_code("text_encoder", auto_map={"AutoModel": "evil.EvilModel"}),
    "remote code of a tokenizer": remote_code(
        "tokenizer", "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]}
    ),
    "a custom pipeline": custom_pipeline,
    "weights that link out": link("unet/diffusion_pytorch_model.safetensors", None),
    "a component that links out": link("vae", None),
    "shards in another folder": shards,
    "wide channels": set_to("unet/config.json", block_out_channels=[10**9, 10**9]),
    "many layers": set_to("text_encoder/config.json", num_hidden_layers=10**9),
    "a graph with data outside": lambda folder, canary: graph(folder, "../../outside.safetensors"),
    "a header of 200 MiB": endless_header,
    "many timesteps": set_to("scheduler/scheduler_config.json", num_train_timesteps=HUGE),
    "another pipeline": pipeline_class("EvilPipeline"),
    "a pipeline of a module": pipeline_class(["pipeline", "EvilPipeline"]),
    "a class of a module": set_to("model_index.json", unet=["evil", "EvilModel"]),
    "a class that is a path": set_to("model_index.json", unet=["diffusers", "../../evil.EvilModel"]),
    "attention code of the Hub": remote_code("text_encoder", attn_implementation="evil/kernels"),
    "attention code, hidden": remote_code("text_encoder", _attn_implementation="evil/kernels"),
    "a quantizer": remote_code("unet", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "an adapter": lambda folder, canary: (folder / "text_encoder" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "evil/model", "peft_type": "LORA"})
    ),
    "settings that are a device": link("scheduler/scheduler_config.json", "/dev/zero"),
    "settings that link out": link("unet/config.json", "/etc/passwd"),
    "weights that are a device": link("vae/diffusion_pytorch_model.safetensors", "/dev/zero"),
    "a pipe": pipe,
    "a graph with data at a path": lambda folder, canary: graph(folder, "/etc/passwd"),
    "a graph of unknown code": lambda folder, canary: graph(folder, domain="evil.ops"),
    "a graph that asks for all memory": lambda folder, canary: graph(folder, bomb=True),
    "a shape of 10**15": shape({"shape": [10**6, 10**6, 1000, 1]}),
    "a negative shape": shape({"shape": [-4, -9]}),
    "a shape that is no list": shape({"shape": {"a": 1}}),
    "tensors that overlap": overlap,
    "weights cut short": cut,
    "other weights": renamed,
    "many layers in a block": set_to("unet/config.json", layers_per_block=10**6),
    "many blocks": set_to("vae/config.json", block_out_channels=[8] * 10**5, down_block_types=["x"] * 10**5),
    "a large vocabulary": set_to("text_encoder/config.json", vocab_size=HUGE),
    "long positions": set_to("text_encoder/config.json", max_position_embeddings=10**11),
    "large pictures": set_to("unet/config.json", sample_size=10**6),
    "a scheduler of high order": set_to("scheduler/scheduler_config.json", solver_order=10**9),
    "a scheduler of nonsense": set_to("scheduler/scheduler_config.json", beta_schedule="evil", use_flow_sigmas=None),
    "long prompts": set_to("tokenizer/tokenizer_config.json", model_max_length=HUGE),
    "endless prompts": set_to("tokenizer/tokenizer_config.json", model_max_length=1e30),
    "many steps": set_to("ldm.json", num_inference_steps=HUGE),
    "guidance in words": set_to("ldm.json", guidance_scale="__import__('os')"),
    "an interval of one": set_to("ldm.json", guidance_interval=[1]),
    "training facts of another kind": set_to("ldm.json", training=["a"]),
    "settings of a terabyte": long_text,
    "settings a mile deep": deep("unet/config.json"),
    "an index a mile deep": deep("model_index.json"),
    "a tokenizer a mile deep": deep("tokenizer/tokenizer.json"),
}
