"""Components of others, in folders and on the Hub: what is fetched, what is read, and what is refused."""

import fnmatch
import json

import pytest
import torch
from pretrained_parts import LENGTH, autoencoder, change, clip, files
from safetensors.torch import load_file, save_file
from tiny_model import tiny_folder

from ldm.models import pretrained
from ldm.models.autoencoder import load_vae
from ldm.models.pretrained import TEXT, VAE, locate
from ldm.models.text_encoder import load_text
from ldm.models.tokenizer import encode, save_tokenizer
from ldm.utils.errors import UserError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """repository -> its files; what is pulled of one is in `hub.pulled`."""

    class Hub(dict):
        pulled: list[str] = []

    repos = Hub()
    repos.pulled = []

    def pull(repo, revision, patterns, leaving=()):
        snapshot = tmp_path / "hub" / repo.replace("/", "--") / "snapshots" / (revision or "0123456789")
        snapshot.mkdir(parents=True, exist_ok=True)
        for name, data in repos[repo].items():
            if any(fnmatch.fnmatch(name, p) for p in patterns) and not any(fnmatch.fnmatch(name, p) for p in leaving):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                (snapshot / name).write_bytes(data)
                repos.pulled.append(name)
        return snapshot

    monkeypatch.setattr(pretrained, "pull", pull)
    return repos


def test_an_autoencoder_is_fetched_and_nothing_else(hub, tmp_path):
    vae = autoencoder(tmp_path / "vae").eval()
    hub["some/vae"] = files(tmp_path / "vae") | {
        "README.md": b"card",
        "diffusion_pytorch_model.bin": b"pickle",
        "diffusion_pytorch_model.fp16.safetensors": b"half",
        "v1.safetensors": b"all of it",
    }
    loaded, x = load_vae(locate("some/vae", VAE)), torch.rand(2, 1, 16, 16) * 2 - 1
    assert sorted(hub.pulled) == ["config.json", "diffusion_pytorch_model.safetensors"]
    with torch.no_grad():  # latents are scaled by its factor
        wanted, found = (each.encode(x).latent_dist.mean for each in (vae, loaded))
    torch.testing.assert_close(found, 0.18215 * wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("source", ["some/pipeline", "some/pipeline/vae", "some/pipeline@v2", "some/pipeline/vae@v2"])
def test_a_component_of_a_whole_pipeline_is_found(hub, tmp_path, source):
    whole = files(tiny_folder(tmp_path / "tiny"))
    hub["some/pipeline"] = whole | {"huge.safetensors": b"everything in one file"}
    assert load_vae(locate(source, VAE)).config.latent_channels == 4
    assert not any(name.startswith(("unet", "text", "huge")) for name in hub.pulled)


@pytest.mark.parametrize("source", ["some/pipeline", "some/pipeline/text_encoder"])
def test_a_text_encoder_of_a_whole_pipeline_comes_with_its_tokenizer(hub, tmp_path, source):
    hub["some/pipeline"] = files(tiny_folder(tmp_path / "tiny"))
    encoder, tokenizer = load_text(locate(source, TEXT))
    wanted, ours = load_text(tmp_path / "tiny")
    ids = encode(ours, ["a b"])
    assert encode(tokenizer, ["a b"]).tolist() == ids.tolist()
    with torch.no_grad():
        assert torch.equal(encoder(ids).last_hidden_state, wanted(ids).last_hidden_state)
    assert not any(name.startswith(("unet", "vae")) for name in hub.pulled)


def test_a_clip_model_as_it_lies_on_the_hub_gives_its_text_encoder(hub, tmp_path, capfd):
    whole = clip(tmp_path / "clip")
    hub["some/clip"] = files(tmp_path / "clip") | {"pytorch_model.bin": b"pickle", "open_clip_model.safetensors": b""}
    encoder, tokenizer = load_text(locate("some/clip", TEXT))
    assert not {"pytorch_model.bin", "open_clip_model.safetensors"} & {*hub.pulled}
    ids = encode(tokenizer, ["a b", ""])
    with torch.no_grad():
        wanted = whole.text_model(ids).last_hidden_state
        torch.testing.assert_close(encoder(ids).last_hidden_state, wanted, atol=1e-6, rtol=0)
    assert "vision_model" not in "".join(capfd.readouterr())


def test_a_tokenizer_without_a_length_has_that_of_the_text_encoder(tmp_path):
    clip(tmp_path / "clip")
    _, tokenizer = load_text(tmp_path / "clip")
    assert tokenizer.model_max_length == LENGTH and encode(tokenizer, ["many words " * 20]).shape == (1, LENGTH)
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["model_max_length"] == LENGTH
    change(tmp_path / "clip" / "tokenizer_config.json", model_max_length=77)  # longer than the tower takes
    assert load_text(tmp_path / "clip")[1].model_max_length == LENGTH
    change(tmp_path / "clip" / "tokenizer_config.json", model_max_length=7)
    assert load_text(tmp_path / "clip")[1].model_max_length == 7


def test_what_exists_here_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    autoencoder(tmp_path / "some" / "vae")
    assert locate("some/vae", VAE).resolve() == tmp_path / "some" / "vae" and not hub.pulled
    for name in ("no-slash", "/abs/path", "../up/there", "a//b"):  # no name of a repository
        assert str(locate(name, VAE)).replace("//", "/") == name.replace("//", "/")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "holds no autoencoder, no vae/config.json or config.json: name its subfolder"),
        ({"vae_1/config.json": b"{}"}, "name its subfolder, such as user/name/vae"),
        (
            {"config.json": b"{}", "diffusion_pytorch_model.bin": b""},
            "holds no diffusion_pytorch_model.safetensors for its autoencoder, and other formats are not read",
        ),
    ],
)
def test_a_repository_without_one_says_what_to_name(hub, changed, message):
    hub["some/thing"] = changed
    with pytest.raises(UserError, match=message):
        locate("some/thing", VAE)


def test_a_plan_fetches_settings_alone(hub, tmp_path):
    from ldm.config.settings import LdmSettings
    from ldm.training.cost_estimate import latent_channels, text_size

    autoencoder(tmp_path / "vae")
    clip(tmp_path / "clip")
    hub["some/vae"], hub["some/clip"] = files(tmp_path / "vae"), files(tmp_path / "clip")
    settings = LdmSettings(vae="some/vae", text={"source": "some/clip"})
    assert latent_channels(settings, None) == (4, 2) and text_size(settings, None) == (LENGTH, 16)
    assert not any("safetensors" in name for name in hub.pulled)


# ---- refused ---------------------------------------------------------------------------------------------------------


def huge(folder):
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"] |= {"num_hidden_layers": 900}
    (folder / "config.json").write_text(json.dumps(settings))


def wide(folder):
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"] |= {"hidden_size": 4096, "intermediate_size": 4096}
    (folder / "config.json").write_text(json.dumps(settings))


def hidden_in_the_old_place(folder):
    change(folder / "config.json", text_config_dict={"vocab_size": 10**9})


def cut(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "text_model" in name and "fc1.weight" in name)
    tensors["spare"] = tensors.pop(name).clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def linked(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


HOSTILE = {
    "layers": (huge, "more layers than there are tensors"),
    "width": (wide, "describes .* weights; the files beside its config hold"),
    "vocabulary": (hidden_in_the_old_place, "vocab_size is 1,000,000,000"),
    "a missing tensor": (cut, "is incomplete: .*fc1.weight is missing"),
    "a link": (linked, "leads out of its model folder"),
    "code": (lambda folder: change(folder / "config.json", auto_map={"AutoModel": "x.Y"}), "load code from elsewhere"),
    "code of the tokenizer": (
        lambda folder: change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": "x.Y"}),
        "load code from elsewhere",
    ),
    "an adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "would bring in other weights"),
    "another model": (lambda folder: change(folder / "config.json", model_type="t5"), "is of type 't5'"),
    "another vocabulary": (
        lambda folder: change(folder / "tokenizer_config.json", extra_special_tokens=["<|more|>"]),
        "they do not go together",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_broken_clip_is_refused_in_one_line(tmp_path, name):
    clip(tmp_path / "clip")
    spoil, message = HOSTILE[name]
    spoil(tmp_path / "clip")
    with pytest.raises(UserError, match=message):
        load_text(tmp_path / "clip")


def test_links_into_the_blobs_of_the_clients_cache_are_followed_and_no_others(tmp_path):
    """A subfolder of a snapshot, as the Hub's client keeps it."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    autoencoder(snapshot / "vae")
    weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(blobs / "abc")
    weights.symlink_to(blobs / "abc")
    assert load_vae(snapshot).config.latent_channels == 4
    assert load_vae(snapshot / "vae").config.latent_channels == 4
    (blobs / "abc").rename(tmp_path / "private")
    (blobs / "abc").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match="leads out of its model folder"):
        load_vae(snapshot)
