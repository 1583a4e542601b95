from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.runtime.verify.softmax import softmax_inputs

FORMS = {
    "the operator": "y = Softmax(z)",
    "of two scores": "y = Sigmoid(z)",
    "exponentials": "e = Exp(z)  s = ReduceSum(e, axis)  y = Div(e, s)",
    "shifted": """m = ReduceMax <axes = [1]> (z)  d = Sub(z, m)  e = Exp(d)
        s = ReduceSum(e, axis)  y = Div(e, s)""",
    "as jax writes it": """m = ReduceMax <axes = [1], keepdims = 0> (z)  f = Max(low, m)
        r = Reshape(f, column)  b = Expand(r, column)  d = Sub(z, b)  e = Exp(d)
        s = ReduceSum <keepdims = 0> (e, axis)  t = Reshape(s, column)  y = Div(e, t)""",
}


def model(parse: Callable[..., ir.Model], body: str) -> ir.Model:
    return parse(
        f"""g (float[2,3] x) => (float[2,3] y)
        <int64[1] axis = {{1}}, int64[2] column = {{2, 1}}, float low = {{-1e30}}>
        {{ z = Neg(x)  {body} }}""",
        opset=17,
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_value_before_a_softmax_is_found(form: str, parse: Callable[..., ir.Model]) -> None:
    assert softmax_inputs(model(parse, FORMS[form])) == {"y": "z"}


def test_what_is_no_softmax_is_left_alone(parse: Callable[..., ir.Model]) -> None:
    for body in ("e = Exp(z)  s = ReduceSum(e, axis)  y = Div(s, e)", "y = Exp(z)"):
        assert softmax_inputs(model(parse, body)) == {}
