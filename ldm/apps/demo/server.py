"""Serving the demo. Gradio is imported with it, and told before that to send nothing home."""

import os
import threading
from pathlib import Path

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
    with LiveLine() as live:
        live.show("loading the model ...", now=True)
        from ldm.apps.demo.session import Session
        from ldm.apps.demo.ui import launch

        session = Session(model, cache_dir, lora, private=host not in LOOPBACK)
        address = launch(session, runs, host, port)
    threading.Thread(target=session.welcome, daemon=True).start()  # so that the first page that opens has images
    reach = "only from this machine" if host in LOOPBACK else "by everyone who reaches this machine"
    print(f"{address} can be opened {reach}; Ctrl-C ends it", flush=True)
    threading.Event().wait()
