"""A run belongs to its pictures, captions, VAE and text encoder: what each task says of itself follows any of them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from caches import write_pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import tiny_folder

from ldm.config.settings import ClipSettings, DataOptions, LdmSettings, VaeSettings
from ldm.data import Splits, build
from ldm.hub.export import export
from ldm.models.autoencoder import load_vae
from ldm.models.digests import network_digest
from ldm.models.tokenizer import tokenizer_digest
from ldm.pipelines.loading import load_pipeline
from ldm.training.run_directory import record
from ldm.training.tasks.clip import ClipTask
from ldm.training.tasks.denoising import LdmTask, denoising_task
from ldm.training.tasks.distillation import distillation_task
from ldm.training.tasks.vae import VaeTask
from ldm.training.trainer import Trainer
from ldm.utils.errors import UserError

TRAIN = {"num_steps": 2, "batch_size": 4, "mixed_precision": "no", "report_to": ["none"], "sample_every": 0}


@pytest.fixture
def project(tmp_path):
    """Captioned pictures and a model of random weights, from which the parts are taken."""
    write_pictures(tmp_path / "pictures")
    tiny_folder(tmp_path / "model")
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with a run that has done one of two steps and gone no further."""
    folder = tmp_path_factory.mktemp("trained")
    write_pictures(folder / "pictures")
    tiny_folder(folder / "model")
    fit(ldm_task(folder, train=TRAIN | {"num_steps": 1}))
    shutil.rmtree(folder / "run/final")
    return folder


@pytest.fixture
def begun(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def data_of(project) -> tuple[DataOptions, Splits]:
    values = {"source": str(project / "pictures"), "resolution": 16, "channels": 1, "cache_dir": project / "cache"}
    options = DataOptions(**values, files={"validation_fraction": 0.0})  # every picture is trained on
    return options, build(options)


def ldm_task(project, **changes) -> LdmTask:
    options, splits = data_of(project)
    model = {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_levels": [1], "heads": 2}
    values = {"data": options, "vae": str(project / "model"), "text": {"source": str(project / "model")}}
    values |= {
        "model": model,
        "train": TRAIN,
        "sampling": {"num_inference_steps": 1, "prompts": ["a"], "per_prompt": 1},
    }
    run = project / "run"
    settings = LdmSettings(**{**values, "output_dir": run, **changes})
    run.mkdir(exist_ok=True)
    make = distillation_task if settings.distill.teacher else denoising_task
    return make(settings, splits, run, torch.device("cpu"))


def fit(task: LdmTask, **options) -> LdmTask:
    try:
        record(task.settings.output_dir, task.settings)
        Trainer(task, task.settings, task.settings.output_dir).fit(**options)
        return task
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


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


def test_a_student_knows_its_teacher(project, survived):
    before = student(project).fingerprints
    nudge("unet")(project)
    assert different(before, student(project).fingerprints) == {"teacher"}
    survived("pairings: a part changed and the run's identity with it", 1)


def test_the_other_tasks_know_their_data(project, survived):
    before = vae_task(project).fingerprints, clip_task(project).fingerprints
    reword(project)
    (project / "clip/checkpoints/step-00000001").mkdir(parents=True)  # from now on the tokenizer is kept
    words = vae_task(project).fingerprints, clip_task(project).fingerprints
    assert different(before[0], words[0]) == set() and different(before[1], words[1]) == {"captions"}
    repaint(project)
    pixels = vae_task(project).fingerprints, clip_task(project).fingerprints
    assert [different(*pair) for pair in zip(words, pixels, strict=True)] == [{"data"}, {"data"}]
    survived("pairings: a part changed and the run's identity with it", 2)


@pytest.mark.parametrize("name", LDM_CHANGES)
def test_a_run_goes_on_with_the_parts_it_began_with_or_not_at_all(begun, survived, name):
    change, expected = LDM_CHANGES[name]
    change(begun)
    before = sorted((begun / "run/checkpoints").iterdir())
    with pytest.raises(UserError, match="was trained otherwise: ") as refused:
        fit(ldm_task(begun))
    assert set(re.findall(r"(\w+)(?: was \w+, now|: as many images)", str(refused.value))) == expected
    assert sorted((begun / "run/checkpoints").iterdir()) == before and not (begun / "run/final").exists()
    fit(ldm_task(begun), allow_changed=sorted(expected))  # who knows what he does
    survived("pairings: a run resumed with another part, refused", 1)


@pytest.mark.usefixtures("no_graphs")
def test_a_run_goes_on_where_its_folders_were_moved_and_keeps_its_own_vae(begun, survived):
    """Afterwards a VAE of another scale comes in its place, and drawing and exporting do not look at it."""
    task = fit(ldm_task(begun))
    setting("vae", "scaling_factor", 0.5)(begun)
    assert network_digest(load_vae(begun / "model")) != task.fingerprints["vae"]
    exported = export(begun / "run", begun / "exported")
    for folder in (begun / "run", exported):
        kept = load_pipeline(folder, device="cpu", engine="torch")
        assert network_digest(kept.vae) == task.fingerprints["vae"]
        assert tokenizer_digest(kept.tokenizer) == task.fingerprints["tokenizer"]
    survived("pairings: a VAE of another scale beside a finished run, not taken", 2)
