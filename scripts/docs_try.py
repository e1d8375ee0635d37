"""For mkdocs: try/ is the page of `ldm web` with models/glyphs-fast, if ONNX Runtime Web is at hand.

`make docs` has npm fetch it once. Without it the links to the page lead to how to make one, and nothing is fetched.
"""

import logging
import shutil
import sys
import tempfile
from pathlib import Path

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this file, from any working directory

from ldm.apps.web.runtime import nearby_runtime
from ldm.apps.web.site import open_model, write_site
from ldm.pipelines.model_folder import resolve_model

MODEL = "glyphs-fast"
PAGE, OTHERWISE = "try/index.html", "use/web.md"
log = logging.getLogger("mkdocs.hooks.try")
made: list[tempfile.TemporaryDirectory] = []  # what is still to be copied


def on_files(files, config):
    """Called by mkdocs once the files are listed; of these only the page may be linked."""
    runtime = nearby_runtime()
    if runtime is None:
        log.info("ONNX Runtime Web is not here: the site gets no try/ (`make docs` fetches it)")
        return files
    made.append(tempfile.TemporaryDirectory())
    folder, place = resolve_model(MODEL), Path(made[-1].name) / "try"
    write_site(folder, open_model(folder), runtime, place)
    files.append(File.generated(config, PAGE, abs_src_path=str(place / "index.html")))
    return files


def on_page_markdown(markdown: str, files, **_) -> str:
    """Links to the page lead to it, or to how to make one."""
    return markdown if files.get_file_from_path(PAGE) else markdown.replace(f"]({PAGE})", f"]({OTHERWISE})")


def on_post_build(config) -> None:
    while made:
        with made.pop() as folder:
            shutil.copytree(folder, config.site_dir, dirs_exist_ok=True)
