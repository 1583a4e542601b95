from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.graph import LossGraph, Variable

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def graph_of(opset: int = 18, dtype: ir.DataType = FLOAT) -> tuple[LossGraph, Variable]:
    graph = LossGraph("test", opset, dtype)
    return graph, graph.data_input("x", dtype, ("N", 3))


def only_input(variable: Variable, index: int) -> Variable:
    return variable.inputs[0].inputs[index]


def test_literals_take_the_type_that_was_meant() -> None:
    graph, x = graph_of(dtype=ir.DataType.DOUBLE)
    assert only_input(graph.op("Mul", x, 2.0), 1).values.dtype == np.float64
    axes = only_input(graph.op("Squeeze", x, [0]), 1).values
    assert (axes.dtype, axes.shape) == (np.int64, (1,))
    kept = np.array([1, 2], np.int32)
    assert only_input(graph.op("Gather", x, kept), 1).values.dtype == np.int32
    assert only_input(graph.op("Clip", x, None, 1.0), 1).is_empty()


def test_equal_constants_are_one() -> None:
    graph, x = graph_of()
    first, second = graph.op("Mul", x, 0.5), graph.op("Add", x, 0.5)
    assert only_input(first, 1) is only_input(second, 1)
    other = graph.op("Reshape", x, [0])
    assert only_input(other, 1) is not only_input(graph.op("Gather", x, 0), 1)


@pytest.mark.parametrize(
    ("opset", "op", "is_input"),
    [
        (13, "ReduceSum", True),
        (13, "ReduceMean", False),
        (18, "ReduceMean", True),
        (18, "ReduceSum", True),
    ],
)
def test_axes_are_written_as_the_opset_has_them(opset: int, op: str, is_input: bool) -> None:
    graph, x = graph_of(opset)
    node = graph.reduce(op, x, [-1]).inputs[0]
    assert (len(node.inputs) == 2) is is_input
    assert node.attrs.get("axes") == (None if is_input else [-1])
    assert node.attrs["keepdims"] == 0


def test_sizes_are_constants_where_they_are_known() -> None:
    graph, x = graph_of()
    assert graph.size(x, 1).values == 3
    assert graph.size(x, 0).inputs[0].op == "Gather"


def test_an_input_has_a_name_of_its_own() -> None:
    graph, _ = graph_of()
    with pytest.raises(UsageError, match="loss test takes the input 'x' twice"):
        graph.data_input("x", INT64, ())


def test_what_the_loss_does_not_need_is_left_out() -> None:
    graph, x = graph_of()
    graph.op("Neg", x)
    proto = graph.built(graph.reduce("ReduceSum", x), "loss")
    assert [node.op_type for node in proto.graph.node] == ["ReduceSum"]
    assert [each.name for each in proto.graph.output] == ["loss"]


def test_an_input_can_be_the_loss() -> None:
    graph, x = graph_of()
    proto = graph.built(x, "loss")
    assert [node.op_type for node in proto.graph.node] == ["Identity"]
    assert [each.name for each in proto.graph.input] == ["x"]
