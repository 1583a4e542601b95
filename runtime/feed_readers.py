"""Reads raw feeds from each kind of DATA; what they hold is checked by ``feeds``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.suggest import did_you_mean
from onnxfold.runtime.array_files import MemoryArray, SampleArray, open_npz
from onnxfold.runtime.parquet import read_parquet
from onnxfold.runtime.specs import TensorSpec, one_line

RawFeed: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Reader:
    """Something that can be read any number of times.

    Attributes:
        description: What it is, for messages and reports.
        read: Starts a new pass over the feeds.
        count: How many feeds there are; None where reading is the only way to know.
        files: The files that are read.
        labels_allowed: Whether arrays beside the model's inputs are labels, or a mistake.
    """

    description: str
    read: Callable[[], Iterable[RawFeed]]
    count: int | None = None
    files: tuple[Path, ...] = ()
    labels_allowed: bool = True


def open_reader(source: object, inputs: Sequence[TensorSpec], batch_size: int | None) -> Reader:
    """The reader for ``source``; see ``feeds.open_feeds`` for what it may be.

    Raises:
        UsageError: The source is missing, unknown or unusable for these inputs.
    """
    if isinstance(source, Mapping):
        mapping = cast(Mapping[str, Any], source)
        arrays = {name: MemoryArray(name, np.asarray(array)) for name, array in mapping.items()}
        return _batched("arrays in memory", arrays, inputs, batch_size, ())
    if hasattr(source, "get_next"):
        return _from_data_reader(source)
    if isinstance(source, str | Path):
        return _open_path(str(source), inputs, batch_size)
    if isinstance(source, Sequence):
        feeds = cast(Sequence[RawFeed], source)
        return Reader("feeds in memory", lambda: _mappings("feeds in memory", feeds), len(feeds))
    raise UsageError(
        f"cannot read feeds from {type(source).__name__}: give a path, file.py:function, arrays, "
        "feeds, or an object with get_next()"
    )


def _open_path(text: str, inputs: Sequence[TensorSpec], batch_size: int | None) -> Reader:
    script, _, function = text.rpartition(":")
    if script.endswith(".py") and function:
        return _from_function(Path(script), function)
    path = Path(text)
    if os.path.isdir(path):
        return _from_folder(path, inputs)
    # Unlike Path.is_file, this takes a name that is too long for one that is not there.
    if not os.path.isfile(path):
        raise UsageError(f"{path}: no such file or folder")
    if path.suffix == ".npz":
        return _batched(str(path), open_npz(path), inputs, batch_size, (path,))
    if path.suffix == ".parquet":
        return Reader(str(path), lambda: read_parquet(path, inputs), None, (path,))
    raise UsageError(
        f"{path}: not a source of feeds: wants .npz, .parquet, a folder of .npz, test_data_set "
        "folders, or file.py:function"
    )


def _batched(
    description: str,
    arrays: Mapping[str, SampleArray],
    inputs: Sequence[TensorSpec],
    batch_size: int | None,
    files: tuple[Path, ...],
) -> Reader:
    """Arrays whose first axis counts samples, cut into feeds."""
    if not arrays:
        raise UsageError(f"{description}: no arrays")
    for name, array in arrays.items():
        if not array.shape:
            raise UsageError(
                f"{description}: array '{name}' is a scalar; its first axis must count samples"
            )
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    samples = next(iter(lengths.values()))
    for name, length in lengths.items():
        if length != samples:
            first = next(iter(lengths))
            raise UsageError(
                f"{description}: '{name}' has {length} samples and '{first}' has {samples}"
            )
    size = _batch_size(description, arrays, inputs, batch_size)
    if samples % size and any(_fixed_batch(spec, arrays) for spec in inputs):
        raise UsageError(
            f"{description}: {samples} samples do not fill batches of {size}, which the model wants"
        )
    ranks = {spec.name: len(spec.shape) for spec in inputs if spec.shape is not None}

    def read() -> Iterator[RawFeed]:
        streams = {name: array.slices(size) for name, array in arrays.items()}
        for _ in range(0, samples, size):
            feed = {name: next(stream) for name, stream in streams.items()}
            yield {
                # An array of one more dimension holds whole feeds: its first axis is not the batch.
                name: array[0] if array.ndim == ranks.get(name, array.ndim) + 1 else array
                for name, array in feed.items()
            }

    return Reader(description, read, -(-samples // size), files)


def _batch_size(
    description: str,
    arrays: Mapping[str, SampleArray],
    inputs: Sequence[TensorSpec],
    wanted: int | None,
) -> int:
    if any(_holds_whole_feeds(spec, arrays) for spec in inputs):
        return 1
    for spec in inputs:
        fixed = _fixed_batch(spec, arrays)
        if fixed and wanted not in (None, fixed):
            raise UsageError(
                f"{description}: batches of {wanted} are asked, and input '{spec.name}' is {spec}"
            )
        if fixed:
            return fixed
    return wanted or 1


def _holds_whole_feeds(spec: TensorSpec, arrays: Mapping[str, SampleArray]) -> bool:
    array = arrays.get(spec.name)
    return array is not None and spec.shape is not None and len(array.shape) == len(spec.shape) + 1


def _fixed_batch(spec: TensorSpec, arrays: Mapping[str, SampleArray]) -> int:
    """The batch size that the model fixes through this input; 0 if it leaves it open."""
    array = arrays.get(spec.name)
    if array is None or not spec.shape or len(array.shape) != len(spec.shape):
        return 0
    return spec.shape[0] if isinstance(spec.shape[0], int) else 0


def _from_folder(folder: Path, inputs: Sequence[TensorSpec]) -> Reader:
    sets = sorted((p for p in folder.glob("test_data_set_*") if p.is_dir()), key=_number)
    if not sets and (folder / "input_0.pb").is_file():
        sets = [folder]
    if sets:
        files = tuple(path for each in sets for path in _input_files(each))
        read_sets = lambda: (_read_data_set(each, inputs) for each in sets)  # noqa: E731
        return Reader(str(folder), read_sets, len(sets), files)
    files = tuple(sorted(folder.glob("*.npz")))
    if not files:
        raise UsageError(f"{folder}: neither .npz files nor test_data_set_* folders in it")
    return Reader(str(folder), lambda: map(_read_npz_feed, files), len(files), files)


def _read_npz_feed(path: Path) -> RawFeed:
    return {name: array.whole() for name, array in open_npz(path).items()}


def _input_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("input_*.pb"), key=_number)


def _number(path: Path) -> tuple[int, str]:
    """Sorts ``input_2`` before ``input_10``."""
    tail = path.stem.rpartition("_")[2]
    return (int(tail) if tail.isdigit() else 0, path.name)


def _read_data_set(folder: Path, inputs: Sequence[TensorSpec]) -> RawFeed:
    """One ONNX test data set: by the names in its files, or by position where they have none."""
    files = _input_files(folder)
    if len(files) > len(inputs):
        raise UsageError(f"{folder}: {len(files)} inputs for a model of {len(inputs)}")
    feed: dict[str, Any] = {}
    names = {spec.name for spec in inputs}
    for path, spec in zip(files, inputs, strict=False):
        name, value = _read_value(path, spec)
        feed[name if name in names else spec.name] = value
    return feed


def _read_value(path: Path, spec: TensorSpec) -> tuple[str, Any]:
    try:
        if not spec.is_tensor and str(spec.dtype).startswith("seq("):
            sequence = onnx.SequenceProto.FromString(path.read_bytes())
            return sequence.name, numpy_helper.to_list(sequence)
        tensor = onnx.TensorProto.FromString(path.read_bytes())
        array: Array = numpy_helper.to_array(tensor)
        return tensor.name, array.astype(object) if array.dtype.kind in "US" else array
    except Exception as error:
        raise UsageError(f"{path}: not an ONNX tensor: {one_line(error)}") from error


def _from_data_reader(source: Any) -> Reader:
    """An onnxruntime CalibrationDataReader, or anything like it."""
    description = f"data reader {type(source).__name__}"
    remembered: list[RawFeed] = []
    started = False
    exhausted = False

    def read() -> Iterator[RawFeed]:
        nonlocal started, exhausted
        if started and hasattr(source, "rewind"):
            source.rewind()
            exhausted = False
            remembered.clear()
        started = True
        yield from list(remembered)
        while not exhausted:
            feed = source.get_next()
            if feed is None:
                exhausted = True
                return
            if not isinstance(feed, Mapping):
                raise UsageError(
                    f"{description}: get_next() gave {type(feed).__name__}, not a dict"
                )
            # One that cannot rewind can be read once: what it gave has to be kept.
            if not hasattr(source, "rewind"):
                remembered.append(cast(RawFeed, feed))
            yield cast(RawFeed, feed)

    return Reader(description, read, labels_allowed=False)


class _UnwrittenLoader(SourceFileLoader):
    """Leaves no bytecode beside a script that is the user's."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Would write it."""


def _from_function(script: Path, name: str) -> Reader:
    description = f"{script}:{name}"
    if not script.is_file():
        raise UsageError(f"{script}: no such file")
    loader = _UnwrittenLoader(f"onnxfold_feeds_{script.stem}", str(script))
    spec = importlib.util.spec_from_file_location(loader.name, script, loader=loader)
    if spec is None or script.suffix != ".py":
        raise UsageError(f"{script}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        message = f"{script} failed: {type(error).__name__}: {one_line(error)}"
        raise UsageError(message) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if callable(value)]
        raise UsageError(f"{script} has no function '{name}'{did_you_mean(name, known)}")

    def read() -> Iterator[RawFeed]:
        try:
            yield from _mappings(description, cast(Iterable[Any], function()))
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            message = f"{description} failed: {type(error).__name__}: {one_line(error)}"
            raise UsageError(message) from error

    return Reader(description, read, files=(script,))


def _mappings(description: str, feeds: Iterable[Any]) -> Iterator[RawFeed]:
    for sample, feed in enumerate(feeds):
        if not isinstance(feed, Mapping):
            kind = type(feed).__name__
            raise UsageError(f"{description}, sample {sample}: got {kind}, wanted a dict of arrays")
        yield cast(RawFeed, feed)
