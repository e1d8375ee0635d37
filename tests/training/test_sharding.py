"""A denoiser in shards (FSDP2) on two CPU processes is the training that DDP does, and continues anywhere."""

import json
import os
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch
from commands import BIN, ROOT, run
from forked import world
from PIL import Image
from safetensors.torch import load_file
from tiny_trainings import FSDP, GLOO, content, losses, settings_of, task_of, write_project

from ldm.config.loading import to_yaml
from ldm.data import build
from ldm.training.distributed import start_world
from ldm.training.engines import layers_of
from ldm.training.run_directory import open_run
from ldm.training.tasks.distillation import distillation_task
from ldm.training.trainer import Trainer
from ldm.training.world import together
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils import sharded_files
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError

pytestmark = GLOO
STEPS, HALF = 20, 10
GROUPS = ("model", "ema", "optimizer")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("project") / "project")


def settings(project, run, distilled=False, **changes):
    """An LDM whose text encoder learns too, or a student; without dropout, as then processes may be one or two."""
    options = {"num_steps": STEPS, "save_every": HALF, "sample_every": HALF, "keep_checkpoints": 4} | changes
    ours = settings_of("ldm", project, run, **options)
    changed = {
        "text": ours.text.model_copy(update={"train": True}),
        "model": ours.model.model_copy(update={"dropout": 0.0}),
    }
    if distilled:
        teacher = {"teacher": str(project / "model"), "steps": 2}
        changed |= {"text": ours.text, "distill": ours.distill.model_copy(update=teacher)}
    return ours.model_copy(update=changed)


def train(project, run, environment, changes):
    """One stage as `ldm train` does it, in a process that a launcher started."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    with together():
        start_world()
        ours = settings(project, run, **changes)
        open_run(ours, "ldm")
        Trainer(task(ours, run), ours, run).fit()


def task(ours, run):
    if ours.distill.teacher:
        return distillation_task(ours, build(ours.data), run, torch.device("cpu"))
    return task_of("ldm", ours, run)


def start(project, run, environment, size=2, **changes):
    return world(partial(train, project, run, environment, changes), run.parent / f"{run.name}-said", size)


def trained(*args, **changes):
    """What the main process said."""
    children = start(*args, **changes)
    assert {child.wait() for child in children} == {0}, [child.said() for child in children]
    return children[0].said()


@pytest.fixture(scope="module")
def sharded(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp") / "run"
    assert "in shards (FSDP2)" in trained(project, folder, FSDP)
    return folder


def assert_near(one, other, tolerance):
    """Two runs lead to the same weights, moments, averages and images."""
    assert losses(one) == pytest.approx(losses(other), rel=tolerance) and list(losses(one)) == [*range(1, STEPS + 1)]
    ours, theirs = (checkpoint.load(run / "checkpoints" / checkpoint.name(STEPS))[0] for run in (one, other))
    for group in GROUPS:
        assert_close(ours[group], theirs[group], tolerance)
    images = [path.name for path in sorted((one / "samples").iterdir())]
    assert len(images) == 6  # raw and EMA, at the begin, the half and the end
    for name in images:
        first, second = (np.asarray(Image.open(run / "samples" / name), dtype=int) for run in (one, other))
        assert np.abs(first - second).max() <= 1
    first, second = (load_file(run / "final/unet/diffusion_pytorch_model.safetensors") for run in (one, other))
    assert_close(first, second, tolerance)


def assert_close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys() and ours
    for name, value in ours.items():
        if not name.endswith("k_proj.bias"):  # softmax does not see it: Adam follows what rounding leaves of a zero
            torch.testing.assert_close(value, theirs[name], rtol=100 * tolerance, atol=10 * tolerance)


@pytest.mark.slow
def test_shards_train_as_ddp_does(project, sharded, tmp_path):
    trained(project, tmp_path / "ddp", {})
    assert_near(sharded, tmp_path / "ddp", 1e-5)
    saved = sharded / "checkpoints" / checkpoint.name(STEPS)
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    shards = {f"shards/shard-{rank:05}-model-00001-of-00001.safetensors" for rank in (1, 2)}
    assert files == shards | {"state.json", "manifest.json"} and checkpoint.verify(saved) is None
    sizes = [(saved / shard).stat().st_size for shard in shards]
    assert max(sizes) < 1.5 * min(sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        {"mixed_precision": "bf16", "ema_decay": 0.0},
        {"distilled": True},
    ],
    ids=["accumulated", "bf16", "distilled"],
)
def test_settings_of_a_training_mean_the_same_in_shards(changes, project, tmp_path):
    changes = changes | {"num_steps": 4, "save_every": 4, "sample_every": 0}
    for name, environment in (("fsdp", FSDP), ("ddp", {})):
        trained(project, tmp_path / name, environment, **changes)
    bf16 = "mixed_precision" in changes
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=1e-2 if bf16 else 1e-5)


def train_until_killed(project, run, environment, changes):
    """The second process is killed while both write the last checkpoint."""
    write = sharded_files.write

    def write_or_die(folder, tensors, group):
        if os.environ["RANK"] == "1" and checkpoint.name(STEPS) in folder.name:
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder, tensors, group)

    sharded_files.write = write_or_die
    train(project, run, environment, changes)


@pytest.mark.slow
def test_a_training_killed_while_it_saves_continues_to_the_same_end(project, sharded, tmp_path):
    folder = tmp_path / "run"
    main, other = world(partial(train_until_killed, project, folder, FSDP, {}), tmp_path / "said", 2)
    assert other.wait() == -signal.SIGKILL and main.wait() == 2
    assert "Traceback" not in main.said() and "--resume auto continues from the last checkpoint" in main.said()
    (saved,) = checkpoint.saved(folder / "checkpoints")
    assert saved.name == checkpoint.name(HALF) and not (folder / "final").exists()
    assert f"resumed {saved}" in trained(project, folder, FSDP)
    assert losses(folder) == losses(sharded) and content(folder / "final") == content(sharded / "final")
    ours, theirs = (checkpoint.load(run / "checkpoints" / checkpoint.name(STEPS)) for run in (folder, sharded))
    for group in GROUPS:  # bytes of files may differ: safetensors writes its metadata in any order
        assert all(torch.equal(value, theirs[0][group][name]) for name, value in ours[0][group].items())
    assert ours[1] | {"settings": None} == theirs[1] | {"settings": None}
    assert not [*(folder / "checkpoints").glob(".*")]  # nothing unfinished is left


def train_apart(project, folder):
    train(project, folder / os.environ["RANK"] / "run", FSDP, {})


@pytest.mark.slow
def test_machines_without_a_disk_in_common_are_refused(project, tmp_path):
    children = world(partial(train_apart, project, tmp_path), tmp_path / "said", 2, nodes=True)
    for child in children:
        assert child.wait() == 2 and "FSDP needs an --output-dir that all machines share" in child.said()


@pytest.mark.slow
def test_one_process_continues_what_two_began_and_two_what_one_did(project, sharded, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    forget(run, HALF)
    assert f"resumed {run / 'checkpoints' / checkpoint.name(HALF)}" in trained(project, run, FSDP, 1, save_every=5)
    assert_near(run, sharded, 1e-4)
    middle = run / "checkpoints" / checkpoint.name(15)
    assert not sharded_files.is_sharded(middle)
    forget(run, 15)
    assert f"resumed {middle}" in trained(project, run, FSDP)
    assert_near(run, sharded, 1e-4)
    assert sharded_files.is_sharded(run / "checkpoints" / checkpoint.name(STEPS))


def forget(run, step):
    """As if the run had been ended after a step."""
    shutil.rmtree(run / "final")
    checkpoint.delete([path for path in checkpoint.saved(run / "checkpoints") if path.name > checkpoint.name(step)])


def launched(project, run_folder, config, **environment):
    """What `accelerate launch` says that trains in two processes."""
    here = run_folder.parent
    (here / "ldm.yaml").write_text(to_yaml(settings(project, run_folder)))
    path = shipped_configs() / "accelerate" / config
    launch = ["launch", "--config_file", path, "--num_processes", 2, "--main_process_port", 0]
    words = [ROOT / "train_ldm.py", "ldm.yaml", "--output-dir", run_folder]
    return run(BIN / "accelerate", *launch, *words, cwd=here, **environment)


@pytest.mark.slow
def test_the_real_launcher_shards(project, sharded, tmp_path):
    said = launched(project, tmp_path / "run", "eight-gpus-fsdp.yaml", ACCELERATE_USE_CPU="true")
    assert "in shards (FSDP2)" in said
    assert losses(tmp_path / "run") == pytest.approx(losses(sharded), rel=1e-5)
    assert sharded_files.is_sharded(tmp_path / "run" / "checkpoints" / checkpoint.name(STEPS))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_shard(project, tmp_path):
    for name in ("eight-gpus-fsdp", "eight-gpus"):
        (tmp_path / name).mkdir()
        said = launched(project, tmp_path / name / "run", f"{name}.yaml")
        assert ("in shards (FSDP2)" in said) == (name == "eight-gpus-fsdp")
    one, other = (losses(tmp_path / name / "run") for name in ("eight-gpus-fsdp", "eight-gpus"))
    assert one == pytest.approx(other, rel=1e-3)


def test_shards_are_read_whole_and_in_part(tmp_path):
    tensors = {"model/a.b": torch.arange(6.0).reshape(3, 2), "optimizer/step/a.b": torch.tensor(7.0)}
    sharded_files.write(tmp_path, tensors)
    assert sharded_files.is_sharded(tmp_path)
    assert sharded_files.shapes(tmp_path) == {name: value.shape for name, value in tensors.items()}
    whole = sharded_files.read_whole(tmp_path)
    assert whole["model"].keys() == {"a.b"} and torch.equal(whole["model"]["a.b"], tensors["model/a.b"])
    assert whole["optimizer"]["step/a.b"] == 7
    with checkpoint.staged(tmp_path / "step") as stage:
        sharded_files.write(stage, tensors)
        (stage / "state.json").write_text(json.dumps({"step": 3}))
    groups, state = checkpoint.load(tmp_path / "step")
    assert state == {"step": 3} and torch.equal(groups["model"]["a.b"], tensors["model/a.b"])
    assert checkpoint.load(tmp_path / "step", whole=False)[0] == {}


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="process 1 cannot write .*file.*; make room or choose another --output-dir"):
        sharded_files.write(tmp_path / "file", {"model/a": torch.ones(1)})


def test_layers_are_blocks_or_those_that_are_named():
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.Linear(1, 1)))
    assert layers_of(net, None) == layers_of(net, ()) == []
    assert layers_of(net, ("Linear",)) == [net[1][0], net[0]]
    with pytest.raises(UserError, match="fsdp_transformer_layer_cls_to_wrap Conv2d: the model has none"):
        layers_of(net, ("Linear", "Conv2d"))
