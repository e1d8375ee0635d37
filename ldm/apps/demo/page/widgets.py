"""Controls that several tabs have, and how they answer: what is wrong is said at the button, not in a pop-up."""

import html
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from ldm.apps.demo import limits
from ldm.apps.demo.session import OWN, Session
from ldm.utils.errors import UserError

HIDDEN: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
ALONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # one visitor at a time
FAST, BEST = "fast", "best"
SLOW = 4  # steps: a model of fewer is fast as it is


# ---- what is said ---------------------------------------------------------------------------------------------------


def said(text: str, notes: Sequence[str] = (), error: bool = False) -> str:
    """A line of text and notes below it, as HTML that screen readers read out when it changes."""
    lines = [f"<p{' class=error' * error}>{html.escape(text)}</p>"] if text else []
    lines += [f"<p class=note>{html.escape(note)}</p>" for note in notes]
    return f"<div role='status'>{''.join(lines)}</div>"


def inline(answers: Iterator[tuple], blank: tuple) -> Iterator[tuple]:
    """Answers whose first output is a line of text: a `UserError` is said there, beside `blank` for the others.

    A program that uses the page gets an error all the same. There is no pop-up.
    """
    try:
        yield from answers
    except UserError as error:
        yield (said(str(error), error=True), *blank)
        raise gr.Error(str(error), visible=False, print_exception=False) from None


def visitor_of(request: gr.Request) -> str:
    return request.session_hash or str(id(request))


def stop_of(session: Session) -> Callable:
    """What stops a visitor's generation."""

    def answer(request: gr.Request) -> None:
        session.stop(visitor_of(request))

    return answer


# ---- controls -------------------------------------------------------------------------------------------------------


def prompt_box(label: str, examples: list[str] | None = None, value: str = "") -> gr.Textbox:
    hint = f"for example: {examples[0]}" if examples else ""
    box = gr.Textbox(value, label=label, placeholder=hint, max_length=limits.MAX_LETTERS, max_lines=3)
    box.preprocess = lambda sent: sent  # gradio's own makes a text of a list or a dict; `limits.text` refuses it
    return box


def slider(name: str, label: str, value: float, step: float = 1) -> gr.Slider:
    least, most = limits.RANGES[name]
    return gr.Slider(least, most, value=value, step=step, label=label)


def guidance_slider(session: Session) -> gr.Slider:
    return slider("guidance", "Guidance scale of the prompt, 1 = off", session.defaults["guidance_scale"], 0.1)


def number_slider(value: int = 4) -> gr.Slider:
    return slider("number", "Images", value)


def steps_and_sampler(session: Session, samplers: bool = True) -> tuple[gr.Slider, gr.Dropdown | None]:
    """The steps, with a switch between few and the model's own; and the sampler."""
    own = session.defaults["num_inference_steps"]
    speed = gr.Radio([FAST, BEST], value=BEST, label="Speed") if own >= SLOW else None
    with gr.Accordion("More", open=False):
        steps = slider("steps", "Steps", own)
        sampler = gr.Dropdown(session.samplers, value=OWN, label="Sampler") if samplers else None
    if speed is not None:
        speed.input(lambda chosen: steps_of(chosen, own), speed, steps, **HIDDEN)
    return steps, sampler


def steps_of(speed: str, own: int) -> int:
    """Half the model's own steps for fast images."""
    return -(-own // 2) if speed == FAST else own


def size_sliders(session: Session) -> list[gr.Slider]:
    """Height and width of the images, in steps that the model can generate."""
    step = session.size_step
    with gr.Row():
        return [
            gr.Slider(step, limits.RANGES[name][1], value=side, step=step, label=f"{name.title()} in pixels")
            for name, side in zip(("height", "width"), session.size, strict=True)
        ]


def seed_number(label: str, value: int = 0) -> gr.Number:
    least, most = limits.RANGES["seed"]
    return gr.Number(value, label=label, precision=0, minimum=least, maximum=most, scale=3, min_width=120)


def seed_box() -> tuple[gr.Number, gr.Checkbox]:
    """The seed, and whether it is kept: else each start takes another."""
    with gr.Row():
        seed = seed_number("Seed of the first image")
        keep = gr.Checkbox(False, label="Keep this seed", scale=2, min_width=120)
    seed.input(lambda: True, None, keep, **HIDDEN)  # who types a seed wants it
    return seed, keep


def next_seed(keep: Any, seed: Any) -> Any:
    """The seed of the next images."""
    least, most = limits.RANGES["seed"]
    return seed if keep else random.randint(int(least), int(most) - int(limits.RANGES["number"][1]))


def go_and_stop(label: str = "Generate") -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(label, variant="primary", scale=3), gr.Button("Stop", scale=1, min_width=80, interactive=False)


def gallery(label: str, columns: int, look: str = "pixels") -> gr.Gallery:
    """PNG, so that a downloaded image keeps its settings."""
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=columns,
        format="png",
        object_fit="contain",
        height="auto",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes=look.split(),
    )


def example_list(session: Session, prompt: gr.Textbox) -> None:
    if session.examples:
        gr.Examples([[each] for each in session.examples], prompt, label="Examples", api_visibility="private")
