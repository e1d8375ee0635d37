"""What a launcher asks for is followed where the settings leave it open, and named where they do not."""

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState

from ldm.config.settings import ClipSettings, LdmSettings, RunSettings, TrainOptions, VaeSettings
from ldm.training import launcher
from ldm.training.distributed import build_accelerator, precision
from ldm.training.launcher import asked_accumulation, asked_precision, followed, option
from ldm.utils.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
REAL_WORDS = launcher.launcher_words
LAUNCH = ["python", "/bin/accelerate", "launch"]


@pytest.fixture(autouse=True)
def launch(monkeypatch, tmp_path):
    """launch(words, precision): as if this process had been started so."""
    from accelerate.commands.config import config_args

    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "none.yaml"))

    def start(words=(), given="no"):
        monkeypatch.setattr(launcher, "launcher_words", lambda: [*LAUNCH, *words, "train_ldm.py"])
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", given)

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", raising=False)
    monkeypatch.setattr(launcher, "launcher_words", list)
    yield start
    AcceleratorState._reset_state(reset_partial_state=True)


def changed(part, **train) -> tuple[RunSettings, list[str]]:
    kind = {"clip": ClipSettings, "vae": VaeSettings, "ldm": LdmSettings}[part]
    return followed(part, kind(train=TrainOptions(**train)), CPU)


def test_auto_takes_the_launchers_precision(launch, monkeypatch):
    monkeypatch.setattr("ldm.training.distributed.native_bf16", lambda device: device == CUDA)
    assert precision("auto", CUDA) == "bf16" and precision("auto", CPU) == "no"
    for given in ("fp16", "bf16"):
        launch(["--mixed_precision", given], given)
        assert precision("auto", CUDA) == given
    launch(["--mixed-precision=no"])
    assert precision("auto", CUDA) == "no"
    assert precision("bf16", CUDA) == "bf16"  # a setting counts
    with pytest.raises(UserError, match="accelerate launch's mixed_precision fp16 needs a GPU"):
        launch([], "fp16")
        precision("auto", CPU)


def test_no_is_a_choice_only_of_somebody_who_made_it(launch, monkeypatch, tmp_path):
    launch()  # nothing was chosen: the launcher says no all the same
    assert asked_precision() is None
    (tmp_path / "fsdp.yaml").write_text("mixed_precision: 'no'\n")
    launch(["--config_file", str(tmp_path / "fsdp.yaml")])
    assert asked_precision() == "no"
    (tmp_path / "none.yaml").write_text("num_processes: 1\n")
    launch()
    assert asked_precision() is None
    (tmp_path / "none.yaml").write_text("mixed_precision: 'no'\n")
    assert asked_precision() == "no"
    monkeypatch.setattr(launcher, "launcher_words", list)  # the variable, set by hand
    assert asked_precision() == "no"


def test_a_precision_that_there_is_not_is_one_line(launch):
    launch(["--mixed_precision", "fp8"], "fp8")
    with pytest.raises(UserError, match="asks for mixed_precision fp8; there are no, bf16, fp16"):
        asked_precision()


def test_a_setting_that_differs_is_named(launch):
    launch(["--mixed_precision", "fp16"], "fp16")
    settings, notes = changed("ldm", mixed_precision="bf16")
    assert settings.train.mixed_precision == "bf16"
    assert len(notes) == 1 and "asks for mixed_precision fp16, and train.mixed_precision bf16 counts" in notes[0]
    assert changed("ldm", mixed_precision="fp16")[1] == changed("ldm")[1] == []
    launch()
    assert changed("ldm", mixed_precision="bf16")[1] == []


def test_an_autoencoder_is_not_trained_in_fp16(launch):
    launch(["--mixed_precision", "fp16"], "fp16")
    settings, notes = changed("vae")
    assert settings.train.mixed_precision in ("bf16", "no") and "fp16, which overflows in autoencoders" in notes[0]


def test_accumulation_is_followed_where_it_is_not_set(launch, monkeypatch):
    launch(["--gradient_accumulation_steps", "4"])
    settings, notes = changed("ldm")
    assert settings.train.gradient_accumulation_steps == 4 and "4, as accelerate launch asks for" in notes[0]
    for part, train in (("ldm", {"gradient_accumulation_steps": 2}), ("clip", {})):
        settings, notes = changed(part, **train)
        assert settings.train.gradient_accumulation_steps == train.get("gradient_accumulation_steps", 1)
        assert "asks for 4 gradient_accumulation_steps, and" in notes[0]
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")  # as with DeepSpeed
    assert asked_accumulation() == 2
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    assert asked_accumulation() is None


def test_the_launchers_accumulation_does_not_scale_the_gradients(monkeypatch, tmp_path):
    """The trainer divides by its own number; accelerate would do so a second time."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.nn.Parameter(torch.ones(()))
    build_accelerator(TrainOptions(report_to=["none"]), tmp_path, False).backward(3 * weight)
    assert weight.grad == 3


@pytest.mark.parametrize("words", [["--n_p", "2"], ["--n-p=2"], ["x", "--n-p", "2", "--n_p", "3"]])
def test_an_option_is_found_in_all_its_forms(words):
    assert option(words, "n_p") == "2" and option(words, "p") is None and option(["--n_p"], "n_p") == ""


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["python3.12", "/opt/bin/accelerate", "launch", "--cpu", "train_ldm.py"], True),
        (["python", "-m", "accelerate.commands.launch", "train_ldm.py"], True),
        (["python", "-m", "accelerate.commands.accelerate_cli", "launch", "train_ldm.py"], True),
        (["accelerate-launch", "--cpu", "train_ldm.py"], True),
        (["torchrun", "--nproc_per_node", "2", "train_ldm.py"], False),
        (["bash", "-c", "accelerate launch train_ldm.py"], False),
    ],
)
def test_the_launcher_is_known_by_its_command_line(monkeypatch, words, known):
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: words)
    assert REAL_WORDS() == (words if known else [])


def test_a_parent_that_may_not_be_looked_at_is_no_launcher(monkeypatch):
    def refuse(self):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "cmdline", refuse)
    assert REAL_WORDS() == []
