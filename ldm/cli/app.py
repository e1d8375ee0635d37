"""`ldm app`: a demo of a model in the browser, and `ldm space`: that demo as a Space on the Hub."""

import argparse
import tempfile
from pathlib import Path

from ldm.apps.demo.limits import LOOPBACK
from ldm.cli.common import add_options
from ldm.utils.errors import UserError


def add_parser(subparsers) -> None:
    app = subparsers.add_parser(
        "app",
        help="serve a demo of a model in the browser",
        description="Serve a page that generates images with a model, shows its attention, and runs trainings.",
        epilog="Only this machine can open it unless --host says otherwise. No share link, no telemetry.",
    )
    add_options(app, "model", "lora")
    app.add_argument("--host", default=LOOPBACK[0], help=f"address to listen on (default: {LOOPBACK[0]}, this machine)")
    app.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    app.add_argument("--runs", default="runs", metavar="DIR", help="training runs to watch (default: runs)")
    app.add_argument("--cache-dir", default="cache", metavar="DIR", help="cache of rendered glyphs (default: cache)")
    app.set_defaults(run=run_app)
    space = subparsers.add_parser(
        "space",
        help="write the demo as a Space, or push it to the Hub",
        description="Write a folder that is a Space: the demo of `ldm app` with this model. Or push it to the Hub.",
    )
    space.add_argument("model", metavar="DIR", help="exported model, the name of a shipped one, or a Hub id")
    space.add_argument("-o", "--output", metavar="OUT", help="folder to write; must not exist yet")
    space.add_argument("--push", metavar="USER/NAME", help="Space on the Hub, created if it does not exist")
    space.add_argument("--private", action="store_true", help="make a new Space private")
    add_options(space, "lora")
    space.add_argument("--title", help="title of the Space (default: the model's name)")
    space.set_defaults(run=run_space)


def run_app(args: argparse.Namespace) -> int:
    if not 0 <= args.port < 65536:
        raise UserError(f"--port must be from 0 to 65535 (0 = any free one), got {args.port}")
    from ldm.apps.demo.server import serve

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
