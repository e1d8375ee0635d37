"""Serving the demo. Gradio is imported with it, and told before that to send nothing home."""

import inspect
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.apps.demo.limits import LOOPBACK
from ldm.utils.terminal import LiveLine


def serve(
    model: str | None = None,
    host: str = LOOPBACK[0],
    port: int | None = None,
    runs: Path | None = None,
    cache_dir: Path = Path("cache"),
    lora: str | None = None,
) -> None:
    """Serve the page until the process is ended.

    Args:
        model: as for `ldm.load_pipeline`; visitors cannot choose another.
        host: where to listen; on a loopback address only requests from the page itself are answered.
        port: 0 = any free one, None = the one that the environment names (GRADIO_SERVER_PORT), or 7860.
        runs: folder of training runs to watch; None = no such tab.
        cache_dir: of rendered training glyphs.
        lora: PATH[:SCALE] of adapters.

    Raises: UserError if there is no such model, the adapters do not fit, or the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("MPLBACKEND", "agg")  # else gradio imports much of matplotlib to find one
    with LiveLine() as live:
        live.show("building the page ...", now=True)
        from ldm.apps.demo.session import Session

        with without_type_stubs():
            from ldm.apps.demo.ui import launch

        session = Session(model, cache_dir, lora, private=host not in LOOPBACK)
        address = launch(session, runs, host, port)
    threading.Thread(target=session.welcome, daemon=True).start()  # so that the first page that opens has images
    reach = "only from this machine" if host in LOOPBACK else "by everyone who reaches this machine"
    print(f"{address} can be opened {reach}; Ctrl-C ends it", flush=True)
    threading.Event().wait()


@contextmanager
def without_type_stubs() -> Iterator[None]:
    """For importing gradio: it writes a type stub for each class of its components, a third of the time this takes.

    A class whose file is not found gets none.
    """
    find = inspect.getfile

    def found(thing: Any) -> str:
        if inspect.isclass(thing) and thing.__module__.startswith("gradio."):
            raise OSError
        return find(thing)

    inspect.getfile = found  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = find
