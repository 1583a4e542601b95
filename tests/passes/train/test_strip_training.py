"""strip-training: the model that add-optimizer was given, with the weights that it has now."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.passes.train.manifest import KEY

Parse = Callable[..., ir.Model]
Apply = Callable[[str, ir.Model], PassResult]
AssertText = Callable[[ir.Model, str], None]

FORWARD = """g (float[N,3] x, float[N,2] labels) => (float[N,2] y, float loss)
<float[3,2] w = {1, -2, 0.5, 0.25, -1, 2}, float[2] b = {7, 8}> {
    y = Gemm(x, w, b)
    error = Sub(y, labels)
    square = Mul(error, error)
    loss = ReduceMean<keepdims = 0>(square)
}"""


@pytest.mark.parametrize("kind", ["sgd", "adam clip-norm=1", "adagrad", "momentum", "adamw"])
def test_what_was_added_goes_and_weights_stay(
    kind: str, linear: ir.Model, apply_pass: Apply, assert_text: AssertText
) -> None:
    apply_pass(f"add-optimizer{{kind={kind}}}", linear)
    trained = ir.tensor(np.array([7, 8], np.float32))
    linear.graph.initializers["state_b"].const_value = trained
    apply_pass("strip-training", linear)
    assert KEY not in linear.metadata_props
    assert_text(linear, FORWARD)


def test_a_weight_that_was_an_input_stays_one(linear: ir.Model, apply_pass: Apply) -> None:
    linear.graph.inputs.append(linear.graph.initializers["b"])
    apply_pass("add-optimizer", linear)
    apply_pass("strip-training", linear)
    assert [value.name for value in linear.graph.inputs] == ["x", "labels", "b"]
    assert linear.graph.initializers["b"].is_graph_input()


def test_dead_code_of_the_original_stays(
    parse: Parse, apply_pass: Apply, assert_text: AssertText
) -> None:
    text = """g (float x) => (float loss{gradient}) <float w = {{1}}> {{
        loss = Mul(x, w)  unused = Neg(x) {slope}
    }}"""
    model = parse(text.format(gradient=", float grad_w", slope="grad_w = Identity(x)"))
    apply_pass("add-optimizer", model)
    apply_pass("strip-training", model)
    assert_text(model, text.format(gradient="", slope=""))


def test_other_models_are_refused(linear: ir.Model, apply_pass: Apply) -> None:
    with pytest.raises(UsageError, match="no training graph; add-optimizer makes one"):
        apply_pass("strip-training", linear)
    linear.metadata_props[KEY] = "{}"
    with pytest.raises(InvalidModelError, match="was damaged"):
        apply_pass("strip-training", linear)
