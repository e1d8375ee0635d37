"""Which reader a data source needs: an image folder, parquet, or a Hub data set."""

import re
from pathlib import Path

from ldm.config.settings import DataOptions
from ldm.formats.folder import METADATA, FolderSource
from ldm.formats.records import Source, first_few
from ldm.formats.safe_tree import Tree, reason
from ldm.formats.tables import HubSource, ParquetSource
from ldm.utils.errors import UserError


def open_source(options: DataOptions) -> Source:
    """The source that `data.source` names: what exists here comes first, then "user/name" on the Hub.

    Raises: UserError: if it is neither, or holds no images.
    """
    root = Path(options.source)
    if root.is_dir():
        source = _open_folder(root, options)
    elif root.is_file() and root.suffix.lower() == ".parquet":
        source = ParquetSource(root, [], options.files)
    elif root.exists():
        raise UserError(f"data.source {options.source} is a single file; give a folder, a .parquet file or user/name")
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


def _open_folder(root: Path, options: DataOptions) -> Source:
    tree = Tree(root)
    parquet = [n for n in tree.files if n.lower().endswith(".parquet") and Path(n).name.lower() not in METADATA]
    if parquet:
        for name in parquet:
            try:
                tree.check(name)
            except OSError as error:
                raise UserError(f"cannot read {root / name}: {reason(error)}") from error
        return ParquetSource(root, parquet, options.files)
    source = FolderSource(tree, options.files)
    if not source.samples:
        found = f"{len(tree.files)} other files" if tree.files else "nothing"
        found += f", and links that lead out of it: {first_few(tree.strays)}" if tree.strays else ""
        raise UserError(f"data.source {root} holds no images ({found}); put .png, .jpg or .webp files into it")
    return source
