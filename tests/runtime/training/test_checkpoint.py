"""Checkpoints: what is read is what was written, and nothing half written is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

STATE = Checkpoint(7, "abc", {"state_w": np.eye(2, dtype=np.float32), "state_step": np.array(7)})


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_checkpoint(path, STATE)
    found = read_checkpoint(path)
    assert (found.step, found.graph, list(found.states)) == (7, "abc", list(STATE.states))
    for name, array in STATE.states.items():
        assert found.states[name].dtype == array.dtype
        assert found.states[name].shape == array.shape
        assert found.states[name].tobytes() == array.tobytes()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.npz"
    write_checkpoint(path, STATE)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(UsageError, match=r"state\.npz: cannot be written: No space left"):
        write_checkpoint(path, Checkpoint(8, "abc", {}))
    assert [each.name for each in tmp_path.iterdir()] == ["state.npz"]
    assert read_checkpoint(path).step == 7


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        write_checkpoint(tmp_path / "none" / "state.npz", STATE)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"text"])
def test_files_that_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    # numpy would advise to unpickle such a file.
    with pytest.raises(UsageError, match=r"state\.npz: not a checkpoint.*or damaged$"):
        read_checkpoint(path)


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    write_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match="not a checkpoint"):
        read_checkpoint(path)


def test_other_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, allow_pickle=False, x=np.zeros(1))
    with pytest.raises(UsageError, match="not a checkpoint"):
        read_checkpoint(path)
    np.savez(path, allow_pickle=False, format=np.array(2))
    with pytest.raises(UsageError, match="of another version"):
        read_checkpoint(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_checkpoint(tmp_path / "state.npz")
