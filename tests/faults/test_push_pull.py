"""Whatever the line and the Hub do, a push is one whole commit or none, and a pull is what was pushed, or refused."""

import hashlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from loopback_hub import TOKEN, Client, Fault, LoopbackHub
from tiny_model import tiny_folder

from ldm.hub.export import export
from ldm.hub.model_card import PLACE

PUSHED = r"POST /api/.*/commit/.*"
INFO, TREE = r"GET /api/.*/revision/main", r"GET /api/.*/tree/.*"
CREATE, BATCH, PUT = r"POST /api/repos/create", r"POST .*/batch", r"PUT .*"
# faults after which a push goes through; the first ones are tried in every run of the tests
MET_BY_PUSH = [
    [Fault(PUSHED, "applied 504")],
    [Fault(PUSHED, "applied reset")],
    [Fault(PUSHED, 503)],
    [Fault(PUSHED, "reset")],
    [Fault(CREATE, 503)],
    [Fault(PUT, 503, times=2)],
    [Fault(TREE, "short", first=2)],
    [Fault(CREATE, "applied reset")],
    [Fault(CREATE, "reset", times=2)],
    [Fault(CREATE, 429)],
    [Fault(INFO, 503)],
    [Fault(INFO, "reset", first=2)],
    [Fault(INFO, "altered")],
    [Fault(TREE, 500)],
    [Fault(TREE, "reset")],
    [Fault(TREE, "cut")],
    [Fault(r"POST /api/validate-yaml", "reset")],
    [Fault(r"POST .*/preupload/main", 429)],
    [Fault(r"POST .*/preupload/main", "reset")],
    [Fault(r"POST .*/preupload/main", "short")],
    [Fault(BATCH, 500)],
    [Fault(BATCH, "reset")],
    [Fault(BATCH, "short")],
    [Fault(PUT, "reset", times=2)],
    [Fault(PUT, "applied reset")],
    [Fault(PUT, "late", times=3)],
    [Fault(r"POST .*/verify", 503)],
    [Fault(r"POST .*/verify", "cut")],
    [Fault(PUSHED, 500, times=2)],
    [Fault(PUSHED, "cut")],
    [Fault(PUSHED, "short")],
    [Fault(PUSHED, "late")],
    [Fault(PUSHED, 503), Fault(PUSHED, "reset", first=1), Fault(PUSHED, "applied 504")],
    [Fault(PUSHED, "applied 504"), Fault(INFO, 503, first=2), Fault(TREE, "reset", first=2)],
]
# faults for which a push has to give up: what it says, and how many commits there are then
GIVEN_UP_BY_PUSH = [
    ([Fault(PUSHED, "down")], "push again to find out, it is never made twice", 0),
    ([Fault(PUSHED, "applied reset"), Fault(INFO, "down", first=2)], "push again to find out", 1),
    ([Fault(PUT, "down", first=2)], "push again to find out", 0),
    ([Fault(CREATE, "down")], "nothing was changed there", None),
    ([Fault(CREATE, 401)], "401", None),
    ([Fault(PUSHED, 403)], "403 Forbidden", 0),
    ([Fault(PUT, 403)], "403 Forbidden", 0),
    ([Fault(PUSHED, 503, times=99)], "nothing was changed there", 0),
]
FILE = r"GET .*/resolve/.*"
# faults after which a pull gives the files that were pushed
MET_BY_PULL = [
    [Fault(FILE + r"unet/.*\.safetensors", "altered")],
    [Fault(FILE, 503)],
    [Fault(FILE + r"text_encoder/model.safetensors", "cut")],
    [Fault(FILE + r"model\.onnx", "altered")],
    [Fault(INFO, 503)],
    [Fault(FILE, "reset", times=2)],
    [Fault(FILE + r"unet/config.json", "altered")],
    [Fault(FILE + r"ldm.json", "altered", times=2)],
    [Fault(FILE + r"vae/.*\.safetensors", "short")],
    [Fault(FILE + r"tokenizer/tokenizer.json", "cut", times=3)],
    [Fault(FILE, "late", times=4)],
    [Fault(FILE, 500, first=3, times=2)],
    [Fault(INFO, "reset")],
    [Fault(INFO, "cut")],
    [Fault(TREE, 503)],
    [Fault(TREE, "reset")],
    [Fault(r"HEAD .*", 503, times=2)],
    [Fault(r"HEAD .*", "reset", first=2)],
    [Fault(FILE, 503), Fault(FILE, "reset", first=2), Fault(r"HEAD .*", 502, first=3)],
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export(tiny_folder(tmp_path_factory.mktemp("tiny") / "tiny"), tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    one = Client(LoopbackHub(), tmp_path_factory.mktemp("home"))
    yield one
    one.close()
    one.hub.shutdown()


@pytest.fixture
def hub(client):
    yield client.hub
    client.hub.faults, client.hub.down = [], False


def content(folder: Path) -> dict[str, str]:
    """Path -> sha256."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def uploaded(folder: Path, repo: str, place: str = PLACE) -> dict[str, str]:
    """`content` as it has to be in a repository, whose name the card tells."""
    card = (folder / "README.md").read_text().replace(place, repo)
    return content(folder) | {"README.md": hashlib.sha256(card.encode()).hexdigest()}


def readable(said) -> bool:
    return said.code == 2 and said.text.count("error: ") == 1 and "Traceback" not in said.text


def number_fired(faults) -> int:
    assert all(fault.fired for fault in faults), faults
    return sum(fault.fired for fault in faults)


# ---- up --------------------------------------------------------------------------------------------------------------


def test_a_push_through_faults_is_one_commit_that_equals_the_folder(hub, client, model, trials, survived):
    cases, fired = MET_BY_PUSH[: trials(7, 99)], 0
    for number, hub.faults in enumerate(cases):
        repo = f"through/push{number}"
        hub.objects.clear()  # so that every file goes up again
        said = client.run("push", model, repo)
        assert said.code == 0, (hub.faults, said.text)
        assert hub.files(f"models/{repo}") == uploaded(model, repo), hub.faults
        assert hub.commits(f"models/{repo}") == 1, hub.faults
        fired += number_fired(hub.faults)
    survived("Hub: pushed through", fired)


def test_a_push_that_gives_up_leaves_no_half_and_a_later_one_completes_it(hub, client, model, trials, survived):
    local, fired = content(model), 0
    for number, (hub.faults, message, commits) in enumerate(GIVEN_UP_BY_PUSH[: trials(3, 99)]):
        repo = f"late/push{number}"
        there = uploaded(model, repo)
        hub.objects.clear()
        said = client.run("push", model, repo)
        assert readable(said) and message in said.text, (hub.faults, said.text)
        if commits is not None:
            assert hub.commits(f"models/{repo}") == commits and hub.files(f"models/{repo}") in ({}, there)
        fired += number_fired(hub.faults)
        hub.faults, hub.down = [], False
        assert client.run("push", model, repo).code == 0 and content(model) == local
        assert hub.files(f"models/{repo}") == there and hub.commits(f"models/{repo}") == 1
    survived("Hub: given up whole", fired)


def somebody_else(name):
    """Commits a file of theirs."""
    return lambda hub: hub.repos[name].commit("main", {**hub.repos[name].at("main")[1], "theirs": b"their work"})


def test_what_another_writer_commits_meanwhile_is_never_covered(hub, client, model, survived):
    hub.create("models/shared/repo")
    hub.faults = [Fault(PUSHED, somebody_else("models/shared/repo"))]
    said = client.run("push", model, "shared/repo")
    assert readable(said) and "somebody else committed to it during the push" in said.text
    assert list(hub.files("models/shared/repo")) == ["theirs"] and hub.commits("models/shared/repo") == 1
    survived("Hub: another writer", number_fired(hub.faults))


def test_a_commit_on_top_of_ours_before_we_could_look_is_no_reason_to_commit_again(hub, client, model, survived):
    hub.create("models/shared/later")
    hub.faults = [Fault(PUSHED, "applied 504"), Fault(INFO, somebody_else("models/shared/later"), first=2)]
    assert client.run("push", model, "shared/later").code == 0
    assert hub.files("models/shared/later").keys() == {"theirs", *content(model)}
    assert hub.commits("models/shared/later") == 2
    survived("Hub: another writer", number_fired(hub.faults))


@pytest.mark.slow
def test_a_push_killed_at_any_call_leaves_no_half(hub, client, model, tmp_path, trials, survived):
    whole = Client(hub, tmp_path)
    try:
        hub.objects.clear()
        before = len(hub.calls)
        whole.run("push", model, "killed/none")
        count = len(hub.calls) - before
        chosen = range(1, count + 1)[:: max(1, count // trials(4, count))]
        for number in chosen:
            repo = f"killed/{number}"
            there = uploaded(model, repo)
            hub.objects.clear()
            sent = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[number % 3]
            hub.faults = [Fault(r".*", lambda _, sent=sent: os.kill(whole.process.pid, sent), first=number)]
            whole.run("push", model, repo)
            fired = number_fired(hub.faults)
            hub.faults = []
            if f"models/{repo}" in hub.repos:
                assert hub.files(f"models/{repo}") in ({}, there)
            assert whole.run("push", model, repo).code == 0
            assert hub.files(f"models/{repo}") == there and hub.commits(f"models/{repo}") == 1
            survived("Hub: pushes killed", fired)
    finally:
        whole.close()


def test_pushing_the_same_again_makes_no_commit_and_a_changed_file_makes_one(hub, client, model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    client.run("push", folder, "again/model")
    assert "nothing to change" in client.run("push", folder, "again/model").text
    assert hub.commits("models/again/model") == 1
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nother words\n")
    (folder / "unet" / "model.onnx").unlink()  # as an export without the onnx package has it
    hub.repos["models/again/model"].at("main")[1]["notes.md"] = b"written there"
    assert client.run("push", folder, "again/model").code == 0
    there = hub.files("models/again/model")
    assert there.pop("notes.md") and there == content(folder) and hub.commits("models/again/model") == 2


def test_a_push_never_mixes_with_a_model_that_is_not_ours(hub, client, model):
    hub.create("models/their/model", {"unet/diffusion_pytorch_model.bin": b"weights", "model_index.json": b"{}"})
    said = client.run("push", model, "their/model")
    assert readable(said) and "holds something else of the same kind (unet/diffusion_pytorch_model.bin)" in said.text
    assert hub.commits("models/their/model") == 0


def test_a_branch_gets_the_commit_and_main_does_not(hub, client, model):
    hub.faults = [Fault(r"POST .*/branch/v2", "reset"), Fault(PUSHED, "applied 504")]
    assert client.run("push", model, "two/branches", "--revision", "v2", "--private").code == 0
    assert hub.commits("models/two/branches", "v2") == 1 and hub.commits("models/two/branches") == 0
    assert hub.files("models/two/branches", "v2") == uploaded(model, "two/branches")
    number_fired(hub.faults)


def test_a_data_set_goes_up_by_the_same_rules(hub, client, tmp_path, survived):
    pytest.importorskip("pylopdf_fonts_zh_cn", reason="needs the extra 'glyphs'")
    words = ("data", "glyphs", "--limit", 10, "--resolution", 32, "--cache-dir", tmp_path / "cache")
    hub.faults = [Fault(CREATE, 503), Fault(PUT, "reset"), Fault(PUSHED, "applied reset")]
    said = client.run(*words, "--push", "a/set", "--out", tmp_path / "set", "--private")
    assert said.code == 0, said.text
    there = uploaded(tmp_path / "set", "a/set", "user/name")
    assert hub.files("datasets/a/set") == there and hub.commits("datasets/a/set") == 1
    assert there != content(tmp_path / "set")  # the card names the repository
    assert "nothing to change" in client.run(*words, "--push", "a/set").text
    hub.repos["datasets/a/set"].at("main")[1]["data/old-00000-of-00001.parquet"] = b"a split that is no more"
    calls = len(hub.calls)
    assert "would go to a/set as one commit" in client.run(*words, "--push", "a/set", "--dry-run").text
    assert len(hub.calls) == calls
    client.run(*words, "--push", "a/set")
    assert hub.files("datasets/a/set") == there and hub.commits("datasets/a/set") == 2
    client.run(*words, "--push", "a/set", "--revision", "small")
    assert hub.files("datasets/a/set", "small") == there
    survived("Hub: data sets pushed through", number_fired(hub.faults))


# ---- down ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pushed(client, model):
    """How to put the model into a repository of any name."""
    files = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    return lambda repo: client.hub.create(f"models/{repo}", files)


def pulled(client, repo) -> dict[str, str]:
    said = client.run("locate", repo)
    assert said.code == 0, (client.hub.faults, said.text)
    return content(Path(said.text.splitlines()[-1]))


def test_a_pull_through_faults_equals_what_was_pushed(hub, client, model, pushed, trials, survived):
    cases, fired = MET_BY_PULL[: trials(5, 99)], 0
    wanted = content(model)
    wanted.pop("README.md")  # the card is not fetched for drawing
    for number, hub.faults in enumerate(cases):
        pushed(f"through/pull{number}")
        assert pulled(client, f"through/pull{number}") == wanted, hub.faults
        fired += number_fired(hub.faults)
    survived("Hub: pulled through", fired)


def test_what_stays_altered_is_refused_and_does_not_stay_in_the_cache(hub, client, pushed, survived):
    pushed("altered/model")
    hub.faults = [Fault(FILE + r"unet/.*\.safetensors", "altered", times=99)]
    said = client.run("locate", "altered/model")
    assert readable(said) and "unet/diffusion_pytorch_model.safetensors is not what the Hub lists" in said.text
    assert not list(client.home.glob("hub/models--altered--model/snapshots/*/unet/*.safetensors"))
    survived("Hub: altered files refused", number_fired(hub.faults))


def test_a_download_that_was_damaged_later_is_fetched_again(hub, client, model, pushed, survived):
    pushed("rotten/model")
    before = pulled(client, "rotten/model")
    blobs = sorted((client.home / "hub" / "models--rotten--model" / "blobs").iterdir())
    for blob in blobs:
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 4
        blob.write_bytes(data)
    assert pulled(client, "rotten/model") == before
    survived("Hub: damaged downloads found", len(blobs))


def test_a_hub_that_is_down_stops_a_first_pull_in_one_line_and_no_later_one(hub, client, model, pushed, survived):
    pushed("down/model")
    hub.faults = [Fault(FILE, "down", first=4)]
    said = client.run("locate", "down/model")
    assert readable(said) and "the Hub did not give it" in said.text
    fired = number_fired(hub.faults)
    hub.faults, hub.down = [], False
    whole = pulled(client, "down/model")
    hub.down = True
    assert pulled(client, "down/model") == whole  # from the cache
    survived("Hub: down", fired + 1)


def test_a_picture_of_a_hub_model_names_the_commit_and_is_drawn_from_it_again(hub, client, pushed, tmp_path):
    from ldm.pipelines.image_metadata import read_png

    pushed("pinned/model")
    head = hub.repos["models/pinned/model"].at("main")[0]
    assert client.run("generate", "a", "-m", "pinned/model", "-o", tmp_path / "one.png", "--steps", 2).code == 0
    assert read_png(tmp_path / "one.png")["model"] == f"pinned/model@{head}"
    hub.repos["models/pinned/model"].commit("main", {})  # everything is gone from the branch
    assert client.run("generate", "--from", tmp_path / "one.png", "-o", tmp_path / "two.png").code == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_repository_that_is_not_there_is_told_at_once(hub, client):
    calls = len(hub.calls)
    said = client.run("locate", "nobody/nothing")
    assert readable(said) and len(hub.calls) - calls == 1


@pytest.mark.parametrize("name", ["u/n@../../../x", "u/n@/etc", "u/n@a/../b", "u/n@a//b", "u/n@.hidden"])
def test_a_revision_cannot_lead_out_of_the_cache(hub, client, name):
    calls = len(hub.calls)
    said = client.run("locate", name)
    assert readable(said) and "there is no folder" in said.text and len(hub.calls) == calls


def test_a_listing_that_leads_out_of_the_cache_is_refused(hub, client, pushed):
    pushed("leading/out")
    hub.repos["models/leading/out"].at("main")[1]["unet/../../../../../../led-out.safetensors"] = b"x" * 99
    assert readable(client.run("locate", "leading/out"))
    assert not list(client.home.parent.rglob("led-out*"))


@pytest.mark.slow
def test_the_client_did_send_its_token(hub):
    """Else finding it nowhere would mean nothing."""
    assert hub.tokens == {"", f"Bearer {TOKEN}"}
