"""A tiny AutoencoderKL and a tiny CLIP of a Hub on this machine are trained on by their names; hostile ones are not."""

import json

import numpy as np
import pytest
from loopback_hub import Client, Fault, LoopbackHub
from PIL import Image
from pretrained_parts import autoencoder, change, clip, files

PROJECT = """
data: {source: PICTURES, resolution: 16, channels: 1, cache_dir: CACHE, files: {validation_fraction: 0.2}}
train: {num_steps: 2, batch_size: 4, sample_every: 0, log_every: 1, mixed_precision: "no", report_to: [none]}
ldm:
  vae: some/vae
  text: {source: some/clip}
  model: {block_out_channels: [8, 16], norm_num_groups: 4, attention_levels: [1], heads: 2}
  sampling: {num_inference_steps: 2, per_prompt: 1, prompts: [a]}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"number {i}")
    text = PROJECT.replace("PICTURES", str(folder / "pictures")).replace("CACHE", str(folder / "cache"))
    (folder / "tiny.yaml").write_text(text)
    return folder


@pytest.mark.slow
def test_pretrained_parts_are_trained_on_by_name(project, tmp_path, survived):
    autoencoder(tmp_path / "vae")
    clip(tmp_path / "clip")
    good = {"some/vae": files(tmp_path / "vae"), "some/clip": files(tmp_path / "clip")}
    change(tmp_path / "vae" / "config.json", block_out_channels=[8, 10**7])
    change(tmp_path / "clip" / "config.json", auto_map={"AutoModel": "x.Y"})
    bad = {"bad/vae": files(tmp_path / "vae"), "bad/clip": files(tmp_path / "clip")}
    hub = LoopbackHub()
    client = Client(hub, tmp_path / "home")
    try:
        for name, content in {**good, **bad, "old/vae": {"config.json": b"{}", "model.bin": b"x"}}.items():
            hub.create(f"models/{name}", content)
        hub.faults = [Fault(r"GET .*/resolve/.*safetensors", "altered"), Fault(r"GET .*/resolve/.*json", 503)]
        words = ("train", "ldm", project / "tiny.yaml", "--output-dir")
        said = client.run(*words, tmp_path / "run")
        assert said.code == 0, said.text
        final = tmp_path / "run" / "final"
        assert json.loads((final / "tokenizer" / "tokenizer_config.json").read_text())["model_max_length"] == 12
        assert all(fault.fired for fault in hub.faults)
        for option, name, message in (
            ("--vae", "bad/vae", "block_out_channels is 10,000,000"),
            ("--text.source", "bad/clip", "load code from elsewhere"),
            ("--vae", "old/vae", "other formats are not read"),
            ("--vae", "no/where", "there is no folder no/where, and the Hub did not give it"),
        ):
            said = client.run(*words, tmp_path / "refused", option, name)
            assert said.code == 2 and message in said.text and "Traceback" not in said.text, said.text
        survived("Hub: hostile or absent components refused", 4)
        drawn = client.run("generate", "a", "-m", tmp_path / "run", "-o", tmp_path / "one.png")
        assert drawn.code == 0 and Image.open(tmp_path / "one.png").size == (16, 16)
        exported = client.run("export", tmp_path / "run", "-o", tmp_path / "model")
        assert exported.code == 0, exported.text
    finally:
        client.close()
        hub.shutdown()
