"""Looking into the model: the attention of each word, and the training glyphs that are most like an image."""

from collections.abc import Callable

import gradio as gr

from ldm.apps.demo.page.results import Results, stream
from ldm.apps.demo.page.widgets import (
    example_list,
    go_and_stop,
    guidance_slider,
    number_slider,
    prompt_box,
    seed_box,
    steps_and_sampler,
    visitor_of,
)
from ldm.apps.demo.session import OWN, Session

ABOUT_ATTENTION = (
    "The cross-attention to every word, by position, while the image was generated: pale is average, dark is 2.5 times "
    "as much. The percentage is the word's fraction of all attention."
)
ABOUT_NEAREST = (
    "Beside each image the training glyph that is most like it, wherever on the page and however bold. The first time "
    "takes about a minute: the training glyphs are rendered."
)


def attention_tab(session: Session) -> None:
    def answer(prompt, guidance, steps, seed, request: gr.Request):
        settings = (prompt, None, guidance, steps, OWN, seed)
        yield from stream(lambda: session.attention(visitor_of(request), session.job(*settings)))

    gr.Markdown(ABOUT_ATTENTION)
    _question(session, "Show", answer, "attention", columns=3)


def nearest_tab(session: Session) -> None:
    def answer(prompt, guidance, steps, seed, number, request: gr.Request):
        settings = (prompt, None, guidance, steps, OWN, seed)
        yield from stream(lambda: session.nearest(visitor_of(request), session.job(*settings), number))

    gr.Markdown(ABOUT_NEAREST)
    _question(session, "Compare", answer, "nearest", columns=2, number=4)


def _question(
    session: Session, button: str, answer: Callable, name: str, columns: int, number: int | None = None
) -> None:
    """The settings of an image on one side; a line of text and images on the other."""
    with gr.Row():
        with gr.Column(min_width=280):
            prompt = prompt_box("Prompt", session.examples, value="".join(session.examples[:1]))
            go, stop = go_and_stop(button)
        with gr.Column(min_width=280):
            results = Results(session, stop, actions=False, columns=columns)
    example_list(session, prompt)
    guidance, many, (seed, keep) = guidance_slider(session), [number_slider(number)] if number else [], seed_box()
    steps, _ = steps_and_sampler(session, samplers=False)
    results.wire([go.click, prompt.submit], answer, [prompt, guidance, steps, seed, *many], name, (seed, keep))
