"""Running a model on data for tensors inside it, one feed in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.provenance import node_name
from onnxfold.passes.suggest import did_you_mean
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.verify.cut import keep_outputs

_CONFIG = replace(REFERENCE, name="tensors inside", threads=0, spinning=False)


def tapped(
    model: ir.Model,
    tensors: Collection[str],
    feeds: Iterable[Mapping[str, Array]],
    progress: Progress | None = None,
) -> Iterator[Mapping[str, Array]]:
    """The values of ``tensors`` (inputs, or computed in the main graph) on each feed.

    Args:
        model: Not changed.
        tensors: Names.
        feeds: One array per input each. Read once.
        progress: Hears one step per feed that the caller is done with.

    Raises:
        UsageError: There is no data, or a feed does not fit the model.
        ExecutionError: ONNX Runtime failed.
    """
    inputs = {value.name for value in model.graph.inputs}
    computed = [each for each in dict.fromkeys(tensors) if each not in inputs]
    session = Session(_cut(model, computed), _CONFIG) if computed else None
    empty = True
    for feed in feeds:
        empty = False
        found = {name: feed[name] for name in tensors if name in feed}
        if session is not None:
            found.update(session.run(feed))
        yield found
        if progress is not None:
            progress.advance()
    if empty:
        raise UsageError("the calibration data is empty: give at least one sample")


def _cut(model: ir.Model, names: Collection[str]) -> ir.Model:
    cut = keep_outputs(model, names)
    for value in cut.graph.outputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        # A wrong declared shape must not stop the run.
        value.shape = None
    return cut


def chosen_nodes(model: ir.Model, names: Collection[str] | None) -> dict[str, ir.Node]:
    """The main graph's nodes by name: those of ``names``, or all.

    Raises:
        UsageError: There is no such node.
    """
    nodes = {node_name(node): node for node in model.graph}
    for name in names or ():
        if name not in nodes:
            raise UsageError(f"the model has no node '{name}'{did_you_mean(name, nodes)}")
    return nodes if names is None else {name: nodes[name] for name in nodes if name in names}
