"""The files of a folder that may be read: ordinary ones that lie in it.

A folder may come from somebody else. Links that lead out of it are not followed, so that it brings in none of one's
other files, and only ordinary files are opened, because a pipe would be waited for and a device never ends.
"""

import os
import stat
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """Named files to be read.

    Attributes:
        root: what messages call the place.
        files: relative POSIX paths of all visible files, sorted; links among them, as `read` says why not.
        strays: folders left out because they are links that lead out of the root.
    """

    root: Path
    files: list[str]
    strays: list[str]

    def exists(self, name: str) -> bool: ...

    def read(self, name: str, most: int) -> bytes:
        """The contents of a file. Raises: OSError: without its name; also if it has more than `most` bytes."""
        ...

    def paths(self, names: Iterable[str]) -> list[Path]:
        """The files of the system that hold these."""
        ...


class Folder:
    """A folder, read only."""

    def __init__(self, root: Path):
        self.root = root

    def exists(self, name: str) -> bool:
        return os.path.exists(self.root / name)  # Path.exists raises for a name that is too long

    def check(self, name: str) -> None:
        """Raises: OSError: if the file may not be read, with the reason and without its name."""
        where = os.path.realpath(self.root / name)
        if not self._holds(where):
            raise OSError("a link that leads out of the folder; put a copy there instead")
        if not stat.S_ISREG(os.stat(where).st_mode):
            raise OSError("not an ordinary file")

    def read(self, name: str, most: int) -> bytes:
        """The contents of a file. Raises: OSError: as `check`, and if it has more than `most` bytes."""
        self.check(name)
        with open(self.root / name, "rb") as stream:
            data = stream.read(min(most, os.fstat(stream.fileno()).st_size) + 1)  # memory for what is asked is taken
        if len(data) > most:
            raise OSError(f"the file has more than {most} bytes")
        return data

    def paths(self, names: Iterable[str]) -> list[Path]:
        return [self.root / name for name in names]

    @cached_property
    def _homes(self) -> list[Path]:
        home = self.root.resolve()
        # a snapshot in the Hub's cache consists of links to the blobs beside it
        return [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]

    def _holds(self, where: str) -> bool:
        return any(Path(where).is_relative_to(home) for home in self._homes)


class Tree(Folder):
    """All files of a folder, as `Files`; `hidden` are those whose own names begin with a dot."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.files: list[str] = []
        self.strays: list[str] = []
        self.hidden: list[str] = []
        for place, folders, files in os.walk(root, followlinks=True):
            here = os.path.realpath(place)
            folders[:] = [name for name in folders if _visible(name) and self._enters(place, here, name)]
            for name in files:
                (self.files if _visible(name) else self.hidden).append(self._name(place, name))
        self.files.sort()

    def _enters(self, place: str, here: str, name: str) -> bool:
        """Whether to go down: not into a link that leads back to where it lies, nor out of the root."""
        folder = os.path.join(place, name)
        target = os.path.realpath(folder)
        if os.path.islink(folder) and not self._holds(target):
            self.strays.append(self._name(place, name))
            return False
        return not os.path.islink(folder) or not Path(here).is_relative_to(target)

    def _name(self, place: str, name: str) -> str:
        return Path(os.path.relpath(os.path.join(place, name), self.root)).as_posix()


def reason(error: OSError) -> str:
    """What an OSError says, without the file's name."""
    return (error.strerror or str(error)).lower()


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
