"""Tar archives, as webdataset shards are, read where they lie: nothing is unpacked.

Only ordinary members are seen, by name, place and size; links, devices, sparse files and names with `..` are passed
over. A header that asks for more memory than headers need is refused.
"""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ldm.formats.safe_tree import Files, Folder, reason
from ldm.utils.errors import UserError

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER_BYTES = 2**20  # of one member: the longest names and comments have some thousand


class TarFiles(Files):
    """The members of tar files that lie in a folder; of several, under the archive's name: "train-000.tar/0001.png"."""

    def __init__(self, folder: Folder, archives: list[str]):
        self.root = folder.root if len(archives) != 1 else folder.root / archives[0]
        self.strays: list[str] = []
        self._places: dict[str, tuple[Path, int, int]] = {}
        for archive in archives:
            path = folder.root / archive
            try:
                folder.check(archive)
            except OSError as error:
                raise _unreadable(path, error) from error
            for name, (offset, size) in members(path).items():
                self._places[f"{archive}/{name}" if len(archives) > 1 else name] = path, offset, size
        self.files = sorted(self._places)

    def exists(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str, most: int) -> bytes:
        if name not in self._places:
            raise FileNotFoundError(name)
        path, offset, size = self._places[name]
        if size > most:
            raise OSError(f"the file has more than {most} bytes")
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) < size:
            raise OSError("the archive ends before the file does")
        return data

    def paths(self, names: Iterable[str]) -> list[Path]:
        return sorted({self._places[name][0] for name in names})


class _Headers(io.FileIO):
    """A file whose reader may not ask for much at once."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def members(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset, bytes) of the visible ordinary members; of two with one name the later, as unpacking does.

    Raises: UserError: if it is no tar file, or a damaged one.
    """
    try:
        return _members(path)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    words = reason(error) if isinstance(error, OSError) else str(error)
    return UserError(f"cannot read {path} as an uncompressed tar: {words}")


def _members(path: Path) -> dict[str, tuple[int, int]]:
    with _Headers(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        members = list(archive)
        last = members[-1] if members else None
        end = last.offset_data + -(-last.size // BLOCK) * BLOCK if last and last.isreg() else archive.offset
        stream.seek(end)
        if any(stream.read(BLOCK)):  # `tarfile` takes a header that is cut or damaged for the end
            raise tarfile.ReadError(f"it is damaged or cut at byte {end}")
    return {
        str(PurePosixPath(member.name)): (member.offset_data, member.size)
        for member in members
        if member.isreg() and not member.issparse() and _is_visible(member.name)
    }


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
