"""The page of the demo: its layout, and which function answers what. Only here gradio is imported."""

import base64
import html
import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from ldm.apps.demo import limits
from ldm.apps.demo.limits import LOOPBACK
from ldm.apps.demo.request_guard import Guard
from ldm.apps.demo.session import OWN, SIDE, Session, Shown
from ldm.apps.demo.training_monitor import runs_in, watch
from ldm.utils.animation import forth_and_back, gif, mp4
from ldm.utils.errors import UserError
from ldm.utils.runtime import free_port

HIDDEN: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
ALONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # one visitor at a time
LOOK_AGAIN = 5  # seconds
CSS = """
.pixels img, .pixels .thumbnail-item img { image-rendering: pixelated; }
.pixels .previews { display: flex; gap: 4px; }
.pixels .previews img { width: 25%; max-width: 160px; border: 1px solid #8884; }
.pixels .grid-wrap { min-height: 0 !important; max-height: none !important; }
@media (max-width: 640px) {
    .pixels .grid-container { grid-template-columns: 1fr 1fr !important; }
    .wide .grid-container { grid-template-columns: 1fr !important; }
}
.pixels .thumbnail-item:has(.caption-label) img { padding-bottom: 28px; background: white; }
.film { display: flex; flex-direction: column; gap: 8px; max-width: 256px; }
.film img { width: 256px; image-rendering: pixelated; }
.film img[hidden] { display: none; }
.wide .thumbnail-item { aspect-ratio: auto !important; }
.curves svg { max-width: 100%; height: auto; }
footer { display: none !important; }
"""
TRANSPARENT = """
.pixels img, .pixels .thumbnail-item:has(.caption-label) img, .film img {
    background: repeating-conic-gradient(#808080 0 25%, #b0b0b0 0 50%) 0 0 / 16px 16px;
}
"""


def launch(session: Session, runs: Path | None, host: str, port: int | None) -> str:
    """Start serving in threads of their own; returns the address. Raises: UserError if it cannot listen there."""
    Image.MAX_IMAGE_PIXELS = limits.MAX_PIXELS // 2  # Pillow refuses twice as many
    hosts = LOOPBACK if host in LOOPBACK else ()
    page = build(session, runs)
    public = {i: each.api_name if each.api_visibility == "public" else "" for i, each in page.fns.items() if each.queue}
    guard = Middleware(Guard, hosts=hosts, queued=public, quick=set(page.fns) - set(public))
    page.queue(max_size=limits.MAX_WAITING, default_concurrency_limit=4)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=free_port(host) if port == 0 else port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=limits.MAX_BYTES,
            state_session_capacity=100,
            app_kwargs={"middleware": [guard]},
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS + (TRANSPARENT if session.pipeline.image_shape[0] == 4 else ""),
        )
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error}; choose another --port") from None
    return address


def build(session: Session, runs: Path | None) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title=f"ldm: {session.name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {session.name}\nImages from prompts, generated on this machine.")
        with gr.Tabs():
            with gr.Tab("Draw"):
                _draw_tab(session)
            with gr.Tab("Unconditional"):
                _unconditional_tab(session)
            with gr.Tab("Image to image"):
                _picture_tab(session, "image_to_image", _picture, 0.6)
            with gr.Tab("Inpaint"):
                _picture_tab(session, "inpaint", partial(_canvas, session), 1)
            with gr.Tab("Interpolate"):
                _way_tab(session)
            with gr.Tab("Attention"):
                _attention_tab(session)
            with gr.Tab("Seen before?"):
                _nearest_tab(session)
            if runs is not None:
                with gr.Tab("Trainings"):
                    _watch_tab(runs)
        page.unload(_stop(session))
    return page


# ---- tabs -----------------------------------------------------------------------------------------------------------


def _draw_tab(session: Session) -> None:
    def answer(prompt, negative, guidance, steps, sampler, seed, number, height, width, request: gr.Request):
        yield from _shown(session, request, number, prompt, negative, guidance, steps, sampler, seed, height, width)

    with gr.Row():
        with gr.Column(min_width=280):
            prompt = _prompt("Prompt", session.examples)
            go, stop = _go_and_stop()
            _examples(session, prompt)
            negative = _prompt("Negative prompt: what the images should not show")
            guidance, number, seed = _guidance(session), _number(), _seed()
            height, width = _size(session)
            steps, sampler = _steps(session)
        with gr.Column(min_width=280):
            outputs = _easel()
    inputs = [prompt, negative, guidance, steps, sampler, seed, number, height, width]
    gr.on([go.click, prompt.submit], answer, inputs, outputs, api_name="draw", show_progress_on=outputs[0], **ALONE)
    stop.click(_stop(session), None, None, **HIDDEN)


def _unconditional_tab(session: Session) -> None:
    def answer(steps, sampler, seed, number, request: gr.Request):
        yield from _shown(session, request, number, None, None, 1, steps, sampler, seed)

    with gr.Row():
        with gr.Column(min_width=280):
            go, stop = _go_and_stop()
            number, seed = _number(8), _seed()
            steps, sampler = _steps(session)
        with gr.Column(min_width=280):
            outputs = _easel()
    inputs = [steps, sampler, seed, number]
    go.click(answer, inputs, outputs, api_name="unconditional", show_progress_on=outputs[0], **ALONE)
    stop.click(_stop(session), None, None, **HIDDEN)


def _picture_tab(session: Session, name: str, source: Callable[[], Any], forgotten: float) -> None:
    """Change an image, or generate where it is painted over."""

    def answer(picture, strength, prompt, guidance, steps, sampler, seed, number, request: gr.Request):
        with _told():
            job = session.job(prompt, None, guidance, steps, sampler, seed)
            file, layers = picture
            yield from _easels(session.draw_on(_visitor(request), job, number, file, layers, strength))

    with gr.Row():
        with gr.Column(min_width=280):
            picture = source()
            prompt = _prompt("Prompt", session.examples)
            go, stop = _go_and_stop()
            strength = _slider("strength", "Strength: how much is changed", forgotten, 0.05)
            guidance, number, seed = _guidance(session), _number(), _seed()
            steps, sampler = _steps(session)
        with gr.Column(min_width=280):
            outputs = _easel()
    inputs = [picture, strength, prompt, guidance, steps, sampler, seed, number]
    gr.on([go.click, prompt.submit], answer, inputs, outputs, api_name=name, show_progress_on=outputs[0], **ALONE)
    stop.click(_stop(session), None, None, **HIDDEN)


def _way_tab(session: Session) -> None:
    def answer(first, second, seed, last_seed, frames, guidance, steps, sampler, request: gr.Request):
        with _told():
            job = session.job(first, None, guidance, steps, sampler, seed)
            for text, shown, images in _easels(session.between(_visitor(request), job, frames, second, last_seed)):
                yield text, animation(images) if images else shown, images

    with gr.Row():
        with gr.Column(min_width=280):
            first, second = _prompt("From this prompt", session.examples), _prompt("to this one (empty: the same)")
            go, stop = _go_and_stop()
            seed, last_seed = _seed("From this seed"), _seed("to this one", 1)
            frames, guidance = _slider("frames", "Pictures on the way", 9), _guidance(session)
            steps, sampler = _steps(session)
        with gr.Column(min_width=280):
            outputs = _easel()
    inputs = [first, second, seed, last_seed, frames, guidance, steps, sampler]
    go.click(answer, inputs, outputs, api_name="interpolate", show_progress_on=outputs[0], **ALONE)
    stop.click(_stop(session), None, None, **HIDDEN)


def _attention_tab(session: Session) -> None:
    def answer(prompt, guidance, steps, seed):
        with _told():
            return session.attention(session.job(prompt, None, guidance, steps, OWN, seed))

    gr.Markdown(
        "The cross-attention to every word, by place, while the image was generated: pale is average, dark is 2.5 "
        "times as much. The percentage is the word's part of all attention."
    )
    with _question(session, "Show") as (asked, inputs), gr.Column(min_width=280):
        gr.on(asked, answer, inputs, _gallery("Attention", columns=3), api_name="attention", **ALONE)


def _nearest_tab(session: Session) -> None:
    def answer(prompt, guidance, steps, seed, number):
        with _told():
            return session.nearest(session.job(prompt, None, guidance, steps, OWN, seed), number)

    gr.Markdown(
        "Beside each image the training glyph that is most like it, wherever on the page and however bold. "
        "The first time takes about a minute: the training glyphs are rendered."
    )
    with _question(session, "Compare", number=4) as (asked, inputs), gr.Column(min_width=280):
        verdict, pairs = gr.Markdown(), _gallery("Picture and nearest training glyph, in turn", columns=2)
        gr.on(asked, answer, inputs, [pairs, verdict], api_name="nearest", **ALONE)


@contextmanager
def _question(session: Session, button: str, number: int | None = None) -> Iterator[tuple[list, list]]:
    """A row that begins with the settings of an image; gives its triggers and its inputs."""
    with gr.Row():
        with gr.Column(min_width=280):
            prompt = _prompt("Prompt", session.examples)
            go = gr.Button(button, variant="primary")
            _examples(session, prompt)
            guidance, many, seed = _guidance(session), [_number(number)] if number else [], _seed()
            steps, _ = _steps(session, samplers=False)
        yield [go.click, prompt.submit], [prompt, guidance, steps, seed, *many]


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
    box = gr.Textbox(label=label, placeholder=hint, max_length=limits.MAX_LETTERS, max_lines=3)
    box.preprocess = lambda value: value  # gradio's own makes a text of a list or a dict; `limits.text` refuses it
    return box


def _picture() -> gr.Image:
    picture = gr.Image(
        label="Picture", type="filepath", format="png", sources=["upload", "clipboard"], height=220, buttons=[]
    )
    picture.preprocess = lambda sent: (_place(sent), None)
    return picture


def _canvas(session: Session) -> gr.ImageEditor:
    """An image to paint on, a square as the model sees it: its pixels are those of the mask."""

    def opened(sent):
        with _told():
            return {"background": session.seen(sent), "layers": [], "composite": None}

    choose = gr.UploadButton(
        "Choose a picture, and paint over what shall be drawn anew", file_types=["image"], size="sm"
    )
    canvas = gr.ImageEditor(
        label="Where to draw anew",
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
    choose.preprocess = _place
    canvas.preprocess = lambda sent: (
        _place(sent and sent.background),
        [_place(each) for each in sent.layers] if sent else [],
    )
    choose.upload(opened, choose, canvas, api_visibility="private")
    return canvas


def _place(sent: Any) -> str | None:
    """Where a file lies that was sent. Gradio's own `preprocess` would open it, whatever kind of file it is."""
    return getattr(sent, "path", None)


def _examples(session: Session, prompt: gr.Textbox) -> None:
    if session.examples:
        gr.Examples([[each] for each in session.examples], prompt, label="Examples", api_visibility="private")


def _slider(name: str, label: str, value: float, step: float = 1) -> gr.Slider:
    least, most = limits.RANGES[name]
    return gr.Slider(least, most, value=value, step=step, label=label)


def _guidance(session: Session) -> gr.Slider:
    return _slider(
        "guidance", "Guidance scale of the prompt, 1 = off", session.pipeline.defaults["guidance_scale"], 0.1
    )


def _number(value: int = 4) -> gr.Slider:
    return _slider("number", "Pictures", value)


def _steps(session: Session, samplers: bool = True) -> tuple[gr.Slider, gr.Dropdown | None]:
    with gr.Accordion("More", open=False):
        steps = _slider("steps", "Steps", session.pipeline.defaults["num_inference_steps"])
        return steps, gr.Dropdown(session.samplers, value=OWN, label="Sampler") if samplers else None


def _size(session: Session) -> list[gr.Slider]:
    """Height and width of the pictures, in steps that the model can generate."""
    step = session.pipeline.size_step
    with gr.Row():
        return [
            gr.Slider(step, limits.RANGES[name][1], value=side, step=step, label=f"{name.title()} in pixels")
            for name, side in zip(("height", "width"), session.size, strict=True)
        ]


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


def _easel() -> list[Any]:
    """A line of text, previews, the gallery."""
    return [gr.Markdown("", elem_classes="state"), gr.HTML(elem_classes="pixels"), _gallery("Pictures", columns=4)]


def _stop(session: Session) -> Callable:
    """What stops a visitor's generation."""

    def answer(request: gr.Request) -> None:
        session.stop(_visitor(request))

    return answer


# ---- answers --------------------------------------------------------------------------------------------------------


def _shown(session: Session, request: gr.Request, number: Any, *settings: Any) -> Iterator[tuple]:
    """What the outputs show, step by step, while images are generated."""
    with _told():
        yield from _easels(session.draw(_visitor(request), session.job(*settings), number))


def _easels(drawing: Iterator[Shown]) -> Iterator[tuple]:
    for shown in drawing:
        yield shown.text, previews(shown), shown.images


def previews(shown: Shown) -> str:
    """The previews as HTML that carries its images, so that no file is written for each."""
    parts = [f"<img alt='{html.escape(shown.text)}' src='{_png(image)}'>" for image in shown.previews]
    return f"<div class='previews'>{''.join(parts)}</div>" if parts else ""


def animation(images: list[Image.Image]) -> str:
    """A slider through the images, and all of them as a GIF and an MP4, as HTML that needs no file and no server."""
    loop = forth_and_back(images)
    kinds = {"gif": ("image/gif", gif(loop)), "mp4": ("video/mp4", mp4(loop))}
    show = "this.parentNode.querySelectorAll('img').forEach((each, i) => each.hidden = i != this.value)"
    parts = [f"<img alt='picture {i + 1}' src='{_png(image)}'{' hidden' * (i > 0)}>" for i, image in enumerate(images)]
    slider = (
        f"<input type='range' aria-label='on the way' min='0' max='{len(images) - 1}' value='0' oninput=\"{show}\">"
    )
    links = [
        f"<a download='on-the-way.{ending}' href='{_data(content, kind)}'>{ending.upper()}</a>"
        for ending, (kind, content) in kinds.items()
    ]
    return f"<div class='film'>{''.join(parts)}{slider}<span>Download as {' or '.join(links)}</span></div>"


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return _data(buffer.getvalue(), "image/png")


def _data(content: bytes, kind: str) -> str:
    """An address that holds its content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _visitor(request: gr.Request) -> str:
    return request.session_hash or str(id(request))


@contextmanager
def _told() -> Iterator[None]:
    """A `UserError` as a message on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None
