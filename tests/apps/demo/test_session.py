"""The app without its page: what visitors may ask for, what they get, which requests are heard, and the Space."""

import asyncio
import inspect
import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_model import tiny_folder, tiny_lora

from ldm.apps.demo import limits
from ldm.apps.demo.limits import LOOPBACK
from ldm.apps.demo.prompt_words import Words
from ldm.apps.demo.request_guard import Guard
from ldm.apps.demo.server import without_type_stubs
from ldm.apps.demo.session import OWN, Session
from ldm.apps.demo.space import requirements, write_space
from ldm.apps.demo.training_monitor import read_log, runs_in, series, watch
from ldm.cli import main as cli
from ldm.config.settings import NoiseOptions
from ldm.models.lora import read_lora
from ldm.pipelines.diffusers_schedulers import samplers_for
from ldm.pipelines.generation import generate_job
from ldm.pipelines.image_metadata import read_png
from ldm.pipelines.loading import load_pipeline
from ldm.utils.assets import shipped_models
from ldm.utils.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("app") / "model")


@pytest.fixture(scope="module")
def session(model):
    return Session(str(model))


def job(session, prompt="water", negative=None, guidance=2, steps=3, sampler=OWN, seed=5):
    return session.job(prompt, negative, guidance, steps, sampler, seed)


# ---- what is known before the model is loaded -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*shipped_models(), "tiny", "table"])
def test_the_files_tell_what_the_loaded_model_would(name, model, tmp_path):
    place = {"tiny": model, "table": tmp_path / "table"}.get(name, name)
    if name == "table":
        tiny_folder(place, NoiseOptions(process="cosine", prediction_type="v_prediction"))
    session, pipeline = Session(str(place)), load_pipeline(place)
    assert session.samplers == [OWN, *samplers_for(pipeline.scheduler)]
    assert (session.image_shape, session.size_step) == (pipeline.image_shape, pipeline.size_step)
    assert (session.digest, session.defaults) == (pipeline.digest, pipeline.defaults)
    words = Words(pipeline.tokenizer)
    assert vars(session.about.words) | {"own": None} == vars(words) | {"own": None}
    prompt = "a RÉD tulip, and much more than there is room for: " + "spaceship " * 20
    assert session.about.words.lost(prompt) == words.lost(prompt) != ""


def test_a_page_needs_no_torch_before_something_is_generated():
    code = """
import sys
from ldm.apps.demo.session import Session
session = Session()
shown = session.welcome()
assert shown.images and session.samplers and session.size_step and session.about.hints("water") is not None
session.job("water", None, 2, 2, session.samplers[1], 5, 64, 64)
assert not {"torch", "diffusers", "transformers"} & {*sys.modules}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_who_asks_first_waits_for_the_model_and_is_told_so(model):
    session = Session(str(model))
    asked = [[one.text for one in session.draw("me", job(session), 1)] for _ in range(2)]
    assert asked[0][:2] == ["waiting for the model ...", "loading the model ..."]
    assert "loading the model ..." not in asked[1] and asked[0][-1] == asked[1][-1] == "1 image, seed 5"


@pytest.mark.parametrize("private", [False, True])
def test_a_model_that_cannot_be_loaded_is_told_to_who_asks_and_to_others_without_its_folder(model, tmp_path, private):
    folder = copytree(model, tmp_path / "model")
    settings = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**settings, "act_fn": "none"}))
    session = Session(str(folder), private=private)
    assert session.about.sentence
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            list(session.draw("me", job(session), 1))
        assert str(raised.value).startswith("the model cannot be loaded; the log" if private else "unet in ")
        assert (str(tmp_path) in str(raised.value)) is not private
    assert not session._busy.locked()


def test_adapters_that_do_not_fit_are_told_at_once(model, tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        Session(str(model), lora=str(tmp_path / "none"))


def test_classes_of_gradio_have_no_file_while_it_is_imported():
    theirs = type("Component", (), {"__module__": "gradio.of_a_test"})
    with without_type_stubs():
        assert inspect.getfile(Path) == inspect.getfile(inspect.getmodule(Path))
        with pytest.raises(OSError):
            inspect.getfile(theirs)
    with pytest.raises(TypeError):  # as it is: there is no such module here
        inspect.getfile(theirs)


# ---- drawing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"sampler": "ddim", "negative": "fire"}, {"prompt": None}])
def test_a_picture_of_the_app_tells_the_command_line_how_to_draw_it_again(session, model, tmp_path, change):
    *previews, last = session.draw("me", job(session, **change), 2)
    assert any(shown.previews for shown in previews) and last.text == "2 images, seeds 5 to 6"
    second = last.images[1]
    info = PngInfo()
    for name, text in second.info.items():  # as gradio does on saving
        info.add_text(name, text)
    second.save(tmp_path / "a.png", pnginfo=info)
    told = read_png(tmp_path / "a.png")
    assert (told["seed"], told["model"], told["scale"]) == (6, str(model), 16)
    parser = cli.build_parser(["generate"])
    args = parser.parse_args(["generate", "--from", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")])
    assert args.run(args) == 0
    with Image.open(tmp_path / "b.png") as again:
        difference = np.asarray(again).astype(int) - np.asarray(second)
        assert again.size == (256, 256) and abs(difference).max() <= 1  # one grey level: another batch size
        assert read_png(tmp_path / "b.png") == told


def test_a_size_is_drawn_and_told(session):
    def sized(height, width):
        return session.job("water", None, 2, 2, OWN, 5, height, width)

    *_, last = session.draw("me", sized(24, 32), 2)
    told = json.loads(last.images[0].info["ldm"])
    assert (told["height"], told["width"], told["scale"]) == (24, 32, 8) and last.images[0].size == (256, 192)
    assert sized(16, 16) == sized(None, None) | {"seed": 5} and sized(16, 16)["height"] is None
    with pytest.raises(UserError, match="height must be a multiple of 4, got 18"):
        sized(18, 16)
    with pytest.raises(UserError, match="width must be a number from 16 to 1024, got 4096"):
        sized(16, 4096)
    with pytest.raises(UserError, match="16 images of 1024 x 1024 pixels are too many at once: 4 are allowed"):
        session.draw("me", sized(1024, 1024), 16)


def test_what_is_drawn_with_adapters_tells_of_them_and_is_drawn_again_with_them(session, model, tmp_path):
    told = f"{tiny_lora(tmp_path)}:0.5"
    adapted = Session(str(model), lora=told)
    *_, last = adapted.draw("me", job(adapted), 1)
    *_, plain = session.draw("me", job(session), 1)
    assert abs(shrunk(last.images[0]) - shrunk(plain.images[0])).max() > 1
    info = json.loads(last.images[0].info["ldm"])
    assert info["lora"] == told and info["digest"] != session.pipeline.digest
    images = generate_job(load_pipeline(str(model), lora=tmp_path / "lora", lora_scale=0.5), job(adapted), 1)
    assert abs(shrunk(last.images[0]) - np.asarray(images[0])).max() <= 1
    *_, looked = adapted.attention("me", job(adapted))
    assert abs(shrunk(looked.images[0]) - shrunk(last.images[0])).max() <= 1


def test_the_host_s_folders_are_nobody_s_business(model, tmp_path):
    told = job(Session(str(model), lora=f"{tiny_lora(tmp_path)}:0.5", private=True))
    assert (told["model"], told["lora"]) == ("model", "lora:0.5")


def test_a_stopped_drawing_ends_at_the_next_step_and_keeps_what_was_seen(session):
    drawing = session.draw("me", job(session, steps=100), 16)
    next(drawing)
    next(drawing)
    session.stop("somebody else")
    session.stop("me")
    *_, last = drawing
    assert last.text.startswith("stopped (step ") and last.previews and not last.images
    assert not session._running and not session._busy.locked()


def test_the_last_images_of_a_visitor_are_kept_as_the_model_generated_them(session):
    def draw(visitor, *asked):
        return session.remembered(visitor, session.draw(visitor, *asked))

    session.forget("me")
    with pytest.raises(UserError, match="generate an image first"):
        session.visits.chosen("me", 0)
    *_, last = draw("me", job(session), 2)
    image, told, key = session.visits.chosen("me", 1)
    assert image.size == (16, 16) and (told["seed"], key) == (6, "ldm")
    assert (shrunk(last.images[1]) == np.asarray(image)).all()
    for wrong in (2, -1, None, "0", 0.0):
        with pytest.raises(UserError, match="choose one of the 2 images"):
            session.visits.chosen("me", wrong)
    for seed in range(20):
        list(draw("me", job(session, seed=seed, steps=1), 1))
    past = session.visits.recent("me").history
    assert [each["seed"] for _, each, _ in past] == list(range(19, 7, -1)) and past[0][0].size == (16, 16)
    for i in range(40):
        list(draw(f"visitor {i}", job(session, steps=1), 1))
    assert (
        session.visits.recent("me") is None
        and session.visits.recent("visitor 39") is not None
        and len(session.visits.found) == 32
    )


@pytest.mark.parametrize("nested", [False, True])
def test_the_settings_of_the_training_are_found_where_an_export_has_them(model, nested):
    text = yaml.safe_dump({"data": {"source": "glyphs"}, "ldm": {"sampling": {"prompts": ["fire"]}}})
    session = Session(str(model))
    session.folder.defaults["training"] = {"runs": {"ldm": {"config": text}}} if nested else {"config": text}
    assert session.examples == ["fire"] and session.about.of_glyphs


def test_a_page_begins_with_the_images_of_the_model_s_card(model, tmp_path):
    from ldm.hub.gallery import draw_gallery

    folder = copytree(model, tmp_path / "model")
    draw_gallery(folder, ["water", "fire"])
    shown = Session(str(folder)).welcome()
    assert shown.text == "Examples that lie beside the model: water; fire"
    assert [image.size for image in shown.images] == [(256, 256)] * 2
    assert json.loads(shown.images[1].info["ldm"])["prompt"] == "fire"


def test_a_visitor_who_goes_away_frees_the_model(session):
    drawing = session.draw("me", job(session, steps=100), 16)
    next(drawing)
    drawing.close()
    assert not session._running and not session._busy.locked()


def test_a_fault_reaches_the_visitor_and_frees_the_model(session, monkeypatch):
    def broken(*args):
        raise UserError("no paint left")

    monkeypatch.setattr("ldm.apps.demo.session.generate_job", broken)
    with pytest.raises(UserError, match="no paint left"):
        list(session.draw("me", job(session), 1))
    assert not session._running and not session._busy.locked()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "x" * 10**6}, "may have 300 letters, got 1000000"),
        ({"prompt": ["a"]}, "prompt must be a text"),
        ({"prompt": "a\x00b"}, "control characters"),
        ({"negative": "\ud800"}, "no letters"),
        ({"steps": 10**9}, "steps must be a number from 1 to 100, got 1000000000"),
        ({"steps": 0}, "from 1 to 100"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": "many"}, "got 'many'"),
        ({"guidance": float("nan")}, "from 0 to 20"),
        ({"guidance": -1}, "got -1"),
        ({"guidance": True}, "got True"),
        ({"seed": -1}, "seed must be a number from 0 to 2147483647"),
        ({"seed": 2**63}, "seed must"),
        ({"seed": None}, "got None"),
        ({"sampler": "../../etc"}, "sampler must be one of the model's own"),
        ({"sampler": ["ddim"]}, "sampler must"),
    ],
)
def test_what_is_out_of_bounds_is_refused(session, change, message):
    with pytest.raises(UserError, match=message):
        job(session, **change)


def test_the_number_of_pictures_is_bounded(session):
    for number in (0, 17, 1.5, "4", None, -3):
        with pytest.raises(UserError, match="number must be a"):
            session.draw("me", job(session), number)


def test_a_prompt_is_taken_as_one_line_and_blanks_are_no_prompt():
    assert limits.text("prompt", "  wäter \n 水 ") == "wäter 水"
    assert limits.text("prompt", " \n ") is limits.text("prompt", None) is None


def test_every_sampler_on_offer_draws(session):
    assert {OWN, "unipc", "euler"} <= set(session.samplers)
    for sampler in session.samplers:
        *_, last = session.draw("me", job(session, sampler=sampler), 1)
        assert len(last.images) == 1, sampler


def test_attention_has_a_map_for_every_word_and_the_shares_are_of_a_whole(session):
    pytest.importorskip("matplotlib")
    *before, last = session.attention("me", job(session, "red ink"))
    assert before[-1].previews and all(one.running for one in before) and not last.running
    assert [text.split(":")[0] for text in last.captions] == ["the image", "(start)", "red", "ink", "(end)"]
    shares = [int(text.rsplit(" ", 1)[1].rstrip("%")) for text in last.captions[1:]]
    assert abs(sum(shares) - 100) <= 2
    assert {image.size for image in last.images} == {(256, 256)} and len(last.images) == len(last.captions)
    with pytest.raises(UserError, match="write a prompt"):
        session.attention("me", job(session, None))


def test_looking_into_the_model_can_be_stopped(session):
    pytest.importorskip("matplotlib")
    looking = session.attention("me", job(session, "red ink", steps=100))
    next(looking), next(looking)
    session.stop("me")
    *_, last = looking
    assert last.text.startswith("stopped (step ") and not last.images and not session._running


def test_only_models_of_glyphs_are_compared_with_glyphs(session):
    with pytest.raises(UserError, match="only for models that were trained on the glyphs"):
        list(session.nearest("me", job(session), 1))


def test_a_copy_is_known_as_one_and_named(model, tmp_path, monkeypatch):
    pytest.importorskip("pylopdf_fonts_zh_cn")
    from ldm.config.settings import DataOptions, GlyphOptions
    from ldm.data.glyphs.dataset import splits
    from ldm.evaluation.glyphs.novelty import Pool

    session = Session(str(model))
    options = DataOptions(glyphs=GlyphOptions(styles=["hei"], limit=64), cache_dir=tmp_path)
    data = splits(options)["train"]
    glyphs = np.stack([data.image(i)[..., 0] for i in range(64)])
    session.__dict__["_training_glyphs"] = (data, Pool(glyphs))
    stripes = np.tile(np.repeat([0, 255], 4), (64, 8)).astype(np.uint8)
    shown = [Image.fromarray(glyphs[7]), Image.fromarray(stripes)]
    monkeypatch.setattr("ldm.apps.demo.session.generate_job", lambda *args: shown)
    *before, last = session.nearest("me", job(session), 2)
    name = "{char} {codepoint}".format(**data.meta(7))
    assert last.captions[1] == f"a copy of {name}: 1.00" and last.captions[3].startswith("nearest ")
    doing = ["loading the model", "preparing the training glyphs", "comparing with the training glyphs"]
    assert [one.text for one in before[1:]] == [f"{each} ..." for each in doing]
    assert last.text.startswith("1 of 2 are copies of one of 64 training glyphs")


# ---- from pictures, and between -------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path):
    """Left half black, right half white."""
    path = tmp_path / "a.png"
    Image.fromarray(np.tile(np.repeat(np.array([0, 255], np.uint8), 8), (16, 1))).save(path)
    return str(path)


def shrunk(image) -> np.ndarray:
    return np.asarray(image.resize((16, 16), Image.Resampling.NEAREST)).astype(int)


def paint(path: Path, size=(16, 16), box=(8, 0, 16, 16), alpha=153) -> str:
    """A layer, transparent but for a box of paint."""
    layer = Image.new("RGBA", size)
    layer.paste((224, 69, 123, alpha), box)
    layer.save(path)
    return str(path)


def test_what_is_not_painted_over_is_kept_and_the_rest_is_drawn(session, picture, tmp_path):
    layers = [paint(tmp_path / "b.png"), paint(tmp_path / "c.png", box=(8, 4, 16, 8))]
    *_, last = session.draw_on("me", job(session), 2, picture, layers, 1)
    for image in map(shrunk, last.images):
        assert (image[:, :8] == 0).all() and (image[:, 8:] != 255).any()
    told = json.loads(last.images[1].info["ldm-edit"])
    assert (told["verb"], told["painted"], told["picture"]) == ("inpaint", 0.5, 1)
    assert "ldm" not in last.images[0].info  # `ldm generate --from` would draw something else


def test_a_picture_that_was_enlarged_is_worked_on_as_it_was_before(session, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    seen = session.seen(str(tmp_path / "small.png"))
    seen.convert("RGBA").save(tmp_path / "large.png")  # as the canvas sends it
    assert seen.size == (256, 256) and (shrunk(seen) == pixels).all()
    layers = [paint(tmp_path / "b.png", (256, 256), (0, 0, 32, 256))]
    *_, last = session.draw_on("me", job(session), 1, str(tmp_path / "large.png"), layers, 1)
    assert (shrunk(last.images[0])[:, 2:] == pixels[:, 2:]).all()


def test_transparency_is_kept_on_the_way_in_and_out(tmp_path):
    session = Session(str(tiny_folder(tmp_path / "model", channels=4)))
    *previews, last = session.draw("me", job(session), 1)
    assert {image.mode for shown in (*previews, last) for image in (*shown.previews, *shown.images)} == {"RGBA"}
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    pixels[:4] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seen = session.seen(str(tmp_path / "a.png"))
    assert seen.mode == "RGBA" and (shrunk(seen) == pixels).all()
    *_, last = session.draw_on("me", job(session), 1, str(tmp_path / "a.png"), [paint(tmp_path / "b.png")], 1)
    assert (shrunk(last.images[0])[:, :8] == pixels[:, :8]).all()
    *_, last = session.attention("me", job(session))
    assert last.images[0].mode == "RGBA"


def test_at_full_strength_a_picture_is_forgotten(session, picture):
    *_, plain = session.draw("me", job(session), 1)
    *_, forgotten = session.draw_on("me", job(session), 1, picture, None, 1)
    *_, kept = session.draw_on("me", job(session), 1, picture, None, 0.3)
    assert abs(shrunk(forgotten.images[0]) - shrunk(plain.images[0])).max() <= 1
    assert abs(shrunk(kept.images[0]) - shrunk(plain.images[0])).max() > 1


def test_the_way_begins_and_ends_with_what_its_ends_draw(session):
    *_, way = session.between("me", job(session, "water", seed=5), 4, "fire", 9)
    *_, first = session.draw("me", job(session, "water", seed=5), 1)
    *_, second = session.draw("me", job(session, "fire", seed=9), 1)
    assert len(way.images) == 4
    for one, other in ((way.images[0], first.images[0]), (way.images[-1], second.images[0])):
        assert abs(shrunk(one) - shrunk(other)).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": None}, "choose an image first"),
        ({"picture": __file__}, "the picture cannot be used: "),
        ({"strength": 2}, "strength must be a number from 0 to 1"),
        ({"layers": []}, "paint over what is to be drawn anew"),
        ({"layers": ["blank"]}, "paint over what is to be drawn anew"),
        ({"layers": ["odd"]}, r"paint must have the picture's size \(16, 16\), got \(16, 15\)"),
        ({"layers": ["good", "odd"]}, "paint must have"),
        ({"layers": ["good"] * 5}, "4 layers of paint are allowed, got 5"),
        ({"layers": [__file__]}, "the picture cannot be used: "),
        ({"layers": ["huge"]}, "the picture cannot be used: "),
    ],
)
def test_a_picture_or_paint_that_will_not_do_is_refused(session, picture, tmp_path, change, message):
    files = {
        "good": paint(tmp_path / "good.png"),
        "blank": paint(tmp_path / "blank.png", alpha=0),
        "odd": paint(tmp_path / "odd.png", (15, 16)),
        "huge": paint(tmp_path / "huge.png", (2**12, 2**10 + 1)),
    }
    asked = {"picture": picture, "strength": 0.5, "layers": ["good"], **change}
    asked["layers"] = [files.get(layer, layer) for layer in asked["layers"]]
    with pytest.raises(UserError, match=message) as caught:
        session.draw_on("me", job(session), 1, **asked)
    assert str(tmp_path) not in str(caught.value) and __file__ not in str(caught.value)


def test_the_way_is_bounded(session):
    for frames, second, last_seed in ((1, "a", 0), (25, "a", 0), (4, "a" * 301, 0), (4, "a", -1)):
        with pytest.raises(UserError, match="frames must|second prompt may|seed must"):
            session.between("me", job(session), frames, second, last_seed)


# ---- trainings ------------------------------------------------------------------------------------------------------


def a_run(root: Path, steps=100) -> Path:
    run = root / "demo" / "ldm"
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text(f"train: {{num_steps: {steps}, batch_size: 30}}\n")
    rows = [{"step": 10, "loss": 9.0}, {"step": 20, "loss": 2.0, "images_per_second": 10.0}, {"step": 20, "loss": 1.0}]
    rows.append({"step": 40, "ema/loss": 0.5, "loss": None})
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 50, "lo')
    for name in ("00000000-raw", "00000000-ema", "00000040-ema"):
        Image.new("L", (8, 8)).save(run / "samples" / f"{name}.png")
    (run / "samples" / "00000050-ema.png").write_bytes(b"half")
    return run


def test_a_training_is_told_by_its_log_and_its_sample_grids(tmp_path):
    run = a_run(tmp_path)
    assert runs_in(tmp_path) == ["demo/ldm"]
    seen = watch(tmp_path, "demo/ldm")
    assert seen.text.startswith("step 40 of 100, 10 images/s, nobody is training it")
    assert [name for _, name in seen.grids] == ["00000040-ema", "00000000-ema"]
    assert len(seen.curves) == 1 and "ema/loss" in seen.curves[0]
    lines = read_log(run / "log.jsonl")
    assert series(lines, "loss") == [(10, 9.0), (20, 1.0)]  # a resumed run has said step 20 twice
    (run / "final").mkdir()
    assert "finished" in watch(tmp_path, "demo/ldm").text


def test_the_time_to_go_is_what_is_left_at_the_last_speed(tmp_path):
    run = a_run(tmp_path)
    holder = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    command = [sys.executable, "-c", f"{holder}; input()", str(run / "lock.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert "in training by another process, about 3.0 min to go" in watch(tmp_path, "demo/ldm").text  # 60 x 30 / 10
        other.stdin.close()


@pytest.mark.parametrize("name", ["..", "../demo/ldm", "/etc", "demo", "", None, ["demo/ldm"]])
def test_no_folder_but_a_listed_run_is_looked_into(tmp_path, name):
    a_run(tmp_path / "runs")
    with pytest.raises(UserError, match="no such run"):
        watch(tmp_path / "runs", name)


def test_a_long_curve_is_thinned_and_keeps_its_last_point():
    points = series([{"step": i, "loss": i / 2} for i in range(10_001)], "loss")
    assert len(points) <= 400 and points[-1] == (10_000, 5_000.0)


# ---- the guard ------------------------------------------------------------------------------------------------------


CALL, JOIN, RUN = (f"/gradio_api/{name}" for name in ("call/draw", "queue/join", "run/predict"))


def ask(method="GET", path="/", body=b"", hosts=LOOPBACK, **headers) -> tuple[int, bytes | None]:
    """The guard's answer, or 200 and the body that the application behind it has read."""
    given = {"host": "127.0.0.1:7860", **headers}
    if method == "POST" and "content_length" not in headers:
        given["content-length"] = str(len(body))
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items() if value is not None]
    sent, heard = [], []
    parts = [{"type": "http.request", "body": body[:5], "more_body": True}]
    parts += [{"type": "http.request", "body": body[5:], "more_body": False}]

    async def behind(scope, receive, send):
        while True:
            message = await receive()
            heard.append(message["body"])
            if not message["more_body"]:
                return

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    asyncio.run(Guard(behind, hosts, {0: "draw", 1: ""}, {7})(scope, receive, send))
    return (sent[0]["status"], None) if sent else (200, b"".join(heard))


def test_what_the_page_needs_passes_unchanged():
    body = json.dumps({"data": ["a", {"path": "/tmp/gradio/x.png"}], "fn_index": 1}).encode()
    assert ask("POST", JOIN, body, origin="http://127.0.0.1:7860") == (200, body)
    assert ask("POST", CALL, body) == (200, body)
    assert ask("POST", RUN, b'{"data": [], "fn_index": 7}')[0] == 200  # Stop
    assert ask("POST", "/gradio_api/upload", b"0123456789") == (200, b"0123456789")
    assert ask(host="localhost:1") == ask(host="[::1]:7860") == (200, b"")
    assert ask(path="/gradio_api/file=/tmp/gradio/a b.png") == ask(path="/assets/a-1.js") == (200, b"")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "127.0.0.1@evil.example"}, 403),
        ({"host": None}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9"}, 403),
        ({"path": "/gradio_api/file=http://evil.example/x"}, 400),
        ({"path": "/gradio_api/proxy=https://evil.example"}, 400),
        ({"method": "PUT"}, 404),
        ({"path": "/gradio_api/dev/reload"}, 404),
        ({"method": "POST", "path": "/gradio_api/run/draw"}, 404),  # would go around the queue
        ({"method": "POST", "path": RUN, "body": b'{"data": [], "fn_index": 0}'}, 404),  # so would this
        ({"method": "POST", "path": "/gradio_api/call/nothing"}, 404),
        ({"method": "POST", "path": CALL, "content_length": None}, 411),
        ({"method": "POST", "path": CALL, "content_length": "-1"}, 411),
        ({"method": "POST", "path": CALL, "content_length": "9" * 5000}, 411),
        ({"method": "POST", "path": CALL, "body": b"x" * 70_000}, 413),
        ({"method": "POST", "path": CALL, "body": b"{not json"}, 400),
        ({"method": "POST", "path": CALL, "body": b"[" * 60_000}, 400),
        ({"method": "POST", "path": CALL, "body": b'{"data": [NaN]}'}, 400),
        ({"method": "POST", "path": CALL, "body": b'{"data": "a"}'}, 400),
        ({"method": "POST", "path": JOIN, "body": b'{"data": [], "fn_index": 2}'}, 404),
        ({"method": "POST", "path": JOIN, "body": b'{"data": [], "fn_index": [1]}'}, 404),
        ({"method": "POST", "path": "/gradio_api/upload", "content_length": str(5 * 2**20)}, 413),
        ({"method": "POST", "path": CALL, "body": b'{"data": [[{"a": {"path": " HTTP://10.0.0.1/"}}]]}'}, 400),
    ],
)
def test_what_does_not_is_refused(request_, status):
    assert ask(**request_) == (status, None)


def test_an_open_address_answers_any_name_but_no_larger_requests():
    assert ask(hosts=(), host="user-demo.example", origin="https://else.example")[0] == 200
    assert ask("POST", CALL, hosts=(), body=b"x" * 70_000)[0] == 413


# ---- the Space ------------------------------------------------------------------------------------------------------


def test_a_space_has_all_it_needs(model, tmp_path):
    (model / ".secret").write_text("x")
    out = write_space(str(model), tmp_path / "space", "My glyphs")
    front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (front["sdk"], front["app_file"], front["title"]) == ("gradio", "app.py", "My glyphs")
    assert (out / "model" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert not (out / "model" / ".secret").exists() and not list(out.rglob("__pycache__"))
    code = "import sys; sys.argv = ['app.py']; import app, ldm; print(ldm.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {code}"], cwd=out,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout.strip() == str(out / "ldm" / "__init__.py"), done.stderr  # its own copy, not the installed one
    with pytest.raises(UserError, match="exists: name a new folder"):
        write_space(str(model), out)


def test_a_space_brings_its_adapters(model, tmp_path):
    out = write_space(str(model), tmp_path / "space", lora=f"{tiny_lora(tmp_path)}:0.5")
    assert "lora='lora.safetensors:0.5'" in (out / "app.py").read_text()
    assert read_lora(out / "lora.safetensors").keys() == {"unet.conv_in"}
    with pytest.raises(UserError, match="no such file"):
        write_space(str(model), tmp_path / "other", lora=str(tmp_path / "nowhere"))
    assert not (tmp_path / "other").exists()


def test_a_space_of_a_hub_model_names_it_and_copies_nothing(tmp_path):
    out = write_space("user/name", tmp_path / "space")
    assert "models:\n- user/name" in (out / "README.md").read_text() and not (out / "model").exists()
    assert "serve('user/name'," in (out / "app.py").read_text()
    for wrong in ("nowhere", "../x/y", str(tmp_path)):
        with pytest.raises(UserError, match="no exported model and no Hub id"):
            write_space(wrong, tmp_path / "other")


def test_the_requirements_are_the_tested_versions_of_what_a_page_needs():
    lines = requirements()
    names = {line.split("==")[0].split(">")[0] for line in lines}
    assert {"torch", "diffusers", "onnxruntime", "pylopdf-fonts-zh-cn"} <= names
    assert not names & {"gradio", "pytest", "ldm", "mkdocs"} and "torch==2.13.0" in lines
