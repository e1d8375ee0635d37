"""Image to image and inpainting: an image is changed, or the area that is painted over is generated again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ldm.apps.demo.page.results import Results, stream
from ldm.apps.demo.page.widgets import (
    HIDDEN,
    go_and_stop,
    guidance_slider,
    number_slider,
    prompt_box,
    said,
    seed_box,
    slider,
    steps_and_sampler,
    visitor_of,
)
from ldm.apps.demo.session import SIDE, Session
from ldm.utils.errors import UserError
from ldm.utils.image_grid import enlarged

CHANGED, PAINTED = "image-to-image", "inpaint"  # the tabs' ids


@dataclass
class EditTab:
    """What other tabs need of this one: where an image is put."""

    picture: gr.Image | gr.ImageEditor
    prompt: gr.Textbox
    state: gr.HTML


def image_to_image_tab(session: Session) -> EditTab:
    return _tab(session, "image_to_image", lambda state: _picture(), 0.6)


def inpaint_tab(session: Session) -> EditTab:
    return _tab(session, "inpaint", partial(_canvas, session), 1)


def _tab(session: Session, name: str, source: Callable[[gr.HTML], Any], forgotten: float) -> EditTab:
    """Change an image, or generate where it is painted over."""

    def answer(picture, strength, prompt, guidance, steps, sampler, seed, number, request: gr.Request):
        def edited():
            job = session.job(prompt, None, guidance, steps, sampler, seed)
            file, layers = picture
            return session.draw_on(visitor_of(request), job, number, file, layers, strength)

        yield from stream(edited)

    with gr.Row():
        with gr.Column(min_width=280):
            notice = gr.HTML(said(""), elem_classes="state")
            picture = source(notice)
            prompt = prompt_box("Prompt", session.examples)
            go, stop = go_and_stop()
        with gr.Column(min_width=280):
            results = Results(session, stop, actions=False)
    with gr.Row():
        with gr.Column(min_width=280):
            strength = slider("strength", "Strength: how much is changed", forgotten, 0.05)
            number, (seed, keep) = number_slider(), seed_box()
        with gr.Column(min_width=280):
            guidance = guidance_slider(session)
            steps, sampler = steps_and_sampler(session)
    inputs = [picture, strength, prompt, guidance, steps, sampler, seed, number]
    results.wire([go.click, prompt.submit], answer, inputs, name, (seed, keep))
    return EditTab(picture, prompt, notice)


def _picture() -> gr.Image:
    picture = gr.Image(
        label="Image", type="filepath", format="png", sources=["upload", "clipboard"], height=220, buttons=[]
    )
    picture.preprocess = lambda sent: (place_of(sent), None)
    return picture


def _canvas(session: Session, notice: gr.HTML) -> gr.ImageEditor:
    """An image to paint on, a square as the model sees it: its pixels are those of the mask."""

    def opened(sent):
        try:
            return {"background": session.seen(sent), "layers": [], "composite": None}, said("")
        except UserError as error:
            return gr.update(), said(str(error), error=True)

    choose = gr.UploadButton("Upload an image, then paint over what is to be generated again", file_types=["image"])
    canvas = gr.ImageEditor(
        label="Area to generate again",
        show_label=False,
        type="filepath",
        format="png",
        sources=(),
        transforms=(),
        brush=gr.Brush(SIDE // 16, colors=[("#e0457b", 0.6)], color_mode="fixed"),
        eraser=gr.Eraser(SIDE // 16),
        layers=gr.LayerOptions(allow_additional_layers=False, disabled=True),
        canvas_size=(SIDE, SIDE),
        height=400,
        buttons=[],
    )
    choose.preprocess = place_of
    canvas.preprocess = lambda sent: (
        place_of(sent and sent.background),
        [place_of(each) for each in sent.layers] if sent else [],
    )
    choose.upload(opened, choose, [canvas, notice], api_visibility="private")
    return canvas


def place_of(sent: Any) -> str | None:
    """Where a file lies that was sent. Gradio's own `preprocess` would open it, whatever kind of file it is."""
    return getattr(sent, "path", None)


# ---- from the first tab ---------------------------------------------------------------------------------------------


def send_images(session: Session, results: Results, tabs: gr.Tabs, changed: EditTab, painted: EditTab) -> None:
    """Let the buttons beside generated images put the chosen one into the tabs that edit."""

    def sender(tab: str):
        def answer(index, request: gr.Request):
            try:
                image, job, _ = session.visits.chosen(visitor_of(request), index)
            except UserError as error:
                return gr.update(), gr.update(), gr.update(), said(str(error), error=True)
            image = enlarged(image, job["scale"])
            value = image if tab == CHANGED else {"background": image, "layers": [], "composite": None}
            return gr.Tabs(selected=tab), value, job["prompt"] or "", said(f"Image of seed {job['seed']}.")

        return answer

    for button, tab, target in ((results.edit, CHANGED, changed), (results.paint, PAINTED, painted)):
        button.click(sender(tab), results.chosen, [tabs, target.picture, target.prompt, target.state], **HIDDEN)
