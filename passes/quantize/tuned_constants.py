"""Constants that were tuned on data: what ``set-constants`` needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.array_file import ArrayFile

_TYPES = ("float32", "int32", "int8", "uint8")

Place: TypeAlias = tuple[str, int]
"""The name of a node, and which of its inputs."""


class TunedConstants(ArrayFile[Place, Array]):
    """Place -> the constant to be read there: float32, int32, or codes in 8 bits."""

    form: ClassVar[str] = "onnxfold-tuned-constants-1"
    plural: ClassVar[str] = "tuned constants"
    remedy: ClassVar[str] = "tune the model"

    def __init__(self, constants: Mapping[Place, Array], *, path: Path | None = None) -> None:
        """Copy ``constants``.

        Raises:
            UsageError: One is neither real nor of whole numbers.
        """
        kept = {place: _checked(place, constants[place]) for place in sorted(constants)}
        super().__init__(kept, path=path)

    def _to_arrays(self) -> dict[str, Array]:
        return {
            "nodes": np.array([node for node, _ in self], dtype=np.str_),
            "inputs": np.array([index for _, index in self], dtype=np.int64),
            **{f"constant_{index}": array for index, array in enumerate(self.values())},
        }

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, Array]) -> dict[Place, Array]:
        nodes: list[str] = arrays["nodes"].tolist()
        inputs: list[int] = arrays["inputs"].tolist()
        places = list(zip(nodes, inputs, strict=True))
        return {place: arrays[f"constant_{index}"] for index, place in enumerate(places)}


def _checked(place: Place, array: Array) -> Array:
    kept = np.array(array)
    if str(kept.dtype) not in _TYPES:
        node, index = place
        raise UsageError(f"the constant for node '{node}', input {index}, is of type {kept.dtype}")
    kept.flags.writeable = False
    return kept
