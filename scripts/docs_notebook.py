"""For mkdocs: docs/quickstart.ipynb becomes a page, with its code, what it printed and its pictures."""

import base64
import json
from pathlib import Path

from mkdocs.structure.files import File

NAME = "quickstart"
LANGUAGES = {"%%bash": "bash", "%%writefile": "yaml"}


def as_page(notebook: dict) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by the names that the page gives them."""
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```{LANGUAGES.get(source.split()[0], 'python')}\n{source}\n```")
        told = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        if told.strip():
            parts.append(f"```text\n{told.strip()}\n```")
        for output in cell["outputs"]:
            if picture := output.get("data", {}).get("image/png"):
                name = f"{NAME}/{cell['id']}.png"
                pictures[name] = base64.b64decode("".join(picture))
                parts.append(f"![what the cell above drew]({name})")
    return "\n\n".join(parts) + "\n", pictures


def on_files(files, config):
    """Called by mkdocs once the files are listed."""
    text, pictures = as_page(json.loads((Path(config.docs_dir) / f"{NAME}.ipynb").read_text(encoding="utf-8")))
    files.append(File.generated(config, f"{NAME}.md", content=text))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Pages link to the notebook, which in the site is a page too; that one links to the file."""
    if page.file.src_uri == f"{NAME}.md":
        return markdown + f"\n[The notebook itself]({NAME}.ipynb)\n"
    return markdown.replace(f"{NAME}.ipynb)", f"{NAME}.md)")
