"""The README is read in two minutes: short, with an image on the first screen, and its commands and links work."""

import re
import shlex
from pathlib import Path

import pytest

from ldm.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)


def test_it_is_short_and_begins_with_an_image():
    assert len(README.encode()) <= 7 * 1024
    image = re.search(r"<img src=\"([^\"]+)\"", README)
    assert image and (ROOT / image[1]).is_file()
    assert README[: image.start()].count("\n") < 10


def test_it_has_the_command_that_continuous_integration_runs():
    """`.ci/run` runs the block after this marker in a fresh environment."""
    assert "<!-- test command -->\n```bash\npip install -c constraints.txt" in README
    assert README.index(BLOCKS[0]) < README.index("<!-- test command -->")


def test_it_names_every_package():
    packages = {path.parent.name for path in (ROOT / "ldm").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `ldm/(\w+)/` \|", README, re.M)) == packages


def test_every_ldm_command_of_its_blocks_is_one():
    lines = [part for block in BLOCKS for part in re.split(r"\n| && ", block) if part.startswith("ldm ")]
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        cli.build_parser(words).parse_args(words)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_every_relative_link_leads_to_a_file(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_the_version_is_the_same_everywhere():
    from ldm import __version__

    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{__version__}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_contributing_names_the_files_of_ten_changes_and_their_registries():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\| .*`tests/.*$", text, re.M)]
    assert len(rows) == 10 and all(len(row) == 4 for row in rows)
    for change, source, line, test in rows:
        assert source.startswith("`ldm/") and test.startswith("`tests/"), change
        if not line.startswith("none"):
            names, file = line.rsplit(" in `", 1)
            for name in re.findall(r"`([A-Za-z]\w+)`", names):
                code = (ROOT / file.rstrip("`")).read_text(encoding="utf-8")
                assert re.search(rf"^(class |def )?{name}\b", code, re.M), (change, name)
