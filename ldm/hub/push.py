"""Upload an exported model folder to the Hub."""

import re
from pathlib import Path

from ldm.utils.errors import UserError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.onnx",
    "*.txt",
    "README.md",
    "NOTICE",
    "*.png",
    "*.jpg",
    "events.out.tfevents.*",
]


def check_name(repo_id: str) -> None:
    """Raises: UserError for what cannot be a repository's name."""
    if not HUB_NAME.fullmatch(repo_id):
        raise UserError(f"the repository must be USER/NAME, got {repo_id!r}")


def push(folder: Path, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Upload an exported folder, see `hub_client.push`: the files of its components replace those of an earlier one.

    Only the card differs from the folder's: its examples name the repository.
    """
    from ldm.hub.model_card import PLACE
    from ldm.pipelines.model_folder import COMPONENTS
    from ldm.utils import hub_client as remote

    return remote.push(
        folder,
        files(folder),
        repo_id,
        "Upload model",
        private=private,
        revision=revision,
        replaces=[f"{name}/*" for name in (*COMPONENTS, "gallery", "logs", "lora")],
        mark="ldm.json",
        place=PLACE,
    )


def files(folder: Path) -> dict[str, Path]:
    """What belongs to the model, name -> file: known types only, nothing hidden, nothing through links out of it."""
    found = {path for pattern in PATTERNS for path in folder.rglob(pattern)}
    root = folder.resolve()
    inside = (path for path in found if path.is_file() and path.resolve().is_relative_to(root))
    names = {path.relative_to(folder): path for path in sorted(inside)}
    return {name.as_posix(): path for name, path in names.items() if not any(part[0] == "." for part in name.parts)}
