"""A token is for huggingface_hub alone: it is found in nothing that was printed, written or pushed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import TOKEN, Client, Fault, LoopbackHub

from ldm.utils.errors import redacted

# a run of each part that takes no time, with everything recorded that a run records
TRAIN = """
import sys
from pathlib import Path
from tiny_run import data_options, ldm_settings, train_ldm, train_vae, write_pictures
from ldm.data import build
project = Path(sys.argv[1])
write_pictures(project / "pictures")
splits = build(data_options(project))
train_vae(project, splits, steps=2)
settings = ldm_settings(project, steps=2)
loud = settings.train.model_copy(update={"num_steps": 2, "save_every": 1, "log_every": 1, "report_to": REPORT})
train_ldm(settings.model_copy(update={"train": loud}), splits)
"""


@pytest.fixture
def client(tmp_path):
    one = Client(LoopbackHub(), tmp_path / "home", PYTHONUNBUFFERED="1")
    yield one
    one.close()
    one.hub.shutdown()


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_planted_token_is_found_nowhere(client, tmp_path, survived):
    pytest.importorskip("tensorboard", reason="its files are searched too")
    hub, project = client.hub, tmp_path / "project"
    more = os.pathsep.join([str(Path(__file__).parents[1]), client.environment["PYTHONPATH"]])
    code = TRAIN.replace("REPORT", "['tensorboard']")
    told = subprocess.run(
        [sys.executable, "-c", code, str(project)],
        env={**client.environment, "PYTHONPATH": more},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    assert list(project.rglob("events.out.*")) and list(project.rglob("checkpoints/*/state.json"))
    model = project / "model"
    for words in (
        ("export", project / "ldm", "-o", model),
        ("push", model, "a/model", "--dry-run"),
        ("push", model, "a/model"),
        ("generate", "a", "-m", "a/model", "-o", project / "a.png", "--steps", 2),
        ("doctor",),
        ("data", "check", project / "pictures"),
    ):
        said = client.run(*words)
        assert said.code in (0, 1), said.text
    hub.create("models/b/model", {"model_index.json": b"{}"})
    for fault, words in (
        (Fault(r"POST .*/commit/.*", 403), ("push", model, "c/model")),
        (Fault(r"POST .*/create", 401), ("push", model, "d/model")),
        (Fault(r"GET .*/resolve/.*", "down"), ("locate", "b/model")),
    ):
        hub.faults = [fault]
        assert client.run(*words).code == 2 and fault.fired
    assert f"Bearer {TOKEN}" in hub.tokens  # else finding it nowhere would mean nothing
    found = everything(tmp_path)
    for name, repo in hub.repos.items():
        found |= {Path(name, path): data for path, data in repo.at("main")[1].items()}
    secret = TOKEN.encode()
    assert len(found) > 100 and not [path for path, data in found.items() if secret in data]
    assert TOKEN not in client.said + told.stdout + told.stderr
    survived("token: outputs searched", len(found))


@pytest.mark.parametrize(
    "words",
    [("push", "models/glyphs", "a/model", "--token", TOKEN), ("generate", "a", "--hub-token", TOKEN)],
)
def test_no_command_takes_a_token(client, words):
    said = client.run(*words)
    assert said.code == 2 and "unrecognized arguments" in said.text and not client.hub.calls


@pytest.mark.parametrize("key", ["token", "hub_token", "train.hub_token", "data.token"])
def test_no_settings_take_a_token_and_the_refusal_does_not_repeat_it(tmp_path, key):
    from ldm.config.loading import load
    from ldm.utils.errors import UserError

    value = TOKEN
    for name in reversed(key.split(".")):
        value = {name: value}
    file = tmp_path / "mine.yaml"
    file.write_text(str(value))
    with pytest.raises(UserError, match="unknown key") as refused:
        load("vae", file)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    "text, clean",
    [
        ("at https://me:pass@host/x?a=1", "at https://***@host/x?a=1"),
        ("https://hf_abcdefghijklmnop@huggingface.co", "https://***@huggingface.co"),
        ("GET https://s3/x?X-Amz-Signature=0af3&X-Amz-Date=1", "GET https://s3/x?X-Amz-Signature=***&X-Amz-Date=1"),
        ("http://h/x?token=abc' failed", "http://h/x?token=***' failed"),
        (f"Bearer {TOKEN}.", "Bearer hf_***."),
        ("hf_hub_download of user/name@main: mail me@host", "hf_hub_download of user/name@main: mail me@host"),
    ],
)
def test_what_is_quoted_from_elsewhere_loses_its_secrets(text, clean):
    assert redacted(text) == clean


def test_an_address_of_the_hub_with_a_password_is_not_shown(tmp_path):
    hub = LoopbackHub()
    hub.faults = [Fault(r".*", 503, times=999)]
    place = hub.url.replace("http://", "http://me:s3cr3tpassword@")
    client = Client(hub, tmp_path, HF_ENDPOINT=place)
    try:
        said = client.run("generate", "a", "-m", "a/model", "-o", tmp_path / "a.png")
        assert said.code == 2 and hub.faults[0].fired and "s3cr3tpassword" not in said.text, said.text
    finally:
        client.close()
        hub.shutdown()
