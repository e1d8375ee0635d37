"""Which reader a data source needs: an image folder, an archive, a table, or a Hub data set."""

import re
from pathlib import Path

from ldm.config.settings import DataOptions
from ldm.formats import layout
from ldm.formats.archives import TarFiles
from ldm.formats.captions import METADATA
from ldm.formats.folder import FolderSource, is_image
from ldm.formats.hub_dataset import HubSource
from ldm.formats.records import Source, first_few
from ldm.formats.safe_tree import Folder, Tree
from ldm.formats.shards import is_pattern
from ldm.formats.tables import SAVED, TableSource, saved_files
from ldm.utils.errors import UserError

PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def open_source(options: DataOptions) -> Source:
    """The source that `data.source` names: what exists here comes first, then "user/name" on the Hub.

    Raises: UserError: if it is neither, or holds no images.
    """
    root = Path(options.source)
    if is_pattern(options.source):
        raise UserError(
            f"data.source {options.source} names shards, which are read as they are trained on, by a project file: "
            "here give their folder, or one of them"
        )
    if root.is_dir():
        source: Source = _open_folder(root, options)
    elif root.exists():
        source = _open_file(root, options)
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", options.source):
        source = HubSource(options.source, options.files)
    else:
        raise UserError(
            f"data.source {options.source} does not exist; give a folder of images, a .parquet file, "
            "a Hub data set (user/name) or 'glyphs'"
        )
    if not source.samples:
        raise UserError(f"data.source {options.source} holds no images")
    return source


def _open_file(path: Path, options: DataOptions) -> Source:
    suffix, folder = path.suffix.lower(), Folder(path.parent)
    if path.is_file() and suffix in (".parquet", ".arrow"):
        return TableSource(folder, [path.name], options.files)
    if path.is_file() and suffix == ".tar":
        return _open_archives(folder, [path.name], options)
    way = "unpack it and give the folder" if suffix in PACKED else "give a folder, a .parquet or .tar file or user/name"
    raise UserError(f"data.source {options.source} is a single file; {way}")


def _open_folder(root: Path, options: DataOptions) -> Source:
    """Arrow files that `save_to_disk` wrote, parquet files, images, or tar archives, whichever is there first."""
    tree = Tree(root)
    parquet = [n for n in tree.files if n.lower().endswith(".parquet") and Path(n).name.lower() not in METADATA]
    tables = saved_files(tree) or parquet
    archives = [name for name in tree.files if name.lower().endswith(".tar")]
    if tables:
        source: TableSource | FolderSource = TableSource(tree, tables, options.files)
        source.used.update(name for name in tree.files if Path(name).name in SAVED)
    elif any(map(is_image, tree.files)) or not archives:
        source = FolderSource(tree, options.files)
    else:
        source = _open_archives(tree, archives, options)
        source.used = set(archives)
    notes = layout.left_out([name for name in tree.files if name not in source.used])
    # beside each "a.png" macOS leaves a "._a.png", which is none
    hidden = [name for name in tree.hidden if is_image(name) and not Path(name).name.startswith("._")]
    notes += [f"hidden images are left out: {first_few(sorted(hidden))}"] if hidden else []
    if not source.samples:
        found = notes[0] if notes else "nothing"
        found += f", and links that lead out of it: {first_few(tree.strays)}" if tree.strays else ""
        raise UserError(f"data.source {root} holds no images ({found}); put .png, .jpg or .webp files into it")
    source.notes += notes
    return source


def _open_archives(folder: Folder, archives: list[str], options: DataOptions) -> FolderSource:
    files = TarFiles(folder, archives)
    source = FolderSource(files, options.files)
    source.notes += layout.left_out([name for name in files.files if name not in source.used])
    return source
