"""Reads feeds from a .parquet file: one column per input, one row a sample."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.specs import TensorSpec, one_line

_ROWS_AT_ONCE = 64


def read_parquet(path: Path, inputs: Sequence[TensorSpec]) -> Iterator[Mapping[str, Array]]:
    """The rows of ``path`` as feeds of one sample, read in small groups.

    Nested lists become dimensions. A flat list takes the shape of its input where that is fixed
    but for the batch. Columns that are not inputs come along as labels.

    Raises:
        UsageError: pyarrow is not installed, or the file is not readable.
    """
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        message = f"{path}: reading .parquet needs pyarrow: pip install 'onnxfold[parquet]'"
        raise UsageError(message) from error
    specs = {spec.name: spec for spec in inputs}
    try:
        with parquet.ParquetFile(path) as file:
            for group in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in group.to_pylist():
                    yield {name: _array(value, specs.get(name)) for name, value in row.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: not a readable .parquet file: {one_line(error)}") from error


def _array(value: Any, spec: TensorSpec | None) -> Array:
    array: Array = np.asarray(value)
    if spec is None or not isinstance(spec.dtype, np.dtype) or spec.shape is None:
        return array[np.newaxis]
    inner = [dim for dim in spec.shape[1:] if isinstance(dim, int)]
    if len(inner) == len(spec.shape) - 1 and math.prod(inner) == array.size:
        array = array.reshape(inner)
    return array[np.newaxis] if array.ndim == len(spec.shape) - 1 else array
