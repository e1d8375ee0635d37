"""Each thing that people do with a model has a page with a picture, and the command on it makes that picture."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.cli import main as cli
from ldm.cli.main import build_parser
from ldm.pipelines.loading import load_pipeline

ROOT = Path(__file__).resolve().parents[2]
USE = ROOT / "docs/use"
FIGURES = ROOT / "docs/figures"
DOES = {  # what people do -> the page, the begin of the command that made its picture, and the picture
    "generate": ("generate.md", "ldm generate", "generate-grid.png"),
    "unconditional": ("generate.md", "ldm generate --grid", "generate-anything.png"),
    "guidance": ("generate.md", "ldm generate", "generate-guidance-8.png"),
    "negative prompt": ("generate.md", "ldm generate", "generate-negative.png"),
    "samplers": ("generate.md", "ldm figures solvers", "solvers.png"),
    "preview": ("generate.md", "ldm figures reverse", "reverse.png"),
    "svg": ("generate.md", "ldm generate", "generate-outline.svg"),
    "font": ("font.md", "ldm font", "font.png"),
    "lora": ("lora.md", "python scripts/lora_example.py measure", "lora.png"),
    "full fine-tuning": ("lora.md", "ldm generate", "finetune.png"),
    "evaluate": ("evaluate.md", "ldm figures obedience", "obedience.png"),
    "web": ("web.md", "python scripts/web_screenshot.py", "web.png"),
    "app": ("app.md", "python scripts/app_screenshot.py", "app.png"),
}
EDITS = {name: f"edit-{name}" for name in cli.COMMANDS["edit"][0]} | {"compose": "edit-and"}
DOES |= {name: ("edit.md", f"ldm edit {name}", figure) for name, figure in EDITS.items()}


def text_of(page: str) -> str:
    return (USE / page).read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    """The command lines of a page, continued ones as one; also those in notes."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text_of(page), re.M | re.S)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def made_by(line: str) -> list[str]:
    """The figures that a command of a page writes: files of these names in docs/figures/."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["ldm", "figures"]:
        return [f"{name}.png" for name in build_parser(words[1:]).parse_args(words[1:]).names]
    found = [word for before, word in pairwise(words) if before in ("-o", "--proof")]
    found += words[-1:] if words[:1] == ["python"] and "_screenshot" in line else []
    found += [name.replace(".png", ".svg") for name in found if "--svg" in words]
    return [name for name in found if (FIGURES / name).is_file()]


@pytest.mark.parametrize("what", DOES)
def test_a_page_shows_it_with_a_picture_and_the_command_that_made_it(what):
    page, begin, figure = DOES[what]
    shown = [name for name in re.findall(r"\(\.\./figures/([\w.-]+)\)", text_of(page)) if name.startswith(figure)]
    assert shown and all((FIGURES / name).is_file() for name in shown)
    assert any(line.startswith(begin) and set(shown) & set(made_by(line)) for line in commands(page)), begin


@pytest.mark.parametrize("page", sorted(path.name for path in USE.glob("*.md")))
def test_every_figure_of_a_page_has_its_command_there_and_the_other_way_round(page):
    shown = set(re.findall(r"\(\.\./figures/([\w.-]+)\)", text_of(page)))
    assert shown == {name for line in commands(page) for name in made_by(line)}


QUICK = ("anything", "negative", "outline")  # one of each kind; the others ask the same of more pictures
DRAWN = [
    pytest.param(line, marks=[] if any(word in line for word in QUICK) else pytest.mark.slow)
    for line in commands("generate.md")
    if line.startswith("ldm generate") and made_by(line)
]


@pytest.mark.parametrize("line", DRAWN, ids=lambda line: Path(shlex.split(line)[-1]).stem)
def test_the_command_of_a_page_draws_the_figure_again(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(shlex.split(line)[1:])
    assert not end.value.code
    for name in made_by(line):
        new, old = tmp_path / name, FIGURES / name
        if name.endswith(".svg"):
            assert "<path" in old.read_text() and len(new.read_text()) == pytest.approx(len(old.read_text()), rel=0.05)
            continue
        with Image.open(new) as drawn, Image.open(old) as shown:
            assert abs(np.asarray(drawn, float) - np.asarray(shown, float)).mean() < 1
            told = [json.loads(picture.info["ldm"]) for picture in (drawn, shown)]
        assert told[0] == told[1] and told[0]["digest"] == load_pipeline().digest
