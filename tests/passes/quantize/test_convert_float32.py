from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import PassResult
from onnxfold.passes.provenance import original_names
from onnxfold.passes.quantize.convert_float32 import computes_in_others

Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]
AssertText = Callable[[ir.Model, str], None]


def test_data_constants_and_casts_become_float32_and_the_interface_stays(
    parse: Parse, apply_pass: Apply, assert_text: AssertText
) -> None:
    model = parse(
        """g (float16[2] x, int64[1] n) => (float16[2] y, float16[2] h)
        <float16[2] w = {15360, 16384}> {
          h = Mul(x, w)
          i = Cast<to=7>(h)
          f = Cast<to=10>(i)
          c = ConstantOfShape<value = float16[1] {16896}>(n)
          a = Add(f, w)
          y = Add(a, c)
        }"""
    )
    result = apply_pass("convert-float32", apply_pass("infer-shapes", model).model)
    assert_text(
        result.model,
        """g (float16[2] x, int64[1] n) => (float16[2] y, float16[2] h)
        <float[2] w_float = {1, 2}> {
          x_float = Cast<to=1>(x)
          h_original = Mul(x_float, w_float)
          h = Cast<to=10>(h_original)
          i = Cast<to=7>(h_original)
          f = Cast<to=1>(i)
          c = ConstantOfShape<value = float[1] {3}>(n)
          a = Add(f, w_float)
          y_original = Add(a, c)
          y = Cast<to=10>(y_original)
        }""",
    )


def test_an_input_is_cast_for_its_readers(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        """g (float16[2] a, float16[2] b) => (float16[2] y) {
          [first] c = Exp(a)
          [second] y = Add(c, b)
        }"""
    )
    converted = apply_pass("convert-float32", apply_pass("infer-shapes", model).model).model
    casts = {value.name: next(iter(value.uses())).node for value in converted.graph.inputs}
    assert {name: original_names(cast) for name, cast in casts.items()} == {
        "a": ["first"],
        "b": ["second"],
    }


def test_bodies_are_converted_and_doubles_beyond_float32_become_the_largest(
    parse: Parse, apply_pass: Apply
) -> None:
    model = parse(
        """g (double[2] x, bool c) => (double[2] y) <double[2] w = {1e300, 2}> {
          y = If(c) <then_branch = t () => (double[2] p) { p = Max(x, w) },
                     else_branch = e () => (double[2] q) { q = Neg(x) }>
        }"""
    )
    result = apply_pass("convert-float32", apply_pass("infer-shapes", model).model)
    assert result.modified
    inside = [node for node in result.model.graph.all_nodes() if node.op_type in ("Max", "Neg")]
    assert [node.outputs[0].dtype for node in inside] == [ir.DataType.FLOAT] * 2
    (weights,) = result.model.graph.initializers.values()
    assert weights.const_value is not None
    np.testing.assert_array_equal(
        weights.const_value.numpy(), np.array([np.finfo(np.float32).max, 2], np.float32)
    )


def test_what_float32_may_not_be_right_for_stays_with_a_remark(
    parse: Parse, apply_pass: Apply
) -> None:
    text = "g (float16[2] x) => (seq(float16[2]) y) { a = Relu(x)\n y = SequenceConstruct(a) }"
    model = parse(text)
    result = apply_pass("convert-float32", model)
    assert not result.modified
    assert "run infer-shapes first" in result.remarks[0].reason
    result = apply_pass("convert-float32", apply_pass("infer-shapes", model).model)
    assert not result.modified
    assert "handles sequences" in result.remarks[0].reason


def test_only_layers_in_other_types_ask_for_it(parse: Parse, apply_pass: Apply) -> None:
    def typed(text: str) -> ir.Model:
        return apply_pass("infer-shapes", parse(text)).model

    product = "g ({0}[2,2] x) => ({0}[2,2] y) {{ a = Exp(x)\n y = MatMul(a, x) }}"
    assert computes_in_others(typed(product.format("float16")))
    assert not computes_in_others(typed(product.format("float")))
    assert not computes_in_others(typed("g (double[2] x) => (double[2] y) { y = Exp(x) }"))
