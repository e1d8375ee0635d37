"""Run a notebook from its first cell in a fresh kernel and save it with what the cells gave.

`python scripts/run_notebook.py docs/quickstart.ipynb`
"""

import base64
import io
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

PNG = "image/png"
SHOWN = (PNG, "text/plain")  # a picture once, not as a JPEG too


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int = 900) -> nbformat.NotebookNode:
    """Run every code cell in `folder`, by this very Python and its commands, and put the outputs in place.

    Raises: nbclient's CellExecutionError with the cell and its traceback.
    """
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(folder), env=os.environ | own)
    notebook.metadata.language_info = {"name": "python"}  # not of which version
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what goes to stderr is bars, times and warnings of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "data" in output:
                    output.data = {kind: output.data[kind] for kind in SHOWN if kind in output.data}
                    if PNG in output.data:
                        output.data[PNG] = few_colours(output.data[PNG])
    return notebook


def few_colours(png: str) -> str:
    """The image in 64 colours, base64 as it came: the file stays small."""
    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    path = Path(sys.argv[1])
    nbformat.write(execute(nbformat.read(path, as_version=4), path.parent), path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
