"""Codes of weights that were learned from data: what ``round-weights`` needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.array_file import ArrayFile


class WeightRounding(ArrayFile[str, Array]):
    """Node name -> codes of its weights, of the weights' shape: int8, or uint8 where unsigned."""

    form: ClassVar[str] = "onnxfold-weight-rounding-1"
    plural: ClassVar[str] = "weight codes"
    remedy: ClassVar[str] = "learn the rounding"

    def __init__(self, codes: Mapping[str, Array], *, path: Path | None = None) -> None:
        """Check and copy ``codes``.

        Raises:
            UsageError: Codes are not whole numbers of 8 bits.
        """
        checked = {name: _checked(name, codes[name]) for name in sorted(codes)}
        super().__init__(checked, path=path)

    def _to_arrays(self) -> dict[str, Array]:
        names = np.array(list(self), dtype=np.str_)
        codes = {f"codes_{index}": array for index, array in enumerate(self.values())}
        return {"names": names, **codes}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, Array]) -> dict[str, Array]:
        names: list[str] = arrays["names"].tolist()
        return {name: arrays[f"codes_{index}"] for index, name in enumerate(names)}


def _checked(name: str, codes: Array) -> Array:
    numbers = np.asarray(codes)
    for dtype in (np.int8, np.uint8):
        narrow = numbers.astype(dtype)
        if np.array_equal(narrow, numbers):
            narrow = np.ascontiguousarray(narrow)
            narrow.flags.writeable = False
            return narrow
    raise UsageError(f"the codes of node '{name}' are not whole numbers of 8 bits")
