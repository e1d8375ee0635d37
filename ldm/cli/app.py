"""`ldm app`: a page in the browser to play with a model, and `ldm space`: that page as a Space on the Hub.

`limits` says what a visitor may ask for, `guard` which requests are answered at all, `studio` does what the tabs do,
`watching` reads the runs, `page` lays it all out: the only file that needs gradio. `space` writes the folder.
"""

import argparse
import os
import tempfile
import threading
from pathlib import Path

from ldm.apps.demo.limits import LOOPBACK
from ldm.utils.errors import UserError


def add_parser(subparsers) -> None:
    app = subparsers.add_parser(
        "app",
        help="play with a model in the browser",
        description="Serve a page that draws with a model, shows where its words look, and watches trainings.",
        epilog="Only this machine can open it unless --host says otherwise. No share link, no telemetry.",
    )
    app.add_argument("-m", "--model", help="exported folder, LDM run or Hub id (default: the shipped model)")
    lora = {"metavar": "PATH[:SCALE]", "help": "adapters to draw with: a file, or the run that made it"}
    app.add_argument("--lora", **lora)
    app.add_argument("--host", default=LOOPBACK[0], help=f"address to listen on (default: {LOOPBACK[0]}, this machine)")
    app.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    app.add_argument("--runs", default="runs", metavar="DIR", help="trainings to watch (default: runs)")
    app.add_argument("--cache-dir", default="cache", metavar="DIR", help="where rendered glyphs are kept")
    app.set_defaults(run=run_app)
    space = subparsers.add_parser(
        "space",
        help="write the page as a Space, or push it to the Hub",
        description="Write a folder that is a Space: the page of `ldm app` with this model, for everyone. Or push it.",
    )
    space.add_argument("model", metavar="DIR", help="exported model, the name of a shipped one, or a Hub id")
    space.add_argument("-o", "--output", metavar="OUT", help="folder to write; must not exist yet")
    space.add_argument("--push", metavar="USER/NAME", help="Space on the Hub, made where missing")
    space.add_argument("--private", action="store_true", help="make a new Space private")
    space.add_argument("--lora", **lora)
    space.add_argument("--title", help="of the Space (default: the model's name)")
    space.set_defaults(run=run_space)


def run_app(args: argparse.Namespace) -> int:
    if not 0 <= args.port < 65536:
        raise UserError(f"--port must be from 0 to 65535 (0 = any free one), got {args.port}")
    serve(args.model, args.host, args.port, Path(args.runs), Path(args.cache_dir), args.lora)
    return 0


def run_space(args: argparse.Namespace) -> int:
    from ldm.apps.demo.space import push_space, write_space
    from ldm.hub.push import check_name

    if args.output is None and args.push is None:
        raise UserError("nothing to do: give -o DIR to write the Space, or --push USER/NAME to upload it")
    if args.push is not None:
        check_name(args.push)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(args.output or f"{scratch}/space").expanduser()
        write_space(args.model, out, args.title, args.lora)
        if args.output is not None:
            print(f"{out}: a Space. To try it: cd {out} && python app.py")
        if args.push is not None:
            print(push_space(out, args.push, args.private))
    return 0


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
        model: as for `ldm.load_pipeline`; the browser cannot choose another.
        host: where to listen; on a loopback address only requests from the page itself are answered.
        port: 0 = any free one, None = the one that the environment names (GRADIO_SERVER_PORT), or 7860.
        runs: folder of trainings to watch; None = no such tab.
        cache_dir: where rendered training glyphs are kept.
        lora: PATH[:SCALE] of adapters to draw with.

    Raises: UserError if there is no such model, the adapters do not fit, or the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from ldm.apps.demo.session import Studio
    from ldm.apps.demo.ui import launch

    address = launch(Studio(model, cache_dir, lora, private=host not in LOOPBACK), runs, host, port)
    reach = "only from this machine" if host in LOOPBACK else "by everyone who reaches this machine"
    print(f"{address} can be opened {reach}; Ctrl-C ends it", flush=True)
    threading.Event().wait()
