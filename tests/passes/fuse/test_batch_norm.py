"""fold-batch-norm: where it folds, where it must not, and the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

Parse = Callable[..., ir.Model]
Rewrite = Callable[..., PassResult]

BN = "float[2] g = {2, 0.5}, float[2] b = {1, -1}, float[2] m = {0.5, 3}, float[2] v = {4, 0.25}"
NORM = "BatchNormalization<epsilon: float = 0.0>"


def _x(*shape: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(3).normal(size=shape).astype(np.float32)}


def _ops(result: PassResult) -> list[str]:
    return [node.op_type for node in result.model.graph]


def test_into_conv(
    parse: Parse, rewrite: Rewrite, assert_text: Callable[[ir.Model, str], None]
) -> None:
    model = parse(
        f"""g (float[1,1,3] x) => (float[1,2,3] y)
        <float[2,1,1] w = {{1, 2}}, float[2] c = {{1, 2}}, {BN}>
        {{ t = Conv(x, w, c)  y = {NORM}(t, g, b, m, v) }}"""
    )
    result = rewrite("fold-batch-norm", model, _x(1, 1, 3))
    assert result.rules == {"fold-batch-norm-into-producer": 1}
    # s = (1, 1); bias = (1 - 0.5) * 1 + 1, (2 - 3) * 1 - 1
    assert_text(
        model,
        f"""g (float[1,1,3] x) => (float[1,2,3] y)
        <float[2,1,1] w_1 = {{1, 2}}, float[2] c_1 = {{1.5, -2}}, {BN}>
        {{ y = Conv(x, w_1, c_1) }}""",
    )


def test_before_an_unpadded_conv(
    parse: Parse, rewrite: Rewrite, assert_text: Callable[[ir.Model, str], None]
) -> None:
    model = parse(
        f"""g (float[1,2,3] x) => (float[1,1,3] y) <float[1,2,1] w = {{3, 4}}, {BN}>
        {{ t = {NORM}(x, g, b, m, v)  y = Conv(t, w) }}"""
    )
    result = rewrite("fold-batch-norm", model, _x(1, 2, 3))
    assert result.rules == {"fold-batch-norm-into-consumer": 1}
    # shift = (0.5, -4): bias = 3 * 0.5 + 4 * -4
    assert_text(
        model,
        f"""g (float[1,2,3] x) => (float[1,1,3] y)
        <float[1,2,1] w_1 = {{3, 4}}, float[1] y_bias = {{-14.5}}, {BN}>
        {{ y = Conv(x, w_1, y_bias) }}""",
    )


TWO_BY_TWO = "float[2,2] w = {1, 2, 3, 4}"
FOLDING = {
    "transpose": (
        "float[2,1,4,4] x",
        "float[2,2,2] w = {1,2,3,4,5,6,7,8}, float[1,2,2,2] u = {1,2,3,4,5,6,7,8}",
        f"t = ConvTranspose(x, u)  y = {NORM}(t, g, b, m, v)",
        ["ConvTranspose"],
    ),
    "transpose_grouped": (
        "float[2,2,4,4] x",
        "float[2,1,2,2] w = {1,2,3,4,5,6,7,8}",
        f"t = ConvTranspose<group = 2>(x, w)  y = {NORM}(t, g, b, m, v)",
        ["ConvTranspose"],
    ),
    "depthwise_padded": (
        "float[2,2,4,4] x",
        "float[2,1,2,2] w = {1,2,3,4,5,6,7,8}",
        f"t = Conv<group = 2, pads = [1,1,0,0]>(x, w)  y = {NORM}(t, g, b, m, v)",
        ["Conv"],
    ),
    "gemm_alpha_beta": (
        "float[3,2] x",
        f"{TWO_BY_TWO}, float[1,2] c = {{1, 2}}",
        f"t = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, c)  y = {NORM}(t, g, b, m, v)",
        ["Gemm"],
    ),
    "gemm_after": (
        "float[3,2] x",
        f"{TWO_BY_TWO}, float[1,2] c = {{1, 2}}",
        f"t = {NORM}(x, g, b, m, v)  y = Gemm<alpha = 0.5, beta = 2.0>(t, w, c)",
        ["Gemm"],
    ),
    "matmul": (
        "float[3,2] x",
        TWO_BY_TWO,
        f"t = MatMul(x, w)  y = {NORM}(t, g, b, m, v)",
        ["MatMul", "Add"],
    ),
    "matmul_add": (
        "float[3,2] x",
        f"{TWO_BY_TWO}, float[1,2] c = {{1, 2}}",
        f"t = MatMul(x, w)  u = Add(c, t)  y = {NORM}(u, g, b, m, v)",
        ["MatMul", "Add"],
    ),
    "matmul_left": (
        "float[3,2,4] x",
        TWO_BY_TWO,
        f"t = MatMul(w, x)  y = {NORM}(t, g, b, m, v)",
        ["MatMul", "Add"],
    ),
    "before_matmul": (
        "float[3,2] x",
        TWO_BY_TWO,
        f"t = {NORM}(x, g, b, m, v)  y = MatMul(t, w)",
        ["MatMul", "Add"],
    ),
    "conv_add": (
        "float[2,2,4] x",
        "float[2,2,1] w = {1,2,3,4}, float[1,2,1] c = {1, 2}",
        f"t = Conv(x, w)  u = Add(t, c)  y = {NORM}(u, g, b, m, v)",
        ["Conv"],
    ),
    "behind_identity": (
        "float[2,2,4] x",
        "float[2,2,1] w = {1,2,3,4}",
        f"k = Identity(w)  t = Conv(x, k)  y = {NORM}(t, g, b, m, v)",
        ["Identity", "Conv"],
    ),
    "constant_node": (
        "float[2,2,4] x",
        "float[1] unused = {0}",
        "k = Constant<value: tensor = float[2,2,1] {1,2,3,4}>()  t = Conv(x, k)  "
        f"y = {NORM}(t, g, b, m, v)",
        ["Constant", "Conv"],
    ),
    "shared_weights": (
        "float[2,2,4] x",
        "float[2,2,1] w = {1,2,3,4}",
        f"t = Conv(x, w)  n = {NORM}(t, g, b, m, v)  s = Conv(x, w)  y = Add(n, s)",
        ["Conv", "Conv", "Add"],
    ),
    "no_padding_needed": (
        "float[2,2,4] x",
        "float[2,2,1] w = {1,2,3,4}, float[2] zero = {0, 0}",
        f"t = {NORM}(x, g, zero, zero, v)  y = Conv<pads = [1,1]>(t, w)",
        ["Conv"],
    ),
}


def _shape_of(declaration: str) -> tuple[int, ...]:
    return tuple(
        map(int, declaration[declaration.index("[") + 1 : declaration.index("]")].split(","))
    )


@pytest.mark.parametrize("name", FOLDING)
def test_folds(parse: Parse, rewrite: Rewrite, name: str) -> None:
    data, constants, body, ops = FOLDING[name]
    rank = ",".join("?" for _ in _shape_of(data))
    model = parse(f"g ({data}) => (float[{rank}] y) <{constants}, {BN}> {{ {body} }}")
    result = rewrite("fold-batch-norm", model, _x(*_shape_of(data)))
    assert result.rules.total() == 1
    assert _ops(result) == ops


REFUSED = {
    "another_consumer": (
        "float[2,2,1] w = {1,2,3,4}",
        f"t = Conv(x, w)  n = {NORM}(t, g, b, m, v)  y = Add(n, t)",
    ),
    "padded_shift": (
        "float[2,2,1] w = {1,2,3,4}",
        f"t = {NORM}(x, g, b, m, v)  y = Conv<pads = [1,1]>(t, w)",
    ),
    "same_padded_shift": (
        "float[2,2,2] w = {1,2,3,4,5,6,7,8}",
        f't = {NORM}(x, g, b, m, v)  y = Conv<auto_pad = "SAME_UPPER">(t, w)',
    ),
    "shift_before_transposed": (
        "float[2,2,1] w = {1,2,3,4}",
        f"t = {NORM}(x, g, b, m, v)  y = ConvTranspose(t, w)",
    ),
    "no_finite_scale": (
        "float[2,2,1] w = {1,2,3,4}, float[2] none = {0, 0}",
        f"t = Conv(x, w)  y = {NORM}(t, g, b, m, none)",
    ),
    "weights_overflow": (
        "float[2,2,1] w = {1,2,3e38,4}, float[2] large = {9, 9}",
        f"t = Conv(x, w)  y = {NORM}(t, large, b, m, v)",
    ),
    "channels_elsewhere": (
        "float[4,4] w = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}",
        f"t = MatMul(x, w)  y = {NORM}(t, g, b, m, v)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(
    parse: Parse, apply_pass: Callable[..., PassResult], name: str, text_of: Callable[..., str]
) -> None:
    constants, body = REFUSED[name]
    model = parse(f"g (float[1,2,4] x) => (float[?,?,?] y) <{constants}, {BN}> {{ {body} }}")
    before = text_of(model)
    assert not apply_pass("fold-batch-norm", model).modified
    assert text_of(model) == before


def test_training_mode_is_left_alone(parse: Parse, apply_pass: Callable[..., PassResult]) -> None:
    model = parse(
        f"""g (float[1,2,4] x) => (float[?,?,?] y, float[2] rm) <float[2,2,1] w = {{1,2,3,4}}, {BN}>
        {{ t = Conv(x, w)  y, rm, rv = BatchNormalization<training_mode = 1>(t, g, b, m, v) }}"""
    )
    assert not apply_pass("fold-batch-norm", model).modified


def test_overridable_weights_are_left_alone(
    parse: Parse, apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(
        f"""g (float[1,2,4] x, float[2,2,1] w) => (float[?,?,?] y)
        <float[2,2,1] w = {{1,2,3,4}}, {BN}>
        {{ t = Conv(x, w)  y = {NORM}(t, g, b, m, v) }}"""
    )
    assert not apply_pass("fold-batch-norm", model).modified


def test_intermediate_graph_output_is_left_alone(
    parse: Parse, apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(
        f"""g (float[1,2,4] x) => (float[1,2,4] y, float[1,2,4] t)
        <float[2,2,1] w = {{1,2,3,4}}, {BN}>
        {{ t = Conv(x, w)  y = {NORM}(t, g, b, m, v) }}"""
    )
    assert not apply_pass("fold-batch-norm", model).modified


def test_in_a_branch_with_weights_of_the_outer_graph(parse: Parse, rewrite: Rewrite) -> None:
    model = parse(
        f"""g (float[1,2,4] x, bool c) => (float[1,2,4] y) <float[2,2,1] w = {{1,2,3,4}}, {BN}>
        {{
          y = If (c) <
            then_branch = then () => (float[1,2,4] a) {{
              t = Conv(x, w)  a = {NORM}(t, g, b, m, v)
            }},
            else_branch = other () => (float[1,2,4] d) {{ d = Conv(x, w) }}
          >
        }}"""
    )
    for condition in (True, False):
        feed = {**_x(1, 2, 4), "c": np.array(condition)}
        result = rewrite("fold-batch-norm", model.clone(), feed)
        assert result.rules == {"fold-batch-norm-into-producer": 1}


def test_in_a_local_function(parse: Parse, rewrite: Rewrite) -> None:
    constants = "  ".join(
        f"{name} = Constant<value: tensor = float[{shape}] {{{data}}}>()"
        for name, shape, data in [
            ("w", "2,2,1", "1,2,3,4"), ("g", "2", "2,0.5"), ("b", "2", "1,-1"), ("m", "2", "0.5,3"),
            ("v", "2", "4,0.25"),
        ]
    )  # fmt: skip
    model = parse(
        f"""<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[1,2,4] x) => (float[1,2,4] y) {{ y = local.block(x) }}
        <domain: "local", opset_import: ["" : 21]>
        block (x) => (y) {{ {constants}  t = Conv(x, w)  y = {NORM}(t, g, b, m, v) }}"""
    )
    result = rewrite("fold-batch-norm", model, _x(1, 2, 4))
    assert result.rules == {"fold-batch-norm-into-producer": 1}


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.DOUBLE])
def test_other_element_types(rewrite: Rewrite, dtype: ir.DataType) -> None:
    model = _gemm_model(dtype)
    feed = {"x": np.random.default_rng(0).normal(size=(3, 2)).astype(dtype.numpy())}
    result = rewrite("fold-batch-norm", model, feed)
    assert _ops(result) == ["Gemm"]


def _gemm_model(dtype: ir.DataType) -> ir.Model:
    def initializer(name: str, data: list[Any]) -> ir.Value:
        array = np.array(data, dtype.numpy())
        tensor = ir.tensor(array, name=name)
        shape, type_ = ir.Shape(array.shape), ir.TensorType(dtype)
        return ir.Value(name=name, shape=shape, type=type_, const_value=tensor)

    x = ir.Value(name="x", shape=ir.Shape([3, 2]), type=ir.TensorType(dtype))
    w = initializer("w", [[1, 2], [3, 4]])
    parameters = [initializer(name, [1.5, 0.25]) for name in "gbmv"]
    gemm = ir.node("Gemm", [x, w])
    norm = ir.node("BatchNormalization", [gemm.outputs[0], *parameters])
    y = norm.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape([3, 2]), ir.TensorType(dtype)
    graph = ir.Graph(
        [x],
        [y],
        nodes=[gemm, norm],
        initializers=[w, *parameters],
        opset_imports={"": 21},
        name="g",
    )
    return ir.Model(graph, ir_version=10)
