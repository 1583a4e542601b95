"""dynamic-batch: leave open how many samples a model takes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.batch.site import Edit, MixedSamplesError, NewConstant, NoInput, Repeated
from onnxfold.passes.batch.trace import Trace, trace_batch
from onnxfold.passes.errors import UsageError
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean

_SHAPE_WITH_RANGE = 15


@dataclass(frozen=True)
class DynamicBatch(Pass):
    """Make the first dimension of inputs symbolic, and all that holds its size fit any size.

    The samples are followed through the model, from the first axis of the inputs to the outputs:
    constant shapes that hold their number take what is left, initial states of zeros are left out,
    what is the same for all samples is repeated. The model must treat each sample by itself: an
    operator that computes across them, or that is not known not to, is an error that names it.

    Attributes:
        inputs: Names of the inputs that hold samples; all those whose first dimension is that of
            the first input, if empty.
        symbol: What the dimension is called.
    """

    inputs: tuple[str, ...] = ()
    symbol: str = "batch"

    name: ClassVar[str] = "dynamic-batch"
    contract: ClassVar[Contract] = Contract.EXACT

    @property
    def changes_interface(self) -> bool:
        """It opens dimensions."""
        return True

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Open the batch of the main graph.

        Raises:
            UsageError: There is no batch to leave open, or the model mixes samples.
        """
        inputs = self._inputs(model)
        is_open = not any(isinstance(value.shape[0], int) for value in inputs if value.shape)
        try:
            trace = trace_batch(model, {value.name or "" for value in inputs}, _batch(inputs))
            _check_outputs(model, trace)
        except MixedSamplesError as error:
            if is_open:
                rewriter.remark(model.graph[0], f"left as open as it is: {error}")
                return
            raise UsageError(
                f"the batch of {_named(model)} cannot be left open: {error}; export it with an "
                "open batch, or run it sample by sample"
            ) from error
        if is_open and not trace.edits:
            return
        self._open(model, rewriter, trace, inputs)

    def _inputs(self, model: ir.Model) -> list[ir.Value]:
        known = {value.name or "": value for value in model.graph.inputs}
        for name in self.inputs:
            if name not in known:
                raise UsageError(f"dynamic-batch: no input '{name}'{did_you_mean(name, known)}")
        having = [value for value in known.values() if value.shape and not value.is_initializer()]
        if self.inputs:
            having = [value for value in having if value.name in self.inputs]
        if not having:
            raise UsageError(
                f"{_named(model)} has no input with dimensions: no batch to leave open"
            )
        first = having[0].shape
        size = first[0] if first is not None else None
        return [value for value in having if value.shape is not None and value.shape[0] == size]

    def _open(
        self, model: ir.Model, rewriter: Rewriter, trace: Trace, inputs: list[ir.Value]
    ) -> None:
        source = inputs[0]
        for edit in trace.edits:
            with rewriter.step("fit-any-batch", edit.node):
                _carry_out(edit, source, rewriter)
        with rewriter.step("open-batch"):
            for value, axis in trace.axes.items():
                if value.shape is None:
                    continue
                dims: list[int | str | None] = [
                    each if isinstance(each, int) else each.value for each in value.shape
                ]
                factor = trace.factors.get(value)
                dims[axis] = self.symbol if factor == 1 else f"{factor}*{self.symbol}"
                if factor is None:
                    dims[axis] = None
                rewriter.set_type(value, shape=dims)


def _check_outputs(model: ir.Model, trace: Trace) -> None:
    """Refuse outputs that do not give sample after sample."""
    for value in model.graph.outputs:
        if value in trace.grouped:
            raise MixedSamplesError(
                f"output '{value.name}' does not give one sample after the other"
            )


def _batch(inputs: list[ir.Value]) -> int:
    """How many samples the model takes as it is; 1 where it leaves that open."""
    shape = inputs[0].shape
    size = shape[0] if shape is not None else None
    return size if isinstance(size, int) else 1


def _carry_out(edit: Edit, source: ir.Value, rewriter: Rewriter) -> None:
    node = edit.node
    name = f"{node.name or node.op_type}_input_{edit.index}"
    if isinstance(edit, NoInput):
        rewriter.set_input(node, edit.index, None)
        return
    if isinstance(edit, NewConstant):
        constant = rewriter.constant(node, edit.array, name=name)
        rewriter.set_input(node, edit.index, constant)
        return
    size = _batch_size(node, source, rewriter)
    if isinstance(edit, Repeated):
        dims: list[int | None] = [1] * edit.rank
        dims[edit.axis] = None
        value = node.inputs[edit.index]
        if edit.array is not None:
            value = rewriter.constant(node, edit.array, name=name)
        shape = _joined(node, dims, size, rewriter)
        repeated = rewriter.insert(
            node,
            "Expand",
            [value, shape],
            name=f"{name}_repeated",
            dtype=value.dtype if value else None,
        )
        rewriter.set_input(node, edit.index, repeated)
        return
    if edit.factor != 1:
        factor = rewriter.constant(node, np.array([edit.factor], np.int64), name=f"{name}_factor")
        size = rewriter.insert(node, "Mul", [size, factor], name=f"{name}_size")
    sizes: list[int | None] = [int(each) for each in edit.array]
    sizes[edit.place] = None
    rewriter.set_input(node, edit.index, _joined(node, sizes, size, rewriter))


def _joined(node: ir.Node, dims: list[int | None], size: ir.Value, rewriter: Rewriter) -> ir.Value:
    """A shape of constants, with ``size`` where there is None."""
    place = dims.index(None)
    parts: list[ir.Value] = []
    for some in (dims[:place], [None], dims[place + 1 :]):
        if some == [None]:
            parts.append(size)
        elif some:
            constant = np.array(some, np.int64)
            parts.append(rewriter.constant(node, constant, name=f"{node.name}_sizes"))
    return rewriter.insert(
        node,
        "Concat",
        parts,
        name=f"{node.name}_shape",
        attributes={"axis": 0},
        dtype=ir.DataType.INT64,
        shape=[len(dims)],
    )


def _batch_size(node: ir.Node, source: ir.Value, rewriter: Rewriter) -> ir.Value:
    """How many samples ``source`` holds, int64 [1]."""
    if rewriter.opset(node) >= _SHAPE_WITH_RANGE:
        return rewriter.insert(
            node,
            "Shape",
            [source],
            name=f"{source.name}_batch",
            attributes={"start": 0, "end": 1},
            dtype=ir.DataType.INT64,
            shape=[1],
        )
    shape = rewriter.insert(node, "Shape", [source], name=f"{source.name}_shape")
    zero = rewriter.constant(node, np.array([0], np.int64), name="batch_axis")
    return rewriter.insert(
        node,
        "Gather",
        [shape, zero],
        name=f"{source.name}_batch",
        attributes={"axis": 0},
        dtype=ir.DataType.INT64,
        shape=[1],
    )


def _named(model: ir.Model) -> str:
    return f"model '{model.graph.name}'" if model.graph.name else "the model"
