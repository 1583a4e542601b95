"""The inputs that losses add to a model: labels and whatever else has to be fed."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.plan import PlannedLoss
from onnxfold.passes.loss.record import DataInput
from onnxfold.passes.rewriter import Rewriter

_NOISE = ("eps", "noise", "epsilon")


@dataclass
class DataInputs:
    """Binds the inputs of losses to inputs of the model, and adds those that are missing.

    Attributes:
        model: The model.
        added: What was added, by name.
    """

    model: ir.Model
    added: dict[str, DataInput] = field(default_factory=dict[str, DataInput])
    _own: dict[str, ir.Value] = field(default_factory=dict[str, ir.Value])
    _shared: dict[str, list[ir.Value]] = field(default_factory=dict[str, list[ir.Value]])

    def __post_init__(self) -> None:
        self._own = {value.name or "": value for value in self.model.graph.inputs}

    def check(self, planned: PlannedLoss) -> None:
        """Refuse to feed a loss from an input of the model that does not fit.

        Raises:
            UsageError: The input is of another type or rank.
        """
        for wanted in _data_values(planned):
            name = planned.inputs[wanted.name or ""]
            own = self._own.get(name)
            if own is not None and not _fits(own, wanted):
                raise UsageError(
                    f"the model has an input '{name}' already, {_text(own)}, and loss "
                    f"{planned.built.name} wants {_text(wanted)}: name the new input with "
                    "labels (--labels)"
                )

    def bind(self, planned: PlannedLoss, rewriter: Rewriter) -> dict[str, ir.Value]:
        """The input of the model for each input of ``planned`` that is fed, by its name there."""
        found: dict[str, ir.Value] = {}
        for wanted in _data_values(planned):
            name = planned.inputs[wanted.name or ""]
            found[wanted.name or ""] = self._own.get(name) or self._bound(
                name, wanted, planned, rewriter
            )
        return found

    def _bound(
        self, name: str, wanted: ir.Value, planned: PlannedLoss, rewriter: Rewriter
    ) -> ir.Value:
        """An input of that name and type, which may serve several losses."""
        known = self._shared.setdefault(name, [])
        for each in known:
            if each.dtype == wanted.dtype and each.shape == wanted.shape:
                return each
        assert wanted.dtype is not None
        value = rewriter.add_input(name, wanted.dtype, wanted.shape)
        known.append(value)
        self.added[value.name or ""] = _described(wanted, planned)
        return value


def _data_values(planned: PlannedLoss) -> list[ir.Value]:
    inputs = planned.built.model.graph.inputs
    return [value for value in inputs if value.name in planned.built.data]


def _fits(own: ir.Value, wanted: ir.Value) -> bool:
    if own.dtype != wanted.dtype:
        return False
    if own.shape is None or wanted.shape is None:
        return True
    if len(own.shape) != len(wanted.shape):
        return False
    pairs = zip(own.shape, wanted.shape, strict=True)
    return not any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def _text(value: ir.Value) -> str:
    dims = "..." if value.shape is None else ",".join(map(str, value.shape))
    return f"{'?' if value.dtype is None else value.dtype.name.lower()}[{dims}]"


def _described(wanted: ir.Value, planned: PlannedLoss) -> DataInput:
    """What the input holds, so that data can be made up for it."""
    first = planned.attachments[0]
    shape = first.tensor.shape
    dims = [] if wanted.shape is None else [_dim(dim) for dim in wanted.shape]
    scores = planned.built.scores
    kind, classes = "numbers", None
    if wanted.dtype is not None and wanted.dtype.is_integer():
        missing = [axis for axis in range(len(shape)) if len(shape) == len(dims) + 1]
        size = shape[planned.class_axis] if missing and scores != "values" else None
        kind, classes = "classes", size if isinstance(size, int) else None
    elif wanted.name in _NOISE:
        kind = "noise"
    elif "weight" in (wanted.name or ""):
        kind = "positive"
    elif scores != "values":
        kind = "distribution"
    return DataInput(first.value.name or "", kind, _axes(dims, shape), classes)


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    return dim if isinstance(dim, int) else dim.value


def _axes(
    dims: list[int | str | None], shape: tuple[int | str | None, ...]
) -> tuple[int | None, ...]:
    """For each of ``dims`` the axis of ``shape`` that it comes from, in order."""
    if len(dims) == len(shape):
        return tuple(range(len(dims)))
    found: list[int | None] = []
    start = 0
    for dim in dims:
        axis = next((i for i in range(start, len(shape)) if shape[i] == dim), None)
        found.append(axis)
        start = start if axis is None else axis + 1
    return tuple(found)
