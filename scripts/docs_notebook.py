"""For mkdocs: docs/quickstart.ipynb becomes a page, with its code, printed output and images."""

import base64
import json
from pathlib import Path

from mkdocs.structure.files import File

NAME = "quickstart"
LANGUAGES = {"%%bash": "bash", "%%writefile": "yaml"}


def as_page(notebook: dict) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its images by the names that the page gives them."""
    blocks, images = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
            continue
        blocks.append(f"```{LANGUAGES.get(source.split()[0], 'python')}\n{source}\n```")
        printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        if printed.strip():
            blocks.append(f"```text\n{printed.strip()}\n```")
        for output in cell["outputs"]:
            if encoded := output.get("data", {}).get("image/png"):
                name = f"{NAME}/{cell['id']}.png"
                images[name] = base64.b64decode("".join(encoded))
                blocks.append(f"![output of the cell above]({name}){{ .output }}")
    return "\n\n".join(blocks) + "\n", images


def on_files(files, config):
    """Called by mkdocs once the files are listed."""
    text, images = as_page(json.loads((Path(config.docs_dir) / f"{NAME}.ipynb").read_text(encoding="utf-8")))
    files.append(File.generated(config, f"{NAME}.md", content=text))
    for name, content in images.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Links to the notebook lead to its page, which links to the file."""
    if page.file.src_uri == f"{NAME}.md":
        return markdown + f"\n[The notebook itself]({NAME}.ipynb)\n"
    return markdown.replace(f"{NAME}.ipynb)", f"{NAME}.md)")
