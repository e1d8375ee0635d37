"""`ldm space`: a folder that is a Space on the Hub: this package, a model, and the four lines that serve the page."""

import importlib.metadata
import shutil
from pathlib import Path

from ldm.evaluation.diagnostics.environment import tested_versions
from ldm.hub.push import HUB_NAME, files
from ldm.models.lora import PEFT_FILE, find_lora
from ldm.models.lora_formats import split_scale
from ldm.utils.assets import PACKAGE, model_path
from ldm.utils.checkpoint_files import staged
from ldm.utils.errors import UserError

EXTRAS = ("app", "glyphs")  # whose packages the page needs, beside the core's
LEFT_OUT = shutil.ignore_patterns("__pycache__", "models", "configs", "*.tmp")
LORA = "lora.safetensors"
LICENCES = ("LICENSE", "THIRD_PARTY.md")
APP = '''"""The page of `ldm app`, for everyone. What a visitor may ask for is in ldm/apps/demo/limits.py."""

from ldm.apps.demo.server import serve

if __name__ == "__main__":
    serve({model!r}, host="0.0.0.0", lora={lora!r})
'''
TEXT = """
# {title}

Images from prompts by a small latent diffusion model: with and without a prompt, the attention of each word, and
whether a glyph is in the training data. Made by `ldm space`; `python app.py` serves it anywhere.

A downloaded image carries its settings: `ldm generate --from image.png -m MODEL` generates it again.
"""


def write_space(model: str, out: Path, title: str | None = None, lora: str | None = None) -> Path:
    """Write the Space, whole or not at all.

    Args:
        model: exported folder, which is copied; the name of a shipped one; or a Hub id, which the Space will fetch.
        out: must not exist.
        lora: PATH[:SCALE] of adapters, which are copied too.
    Raises: UserError if it does, or if there is no such model or LoRA.
    """
    if out.exists():
        raise UserError(f"{out} exists: name a new folder, or delete it first")
    folder = model_path(model)
    is_folder = (folder / "model_index.json").is_file()
    if not is_folder and (folder.exists() or not HUB_NAME.fullmatch(model)):
        raise UserError(f"{model} is no exported model and no Hub id: `ldm export RUN -o DIR` makes one of a run")
    title = title or folder.name
    path, strength = split_scale(lora or "")
    adapters = find_lora(path) if path else None
    if adapters and adapters.name == PEFT_FILE:  # its settings lie in another file
        raise UserError(f"{adapters} is a file of peft's own: save it by diffusers' save_lora_weights for a Space")
    with staged(out) as stage:
        shutil.copytree(PACKAGE, stage / "ldm", ignore=LEFT_OUT)
        for name, file in files(folder).items() if is_folder else ():
            copy = stage / "model" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        if adapters:
            shutil.copyfile(adapters, stage / LORA)
        for name in LICENCES:
            if (PACKAGE.parent / name).is_file():
                shutil.copyfile(PACKAGE.parent / name, stage / name)
        told = {"model": "model" if is_folder else model, "lora": f"{LORA}:{strength:g}" if adapters else None}
        (stage / "app.py").write_text(APP.format(**told), encoding="utf-8")
        (stage / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
        (stage / "README.md").write_text(_readme(title, None if is_folder else model), encoding="utf-8")
    return out


def push_space(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload a written Space, see `ldm.utils.hub_client.push`: its code and model replace those of before."""
    from ldm.utils import hub_client as remote

    found = remote.files_in(folder)
    return remote.push(
        folder, found, repo_id, "Page", "space", private, replaces=["ldm/*", "model/*"], mark="ldm/apps/demo/ui.py"
    )


def requirements() -> list[str]:
    """What pip has to install there: the core's packages and those of the page, at the tested versions. No gradio: its
    version is in the front matter of README.md.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    tested, lines = tested_versions(), set()
    for need in map(Requirement, importlib.metadata.requires("ldm") or []):
        wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in EXTRAS)
        if wanted and need.name not in ("gradio", "ldm"):
            version = tested.get(canonicalize_name(need.name))
            lines.add(f"{need.name}=={version}" if version else f"{need.name}{need.specifier}")
    return sorted(lines)


def _readme(title: str, hub_id: str | None) -> str:
    """The card of a Space, https://huggingface.co/docs/hub/spaces-config-reference."""
    import yaml

    front = {
        "title": title,
        "emoji": "\N{LOWER LEFT PAINTBRUSH}",
        "colorFrom": "gray",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": tested_versions().get("gradio", "6.31.0"),
        "python_version": "3.11",
        "app_file": "app.py",
        "license": "apache-2.0",
        "short_description": "Text to image by latent diffusion",
        "suggested_hardware": "cpu-basic",
        "pinned": False,
    }
    if hub_id:
        front["models"] = [hub_id.partition("@")[0]]
    return f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---\n{TEXT.format(title=title)}"
