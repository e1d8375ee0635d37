"""`ldm train` and `ldm new`: what is planned from a folder, kept and skipped. Trainings are in tests/runs."""

import json
import logging
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from ldm.apps import budget, project
from ldm.apps.project import name_of
from ldm.cli import main as cli
from ldm.cli import train_project as command
from ldm.cli import train_stage
from ldm.cli.train import train_all
from ldm.config.loading import load, run_dir
from ldm.training import cpu_processes
from ldm.utils import runtime
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError
from tests.apps.test_budget import forecast

SMOKE = shipped_configs() / "smoke.yaml"
TINY = ["--data.resolution", "16", "--vae.crop", "16"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(budget, "forecast", forecast)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else it starts processes
    yield
    logging.getLogger("ldm.data").setLevel(logging.NOTSET)


def images(folder, count=12, colour=True, captions=True):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (16, 16, 3 if colour else 1), np.uint8)
        Image.fromarray(pixels if colour else pixels[..., 0]).save(folder / f"{i:02}.png")
        if captions:
            (folder / f"{i:02}.txt").write_text(f"a picture\nnumber {i}\n")


def ldm(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    return stop.value.code or 0


@pytest.fixture
def fitted(monkeypatch):
    """The stages that are trained, without training them."""
    calls = []
    for module in (command, train_stage):
        monkeypatch.setattr(module, "fit", lambda part, settings, **more: calls.append((part, settings)))
    monkeypatch.setattr(command, "finish", lambda run, model, exported: calls.append((str(run), str(model))))
    monkeypatch.setattr(command, "compare", lambda parts, chosen: None)
    return calls


def test_a_new_project_loads_and_says_why(tmp_path, capsys):
    images(tmp_path / "My photos")
    assert ldm("new", "My photos", *TINY, "--ldm.sampling.guidance_scale", 2, "--minutes", 60) == 0
    text = (tmp_path / "My-photos.yaml").read_text()
    settings = {part: load(part, tmp_path / "My-photos.yaml") for part in ("clip", "vae", "ldm")}
    assert {one.name for one in settings.values()} == {"My-photos"}
    assert (settings["vae"].data.channels, settings["vae"].data.resolution, settings["vae"].crop) == (3, 16, 16)
    assert settings["ldm"].sampling.guidance_scale == 2 and settings["ldm"].text.train
    assert not settings["vae"].data.files.horizontal_flip
    assert sum(one.train.planned_minutes for one in settings.values()) <= 60
    for words in (
        "12 images",
        "captions: 24",
        "for 60 minutes of 1 ",
        "# Text encoder ",
        "# Autoencoder ",
        "# U-Net ",
        "images/s",
    ):
        assert words in text
    assert "images with several lines beside them: 12;" in capsys.readouterr().err
    assert ldm("new", "My photos") == 2 and "exists" in capsys.readouterr().err


def test_a_new_project_is_planned_for_the_processes_that_train_it(monkeypatch, tmp_path):
    """Each has its part of the cores, the memory and the batch."""
    found = []
    monkeypatch.setattr(
        project,
        "write_project",
        lambda *_: found.extend(os.environ[name] for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")),
    )
    monkeypatch.setattr(runtime, "prepare_threads", lambda threads: found.append(threads))
    monkeypatch.setattr(cpu_processes, "useful", lambda batches: 4)
    monkeypatch.setattr(runtime, "usable_cores", lambda: 8)
    before = dict(os.environ)
    assert ldm("new", "photos") == 0
    assert found == [2, "4", "4"] and dict(os.environ) == before


def test_grey_images_without_captions_make_a_grey_unconditional_project(tmp_path):
    images(tmp_path / "grey", colour=False, captions=False)
    assert ldm("new", "grey", "-o", "sub/mine.yaml", *TINY) == 0
    document = yaml.safe_load((tmp_path / "sub/mine.yaml").read_text())
    assert document["data"]["channels"] == 1 and "clip" not in document and document["name"] == "mine"
    assert budget.stages(load("ldm", tmp_path / "sub/mine.yaml")) == ["vae", "ldm"]


def test_given_settings_are_kept_in_every_stage(tmp_path):
    images(tmp_path / "mine")
    given = ["--train.num_steps", 7, "--optim.lr", 3e-3, "--ldm.model.block_out_channels", 16, 32]
    assert ldm("new", "mine", *TINY, *given, "--ldm.model.attention_levels", 1, "--train.batch_size", 8) == 0
    for part in ("clip", "vae", "ldm"):
        settings = load(part, tmp_path / "mine.yaml")
        assert (settings.train.num_steps, settings.train.batch_size, settings.optim.lr) == (7, 8, 3e-3)
    assert load("ldm", tmp_path / "mine.yaml").model.block_out_channels == [16, 32]


def test_a_folder_is_planned_once_and_its_stages_follow(tmp_path, fitted, capsys):
    images(tmp_path / "mine")
    assert ldm("train", "--minutes", 60, "mine", *TINY) == 0
    assert [what for what, _ in fitted] == ["clip", "vae", "ldm", "runs/mine/ldm"] and fitted[-1][1] == "mine-model"
    plan = (tmp_path / "mine.yaml").read_bytes()
    assert ldm("train", "mine", "-o", "out", "--optim.lr", 0.5, "--vae.optim.lr", 0.25) == 0
    assert (tmp_path / "mine.yaml").read_bytes() == plan and "as made before" in capsys.readouterr().out
    assert fitted[-1] == ("runs/mine/ldm", "out")
    assert [settings.optim.lr for _, settings in fitted[4:7]] == [0.5, 0.25, 0.5]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, fitted, capsys):
    images(tmp_path / "mine")
    assert ldm("train", "mine", "--minutes", 100, *TINY, "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("data: mine: 12 images (") and "captions: 24" in said[0]
    assert said[1] == "plan: mine.yaml, to be written for 100 minutes"
    assert said[2] == "[1/3] text encoder: about 12% of the time, 12 min, in runs/mine/clip (new)"
    assert said[4] == "[3/3] U-Net: the rest but for 3 min of report and export, in runs/mine/ldm (new)"
    assert said[5] == "then: report in runs/mine/report, model in mine-model"
    assert not fitted and [path.name for path in tmp_path.iterdir()] == ["mine"]
    images(tmp_path / "bare", captions=False)
    assert ldm("train", "bare", "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert "no captions" in said[0] and said[2].startswith("[1/2] autoencoder: about 15% of the time")


def test_a_dry_run_of_a_project_counts_its_steps_and_what_is_done(tmp_path, capsys):
    for name in ("clip/checkpoints/step-00000006", "clip/final", "vae/checkpoints/step-00000002"):
        (tmp_path / "runs" / "smoke" / name).mkdir(parents=True)
    steps = {part: load(part, SMOKE).train for part in command.STAGES}
    assert ldm("train", SMOKE, "--clip.train.num_steps", 6, "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"plan: {SMOKE}, as made before"
    assert said[2].startswith("[1/3] text encoder: 6 steps of") and said[2].endswith("clip (trained before)")
    assert said[3].startswith(f"[2/3] autoencoder: {steps['vae'].num_steps} steps of {steps['vae'].batch_size}")
    assert said[3].endswith("in runs/smoke/vae (continues at step 2)") and said[4].endswith("ldm (new)")
    assert ldm("train", "nowhere", "--dry-run") == 2 and "nowhere does not exist" in capsys.readouterr().err


def test_a_project_file_is_trained_as_it_says(fitted):
    assert ldm("train", SMOKE, "--name", "mine") == 0
    assert [what for what, _ in fitted[:3]] == ["clip", "vae", "ldm"]
    assert [settings.train.num_steps for _, settings in fitted[:3]] == [
        load(p, SMOKE).train.num_steps for p in command.STAGES
    ]
    assert fitted[3] == ("runs/mine/ldm", "mine-model")


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "give a folder of images"),
        (["a", "b"], "give one folder, got a and b"),
        (["nowhere"], "nowhere does not exist"),
        (["glyphs"], "built-in data set"),
        ([SMOKE, "--minutes", 5], "ldm plan"),
        (["mine", "--minutes", "0"], "--minutes must be a number above 0"),
        (["mine", "--memory", "much"], "--memory must be a size"),
        (["mine", "--data.resolutoin", "32"], "did you mean --data.resolution"),
        (["mine", "--clip.model.widht", "32"], "did you mean --clip.model.width"),
        (["mine", "--output-dir", "x"], "unknown option"),
        (["mine", "--data.resolution", "15"], "--data.resolution: must be a multiple of 8, got 15"),
        (["mine", "--ldm.caption_dropout", "2"], "--caption_dropout: must be less than or equal to 1"),
        (["mine", *TINY, "--minutes", "0.5"], "too little time"),
        (["other/mine", *TINY], "is the project of mine, not of other/mine: add --name"),
        (["other/mine", "--dry-run"], "is the project of mine, not of other/mine: add --name"),
    ],
)
def test_what_cannot_be_trained_is_one_line(tmp_path, words, said, capsys, fitted):
    images(tmp_path / "mine")
    if words[:1] == ["other/mine"]:
        (tmp_path / "mine.yaml").write_text("data: {source: mine}\n")
    assert ldm("train", *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not fitted


def test_a_stage_says_at_once_what_it_is_and_at_its_end_what_comes_next(fitted, capsys):
    said = {}
    for part in command.STAGES:
        (run_dir(load(part, SMOKE), part) / "final").mkdir(parents=True)
        assert ldm("train", part, SMOKE) == 0
        said[part] = capsys.readouterr().out.splitlines()
    assert said["clip"] == [f"text encoder: {SMOKE}, in runs/smoke/clip", f"next: ldm train vae {SMOKE}"]
    assert said["vae"][-1] == f"next: ldm train ldm {SMOKE}"
    assert said["ldm"][-1].startswith('next: ldm generate -m runs/smoke/ldm "a prompt"')
    assert [part for part, _ in fitted] == list(command.STAGES)


def test_a_stage_alone_takes_what_its_script_takes(capsys):
    from ldm.config.overrides import parse

    assert ldm("train", "vae", SMOKE, "--optim.lr", "0.5", "--print-config") == 0
    ours = capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse("vae", [str(SMOKE), "--optim.lr", "0.5", "--print-config"])
    assert capsys.readouterr().out == ours and "lr: 0.5" in ours
    assert ldm("train", "clip", "--help") == 0 and "--model.width" in capsys.readouterr().out
    assert ldm("train", "--help") == 0 and "accelerate launch -m ldm.train" in " ".join(capsys.readouterr().out.split())


def test_what_is_finished_is_what_has_all_its_steps(tmp_path):
    from ldm.config.loading import to_yaml
    from ldm.utils import checkpoint_files as checkpoint

    run = tmp_path / "runs/smoke/vae"
    settings = load("vae", SMOKE)
    run.mkdir(parents=True)
    assert not command.finished("vae", settings)
    (run / "config.yaml").write_text(to_yaml(settings))
    with checkpoint.staged(run / "final") as stage:
        (stage / "weights").write_text("1")
    assert not command.finished("vae", settings)  # its report is missing
    (run / "report.json").write_text(json.dumps({}))
    assert command.finished("vae", settings)
    longer = settings.model_copy(update={"train": settings.train.model_copy(update={"num_steps": 10**6})})
    assert not command.finished("vae", longer)
    (run / "config.yaml").write_text(to_yaml(longer))  # it was begun, and stopped on the way
    (run / "checkpoints" / checkpoint.name(settings.train.num_steps + 1)).mkdir(parents=True)
    assert not command.finished("vae", longer) and not command.finished("vae", settings)
    (run / "checkpoints" / checkpoint.name(settings.train.num_steps + 1)).rmdir()
    (run / "config.yaml").write_text(to_yaml(settings))
    otherwise = settings.model_copy(update={"crop": 16})
    with pytest.raises(UserError, match="trained otherwise: crop was 0, now 16"):
        command.finished("vae", otherwise)
    (run / "final/weights").write_text("2")
    assert not command.finished("vae", settings)


def test_a_stage_that_validation_ended_is_finished_until_it_gets_more_patience(tmp_path):
    from ldm.config.loading import to_yaml
    from ldm.utils import checkpoint_files as checkpoint

    changes = {"train": {"num_steps": 100, "patience": 0.2}, "optim": {"schedule": "constant"}}
    settings, run = load("clip", SMOKE, changes), tmp_path / "runs/smoke/clip"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(settings))
    validations = [{"step": step, "loss": loss} for step, loss in ((10, 1.0), (20, 1.5), (30, 1.5), (40, 1.5))]
    for step in (10, 20, 30, 40):
        with checkpoint.staged(run / "checkpoints" / checkpoint.name(step)) as stage:
            (stage / "state.json").write_text(json.dumps({"validations": validations}))
    with checkpoint.staged(run / "final") as stage:
        (stage / "weights").write_text("1")
    assert command.finished("clip", settings)
    patient = settings.model_copy(update={"train": settings.train.model_copy(update={"patience": 0.5})})
    assert not command.finished("clip", patient)
    assert ldm("runs", "prune", run, "--keep", 1) == 0  # the best stays beside the newest
    assert [path.name for path in checkpoint.saved(run / "checkpoints")] == [checkpoint.name(10), checkpoint.name(40)]


@pytest.mark.parametrize(
    "source, name", [("a/b/My cats/", "My-cats"), ("x.parquet", "x"), ("user/set", "set"), ("/", "my")]
)
def test_names_of_projects(source, name):
    assert name_of(source) == name


def test_both_launchers_reach_the_same_command():
    from pathlib import Path

    root = Path(cli.__file__).parents[2]
    assert 'main(["train", *sys.argv[1:]])' in (root / "ldm/train.py").read_text()
    for part in command.STAGES:
        assert f'train_stage("{part}")' in (root / f"train_{part}.py").read_text()


def test_too_little_time_names_the_minutes(tmp_path):
    images(tmp_path / "mine")
    with pytest.raises(UserError, match=r"give --minutes \d+ or more"):
        train_all(["mine", *TINY, "--minutes", "0.2"])
    assert not (tmp_path / "mine.yaml").exists()
