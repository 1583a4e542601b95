from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.places import check_file, check_folder, check_kind


def test_a_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        check_kind(tmp_path / "pipe")
    with pytest.raises(UsageError, match="/dev/null: it is not a regular file"):
        check_file(Path("/dev/null"))
    (tmp_path / "to_pipe").symlink_to(tmp_path / "pipe")
    for link in (tmp_path / "to_pipe", Path("/dev/stdout")):
        with pytest.raises(UsageError, match="not a regular file"):
            check_file(link)


def test_a_link_to_a_file_or_to_nothing_may_be_replaced(tmp_path: Path) -> None:
    for name in ("old", "missing"):
        (tmp_path / f"to_{name}").symlink_to(tmp_path / name)
    (tmp_path / "old").write_text("")
    check_file(tmp_path / "to_old")
    check_file(tmp_path / "to_missing")


def test_a_file_goes_where_there_is_one_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    check_file(tmp_path / "old")
    check_file(tmp_path / "new")
    with pytest.raises(UsageError, match="it is a folder"):
        check_file(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        check_file(tmp_path / "no" / "new")
    with pytest.raises(UsageError, match="no folder"):
        check_file(tmp_path / "old" / "new")


def test_a_folder_may_be_made_but_not_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "deeper")
    for place in (tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(UsageError, match="file is not a folder"):
            check_folder(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="not writable"):
        check_file(tmp_path / "new")
    with pytest.raises(UsageError, match="not writable"):
        check_folder(tmp_path / "new")
