"""The page of the demo and how it is served. Gradio is imported only here and in `ldm.apps.demo.page`."""

from pathlib import Path

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from ldm.apps.demo import limits
from ldm.apps.demo.limits import LOOPBACK
from ldm.apps.demo.page.edit import CHANGED, PAINTED, image_to_image_tab, inpaint_tab, send_images
from ldm.apps.demo.page.generate import generate_tab
from ldm.apps.demo.page.inspect import attention_tab, nearest_tab
from ldm.apps.demo.page.interpolate import interpolate_tab
from ldm.apps.demo.page.trainings import trainings_tab
from ldm.apps.demo.page.unconditional import unconditional_tab
from ldm.apps.demo.page.widgets import visitor_of
from ldm.apps.demo.request_guard import Guard
from ldm.apps.demo.session import Session
from ldm.apps.demo.style import CSS, SUBDUED, TRANSPARENT
from ldm.apps.demo.training_processes import Trainings
from ldm.utils.errors import UserError
from ldm.utils.runtime import free_port


def launch(session: Session, runs: Path | None, host: str, port: int | None) -> str:
    """Start serving in threads of their own; returns the address. Raises: UserError if it cannot listen there."""
    Image.MAX_IMAGE_PIXELS = limits.MAX_PIXELS // 2  # Pillow refuses twice as many
    alone = host in LOOPBACK
    page = build(session, runs, may_train=alone)
    public = {i: each.api_name if each.api_visibility == "public" else "" for i, each in page.fns.items() if each.queue}
    guard = Middleware(Guard, hosts=LOOPBACK if alone else (), queued=public, quick=set(page.fns) - set(public))
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
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
            theme=theme.set(**SUBDUED),
            css=CSS + (TRANSPARENT if session.image_shape[0] == 4 else ""),
        )
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error}; choose another --port") from None
    return address


def build(session: Session, runs: Path | None, may_train: bool = False) -> gr.Blocks:
    """The page, not yet served.

    Args:
        runs: folder of training runs to watch; None = no such tab.
        may_train: whether trainings may be started; only where the page is served to this machine alone.
    """

    def left(request: gr.Request) -> None:
        session.forget(visitor_of(request))

    about = session.about
    with gr.Blocks(title=f"ldm: {session.name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {session.name}\n{about.sentence}\n\n{about.facts}")
        with gr.Tabs() as tabs:
            with gr.Tab("Generate"):
                first = generate_tab(session)
            with gr.Tab("Unconditional"):
                unconditional_tab(session)
            with gr.Tab("Image to image", id=CHANGED):
                changed = image_to_image_tab(session)
            with gr.Tab("Inpaint", id=PAINTED):
                painted = inpaint_tab(session)
            with gr.Tab("Interpolate"):
                interpolate_tab(session)
            with gr.Tab("Attention"):
                attention_tab(session)
            with gr.Tab("Seen before?"):
                nearest_tab(session)
            if runs is not None:
                with gr.Tab("Trainings"):
                    trainings_tab(runs, Trainings(runs, may_train))
        send_images(session, first.results, tabs, changed, painted)
        page.unload(left)
    return page
