"""Arrays whose first axis counts samples, read a few samples at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy_format

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.specs import one_line


class SampleArray(Protocol):
    """An array that can be read in slices along its first axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """All dimensions, samples first."""
        ...

    def slices(self, size: int) -> Iterator[Array]:
        """``size`` samples at a time; the last slice may be shorter."""
        ...


@dataclass(frozen=True)
class MemoryArray:
    """An array that is in memory anyway.

    Attributes:
        name: What messages call it.
        array: The values.
    """

    name: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``SampleArray``."""
        return self.array.shape

    def slices(self, size: int) -> Iterator[Array]:
        """See ``SampleArray``."""
        for start in range(0, len(self.array), size):
            yield self.array[start : start + size]


@dataclass(frozen=True)
class ArrayFile:
    """One array of an .npz, read from the archive as it is needed.

    Attributes:
        archive: The .npz.
        member: The array's file in it.
        shape: All dimensions.
        dtype: The element type.
        fortran: Whether the values lie column by column; these cannot be read in slices.
    """

    archive: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    def slices(self, size: int) -> Iterator[Array]:
        """See ``SampleArray``."""
        if self.fortran:
            yield from MemoryArray(self.member, self.whole()).slices(size)
            return
        with zipfile.ZipFile(self.archive) as archive, archive.open(self.member) as file:
            _read_header(file)
            for start in range(0, self.shape[0], size):
                yield self._read(file, (min(size, self.shape[0] - start), *self.shape[1:]))

    def whole(self) -> Array:
        """All of it."""
        with zipfile.ZipFile(self.archive) as archive, archive.open(self.member) as file:
            _read_header(file)
            if not self.fortran:
                return self._read(file, self.shape)
            columns: Array = self._read(file, self.shape[::-1])
            return np.transpose(columns)

    def _read(self, file: IO[bytes], shape: tuple[int, ...]) -> Array:
        wanted = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        try:
            data = file.read(wanted)
        except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
            raise UsageError(f"{self.archive}: damaged: {one_line(error)}") from error
        if len(data) != wanted:
            raise UsageError(f"{self.archive}: '{self.member}' is cut short")
        array: Array = np.empty(shape, self.dtype)
        array[...] = np.frombuffer(data, self.dtype).reshape(shape)
        return array


def open_npz(path: Path) -> dict[str, ArrayFile]:
    """The arrays of an .npz by name; nothing but their headers is read.

    Raises:
        UsageError: It cannot be read, is not an .npz, or holds pickled objects, which are never
            loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name[: -len(".npy")]: _open_member(path, archive, name) for name in members}
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise UsageError(f"{path}: not an .npz file: {one_line(error)}") from error


def _open_member(path: Path, archive: zipfile.ZipFile, member: str) -> ArrayFile:
    with archive.open(member) as file:
        shape, fortran, dtype = _read_header(file)
    if dtype.hasobject:
        raise UsageError(f"{path}: '{member}' holds pickled objects; save strings as numpy text")
    return ArrayFile(path, member, shape, dtype, fortran)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(file)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(file)
    return npy_format.read_array_header_2_0(file)
