"""Images without a prompt."""

import gradio as gr

from ldm.apps.demo.page.results import Results, stream
from ldm.apps.demo.page.widgets import go_and_stop, number_slider, seed_box, steps_and_sampler, visitor_of
from ldm.apps.demo.session import Session


def unconditional_tab(session: Session) -> None:
    def answer(steps, sampler, seed, number, request: gr.Request):
        settings = (None, None, 1, steps, sampler, seed)
        yield from stream(lambda: session.draw(visitor_of(request), session.job(*settings), number))

    with gr.Row():
        with gr.Column(min_width=280):
            go, stop = go_and_stop()
        with gr.Column(min_width=280):
            results = Results(session, stop, actions=False)
    with gr.Row():
        with gr.Column(min_width=280):
            number, (seed, keep) = number_slider(8), seed_box()
        with gr.Column(min_width=280):
            steps, sampler = steps_and_sampler(session)
    results.wire([go.click], answer, [steps, sampler, seed, number], "unconditional", (seed, keep))
