"""Trainings: planning, starting, stopping and resuming one, and watching every run below a folder."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.apps.demo.page.widgets import HIDDEN, gallery, inline, said
from ldm.apps.demo.training_monitor import runs_in, watch
from ldm.apps.demo.training_processes import MINUTES, REFUSED, Trainings
from ldm.apps.demo.training_status import Status, status_of
from ldm.utils.errors import UserError

LOOK_AGAIN = 5  # seconds
EMPTY = "No trainings yet. Name a folder of images, each with a .txt caption beside it, and press Plan."
NO_RUNS = "There are no runs yet. Start one here, or in a shell: ldm train my-images"
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def trainings_tab(runs: Path, trainings: Trainings) -> None:
    if trainings.allowed:
        _start_part(trainings)
    else:
        gr.HTML(said("", [f"Only to watch: {REFUSED}."]))
    with gr.Accordion("All runs", open=not trainings.allowed):
        _watch_part(runs)


# ---- starting -------------------------------------------------------------------------------------------------------


def _start_part(trainings: Trainings) -> None:
    with gr.Row():
        folder = gr.Textbox(label="Folder of images, each with a .txt caption beside it", scale=4)
        minutes = gr.Number(180, label="Minutes", minimum=MINUTES[0], maximum=MINUTES[1], scale=1, min_width=100)
        plan = gr.Button("Plan", variant="primary", scale=1, min_width=100)
    with gr.Row():
        name = gr.Dropdown([], label="Training, running ones first", allow_custom_value=True, scale=4)
        train = gr.Button("Start", interactive=False, scale=1, min_width=100)
        stop = gr.Button("Stop", interactive=False, scale=1, min_width=100)
    state, message = gr.HTML(said(""), elem_classes="state"), gr.HTML(said(""), elem_classes="state")
    details, grids = gr.HTML(elem_classes="log curves"), gallery("Samples, newest first", 2, "pixels wide")
    outputs = [state, details, grids, train, stop]

    def show(chosen):
        return shown(trainings, chosen)

    def planned(where, how_long):
        try:
            chosen = trainings.plan(where, how_long)
        except UserError as error:
            return gr.update(), said(str(error), error=True)
        return gr.Dropdown(choices=trainings.names(), value=chosen), said("")

    def acting(act):
        def answer(chosen):
            try:
                act(chosen)
            except UserError as error:
                return said(str(error), error=True)
            return said("")

        return answer

    def listed():
        names = trainings.names()
        return gr.Dropdown(choices=names, value=names[0] if names else None)

    gr.on([plan.click, folder.submit], planned, [folder, minutes], [name, message], **PRIVATE).then(
        show, name, outputs, **PRIVATE
    )
    train.click(acting(trainings.train), name, message, **PRIVATE).then(show, name, outputs, **PRIVATE)
    stop.click(acting(trainings.stop), name, message, **PRIVATE).then(show, name, outputs, **PRIVATE)
    name.input(show, name, outputs, **PRIVATE)
    gr.Timer(LOOK_AGAIN).tick(show, name, outputs, **PRIVATE)
    gr.on(None, listed, None, name, **HIDDEN).then(show, name, outputs, **PRIVATE)  # when the page opens


def shown(trainings: Trainings, name: Any) -> tuple:
    """State, details and grids of a training, and which buttons can be pressed."""
    off = gr.update(interactive=False)
    if name is None or name == "":
        return said("" if trainings.names() else EMPTY), "", [], off, off
    try:
        status = status_of(trainings, name)
    except UserError as error:
        return said(str(error), error=True), "", [], off, off
    start = gr.update(interactive="train" in status.can, value="Resume" if status.watched else "Start")
    grids = status.watched.grids if status.watched else []
    return said(status.state), details_html(status), grids, start, gr.update(interactive="stop" in status.can)


def details_html(status: Status) -> str:
    """Plan, curves, log and the command that does the same in a shell."""
    parts = []
    if status.plan:
        parts.append(f"<h3>Plan</h3><ul>{''.join(f'<li>{html.escape(line)}</li>' for line in status.plan)}</ul>")
    if status.watched:
        parts.extend(status.watched.curves)
    if status.log:
        parts.append(f"<h3>Log</h3><pre tabindex=0 aria-label='log'>{html.escape(chr(10).join(status.log))}</pre>")
    if status.command:
        parts.append(f"<p>The same in a shell: <code>{html.escape(status.command)}</code></p>")
    return "".join(parts)


# ---- watching -------------------------------------------------------------------------------------------------------


def _watch_part(runs: Path) -> None:
    def listed():
        names = runs_in(runs)
        return gr.Dropdown(choices=names, value=names[0] if names else None)

    def answer(name):
        def seen():
            if name is None:
                yield said(NO_RUNS), "", []
                return
            found = watch(runs, name)
            yield said(found.text), "".join(found.curves), found.grids

        yield from inline(seen(), ("", []))

    with gr.Row():
        name = gr.Dropdown([], label="Run, the last active first", allow_custom_value=True, scale=4)
        again = gr.Button("Look again", min_width=100)
    state = gr.HTML(said(""), elem_classes="state")
    curves = gr.HTML(elem_classes="curves")
    grids = gallery("Samples, newest first", columns=2, look="pixels wide")
    shown_in: dict[str, Any] = {"inputs": name, "outputs": [state, curves, grids], "show_progress": "hidden"}
    again.click(listed, None, name, **HIDDEN).then(answer, api_name="watch", **shown_in)
    name.input(answer, api_visibility="private", **shown_in)
    gr.Timer(LOOK_AGAIN).tick(answer, api_visibility="private", **shown_in)
    gr.on(None, listed, None, name, **HIDDEN).then(answer, api_visibility="private", **shown_in)  # when the page opens
