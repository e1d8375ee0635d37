"""Captions by models of transformers: beside the right image, resumable, replacing nothing; and what is refused."""

import json
import shutil

import pytest
import tiny_captioners
import torch
from own_data import png
from PIL import Image

from ldm.apps.captioning import Captioner, Wording, caption_folder
from ldm.cli.main import build_parser
from ldm.config.settings import DataOptions
from ldm.formats.sources import open_source
from ldm.utils.errors import UserError

SAYS = {"blip": {"red"}, "vision_encoder_decoder": {"square"}, "llava": {"red", "square"}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder of each tiny model."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models")
    return {name: getattr(tiny_captioners, name)(place / name) for name in SAYS}


@pytest.fixture
def folder(tmp_path):
    """Images of the levels 0 to 3 and an unreadable one; one has a caption, two have one stem."""
    root = tmp_path / "mine"
    (root / "sub").mkdir(parents=True)
    for level, name in enumerate(("a.png", "a.jpg", "b.png", "sub/c.PNG")):
        (root / name).write_bytes(png(level))
    (root / "d.png").write_bytes(b"junk")
    (root / "B.TXT").write_text("my own words\n")
    return root


def level_of(images, wording):
    """A model that says the level of a flat image."""
    return [f"Level  {image.getpixel((0, 0))[0]}\n" for image in images]


def texts_of(root) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.suffix.lower() == ".txt"]
    return {path.relative_to(root).as_posix(): path.read_text() for path in files}


def ldm(*words) -> int:
    argv = ["data", "caption", *map(str, words)]
    args = build_parser(argv).parse_args(argv)
    return args.run(args)


def test_each_image_has_its_own_caption_and_nothing_is_replaced(folder):
    wording = Wording(prefix="a photo,", trigger="sks")
    counts = caption_folder(folder, lambda: level_of, wording, batch_size=2)
    assert counts == {"written": 3, "kept": 1, "unreadable": 1, "empty": 0}
    expected = {
        "a.png.txt": "sks, a photo, Level 0\n",
        "a.jpg.txt": "sks, a photo, Level 1\n",
        "B.TXT": "my own words\n",
        "sub/c.txt": "sks, a photo, Level 3\n",
    }
    assert texts_of(folder) == expected
    (folder / "sub" / "c.txt").write_text("mended by hand")
    (folder / "a.jpg.txt").unlink()
    counts = caption_folder(folder, lambda: level_of, Wording(), batch_size=2)
    assert counts == {"written": 1, "kept": 3, "unreadable": 1, "empty": 0}
    assert texts_of(folder) == expected | {"sub/c.txt": "mended by hand", "a.jpg.txt": "Level 1\n"}
    source = open_source(DataOptions(source=str(folder)))
    captions = {sample.id: sample.captions for sample in source.samples}
    assert captions["b.png"] == ("my own words",) and captions["a.jpg"] == ("Level 1",)


def test_an_interruption_keeps_what_was_written_and_the_rest_follows(folder):
    calls = []

    def breaks(images, wording):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return level_of(images, wording)

    with pytest.raises(KeyboardInterrupt):
        caption_folder(folder, lambda: breaks, Wording(), batch_size=2)
    assert len(texts_of(folder)) == 3
    assert caption_folder(folder, lambda: level_of, Wording(), batch_size=2)["written"] == 1
    assert not [path for path in folder.rglob("*.*") if path.suffix.lower() not in (".png", ".jpg", ".txt")]


def test_no_model_is_loaded_where_all_have_captions(folder):
    (folder / "d.png").unlink()
    caption_folder(folder, lambda: level_of, Wording())
    assert caption_folder(folder, lambda: 1 / 0, Wording())["kept"] == 4


def test_an_empty_answer_writes_nothing(folder):
    counts = caption_folder(folder, lambda: lambda images, wording: [" "] * len(images), Wording(trigger="sks"))
    assert counts["empty"] == 3 and len(texts_of(folder)) == 1


@pytest.mark.parametrize("name", SAYS)
def test_models_of_three_makes_answer(name, models):
    captioner = Captioner(str(models[name]))
    images = [Image.new("RGB", (64, 40), "red"), Image.new("RGB", (8, 9)), Image.new("RGB", (32, 32))]
    answers = captioner(images, Wording(max_tokens=3))
    assert len(answers) == 3 and all(len(text.split()) == 3 and set(text.split()) <= SAYS[name] for text in answers)


def test_a_prompt_begins_the_caption_or_asks(models):
    images = [Image.new("RGB", (32, 32))] * 2
    begun = Captioner(str(models["blip"]))(images, Wording(prompt="a photo of", max_tokens=2))
    assert begun == ["a photo of red red"] * 2
    [answer, _] = Captioner(str(models["llava"]))(images, Wording(prompt="a photo", max_tokens=2))
    assert len(answer.split()) == 2 and set(answer.split()) <= SAYS["llava"]
    with pytest.raises(UserError, match="does not take"):
        Captioner(str(models["vision_encoder_decoder"]))(images, Wording(prompt="a photo of"))


def test_the_command(folder, models, capsys):
    assert ldm(folder, "--model", models["blip"], "--max-tokens", 2, "--trigger", "sks", "--batch-size", 3) == 1
    assert capsys.readouterr().out == f"{folder}: 3 captions written, 1 had one, 1 unreadable\n"
    assert texts_of(folder)["sub/c.txt"] == "sks, red red\n"
    (folder / "d.png").unlink()
    assert ldm(folder, "--model", models["blip"]) == 0
    assert capsys.readouterr().out == f"{folder}: 0 captions written, 4 had one\n"


def test_folders_that_cannot_be_captioned(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, wrong in (
        ("is no folder", [tmp_path / "none"]),
        ("holds no images", [tmp_path / "empty"]),
        ("--batch-size must be a whole number", [folder, "--batch-size", 0]),
        ("there is no folder nowhere", [folder]),
    ):
        with pytest.raises(UserError, match=words):
            ldm(*wrong, "--model", "nowhere")
    (folder / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(UserError, match=r"metadata.csv has the captions of this folder, and .txt files beside it are"):
        ldm(folder, "--model", "nowhere")
    assert list(texts_of(folder)) == ["B.TXT"]


def edited(models, tmp_path, file="config.json", **changes):
    """A copy of a model with other settings; "a__b" is key b in the object a."""
    copy = tmp_path / "copy"
    shutil.copytree(models["blip"], copy)
    settings = json.loads((copy / file).read_text())
    for key, value in changes.items():
        part = settings
        *path, last = key.split("__")
        for name in path:
            part = part[name]
        part[last] = value
    (copy / file).write_text(json.dumps(settings))
    return copy


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("can load code from elsewhere", {"auto_map": {"AutoModel": "evil.Model"}}),
        ("can load code from elsewhere", {"text_config__auto_map": {"AutoModel": "evil.Model"}}),
        ("can load code from elsewhere", {"file": "processor_config.json", "auto_map": {"AutoProcessor": "evil.P"}}),
        ("can load code from elsewhere", {"file": "tokenizer_config.json", "auto_map": {"AutoTokenizer": "evil.T"}}),
        ("more layers than there are tensors", {"text_config__num_hidden_layers": 10**9}),
        ("a model of .* weights; the files hold", {"text_config__hidden_size": 10**5}),
        ("no image-to-text model", {"model_type": "gpt2"}),
        ("no image-to-text model", {"model_type": ["blip"]}),
    ],
)
def test_models_that_are_refused_before_they_are_built(words, changes, models, tmp_path):
    with pytest.raises(UserError, match=words):
        Captioner(str(edited(models, tmp_path, **changes)))


def test_weights_of_another_format_and_links_out_are_refused(models, tmp_path):
    copy = edited(models, tmp_path)
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (copy / "generation_config.json").unlink()
    (copy / "generation_config.json").symlink_to(secret)
    with pytest.raises(UserError, match="leads out of its model folder"):
        Captioner(str(copy))
    (copy / "generation_config.json").unlink()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no \*.safetensors; other formats of weights are not read"):
        Captioner(str(copy))
