"""Looking into the model: the attention of each word, and the training glyphs that are most like an image."""

from collections.abc import Callable

import gradio as gr

from ldm.apps.demo.page.widgets import (
    ALONE,
    HIDDEN,
    example_list,
    gallery,
    guidance_slider,
    inline,
    next_seed,
    number_slider,
    prompt_box,
    said,
    seed_box,
    steps_and_sampler,
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
    def answer(prompt, guidance, steps, seed):
        def found():
            yield said("generating, and recording the attention ..."), []
            pairs = session.attention(session.job(prompt, None, guidance, steps, OWN, seed))
            yield said(f"{len(pairs) - 1} tokens, seed {seed}", session.about.hints(prompt)), pairs

        yield from inline(found(), ([],))

    gr.Markdown(ABOUT_ATTENTION)
    _question(session, "Show", answer, "attention", columns=3)


def nearest_tab(session: Session) -> None:
    def answer(prompt, guidance, steps, seed, number):
        def found():
            yield said("generating, and comparing with the training glyphs ..."), []
            pairs, verdict = session.nearest(session.job(prompt, None, guidance, steps, OWN, seed), number)
            yield said(verdict), pairs

        yield from inline(found(), ([],))

    gr.Markdown(ABOUT_NEAREST)
    _question(session, "Compare", answer, "nearest", columns=2, number=4)


def _question(
    session: Session, button: str, answer: Callable, name: str, columns: int, number: int | None = None
) -> None:
    """The settings of an image on one side; a line of text and images on the other."""
    with gr.Row():
        with gr.Column(min_width=280):
            prompt = prompt_box("Prompt", session.examples, value="".join(session.examples[:1]))
            go = gr.Button(button, variant="primary")
        with gr.Column(min_width=280):
            outputs = [gr.HTML(said(""), elem_classes="state"), gallery(name, columns)]
    example_list(session, prompt)
    guidance, many, (seed, keep) = guidance_slider(session), [number_slider(number)] if number else [], seed_box()
    steps, _ = steps_and_sampler(session, samplers=False)
    inputs = [prompt, guidance, steps, seed, *many]
    seeded = gr.on([go.click, prompt.submit], next_seed, [keep, seed], seed, **HIDDEN)
    seeded.then(answer, inputs, outputs, api_name=name, show_progress="hidden", **ALONE)
