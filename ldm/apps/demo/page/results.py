"""What stands where images appear: a line of text, previews, the images; and what can be done with them."""

import html
import io
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from PIL import Image

from ldm.apps.demo import share_link
from ldm.apps.demo.downloads import TIMES, data_address, links
from ldm.apps.demo.page.widgets import ALONE, HIDDEN, gallery, inline, next_seed, said, stop_of, visitor_of
from ldm.apps.demo.progress import Shown
from ldm.apps.demo.session import Session
from ldm.utils.errors import UserError

COPY = "navigator.clipboard.writeText(this.previousElementSibling.href);this.textContent='copied'"
ENDED, RUNNING = gr.update(interactive=False), gr.update(interactive=True)  # of the Stop button
NOTHING: tuple[str, list, dict] = ("", [], ENDED)  # previews, gallery and Stop
FIRST = said("Image 1 is chosen; click another one to choose it.")


class Results:
    """The outputs of a tab that generates: a line of text, previews, the images, and Stop while there is what to stop.

    Args:
        columns: of the images.
        text: said before there are images.
        actions: whether downloads, a link, the history and buttons for editing belong to them.
    """

    def __init__(self, session: Session, stop: gr.Button, text: str = "", actions: bool = True, columns: int = 4):
        self.session, self.stop, self.actions = session, stop, actions
        self.state = gr.HTML(said(text), elem_classes="state")
        self.previews = gr.HTML(elem_classes="pixels")
        self.gallery = gallery("Images", columns)
        self.outputs: list[Any] = [self.state, self.previews, self.gallery, stop]
        if actions:
            self._add_actions()

    def _add_actions(self) -> None:
        self.chosen = gr.State(0)
        with gr.Accordion("Download, link, edit", open=False):
            self.which = gr.HTML(FIRST)
            self.link = gr.HTML(elem_classes="links")
            times = gr.Radio(list(TIMES), value=4, label="Enlarge each pixel, times")
            with gr.Row():
                make = gr.Button("Make PNG and SVG", size="sm")
                self.edit = gr.Button("Edit this image", size="sm")
                self.paint = gr.Button("Inpaint this image", size="sm")
            self.files = gr.HTML(elem_classes="links")
        with gr.Accordion("Before", open=False):
            self.history = gallery("Earlier images: click one for its settings", columns=6)
        self.gallery.select(choose, None, [self.chosen, self.which], **HIDDEN)
        make.click(files_of(self.session), [self.chosen, times], self.files, **HIDDEN)

    def wire(
        self,
        triggers: list,
        answer: Callable,
        inputs: list,
        name: str,
        seed: tuple[gr.Number, gr.Checkbox] | None = None,
    ) -> None:
        """Let `triggers` generate, each time from another seed unless it is kept, and Stop end it.

        Args:
            answer: takes the values of `inputs` and a request; gives what `stream` gives, again and again.
            name: of this in the page's programming interface.
            seed: the box of the seed, and whether it is kept.
        """
        options: dict[str, Any] = {"api_name": name, "show_progress": "hidden", **ALONE}
        if seed is None:
            begun = gr.on(triggers, answer, inputs, self.outputs, **options)
        else:
            box, keep = seed
            drawn = gr.on(triggers, next_seed, [keep, box], box, **HIDDEN)
            begun = drawn.then(answer, inputs, self.outputs, **options)
        self.stop.click(stop_of(self.session), None, None, **HIDDEN)
        self.follow(begun)

    def follow(self, begun: Any) -> None:
        """Bring link and history up to date after an event that generates."""
        if self.actions:
            after = [self.link, self.history, self.chosen, self.which, self.files]
            begun.then(refresher_of(self.session), None, after, **HIDDEN)


def stream(answers: Callable[[], Iterator[Shown]]) -> Iterator[tuple]:
    """What the outputs show, step by step; a `UserError` is said in the line of text."""

    def shown() -> Iterator[tuple]:
        for one in answers():
            images = list(zip(one.images, one.captions, strict=True)) if one.captions else one.images
            yield said(one.text, one.hints), previews(one), images, RUNNING if one.running else ENDED

    yield from inline(shown(), NOTHING)


def choose(event: gr.SelectData) -> tuple[int, str]:
    """The number of the image that was clicked."""
    index = event.index if isinstance(event.index, int) else 0
    return index, said(f"Image {index + 1} is chosen.")


def files_of(session: Session) -> Callable:
    """What makes the chosen image into files."""

    def answer(index, times, request: gr.Request) -> str:
        try:
            image, job, key = session.visits.chosen(visitor_of(request), index)
        except UserError as error:
            return said(str(error), error=True)
        return links(image, times if times in TIMES else 1, job, key)

    return answer


def refresher_of(session: Session) -> Callable:
    """What brings link and history up to date after new images, and chooses the first of these."""

    def answer(request: gr.Request) -> tuple:
        recent = session.visits.recent(visitor_of(request))
        if recent is None:
            return "", [], 0, FIRST, ""
        past = [(image, job["prompt"] or f"seed {job['seed']}") for image, job, _ in recent.history]
        _, job, number = recent.history[0]
        return link_html(share_link.query(job, number)), past, 0, FIRST, ""

    return answer


def link_html(query: str) -> str:
    """A link to the page with these settings, and a button that copies it."""
    address = html.escape(f"?{query}")
    return f'<p><a href="{address}">Link to these images</a> <button onclick="{COPY}">copy</button></p>'


def previews(shown: Shown) -> str:
    """The previews as HTML that carries its images, so that no file is written for each."""
    parts = [f"<img alt='{html.escape(shown.text)}' src='{png_address(image)}'>" for image in shown.previews]
    return f"<div class='previews'>{''.join(parts)}</div>" if parts else ""


def png_address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return data_address(buffer.getvalue(), "image/png")
