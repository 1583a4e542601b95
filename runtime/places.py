"""Whether a file can be written where the user wants it, asked before the work that fills it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from onnxfold.passes.errors import UsageError

_DEVICES = Path("/dev")


def check_file(path: Path) -> None:
    """Refuse a place that no file can be put, or that holds something other than a file.

    Files are replaced by renaming: without this, ``/dev/null`` would become an ordinary file.

    Raises:
        UsageError: It is a folder or a device, or its folder is missing or not writable.
    """
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: no folder {path.parent}")
    check_kind(path)
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: the folder is not writable; choose another place")


def check_kind(path: Path) -> None:
    """Refuse what must not be replaced by a file.

    A link may be, to another file; a link among the devices, like ``/dev/stdout``, may not, even
    while it leads to a file.

    Raises:
        UsageError: It is a folder or a device, or a link that stands for one.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    if not stat.S_ISREG(mode) and not _is_plain_link(path):
        raise UsageError(f"cannot write {path}: it is not a regular file; choose another place")


def _is_plain_link(path: Path) -> bool:
    """Whether ``path`` is a link to a file, or to nothing."""
    if not path.is_symlink() or path.parent.resolve() == _DEVICES:
        return False
    return path.is_file() or not path.exists()


def check_folder(folder: Path) -> None:
    """Refuse a folder that neither is there nor can be made.

    Raises:
        UsageError: Something on the way is a file, or not writable.
    """
    nearest = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), folder)
    if not nearest.is_dir():
        raise UsageError(f"cannot write into {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UsageError(f"cannot write into {folder}: {nearest} is not writable")
