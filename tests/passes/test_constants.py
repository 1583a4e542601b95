from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.passes.constants import (
    constant_array,
    constant_ints,
    constant_scalar,
    constant_tensor,
)

Parse = Callable[..., ir.Model]


def operand(parse: Parse, text: str) -> ir.Value | None:
    return list(parse(text).graph)[-1].inputs[0]


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1, 2}", [1.0, 2.0]),
        ("value_float = 1.5", 1.5),
        ("value_floats = [1.5, 2.5]", [1.5, 2.5]),
        ("value_int = 3", 3),
        ("value_ints = [3, 4]", [3, 4]),
    ],
)
def test_constant_nodes(parse: Parse, attribute: str, expected: object) -> None:
    text = f"g () => (float y) {{ a = Constant <{attribute}> () b = Identity(a) y = Abs(b) }}"
    array = constant_array(operand(parse, text))
    assert array is not None
    assert array.tolist() == expected


def test_strings_have_no_array(parse: Parse) -> None:
    value = operand(parse, 'g () => (string y) <string[1] s = {"a"}> { y = Identity(s) }')
    assert constant_tensor(value) is not None
    assert constant_array(value) is None


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[2] y) { y = Abs(x) }",
        "g (float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Abs(w) }",
        "g (float[2] x) => (float[2] y) { t = Neg(x) y = Abs(t) }",
    ],
    ids=["input", "input-with-default", "computed"],
)
def test_what_is_not_constant(parse: Parse, text: str) -> None:
    assert constant_tensor(operand(parse, text)) is None
    assert constant_array(None) is None


def test_a_referenced_attribute_is_not_constant(parse: Parse) -> None:
    model = parse("""<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float x) => (float y) { y = local.f <k = 1.0> (x) }
    <domain: "local", opset_import: ["" : 21]>
    f <k> (a) => (b) { c = Constant <value_float: float = @k> () b = Abs(c) }""")
    (function,) = model.functions.values()
    assert constant_tensor(function[1].inputs[0]) is None


@pytest.mark.parametrize(
    ("initializer", "scalar", "ints"),
    [
        ("float w = {2.5}", 2.5, None),
        ("int64[1] w = {7}", 7, (7,)),
        ("int64[2] w = {7, 8}", None, (7, 8)),
        ("uint8[2, 1] w = {7, 8}", None, (7, 8)),
    ],
)
def test_scalars_and_ints(
    parse: Parse, initializer: str, scalar: object, ints: tuple[int, ...] | None
) -> None:
    value = operand(parse, f"g () => (float y) <{initializer}> {{ y = Abs(w) }}")
    assert constant_scalar(value) == scalar
    assert constant_ints(value) == ints
