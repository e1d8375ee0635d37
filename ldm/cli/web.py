"""`ldm web`: a model as static files that generate images in the browser."""

import argparse
from pathlib import Path

from ldm.apps.web.runtime import VERSION, find_runtime
from ldm.apps.web.site import check_overwritable, open_model, write_site
from ldm.pipelines.model_folder import resolve_model


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "web",
        help="write a page that generates images in the browser",
        description="Write a folder of static files: a page that runs a model, with no server behind it.",
        epilog="To look at it: python -m http.server -d site. Any host of static files can serve it.",
    )
    parser.add_argument(
        "model", nargs="?", help="exported folder, LDM run or Hub id (default: the model that comes with ldm)"
    )
    parser.add_argument("-o", "--output", default="site", metavar="DIR", help="folder to write (default: site)")
    where = f"where onnxruntime-web lies (default: node_modules, else npm fetches version {VERSION} into cache/)"
    parser.add_argument("--runtime", metavar="DIR", help=where)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    folder, out = resolve_model(args.model), Path(args.output)
    check_overwritable(out)
    model = open_model(folder)
    runtime = find_runtime(args.runtime)
    files = write_site(folder, model, runtime, out)
    size = sum(file.stat().st_size for file in files)
    print(f"{out}: {len(files)} files, {size / 2**20:.1f} MiB. Next: python -m http.server -b 127.0.0.1 -d {out}")
    return 0
