"""Models of every version and type, compiled, and what they declare wrongly or hardly at all."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_ir as ir
import pytest

import onnxfold
from fixtures.compiled_nets import (
    CNN,
    HELD_OUT,
    IMAGES,
    LOOSE,
    WEIGHTS,
    both,
    compiled,
    draw,
    holds,
    images,
    net,
    products,
    reasons,
    singly,
)
from onnxfold.runtime.session import max_opset_version


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 22, 25, 26])
def test_opsets_old_and_new(opset: int) -> None:
    if opset > max_opset_version():
        pytest.skip(f"this onnxruntime ends with opset {max_opset_version()}")
    model = net(opset=opset, ir_version=8 if opset < 21 else 10)
    outcome = compiled(model)
    assert products(outcome) == 3
    assert outcome.model.opset_imports[""] >= opset
    holds(model, outcome, HELD_OUT)


def test_a_float16_model_computes_in_integers_and_keeps_its_interface() -> None:
    halves = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    model = net(CNN.replace("float[", "float16["), **halves)
    outcome = compiled(model, {"x": images().astype(np.float16)})
    assert products(outcome) == 3
    assert outcome.model.graph.outputs[0].dtype == ir.DataType.FLOAT16
    holds(model, outcome, {"x": images(4, 99).astype(np.float16)})


def test_a_double_model_computes_in_integers_and_keeps_its_interface() -> None:
    model = net(
        """g (double[N,8] x) => (double[N,4] y, double[N,8] h) {
          a = MatMul(x, square)
          h = Relu(a)
          y = Gemm(h, w3, b3)
        }""",
        square=draw(8, 8).astype(np.float64),
        w3=WEIGHTS["w3"].astype(np.float64),
        b3=WEIGHTS["b3"].astype(np.float64),
    )
    data = np.random.default_rng(0).standard_normal((24, 8))
    outcome = compiled(model, {"x": data})
    assert products(outcome) == 2
    assert [each.dtype for each in outcome.model.graph.outputs] == [ir.DataType.DOUBLE] * 2
    holds(model, outcome, {"x": data[:6]})


@pytest.mark.parametrize("declared", ["float[N,7] y", "float[N,4,1] y", "float[1,1] y"])
def test_declared_shapes_and_ranks_of_outputs_may_be_wrong(declared: str) -> None:
    model = net(CNN.replace("float[N,4] y", declared))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("r1", 1, [1, 2, 3]))
    outcome = onnxfold.compile(model, data=IMAGES, preset="fast", keep_slower=True, budget=LOOSE)
    assert products(outcome) == 3
    holds(model, outcome, HELD_OUT)


def test_names_that_are_anything() -> None:
    names = {
        "x": "in put:0",
        "c1": '{"layer": [1, "a"]}',
        "r1": "ns::r1",
        "c2": "Schicht/\u5c42",
        "w1": "w 1::\u00e9",
        "b1": "model/b1:0/Read{x}",
        "w2": "a,b=c",
        "y": "out:0",
    }
    model = net()
    for node in model.graph.node:
        node.input[:] = [names.get(each, each) for each in node.input]
        node.output[:] = [names.get(each, each) for each in node.output]
        node.name = f"{{node}} {node.output[0]}, a=b"
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = names.get(value.name, value.name)
    outcome = compiled(model, {"in put:0": images()})
    assert products(outcome) == 3
    holds(model, outcome, {"in put:0": images(4, 99)})


def test_nodes_that_share_one_name() -> None:
    model = net()
    for node in model.graph.node:
        node.name = "same"
    outcome = compiled(model, skip=["same"])
    assert products(outcome) == 2
    assert set(reasons(outcome)) >= {"same"}
    holds(net(), outcome, HELD_OUT)


def test_unused_initializers_go_and_do_not_disturb() -> None:
    model = net()
    for index in range(42):
        extra = onnx.numpy_helper.from_array(np.ones(3, np.float32), f"unused_{index}")
        model.graph.initializer.append(extra)
    outcome = compiled(model)
    assert not [each for each in outcome.model.graph.initializers if each.startswith("unused")]
    assert products(outcome) == 3


def test_outputs_are_all_there_in_order_and_may_be_read_inside_or_be_no_result_at_all() -> None:
    outputs = "(float[N,8,8,8] r1, float[4] b3, float[N,4] y, float[N,3,8,8] x, float[N,8,8,8] c2)"
    model = net(CNN.replace("(float[N,4] y)", outputs))
    outcome = compiled(model)
    assert products(outcome) == 3
    old, new = both(model, outcome, HELD_OUT)
    assert list(new) == ["r1", "b3", "y", "x", "c2"]
    np.testing.assert_array_equal(new["b3"], old["b3"])
    np.testing.assert_array_equal(new["x"], old["x"])
    holds(model, outcome, HELD_OUT)


def test_inputs_that_are_left_out_or_never_read() -> None:
    model = net(
        """g (float[N,3,8,8] x, int64[N] length, float[7] extra)
             => (float[N,8,16,16] y, float[N,8,8,8] d) {
          c1 = Conv<pads=[1,1,1,1]>(x, w1, "")
          r1 = Clip(c1, "", six)
          u = Resize<mode="nearest">(r1, "", sizes)
          y = Conv<pads=[1,1,1,1]>(u, w2)
          d, mask = Dropout(c1)
        }""",
        six=np.array(6, np.float32),
        sizes=np.array([1, 1, 2, 2], np.float32),
    )
    others = {"length": np.array([3]), "extra": np.zeros(7, np.float32)}
    outcome = compiled(model, singly(**others))
    assert products(outcome) == 2
    holds(model, outcome, {"x": images(1, 99), **others})
