"""Images from prompts: the first tab, with examples, chips that build a prompt, and links that set the fields."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import gradio as gr

from ldm.apps.demo.page.results import Results, stream
from ldm.apps.demo.page.widgets import (
    ALONE,
    HIDDEN,
    go_and_stop,
    guidance_slider,
    next_seed,
    number_slider,
    prompt_box,
    said,
    seed_box,
    size_sliders,
    steps_and_sampler,
    visitor_of,
)
from ldm.apps.demo.prompt_chips import ANY, STROKES, components, glyph_prompt, layouts, positions, with_word
from ldm.apps.demo.session import OWN, Session
from ldm.apps.demo.share_link import NAMES, Settings, settings_or_reason
from ldm.utils.errors import UserError

HEAD_START = 1.0  # seconds for the images that a page opens with, before the model is loaded


@dataclass
class GenerateTab:
    """What other tabs need of this one."""

    results: Results
    prompt: gr.Textbox


def generate_tab(session: Session) -> GenerateTab:
    def answer(prompt, negative, guidance, steps, sampler, seed, number, height, width, request: gr.Request):
        settings = (prompt, negative, guidance, steps, sampler, seed, height, width)
        me = visitor_of(request)
        yield from stream(lambda: session.remembered(me, session.draw(me, session.job(*settings), number)))

    with gr.Row():
        with gr.Column(min_width=280):
            prompt = prompt_box("Prompt", session.examples, value="".join(session.examples[:1]))
            hint = gr.HTML(said(""), elem_classes="state")
            _chips(session, prompt, hint)
            go, stop = go_and_stop()
        with gr.Column(min_width=280):
            results = Results(session, stop, "loading the model ...")
    examples = [[each] for each in session.examples]
    samples = gr.Dataset(
        components=[prompt], samples=examples, label="Examples: a click generates", visible=bool(examples)
    )
    with gr.Row():
        with gr.Column(min_width=280):
            number, (seed, keep) = number_slider(), seed_box()
            negative = prompt_box("Negative prompt: what the images should not show")
        with gr.Column(min_width=280):
            guidance = guidance_slider(session)
            height, width = size_sliders(session)
            steps, sampler = steps_and_sampler(session)
    prompt.blur(lambda text: hint_of(session, text), prompt, hint, **HIDDEN)
    inputs = [prompt, negative, guidance, steps, sampler, seed, number, height, width]
    results.wire([go.click, prompt.submit], answer, inputs, "draw", (seed, keep))
    taken = samples.click(lambda sample: sample[0] if sample else gr.update(), samples, prompt, **HIDDEN)
    seeded = taken.then(next_seed, [keep, seed], seed, **HIDDEN)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **ALONE}
    results.follow(seeded.then(answer, inputs, results.outputs, **quiet))
    fields = {"prompt": prompt, "negative": negative, "seed": seed, "number": number, "steps": steps}
    fields |= {"guidance": guidance, "sampler": sampler, "height": height, "width": width}
    outputs = [*(fields[name] for name in NAMES), keep]
    results.history.select(_restored(session), None, outputs, **HIDDEN)
    opened = gr.on(None, _opened(session), None, [*outputs, results.state, results.gallery], **HIDDEN)  # as it opens
    opened.then(_loaded(session), None, results.state, **HIDDEN)
    return GenerateTab(results, prompt)


# ---- chips ----------------------------------------------------------------------------------------------------------


def _chips(session: Session, prompt: gr.Textbox, hint: gr.HTML) -> None:
    """Choices or words that build the prompt."""
    if session.about.of_glyphs:
        return _glyph_choices(session.about.has_positions, prompt, hint)
    if session.about.chips:
        with gr.Row():
            for word in session.about.chips:
                chip = gr.Button(word, size="sm", min_width=60, scale=0, elem_classes="chip")
                chip.click(put_in(word), prompt, prompt, **HIDDEN)


def put_in(word: str):
    """What puts a word into a prompt, or takes it out."""
    return lambda prompt: with_word(prompt if isinstance(prompt, str) else "", word)


def _glyph_choices(has_positions: bool, prompt: gr.Textbox, hint: gr.HTML) -> None:
    def answer(layout, component, position, strokes):
        fitting = positions(layout) if layout in layouts() else (ANY,)
        position = position if position in fitting else ANY
        shown = gr.Dropdown(choices=list(fitting), value=position)
        try:
            return glyph_prompt(layout, component, position, None if strokes == ANY else strokes), shown, said("")
        except UserError as error:
            return gr.update(), shown, said("", [str(error)])

    with gr.Row():
        layout = gr.Dropdown(list(layouts()), value=ANY, label="Layout", min_width=110)
        component = gr.Dropdown(list(components(has_positions)), value=ANY, label="Component", min_width=110)
        position = gr.Dropdown(list(positions(ANY)), value=ANY, label="Position", min_width=110, visible=has_positions)
        strokes = gr.Dropdown([ANY, *STROKES], value=ANY, label="Strokes", min_width=90)
    choices = [layout, component, position, strokes]
    for each in choices:
        each.input(answer, choices, [prompt, position, hint], **HIDDEN)


# ---- what the fields are set to -------------------------------------------------------------------------------------


def hint_of(session: Session, text: Any) -> str:
    """What a visitor should know of the prompt, said below it."""
    return said("", session.about.hints(text) if isinstance(text, str) and len(text) <= 10_000 else [])


def address_of(request: gr.Request) -> dict[str, str]:
    """The query of the page's address: of the request itself, or of the page that sent it."""
    own = dict(getattr(request, "query_params", None) or {})
    headers: Mapping[str, str] = getattr(request, "headers", None) or {}
    return dict(parse_qsl(urlsplit(headers.get("referer", "")).query, keep_blank_values=True)) | own


def _opened(session: Session):
    """What sets the fields by the address when the page opens; without settings in it, images to begin with."""

    def answer(request: gr.Request) -> tuple:
        settings, reason = settings_or_reason(address_of(request), session.samplers)
        if settings != Settings() or reason:
            text = said(reason, error=True) if reason else said("Settings of a link: press Generate.")
            return *updates(settings), text, []
        shown = session.welcome()
        return *updates(settings), said(shown.text), shown.images

    return answer


def _loaded(session: Session):
    """What loads the model, and says so only where that fails."""

    def answer() -> Any:
        time.sleep(HEAD_START)
        try:
            session.load()
        except UserError as error:
            return said(str(error), error=True)
        return gr.update()

    return answer


def _restored(session: Session):
    """What sets the fields to those of an image in the history."""

    def answer(event: gr.SelectData, request: gr.Request) -> tuple:
        recent = session.visits.recent(visitor_of(request))
        past = recent.history if recent else []
        if not isinstance(event.index, int) or not 0 <= event.index < len(past):
            return updates(Settings())
        _, job, number = past[event.index]
        height, width = session.size
        own: dict[str, Any] = {"prompt": "", "negative": "", "sampler": OWN, "height": height, "width": width}
        set_to = own | {name: job[name] for name in NAMES if job.get(name) is not None}
        return updates(Settings(**set_to | {"number": number}))

    return answer


def updates(settings: Settings) -> tuple:
    """What the fields are set to, in the order of `NAMES`, and whether the seed is kept; what is None stays."""
    values = [getattr(settings, name) for name in NAMES]
    set_to = [gr.update() if value is None else gr.update(value=value) for value in values]
    return *set_to, gr.update() if settings.seed is None else gr.update(value=True)
