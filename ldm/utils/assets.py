"""Where the files that come with the project lie: in an installed package, or in a checkout of the repository."""

from pathlib import Path

from ldm.utils.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_model(name: str = "glyphs") -> Path:
    """Folder of a model that ships with the project. Raises: UserError if there is none of that name."""
    return _find(Path("models") / name, "model_index.json")


def shipped_models() -> list[str]:
    """Their names, sorted."""
    return sorted(path.parent.name for place in _places(Path("models")) for path in place.glob("*/model_index.json"))


def model_path(name: str | Path) -> Path:
    """The folder of that name or, where there is none, of the model that ships under it; else `name` as it is."""
    path = Path(name)
    return shipped_model(str(name)) if not path.exists() and str(name) in shipped_models() else path


def shipped_autoencoder(name: str) -> Path | None:
    """Folder of an autoencoder that ships with the project, such as "autoencoders/f4"; None if `name` is not one."""
    return _find(Path("models") / name, "config.json") if name in shipped_autoencoders() else None


def shipped_autoencoders() -> list[str]:
    """Their names, sorted."""
    found = {path.parent for place in _places(Path("models")) for path in place.glob("autoencoders/*/config.json")}
    return sorted({f"{path.parent.name}/{path.name}" for path in found})


def shipped_configs() -> Path:
    """Folder of the YAML presets."""
    return _find(Path("configs"), "*.yaml")


def _places(relative: Path) -> list[Path]:
    return [PACKAGE / relative, PACKAGE.parent / relative]


def _find(relative: Path, proof: str) -> Path:
    """The first of package and checkout that holds `relative` with a file matching `proof` in it."""
    for place in _places(relative):
        if any(place.glob(proof)):
            return place
    raise UserError(
        f"{relative} came neither with the installed package nor with a checkout (looked for {proof}): "
        "install ldm again, or name a model folder yourself"
    )
