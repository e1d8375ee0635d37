"""From a run to the Hub and back: one command up, the same pictures for stock diffusers and for us, a card that holds.

The Hub is the one of tests/loopback_hub.py.
"""

import json
import shutil

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from loopback_hub import LARGE, Client, LoopbackHub
from PIL import Image
from tiny_model import tiny_folder

from ldm.config.loading import load
from ldm.hub.export import export
from ldm.hub.model_card import PLACE
from ldm.pipelines.image_metadata import read_png
from ldm.pipelines.loading import load_pipeline
from tests.hub.test_export import finished_run

METRICS = {"summary": {"layout": {"value": 0.47, "interval": [0.4, 0.55], "n": 90}, "copies": 0.0}, "rest": [1]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with curves, metrics, and prompts."""
    place = tmp_path_factory.mktemp("published")
    run = finished_run(tiny_folder(place / "tiny"), place / "runs")
    for part in ("ldm", "vae"):
        events = run.parent / part / "logs" / "ldm" / "events.out.tfevents.1700000000.secret-host.123.0"
        events.parent.mkdir(parents=True)
        events.write_bytes(b"curves of " + part.encode())
    (place / "metrics.json").write_text(json.dumps(METRICS))
    return run


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    """A client whose Hub has the run as user/demo, pushed by one command."""
    one = Client(LoopbackHub(), tmp_path_factory.mktemp("home"))
    done = push(one, run)
    assert done.code == 0, done.text
    yield one
    one.close()
    one.hub.shutdown()


def push(client: Client, run):
    return client.run("push", run, "user/demo", "--dtype", "both", "--metrics", run.parents[1] / "metrics.json")


@pytest.fixture
def files(client):
    return client.hub.repos["models/user/demo"].at("main")[1]


def changed(client: Client, act) -> tuple[set[str], int]:
    """The files that differ after `act`, and how many large ones went over the line."""
    repo = client.hub.repos["models/user/demo"]
    before, calls = repo.at("main")[1], len(client.hub.calls)
    act()
    after = repo.at("main")[1]
    sent = sum(call.startswith("PUT /lfs-objects") for call in client.hub.calls[calls:])
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}, sent


@pytest.mark.parametrize("options", [(), ("variant=fp16",)])
def test_stock_diffusers_and_we_draw_the_same_from_the_hub(client, run, tmp_path, options):
    done = client.run("draw", "user/demo", tmp_path / "both.npy", *options)
    assert done.code == 0, done.text
    stock, own = np.load(tmp_path / "both.npy")
    np.testing.assert_allclose(own, stock, atol=(2 if options else 0.5) / 255)
    assert own.std() > 0.05
    fetched = {path.name for path in client.home.rglob("snapshots/*/unet/*")}
    assert ("diffusion_pytorch_model.fp16.safetensors" in fetched) == bool(options)  # by stock alone, where asked for


def test_the_pictures_of_the_hub_are_those_of_the_run(client, run):
    done = client.run("locate", "user/demo")
    there, here = load_pipeline(done.text.splitlines()[-1], engine="torch"), load_pipeline(run, engine="torch")
    same = {"seed": 0, "output_type": "np"}
    np.testing.assert_array_equal(there("water", **same).images, here("water", **same).images)


def test_the_cards_header_holds(client, run, files):
    """By the Hub's own parser and by what the Hub documents of each field."""
    text = files["README.md"].decode()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["pipeline_tag"] == "text-to-image" and header["library_name"] == "diffusers"
    assert "tensorboard" in header["tags"] and "license" not in header  # of a stranger's pictures nobody chose one
    _, results = model_index_to_eval_results(header["model-index"])
    assert {each.metric_type: each.metric_value for each in results} == {"layout": 0.47, "copies": 0.0}
    assert [each["text"] for each in header["widget"]] == ["a red cat"]
    assert {each["output"]["url"] for each in header["widget"]} <= files.keys()
    assert ModelCard(text).data.to_dict().keys() == header.keys()  # none that the Hub's client does not know
    assert "<Gallery />" in text and PLACE not in text and text.count('"user/demo"') == 2
    assert "POST /api/validate-yaml" in client.hub.calls  # where the real one looks at it again


def test_a_picture_of_the_gallery_can_be_drawn_again(client, files, tmp_path):
    (tmp_path / "a.png").write_bytes(files["gallery/0.png"])
    assert read_png(tmp_path / "a.png")["prompt"] == "a red cat"
    words = ("generate", "--from", tmp_path / "a.png", "-m", "user/demo", "-o", tmp_path / "b.png")
    done = client.run(*words)
    assert done.code == 0 and "other weights" not in done.text, done.text
    first, again = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(again, first)


def test_the_settings_on_the_card_are_settings(files, tmp_path):
    blocks = files["README.md"].decode().split("```yaml\n")[1:]
    assert len(blocks) == 2
    for block, part in zip(blocks, ("vae", "ldm")):
        (tmp_path / "card.yaml").write_text(block.split("```")[0])
        settings = load(part, tmp_path / "card.yaml")
        assert settings.train.num_steps == {"vae": 70, "ldm": 100}[part]


def test_curves_and_metrics_go_up_without_the_name_of_the_machine(files):
    assert files["logs/ldm/events.out.tfevents.1700000000.0"] == b"curves of ldm"
    assert files["logs/vae/events.out.tfevents.1700000000.0"] == b"curves of vae"
    assert json.loads(files["metrics.json"]) == {"summary": METRICS["summary"]}
    assert not [name for name, data in files.items() if "secret-host" in name or b"secret-host" in data]


def test_pushing_a_run_again_changes_nothing_and_a_retrained_network_changes_what_is_its_own(client, run, tmp_path):
    assert changed(client, lambda: push(client, run)) == (set(), 0)
    copy = tmp_path / "runs" / "ldm"
    shutil.copytree(run.parent, copy.parent)
    shutil.copy(run.parents[1] / "metrics.json", tmp_path)
    pipeline = load_pipeline(copy, engine="torch")
    pipeline.unet.conv_out.bias.data += 0.1
    pipeline.unet.save_pretrained(copy / "final" / "unet")
    differs, sent = changed(client, lambda: push(client, copy))
    unet = {name for name in differs if name.startswith("unet/")}
    assert differs == {*unet, "ldm.json", "gallery/0.png"}  # no word of the card: same settings, same numbers
    assert len(unet) == 3 and sent == len([name for name in differs if LARGE.fullmatch(name)])


def test_what_is_chosen_when_exporting_is_refused_for_a_folder_that_was_exported(client, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    done = client.run("push", folder, "user/other", "--license", "mit")
    assert done.code == 2 and "--license is a choice of exporting" in done.text
    assert "models/user/other" not in client.hub.repos


@pytest.mark.slow
def test_the_shipped_model_is_the_same_there_and_back(client, tmp_path):
    model = export("glyphs", tmp_path / "glyphs", "both")
    assert client.run("push", model, "user/glyphs").code == 0
    for options in ((), ("variant=fp16",)):
        assert client.run("draw", "user/glyphs", tmp_path / "both.npy", *options).code == 0
        stock, own = np.load(tmp_path / "both.npy")
        np.testing.assert_allclose(own, stock, atol=(8 if options else 1) / 255)
        assert own.min() < 0.1 and own.max() > 0.9


@pytest.mark.slow
def test_the_page_goes_up_as_a_space_that_holds_the_model(client, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    assert client.run("space", folder, "--push", "user/page").code == 0
    there = client.hub.repos["spaces/user/page"].at("main")[1]
    assert yaml.safe_load(there["README.md"].decode().split("---")[1])["sdk"] == "gradio"
    assert {"app.py", "requirements.txt", "ldm/apps/demo/ui.py", "model/unet/config.json"} <= there.keys()
    assert "nothing to change" in client.run("space", folder, "--push", "user/page").text
    assert client.run("space", folder).code == 2
