"""A run belongs to its pictures, captions, VAE and text encoder: what each task says of itself follows any of them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import tiny_folder

from ldm.autoencoder import VaeTask
from ldm.config import ClipSettings, DataOptions, LdmSettings, VaeSettings
from ldm.data import Splits, build
from ldm.diffusion import LdmTask
from ldm.distill import DistillTask
from ldm.text import ClipTask

PICTURES = 12


@pytest.fixture
def project(tmp_path):
    """Captioned pictures and a model of random weights, from which the parts are taken."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(PICTURES):
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(tmp_path / "pictures" / f"{i:02}.png")
        (tmp_path / "pictures" / f"{i:02}.txt").write_text(f"picture {i}")
    tiny_folder(tmp_path / "model")
    return tmp_path


def data_of(project) -> tuple[DataOptions, Splits]:
    values = {"source": str(project / "pictures"), "resolution": 16, "channels": 1, "cache_dir": project / "cache"}
    options = DataOptions(**values, files={"validation_fraction": 0.0})  # every picture is trained on
    return options, build(options)


def ldm_task(project, **changes) -> LdmTask:
    options, splits = data_of(project)
    model = {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_levels": [1], "heads": 2}
    values = {"data": options, "vae": str(project / "model"), "text": {"source": str(project / "model")}}
    train = {"report_to": ["none"], "mixed_precision": "no"}
    settings = LdmSettings(**{**values, "model": model, "train": train, **changes})
    run = project / "run"
    run.mkdir(exist_ok=True)
    kind = DistillTask if settings.distill.teacher else LdmTask
    return kind(settings, splits, run, torch.device("cpu"))


def student(project) -> LdmTask:
    return ldm_task(project, distill={"teacher": str(project / "model"), "steps": 2})


def vae_task(project) -> VaeTask:
    options, splits = data_of(project)
    model = {"block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 2}
    return VaeTask(VaeSettings(data=options, model=model, loss={"perceptual": 0}), splits)


def clip_task(project) -> ClipTask:
    options, splits = data_of(project)
    return ClipTask(ClipSettings(data=options, model={"patch_size": 8}), splits, project / "clip")


def repaint(project):
    path = project / "pictures" / "03.png"
    pixels = np.array(Image.open(path))
    pixels[5, 5] ^= 1
    Image.fromarray(pixels).save(path)


def rename(project):
    for end in (".png", ".txt"):
        (project / "pictures" / f"03{end}").rename(project / "pictures" / f"03b{end}")


def reword(project):
    (project / "pictures" / "03.txt").write_text("another picture")


def nudge(part):
    """Change the last bit of one weight."""

    def change(project):
        path = next((project / "model" / part).glob("*.safetensors"))
        tensors = load_file(path)
        name = sorted(tensors)[0]
        tensors[name].view(torch.int32).view(-1)[0] ^= 1
        save_file(tensors, path, {"format": "pt"})

    return change


def setting(part, key, value):
    def change(project):
        path = project / "model" / part / "config.json"
        config = json.loads(path.read_text())
        assert config[key] != value
        path.write_text(json.dumps({**config, key: value}))

    return change


def shorten(project):
    path = project / "model/tokenizer/tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_max_length": 12}))


def other_token(project):
    path = project / "model/tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(content))


LDM_CHANGES = {
    "one pixel": (repaint, {"data"}),
    "a picture renamed": (rename, {"data"}),
    "a caption": (reword, {"captions"}),
    "one bit of the VAE": (nudge("vae"), {"vae"}),
    "the VAE's scale": (setting("vae", "scaling_factor", 0.5), {"vae"}),
    "the VAE's shift": (setting("vae", "shift_factor", 0.5), {"vae"}),
    "the VAE's groups": (setting("vae", "norm_num_groups", 2), {"vae"}),
    "the VAE's activation": (setting("vae", "act_fn", "gelu"), {"vae"}),
    "one bit of the text encoder": (nudge("text_encoder"), {"text"}),
    "the text encoder's heads": (setting("text_encoder", "num_attention_heads", 4), {"text"}),
    "the text encoder's activation": (setting("text_encoder", "hidden_act", "gelu"), {"text"}),
    "the tokenizer's words": (other_token, {"tokenizer"}),
    "the tokenizer's length": (shorten, {"tokenizer"}),
}


def different(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("name", LDM_CHANGES)
def test_a_denoiser_knows_what_it_is_trained_on(project, survived, name):
    change, expected = LDM_CHANGES[name]
    before = ldm_task(project).identity
    assert ldm_task(project).identity == before
    change(project)
    assert different(before, ldm_task(project).identity) == expected
    survived("pairings: a part changed and the run's identity with it", 1)


def test_a_student_knows_its_teacher(project, survived):
    before = student(project).identity
    nudge("unet")(project)
    assert different(before, student(project).identity) == {"teacher"}
    survived("pairings: a part changed and the run's identity with it", 1)


def test_the_other_tasks_know_their_data(project, survived):
    before = vae_task(project).identity, clip_task(project).identity
    reword(project)
    (project / "clip/checkpoints/step-00000001").mkdir(parents=True)  # from now on the tokenizer is kept
    words = vae_task(project).identity, clip_task(project).identity
    assert different(before[0], words[0]) == set() and different(before[1], words[1]) == {"captions"}
    repaint(project)
    pixels = vae_task(project).identity, clip_task(project).identity
    assert [different(*pair) for pair in zip(words, pixels, strict=True)] == [{"data"}, {"data"}]
    survived("pairings: a part changed and the run's identity with it", 2)
