"""The page of the app: what lies where, and which function answers what. Only here gradio is imported."""

import base64
import html
import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from ldm.app import LOOPBACK, limits
from ldm.app.guard import Guard
from ldm.app.studio import OWN, Shown, Studio
from ldm.app.watching import runs_in, watch
from ldm.errors import UserError

HIDDEN: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
ALONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # one visitor at a time
LOOK_AGAIN = 5  # seconds
CSS = """
.pixels img, .pixels .thumbnail-item img { image-rendering: pixelated; }
.pixels .previews { display: flex; gap: 4px; }
.pixels .previews img { width: 25%; max-width: 160px; border: 1px solid #8884; }
.pixels .grid-wrap { max-height: none !important; }
.pixels .thumbnail-item:has(.caption-label) img { padding-bottom: 28px; background: white; }
.film { display: flex; flex-direction: column; gap: 8px; max-width: 256px; }
.film img { width: 256px; image-rendering: pixelated; }
.film img[hidden] { display: none; }
.wide .thumbnail-item { aspect-ratio: auto !important; }
.curves svg { max-width: 100%; height: auto; }
footer { display: none !important; }
"""


def launch(studio: Studio, runs: Path | None, host: str, port: int | None) -> str:
    """Start serving in threads of their own; returns the address. Raises: UserError if it cannot listen there."""
    Image.MAX_IMAGE_PIXELS = limits.MOST_PIXELS // 2  # Pillow refuses twice as many
    hosts = LOOPBACK if host in LOOPBACK else ()
    page = build(studio, runs)
    public = {i: each.api_name if each.api_visibility == "public" else "" for i, each in page.fns.items() if each.queue}
    guard = Middleware(Guard, hosts=hosts, queued=public, quick=set(page.fns) - set(public))
    page.queue(max_size=limits.MOST_WAITING, default_concurrency_limit=4)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=_free(host) if port == 0 else port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=limits.MOST_BYTES,
            state_session_capacity=100,
            app_kwargs={"middleware": [guard]},
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
        )
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error}; choose another --port") from None
    return address


def build(studio: Studio, runs: Path | None) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title=f"ldm: {studio.name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {studio.name}\nPictures from words, drawn on this machine.")
        with gr.Tabs():
            with gr.Tab("Draw"):
                _draw_tab(studio)
            with gr.Tab("Unconditional"):
                _unconditional_tab(studio)
            with gr.Tab("Image to image"):
                _picture_tab(studio)
            with gr.Tab("Inpaint"):
                _picture_tab(studio, part=True)
            with gr.Tab("Interpolate"):
                _way_tab(studio)
            with gr.Tab("Attention"):
                _attention_tab(studio)
            with gr.Tab("Seen before?"):
                _nearest_tab(studio)
            if runs is not None:
                with gr.Tab("Trainings"):
                    _watch_tab(runs)
        page.unload(_stop(studio))
    return page


# ---- tabs -----------------------------------------------------------------------------------------------------------


def _draw_tab(studio: Studio) -> None:
    def answer(prompt, negative, guidance, steps, sampler, seed, number, request: gr.Request):
        yield from _shown(studio, request, number, prompt, negative, guidance, steps, sampler, seed)

    with gr.Row():
        with gr.Column(min_width=280):
            prompt = _prompt("Prompt", studio.examples)
            go, stop = _go_and_stop()
            _examples(studio, prompt)
            negative = _prompt("Negative prompt: what to lead away from")
            guidance, number, seed = _guidance(studio), _number(), _seed()
            steps, sampler = _steps(studio)
        with gr.Column(min_width=280):
            outputs = _easel()
    inputs = [prompt, negative, guidance, steps, sampler, seed, number]
    gr.on([go.click, prompt.submit], answer, inputs, outputs, api_name="draw", show_progress_on=outputs[0], **ALONE)
    stop.click(_stop(studio), None, None, **HIDDEN)


def _unconditional_tab(studio: Studio) -> None:
    def answer(steps, sampler, seed, number, request: gr.Request):
        yield from _shown(studio, request, number, None, None, 1, steps, sampler, seed)

    with gr.Row():
        with gr.Column(min_width=280):
            go, stop = _go_and_stop()
            number, seed = _number(8), _seed()
            steps, sampler = _steps(studio)
        with gr.Column(min_width=280):
            outputs = _easel()
    inputs = [steps, sampler, seed, number]
    go.click(answer, inputs, outputs, api_name="unconditional", show_progress_on=outputs[0], **ALONE)
    stop.click(_stop(studio), None, None, **HIDDEN)


def _picture_tab(studio: Studio, part: bool = False) -> None:
    """Draw on from a picture, or draw a part of it anew."""

    def answer(picture, strength, prompt, guidance, steps, sampler, seed, number, request: gr.Request, *box):
        with _told():
            job = studio.job(prompt, None, guidance, steps, sampler, seed)
            drawing = studio.draw_on(_visitor(request), job, number, picture, strength, box if part else None)
            yield from _easels(drawing)

    with gr.Row():
        with gr.Column(min_width=280):
            kinds = ["upload", "clipboard"]
            picture = gr.Image(label="Picture", type="filepath", format="png", sources=kinds, height=220, buttons=[])
            prompt = _prompt("Prompt", studio.examples)
            go, stop = _go_and_stop()
            strength = _slider("strength", "Strength: how much is forgotten", 1 if part else 0.6, 0.05)
            edges = {"Left": 50, "Top": 0, "Right": 100, "Bottom": 100} if part else {}
            box = [_slider("edge", f"{name} of what is drawn anew, %", at) for name, at in edges.items()]
            guidance, number, seed = _guidance(studio), _number(), _seed()
            steps, sampler = _steps(studio)
        with gr.Column(min_width=280):
            outputs = _easel()
    inputs = [picture, strength, prompt, guidance, steps, sampler, seed, number, *box]
    name = "inpaint" if part else "image_to_image"
    gr.on([go.click, prompt.submit], answer, inputs, outputs, api_name=name, show_progress_on=outputs[0], **ALONE)
    stop.click(_stop(studio), None, None, **HIDDEN)


def _way_tab(studio: Studio) -> None:
    def answer(first, second, seed, last_seed, frames, guidance, steps, sampler, request: gr.Request):
        with _told():
            job = studio.job(first, None, guidance, steps, sampler, seed)
            for text, shown, images in _easels(studio.between(_visitor(request), job, frames, second, last_seed)):
                yield text, film(images) if images else shown, images

    with gr.Row():
        with gr.Column(min_width=280):
            first, second = _prompt("From this prompt", studio.examples), _prompt("to this one (empty: the same)")
            go, stop = _go_and_stop()
            seed, last_seed = _seed("From this seed"), _seed("to this one", 1)
            frames, guidance = _slider("frames", "Pictures on the way", 9), _guidance(studio)
            steps, sampler = _steps(studio)
        with gr.Column(min_width=280):
            outputs = _easel()
    inputs = [first, second, seed, last_seed, frames, guidance, steps, sampler]
    go.click(answer, inputs, outputs, api_name="interpolate", show_progress_on=outputs[0], **ALONE)
    stop.click(_stop(studio), None, None, **HIDDEN)


def _attention_tab(studio: Studio) -> None:
    def answer(prompt, guidance, steps, seed):
        with _told():
            return studio.attention(studio.job(prompt, None, guidance, steps, OWN, seed))

    gr.Markdown(
        "For every word the places that looked at it while the picture was drawn: pale is average, dark is 2.5 times "
        "as much. The share is how much of all looking went to the word."
    )
    with gr.Row():
        with gr.Column(min_width=280):
            prompt = _prompt("Prompt", studio.examples)
            go = gr.Button("Show", variant="primary")
            _examples(studio, prompt)
            guidance, seed = _guidance(studio), _seed()
            steps, _ = _steps(studio, samplers=False)
        with gr.Column(min_width=280):
            maps = _gallery("Attention", columns=3)
    gr.on([go.click, prompt.submit], answer, [prompt, guidance, steps, seed], maps, api_name="attention", **ALONE)


def _nearest_tab(studio: Studio) -> None:
    def answer(prompt, guidance, steps, seed, number):
        with _told():
            return studio.nearest(studio.job(prompt, None, guidance, steps, OWN, seed), number)

    gr.Markdown(
        "Beside each picture the training glyph that is most like it, wherever on the page and however bold. "
        "The first time takes about a minute: the training glyphs are drawn."
    )
    with gr.Row():
        with gr.Column(min_width=280):
            prompt = _prompt("Prompt", studio.examples)
            go = gr.Button("Compare", variant="primary")
            _examples(studio, prompt)
            guidance, number, seed = _guidance(studio), _number(4), _seed()
            steps, _ = _steps(studio, samplers=False)
        with gr.Column(min_width=280):
            verdict = gr.Markdown()
            pairs = _gallery("Picture and nearest training glyph, in turn", columns=2)
    inputs = [prompt, guidance, steps, seed, number]
    gr.on([go.click, prompt.submit], answer, inputs, [pairs, verdict], api_name="nearest", **ALONE)


def _watch_tab(runs: Path) -> None:
    def listed():
        names = runs_in(runs)
        return gr.Dropdown(choices=names, value=names[0] if names else None)

    def answer(name):
        if name is None:
            return "There are no trainings here yet.", "", []
        with _told():
            seen = watch(runs, name)
        return seen.text, "".join(seen.curves), seen.grids

    with gr.Row():
        name = gr.Dropdown([], label="Training, the last active first", allow_custom_value=True, scale=4)
        again = gr.Button("Look again")
    state = gr.Markdown()
    curves = gr.HTML(elem_classes="curves")
    grids = _gallery("Samples, newest first", columns=2, look="pixels wide")
    shown: dict[str, Any] = {"inputs": name, "outputs": [state, curves, grids], "show_progress": "hidden"}
    again.click(listed, None, name, **HIDDEN).then(answer, api_name="watch", **shown)
    name.input(answer, api_visibility="private", **shown)
    gr.Timer(LOOK_AGAIN).tick(answer, api_visibility="private", **shown)
    gr.on(None, listed, None, name, **HIDDEN).then(answer, api_visibility="private", **shown)  # when the page opens


# ---- what several tabs have -----------------------------------------------------------------------------------------


def _prompt(label: str, examples: list[str] | None = None) -> gr.Textbox:
    hint = f"for example: {examples[0]}" if examples else ""
    box = gr.Textbox(label=label, placeholder=hint, max_length=limits.MOST_LETTERS, max_lines=3)
    box.preprocess = lambda value: value  # gradio's own makes a text of a list or a dict; `limits.text` refuses it
    return box


def _examples(studio: Studio, prompt: gr.Textbox) -> None:
    if studio.examples:
        gr.Examples([[each] for each in studio.examples], prompt, label="Examples", api_visibility="private")


def _slider(name: str, label: str, value: float, step: float = 1) -> gr.Slider:
    least, most = limits.RANGES[name]
    return gr.Slider(least, most, value=value, step=step, label=label)


def _guidance(studio: Studio) -> gr.Slider:
    return _slider(
        "guidance", "Guidance: how strictly to follow, 1 = off", studio.pipeline.defaults["guidance_scale"], 0.1
    )


def _number(value: int = 4) -> gr.Slider:
    return _slider("number", "Pictures", value)


def _steps(studio: Studio, samplers: bool = True) -> tuple[gr.Slider, gr.Dropdown | None]:
    with gr.Accordion("More", open=False):
        steps = _slider("steps", "Steps", studio.pipeline.defaults["num_inference_steps"])
        return steps, gr.Dropdown(studio.samplers, value=OWN, label="Sampler") if samplers else None


def _seed(label: str = "Seed of the first picture", value: int = 0) -> gr.Number:
    least, most = limits.RANGES["seed"]
    with gr.Row():
        seed = gr.Number(value, label=label, precision=0, minimum=least, maximum=most, scale=4)
        dice = gr.Button("Dice", min_width=60, scale=1)
    dice.click(lambda: random.randint(int(least), int(most)), None, seed, **HIDDEN)
    return seed


def _go_and_stop() -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button("Draw", variant="primary"), gr.Button("Stop")


def _gallery(label: str, columns: int, look: str = "pixels") -> gr.Gallery:
    """PNG, so that a downloaded picture still knows how it was drawn."""
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


def _easel() -> list[Any]:
    """A line of text, previews, the gallery."""
    return [gr.Markdown("", elem_classes="state"), gr.HTML(elem_classes="pixels"), _gallery("Pictures", columns=4)]


def _stop(studio: Studio) -> Callable:
    """What ends a visitor's drawing."""

    def answer(request: gr.Request) -> None:
        studio.stop(_visitor(request))

    return answer


# ---- answers --------------------------------------------------------------------------------------------------------


def _shown(studio: Studio, request: gr.Request, number: Any, *settings: Any) -> Iterator[tuple]:
    """What the easel shows, again and again, while pictures are drawn."""
    with _told():
        yield from _easels(studio.draw(_visitor(request), studio.job(*settings), number))


def _easels(drawing: Iterator[Shown]) -> Iterator[tuple]:
    for shown in drawing:
        yield shown.text, previews(shown), shown.images


def previews(shown: Shown) -> str:
    """The previews as HTML that carries its pictures, so that no file is written for each."""
    parts = [f"<img alt='{html.escape(shown.text)}' src='{_data(image, 'PNG')}'>" for image in shown.previews]
    return f"<div class='previews'>{''.join(parts)}</div>" if parts else ""


def film(images: list[Image.Image]) -> str:
    """A slider through the pictures, and all of them as a GIF, as HTML that needs no file and no server."""
    there_and_back = {"save_all": True, "append_images": [*images[1:], *images[-2:0:-1]], "duration": 120, "loop": 0}
    show = "this.parentNode.querySelectorAll('img').forEach((each, i) => each.hidden = i != this.value)"
    parts = [
        f"<img alt='picture {i + 1}' src='{_data(image, 'PNG')}'{' hidden' * (i > 0)}>"
        for i, image in enumerate(images)
    ]
    slider = (
        f"<input type='range' aria-label='on the way' min='0' max='{len(images) - 1}' value='0' oninput=\"{show}\">"
    )
    link = f"<a download='on-the-way.gif' href='{_data(images[0], 'GIF', **there_and_back)}'>Download as a GIF</a>"
    return f"<div class='film'>{''.join(parts)}{slider}{link}</div>"


def _data(image: Image.Image, kind: str, **options: Any) -> str:
    """The picture as an address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _visitor(request: gr.Request) -> str:
    return request.session_hash or str(id(request))


@contextmanager
def _told() -> Iterator[None]:
    """A `UserError` as a message on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _free(host: str) -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
