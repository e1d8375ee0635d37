"""The page on a stand-in for gradio: every tab is built, and its events are called as gradio would call them."""

import inspect
import re
import sys
import time
from typing import get_type_hints

import numpy as np
import pytest
from tiny_model import tiny_folder

from ldm.apps.demo.session import Session
from ldm.apps.demo.training_processes import REFUSED
from ldm.utils.errors import UserError
from tests.apps.demo.recorded_gradio import Request, SelectData, recorded
from tests.apps.demo.test_session import a_run
from tests.apps.demo.test_training_processes import STUB

OWN = "the model's own"
DRAW = ["water", "", 2, 3, OWN, 5, 2, 16, 16]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return Session(str(tiny_folder(tmp_path_factory.mktemp("page") / "model")))


@pytest.fixture
def page(session, tmp_path):
    a_run(tmp_path / "runs")
    with recorded() as built:
        from ldm.apps.demo.ui import build

        build(session, tmp_path / "runs", may_train=True)
        yield built


def text(answer) -> str:
    """What a line of HTML says."""
    return re.sub(r"<[^>]+>", " ", answer).strip()


def test_every_event_takes_as_many_values_as_it_has_inputs(page):
    assert len(page.events) > 40
    for event in page.events:
        hints, names = get_type_hints(event.fn), inspect.signature(event.fn).parameters
        plain = [name for name in names if hints.get(name) not in (Request, SelectData)]
        assert len(plain) == len(event.inputs), event
        assert all(one in page.components for one in [*event.inputs, *event.outputs])


def test_every_control_has_a_name(page):
    named = ("Textbox", "Slider", "Number", "Checkbox", "Radio", "Dropdown", "Gallery", "Image", "ImageEditor")
    assert {one.kind for one in page.components if one.kind in named and not one.label} == set()
    assert all(one.value for one in page.components if one.kind in ("Button", "UploadButton"))


def test_the_names_for_programs_are_few_and_known(page):
    public = [event for event in page.events if event.options.get("api_visibility", "public") == "public"]
    names = [event.options["api_name"] for event in public if "api_name" in event.options]
    assert sorted(names) == sorted(
        ["draw", "unconditional", "image_to_image", "inpaint", "interpolate", "attention", "nearest", "watch"]
    )
    (unnamed,) = [event for event in public if "api_name" not in event.options]
    assert unnamed.trigger.endswith(" unload")


def test_images_are_generated_and_what_follows_is_there(page):
    draw = page.named("draw")
    *previews, last = draw.call(*DRAW)
    assert any("data:image/png" in shown for _, shown, _, _ in previews)
    stops = [stop["interactive"] for *_, stop in (*previews, last)]
    assert stops == [True] * len(previews) + [False]  # only while there is what to stop
    assert text(last[0]) == "2 images, seeds 5 to 6" and len(last[2]) == 2 and len(last) == len(draw.outputs)
    refresh = page.events[page.events.index(draw) + 2]  # after Stop
    ((link, past, chosen, _, files),) = refresh.call()
    assert "?prompt=water&amp;seed=5&amp;number=2&amp;steps=3" in link and [each[1] for each in past] == ["water"]
    assert (chosen, files) == (0, "")
    make = page.from_(page.of("Button", "Make PNG and SVG"), "click")[0]
    ((found,),) = make.call(1, 4)
    assert "download='image-6.png'" in found and "image/png;base64" in found
    ((found,),) = make.call(2, 4)
    assert text(found) == "choose one of the 2 images"
    edit = page.from_(page.of("Button", "Edit this image"), "click")[0]
    ((_, image, prompt, _),) = edit.call(1)
    assert (np.asarray(image) == np.asarray(last[2][1])).all() and prompt == "water"
    paint = page.from_(page.of("Button", "Inpaint this image"), "click")[0]
    ((tabs, canvas, _, _),) = paint.call(0)
    assert tabs.options["selected"] == "inpaint" and canvas["background"].size == (256, 256)
    history = page.of("Gallery", "Earlier images: click one for its settings")
    ((*fields, keep),) = page.from_(history, "select")[0].call(selected=0)
    wanted = ["water", "", 5, 2, 3, 2.0, OWN, 16, 16]
    assert [field.get("value") for field in fields] == wanted and keep["value"]


@pytest.mark.parametrize(
    ("name", "values", "said", "images"),
    [
        ("unconditional", [3, OWN, 5, 2], "2 images, seeds 5 to 6", 2),
        ("interpolate", ["water", "fire", 5, 6, 3, 2, 3, OWN], "3 images", 3),
        ("attention", ["water", 2, 3, 5], "3 tokens, seed 5", 4),
    ],
)
def test_every_tab_that_generates_gives_a_value_for_each_output(name, values, said, images, page, monkeypatch):
    pytest.importorskip("matplotlib")  # for attention
    monkeypatch.setattr(sys.modules["ldm.apps.demo.page.interpolate"], "mp4", lambda images: b"")  # else by PyAV
    answers = page.named(name).call(*values)
    assert {len(answer) for answer in answers} == {len(page.named(name).outputs)}
    assert [answer[-1]["interactive"] for answer in answers] == [True] * (len(answers) - 1) + [False]
    assert text(answers[-1][0]) == said and len(answers[-1][2]) == images


def test_what_is_wrong_is_said_at_the_button_and_not_in_a_pop_up(page):
    answers = []
    with pytest.raises(Exception, match="seed must be a number") as raised:
        draw = page.named("draw")
        for one in draw.fn(*[-1 if i == 5 else value for i, value in enumerate(DRAW)], Request()):
            answers.append(one)
    assert not raised.value.visible
    ((line, previews, images, stop),) = answers
    assert "class=error" in line and "seed must be a number" in text(line) and (previews, images) == ("", [])
    assert not stop["interactive"]
    edited = page.named("image_to_image").fn((None, None), 0.5, "water", 2, 3, OWN, 5, 1, Request())
    assert text(next(edited)[0]) == "choose an image first"
    with pytest.raises(Exception, match="choose an image first"):
        next(edited)


def test_text_of_visitors_is_no_html(page):
    from ldm.apps.demo.page.results import link_html
    from ldm.apps.demo.page.widgets import said

    assert "<b>" not in said("<b>", ["<b>"]) and '"><' not in link_html('a"><script>')


def test_a_seed_is_new_unless_it_is_kept(page):
    from ldm.apps.demo.page.widgets import next_seed, steps_of

    assert next_seed(True, 7) == 7
    seeds = {next_seed(False, 7) for _ in range(50)}
    assert len(seeds) > 45 and all(0 <= seed < 2**31 - 16 for seed in seeds)
    assert (steps_of("fast", 20), steps_of("fast", 5), steps_of("best", 5)) == (10, 3, 5)


def opened(page, **request):
    """What the first tab shows when the page opens."""
    first = page.of("Gallery", "Images")
    (event,) = [event for event in page.events if event.trigger == "load" and first in event.outputs]
    ((*fields, keep, line, images),) = event.call(request=Request(**request))
    return fields, keep, text(line), images


def test_a_page_opens_with_images_made_once(page, session, monkeypatch):
    _, _, line, images = opened(page)
    assert line == "Examples" and len(images) == 4
    monkeypatch.setattr("ldm.apps.demo.session.generate_job", None)  # not a second time
    assert opened(page)[3] == images


def test_a_page_that_is_open_loads_the_model_and_says_so_only_where_that_fails(page, session, monkeypatch):
    first = page.of("Gallery", "Images")
    (event,) = [event for event in page.events if event.trigger == "load" and first in event.outputs]
    loads = page.events[page.events.index(event) + 1]
    monkeypatch.setattr(sys.modules["ldm.apps.demo.page.generate"], "HEAD_START", 0)
    monkeypatch.setattr(session, "_pipeline", None)
    ((line,),) = loads.call()
    assert line == {"__type__": "update"} and session._pipeline is not None

    def broken():
        raise UserError("no networks")

    monkeypatch.setattr(session, "load", broken)
    ((line,),) = loads.call()
    assert "class=error" in line and text(line) == "no networks"


@pytest.mark.parametrize(
    "request_", [{"query": {"prompt": "fire", "seed": "9"}}, {"headers": {"referer": "http://x/?prompt=fire&seed=9"}}]
)
def test_a_link_sets_the_fields_and_keeps_the_seed(page, request_):
    fields, keep, line, images = opened(page, **request_)
    assert [field.get("value") for field in fields] == ["fire", None, 9, *[None] * 6]
    assert keep["value"] is True and line == "Settings of a link: press Generate." and images == []


def test_a_link_that_asks_for_too_much_says_so(page):
    fields, _, line, images = opened(page, query={"seed": "9", "steps": "1000"})
    assert line.startswith("This link cannot be used: steps must be a number from 1 to 100") and images == []
    assert all("value" not in field for field in fields)


def test_a_run_is_watched_and_an_unknown_one_is_refused(page):
    ((line, curves, grids),) = page.named("watch").call("demo/ldm")
    assert text(line).startswith("step 40 of 100") and "<svg" in curves and len(grids) == 2
    with pytest.raises(Exception, match="there is no such run"):
        list(page.named("watch").fn("../demo"))


def test_a_training_is_planned_started_and_stopped_by_buttons(page, tmp_path, monkeypatch):
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "mine").mkdir()
    (plan,) = [e for e in page.events if e.trigger.startswith(f"{id(page.of('Button', 'Plan'))} click")]
    trainings = next(cell.cell_contents for cell in plan.fn.__closure__ if hasattr(cell.cell_contents, "plan"))
    trainings.program = (sys.executable, "-S", str(tmp_path / "stub.py"))

    def show():
        ((line, details, _, start, stop),) = page.events[page.events.index(plan) + 1].call("mine")
        return text(line), details, start, stop

    def press(label):
        ((message,),) = page.from_(page.of("Button", label), "click")[-1].call("mine")
        return text(message)

    def wait(happened):
        end = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < end
            time.sleep(0.02)

    ((name, message),) = plan.call("nowhere", 30)
    assert "is no folder" in text(message)
    ((name, message),) = plan.call(str(tmp_path / "mine"), 30)
    assert name.value == "mine" and text(message) == ""
    wait(lambda: show()[0].startswith("planned"))
    assert "<li>U-Net 32/64: about 3 min.</li>" in show()[1] and show()[2]["interactive"]
    assert page.of("Button", "Start") and press("Start") == ""
    wait(lambda: show()[0].startswith("training the autoencoder"))
    _, details, start, stop = show()
    assert stop["interactive"] and not start["interactive"] and "ldm train " in details and "<svg" in details
    assert "is running: stop it first" in press("Start")
    stop_button = [one for one in page.components if one.kind == "Button" and one.value == "Stop"][-1]
    page.from_(stop_button, "click")[0].call("mine")
    wait(lambda: show()[0].startswith("not running"))
    assert show()[2] | {"__type__": "update"} == {"__type__": "update", "interactive": True, "value": "Resume"}


def test_where_others_can_open_the_page_it_offers_no_start(session, tmp_path):
    with recorded() as built:
        from ldm.apps.demo.ui import build

        build(session, tmp_path / "runs")
        assert not [one for one in built.components if one.value in ("Plan", "Start")]
        lines = [text(one.value) for one in built.components if one.kind == "HTML" and one.value]
        assert f"Only to watch: {REFUSED}." in lines


def test_without_a_folder_of_runs_there_is_no_such_tab(session):
    with recorded() as built:
        from ldm.apps.demo.ui import build

        build(session, None)
        tabs = [one.value for one in built.components if one.kind == "Tab"]
        assert tabs[0] == "Generate" and "Trainings" not in tabs
