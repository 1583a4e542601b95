"""round-weights: codes go where they belong, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.round_weights import RoundWeights
from onnxfold.passes.quantize.weight_rounding import WeightRounding

Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]

PARAMETERS = """float s = {0.25}, uint8 z = {128}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0},
 int8[2,2] mq = {1, 2, 3, -4}"""
DATA = "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)"
ONE = f"{DATA} w = DequantizeLinear<axis = 1>(mq, ws, wz) y = MatMul(d, w)"
CODES = np.array([[2, 2], [3, -5]], np.int8)


def _model(parse: Parse, body: str = ONE) -> ir.Model:
    model = parse(f"g (float[A,2] x) => (float[A,2] y) <{PARAMETERS}> {{ {body} }}")
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model


def _codes(model: ir.Model, node: str) -> list[list[int]]:
    found = next(each for each in model.graph if each.name == node)
    array = constant_array(found.inputs[0])
    assert array is not None
    return array.tolist()


def test_codes_are_written(parse: Parse, apply_pass: Apply) -> None:
    result = apply_pass(RoundWeights(WeightRounding({"make_y": CODES})), _model(parse))
    assert _codes(result.model, "make_w") == CODES.tolist()
    assert result.rules == {"round-weights": 1}
    assert len(result.model.graph.initializers) == 5


def test_the_same_codes_change_nothing(parse: Parse, apply_pass: Apply) -> None:
    same = WeightRounding({"make_y": np.array([[1, 2], [3, -4]])})
    assert not apply_pass(RoundWeights(same), _model(parse)).modified


def test_the_same_codes_of_other_weights_stay(parse: Parse, apply_pass: Apply) -> None:
    body = f"{ONE[: -len('y = MatMul(d, w)')]} v = DequantizeLinear<axis = 1>(mq, ws, wz)"
    body += " h = MatMul(d, w) y = MatMul(h, v)"
    result = apply_pass(RoundWeights(WeightRounding({"make_h": CODES})), _model(parse, body))
    assert _codes(result.model, "make_w") == CODES.tolist()
    assert _codes(result.model, "make_v") == [[1, 2], [3, -4]]


@pytest.mark.parametrize(
    ("name", "codes", "body"),
    [
        ("make_y", CODES[:1], ONE),
        ("make_q", CODES, ONE),
        ("make_y", np.full((2, 2), 200), ONE),
        ("make_y", CODES, f"{ONE.replace('y =', 'h =')} y = MatMul(h, w)"),
    ],
    ids=["shape", "operator", "type", "shared"],
)
def test_codes_of_another_model_are_refused(
    name: str, codes: np.ndarray, body: str, parse: Parse
) -> None:
    with pytest.raises(UsageError, match=f"codes of node '{name}' are another model's|no node"):
        RoundWeights(WeightRounding({name: codes})).run(_model(parse, body))


def test_an_unknown_node_is_refused_with_a_hint(parse: Parse) -> None:
    with pytest.raises(UsageError, match="no node 'make_z'"):
        RoundWeights(WeightRounding({"make_z": CODES})).run(_model(parse))
