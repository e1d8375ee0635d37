"""Images between two prompts and two seeds, with a slider, and all of them as an animation."""

from collections.abc import Iterator

import gradio as gr
from PIL import Image

from ldm.apps.demo.downloads import data_address
from ldm.apps.demo.page.results import Results, png_address, stream
from ldm.apps.demo.page.widgets import (
    go_and_stop,
    guidance_slider,
    prompt_box,
    seed_number,
    slider,
    steps_and_sampler,
    visitor_of,
)
from ldm.apps.demo.session import Session
from ldm.utils.animation import forth_and_back, gif, mp4

SHOW = "this.parentNode.querySelectorAll('img').forEach((each, i) => each.hidden = i != this.value)"


def interpolate_tab(session: Session) -> None:
    def answer(first, second, seed, last_seed, frames, guidance, steps, sampler, request: gr.Request):
        def between():
            job = session.job(first, None, guidance, steps, sampler, seed)
            return session.between(visitor_of(request), job, frames, second, last_seed)

        yield from animated(stream(between))

    with gr.Row():
        with gr.Column(min_width=280):
            first = prompt_box("From this prompt", session.examples, value="".join(session.examples[:1]))
            second = prompt_box("to this one (empty: the same)", value="".join(session.examples[1:2]))
            go, stop = go_and_stop()
        with gr.Column(min_width=280):
            results = Results(session, stop, actions=False)
    with gr.Row():
        with gr.Column(min_width=280):
            seed, last_seed = seed_number("From this seed"), seed_number("to this one", 1)
            frames = slider("frames", "Images, both ends included", 9)
        with gr.Column(min_width=280):
            guidance = guidance_slider(session)
            steps, sampler = steps_and_sampler(session)
    inputs = [first, second, seed, last_seed, frames, guidance, steps, sampler]
    results.wire([go.click], answer, inputs, "interpolate")


def animated(answers: Iterator[tuple]) -> Iterator[tuple]:
    """The animation in place of the previews, once there are images."""
    for text, shown, images, stop in answers:
        yield text, animation(images) if images else shown, images, stop


def animation(images: list[Image.Image]) -> str:
    """A slider through the images, and all of them as a GIF and an MP4, as HTML that needs no file and no server."""
    loop = forth_and_back(images)
    kinds = {"gif": ("image/gif", gif(loop)), "mp4": ("video/mp4", mp4(loop))}
    parts = [
        f"<img alt='image {i + 1}' src='{png_address(image)}'{' hidden' * (i > 0)}>" for i, image in enumerate(images)
    ]
    slider = (
        f"<input type='range' aria-label='image shown' min='0' max='{len(images) - 1}' value='0' oninput=\"{SHOW}\">"
    )
    links = [
        f"<a download='interpolation.{ending}' href='{data_address(content, kind)}'>{ending.upper()}</a>"
        for ending, (kind, content) in kinds.items()
    ]
    return f"<div class='film links'>{''.join(parts)}{slider}<span>Download as {' or '.join(links)}</span></div>"
