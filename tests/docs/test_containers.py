"""The Dockerfile and the dev container name what the project pins; they are not built here."""

import json
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CONTAINER = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def extras_in(text: str) -> list[str]:
    return [name for group in re.findall(r"(?:/src|\.)\[([\w,]+)\]", text) for name in group.split(",")]


def test_they_use_the_python_that_the_complete_tests_run_on():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    tested = next(s["with"]["python-version"] for s in workflow["jobs"]["complete"]["steps"] if "with" in s)
    assert f"FROM python:{tested}-slim\n" in DOCKERFILE
    assert CONTAINER["image"].endswith(f"python:{tested}")
    assert PROJECT["project"]["requires-python"] == f">={tested}"


def test_every_installation_is_of_the_tested_versions_and_extras_that_exist():
    for text in (DOCKERFILE, CONTAINER["postCreateCommand"]):
        installs = re.findall(r"pip install ((?:[^\n&]|\\\n)*)", text)
        assert installs and all(re.match(r"-c \S*constraints\.txt ", line) for line in installs)
        assert extras_in(text) and set(extras_in(text)) <= set(EXTRAS)
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)


def test_what_the_image_is_built_from_is_what_a_wheel_is_built_from():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    assert kept >= {"pyproject.toml", "ldm", "models", "configs", "constraints.txt", "hatch_build.py"}
    assert kept >= {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert all((ROOT / name).exists() for name in kept)


def test_the_image_runs_ldm_as_an_ordinary_user_in_the_mounted_folder():
    lines = DOCKERFILE.splitlines()
    assert 'ENTRYPOINT ["ldm"]' in lines and "WORKDIR /work" in lines
    assert lines.index("USER ldm") > max(i for i, line in enumerate(lines) if line.startswith("RUN"))


def test_the_page_builds_both_images_with_the_argument_that_there_is():
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    given = set(re.findall(r"--build-arg (\w+)=", page + DOCKERFILE))
    assert given == {"TORCH_INDEX"} and "ARG TORCH_INDEX=" in DOCKERFILE


def test_every_extra_is_on_the_page():
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == set(EXTRAS)
