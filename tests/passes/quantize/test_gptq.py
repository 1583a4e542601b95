"""gptq: which codes change, in which graphs, and that no layer's error grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.gptq import Gptq
from onnxfold.passes.quantize.input_moments import InputMoments, LayerMoments
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.weight_codes import WeightCodes
from onnxfold.runtime.session import REFERENCE, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]


def _moments(weights: Array, second: Array, count: int = 10**6) -> LayerMoments:
    """``second`` [groups, inputs, inputs] is in units of 2**-20."""
    scaled = np.rint(np.ldexp(second, 20)).astype(np.int64)
    sums = np.zeros(scaled.shape[:2], np.int64)
    return LayerMoments(weights.astype(np.float32), count, {-10: sums}, {-10: scaled * count})


def test_two_inputs_that_are_equal_share_their_error(
    parse: Parse, apply_pass: Apply, assert_text: Callable[[ir.Model, str], None]
) -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    <int8[2,2] q = {CODES}, float s = {1}, int8 z = {0}, int32[2] bq = {5, 6}, float bs = {0.5}>
    { w = DequantizeLinear(q, s, z)  c = DequantizeLinear(bq, bs)  y = Gemm(x, w, c) }"""
    model = parse(text.replace("CODES", "2, 0, 4, 7"))
    # Plainly rounded, the first column is off by -0.4 - 0.4, of which one code makes good 1.
    weights = np.array([[2.4, 0.4], [4.4, 7.0]])
    moments = InputMoments({"y": _moments(weights, np.ones((1, 2, 2)))})
    result = apply_pass(Gptq(moments), model)
    assert result.rules == {"round-weights": 1}
    codes = constant_array(model.graph.initializers["q_1"])
    assert codes is not None
    assert codes.sum(axis=0).tolist() == [7, 7]
    spelled = ", ".join(str(each) for each in codes.reshape(-1).tolist())
    expected = text.replace("CODES", spelled).replace("] q =", "] q_1 =").replace("(q,", "(q_1,")
    assert_text(model, expected)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": ("Conv(x, w, b)", {}),
    "grouped": ("Conv<group = 2>(x, w, b)", {}),
    "per_tensor": ("Conv(x, w, b)", {"per_channel": False}),
    "unsigned": ("Conv(x, w, b)", {"weights": "u8"}),
    "mse": ("Conv(x, w, b)", {"weight_ranges": "mse"}),
    "hessian": ("Conv(x, w, b)", {"weight_ranges": "hessian"}),
    "gemm": ("Gemm(x, w, b)", {}),
    "gemm_transposed": ("Gemm<transB = 1>(x, w, b)", {}),
    "matmul": ("MatMul(x, w)", {}),
    "four_bits": ("MatMul(x, w)", {"weights": "s4"}),
    "blocks": ("MatMul(x, w)", {"weights": "s4", "block": 3}),
    "blocks_of_transposed": ("Gemm<transB = 1>(x, w)", {"weights": "s4", "block": 4}),
    "unsigned_blocks": ("MatMul(x, w)", {"weights": "u4", "block": 4}),
}


def _problem(
    name: str, parse: Parse
) -> tuple[ir.Model, dict[str, Array], InputMoments, dict[str, Any]]:
    """A layer, data whose inputs go together, and their moments."""
    call, options = KINDS[name]
    rng = np.random.default_rng(len(name))
    mixing = rng.normal(size=(8, 8)) + 1.5
    if call.startswith("Conv"):
        groups = 2 if "group" in call else 1
        x: Array = np.einsum("ij,njt->nit", mixing, rng.uniform(0, 1, (20, 8, 5)))
        shape: tuple[int, ...] = (6, 8 // groups, 1)
        vectors: Array = np.moveaxis(x, 1, 0).reshape(groups, 8 // groups, -1)
        dims, result = "N,8,5", "N,6,5"
    else:
        groups = 1
        x = rng.uniform(0, 1, (100, 8)) @ np.transpose(mixing)
        shape = (6, 8) if "trans" in call else (8, 6)
        vectors = np.transpose(x)[np.newaxis]
        dims, result = "N,8", "N,6"
    weights = rng.standard_t(4, size=shape).astype(np.float32)
    numbers = ", ".join(f"{each!r}" for each in weights.reshape(-1).tolist())
    size = ",".join(str(each) for each in shape)
    model = parse(
        f"""g (float[{dims}] x) => (float[{result}] y)
        <float[{size}] w = {{{numbers}}}, float[6] b = {{1, 2, 3, 4, 5, 6}}> {{ y = {call} }}"""
    )
    next(iter(model.graph)).name = "layer"
    second = np.einsum("git,gjt->gij", vectors, vectors) / vectors.shape[2]
    moments = InputMoments({"layer": _moments(weights, second)})
    if options.get("weight_ranges") == "hessian":
        options = {**options, "moments": moments}
    return model, {"x": x.astype(np.float32)}, moments, options


def _quantized(model: ir.Model, feed: dict[str, Array], options: dict[str, Any]) -> ir.Model:
    ranges = Ranges({"x": (float(feed["x"].min()), float(feed["x"].max())), "y": (-900.0, 900.0)})
    assert set(tensors_to_observe(model, PlacementOptions())) <= {"x", "y"}
    quantized = model.clone()
    InsertQdq(ranges, **options).run(quantized)
    return quantized


def _layer(model: ir.Model) -> WeightCodes:
    node = next(node for node in model.graph if node_name(node) == "layer")
    found = WeightCodes.match(node)
    assert found is not None
    return found


def _weights(model: ir.Model) -> dict[str, ir.Value]:
    return {name: v for name, v in model.graph.initializers.items() if not name.startswith("w_q")}


@pytest.mark.parametrize("name", KINDS)
def test_what_weights_make_of_data_is_nearer_to_float(
    name: str, parse: Parse, apply_pass: Apply
) -> None:
    model, feed, moments, options = _problem(name, parse)
    quantized = _quantized(model, feed, options)
    rounded = quantized.clone()
    result = apply_pass(Gptq(moments), rounded)
    assert result.rules == {"round-weights": 1}
    assert result.remarks == ()
    before, after = _layer(quantized), _layer(rounded)
    rows = before.rows.to_rows(np.asarray(constant_array(model.graph.initializers["w"]), float))
    hessian = moments["layer"].second
    errors = [
        np.einsum("gok,gkl,gol->go", each, hessian, each)
        for each in (found.grid.reals(found.codes) - rows for found in (before, after))
    ]
    assert np.all(errors[1] <= errors[0])
    assert errors[1].sum() < errors[0].sum() * 0.7
    assert np.abs(after.stored.astype(int)).max() <= np.abs(before.stored.astype(int)).max()
    # Nothing but the codes of the weights is touched: not their scales, not the bias.
    old, new = _weights(quantized), _weights(rounded)
    assert list(old) == list(new)
    for key, value in old.items():
        assert np.array_equal(
            np.asarray(constant_array(value)), np.asarray(constant_array(new[key]))
        )
    again = quantized.clone()
    Gptq(moments).run(again)
    assert _layer(again).stored.tobytes() == after.stored.tobytes()
    # Without Q/DQ pairs on activations, the runtime sees what the moments foretell.
    exact = Session(model, REFERENCE).run(feed)["y"].astype(np.float64)
    square = [np.square(_weights_only(each, feed) - exact).sum() for each in (quantized, rounded)]
    assert square[1] < square[0]


def _weights_only(quantized: ir.Model, feed: dict[str, Array]) -> Array:
    """The output of the layer with quantized weights and float activations and bias."""
    model = quantized.clone()
    node = next(node for node in model.graph if node_name(node) == "layer")
    node.replace_input_with(0, model.graph.inputs[0])
    output = node.outputs[0]
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), None
    model.graph.outputs.clear()
    model.graph.outputs.append(output)
    result: Array = next(iter(Session(model, REFERENCE).run(feed).values()))
    return result


def test_an_error_in_the_mean_is_left_to_correct_bias(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        """g (float[N,2] x, float[N,2] v) => (float[N,1] y)
        <int8[2,1] q = {2, 4}, float s = {1}, int8 z = {0}>
        { w = DequantizeLinear(q, s, z)  y = MatMul(x, w) }"""
    )
    # Both inputs are 1, but for little noise of opposite sign: (1 + d, 1 - d), d^2 = 1/16.
    second = np.array([[[17.0, 15.0], [15.0, 17.0]]]) / 16
    layer = _moments(np.array([[2.4], [4.4]]), second)
    layer = replace(layer, sums={-10: np.full((1, 2), 1024 * layer.count)})
    # In the mean, both are rounded down by 0.8; without it, that is no error at all.
    for centered, codes in ((False, [3, 4]), (True, [2, 4])):
        rounded = model.clone()
        apply_pass(Gptq(InputMoments({"y": layer}), centered=centered), rounded)
        found = WeightCodes.match(rounded.graph[1])
        assert found is not None
        assert found.stored.reshape(-1).tolist() == codes


SHARED = """w = DequantizeLinear(q, s, z)  y = MatMul(x, w)  u = MatMul(v, w)"""


def _shared(parse: Parse, body: str = SHARED) -> ir.Model:
    return parse(
        f"""g (float[N,2] x, float[N,2] v) => (float[N,2] y, float[N,2] u)
        <int8[2,2] q = {{2, 0, 4, 7}}, float s = {{1}}, int8 z = {{0}}> {{ {body} }}"""
    )


def test_shared_weights_are_rounded_for_all_that_read_them(parse: Parse, apply_pass: Apply) -> None:
    weights = np.array([[2.4, 0.4], [4.4, 7.0]])
    alike = _moments(weights, np.ones((1, 2, 2)))
    # For these inputs of opposite sign plain rounding errs not at all in the first column.
    opposite = _moments(weights, np.array([[[1.0, -1.0], [-1.0, 1.0]]]) * 100)
    model = _shared(parse)
    result = apply_pass(Gptq(InputMoments({"y": alike, "u": alike})), model)
    assert result.rules == {"round-weights": 1}
    assert not apply_pass(Gptq(InputMoments({"y": alike, "u": opposite})), _shared(parse)).modified


@pytest.mark.parametrize(
    "body",
    [
        SHARED,
        "w = DequantizeLinear(q, s, z)  y = MatMul(x, w)  u = Add(v, w)",
        "w = DequantizeLinear(q, s, z)  y = MatMul(x, w)  u = Gemm<transB = 1>(v, w)",
    ],
)
def test_weights_that_something_else_reads_are_left_alone(
    body: str, parse: Parse, apply_pass: Apply
) -> None:
    weights = np.array([[2.4, 0.4], [4.4, 7.0]])
    moments = InputMoments({"y": _moments(weights, np.ones((1, 2, 2)))})
    result = apply_pass(Gptq(moments), _shared(parse, body))
    assert not result.modified
    assert "not measured" in result.remarks[0].reason


def test_weights_of_another_shape_are_left_alone(parse: Parse, apply_pass: Apply) -> None:
    layer = _moments(np.ones((3, 2)), np.ones((1, 3, 3)))
    result = apply_pass(Gptq(InputMoments({"y": layer, "u": layer})), _shared(parse))
    assert not result.modified
    assert result.remarks


def test_with_the_diagonal_only_nearest_codes_are_best(parse: Parse, apply_pass: Apply) -> None:
    full = _moments(np.array([[2.4, 0.4], [4.4, 7.0]]), np.ones((1, 2, 2)))
    diagonal = replace(full, products={-10: np.array([[1, 1]])})
    result = apply_pass(Gptq(InputMoments({"y": diagonal, "u": diagonal})), _shared(parse))
    assert not result.modified
    assert "so many inputs" in result.remarks[0].reason


def test_what_is_not_quantized_is_left_alone(parse: Parse, apply_pass: Apply) -> None:
    body = "w = Cast<to = 1>(q)  y = MatMul(x, w)  u = MatMul(v, w)"
    layer = _moments(np.array([[2.4, 0.4], [4.4, 7.0]]), np.ones((1, 2, 2)))
    result = apply_pass(Gptq(InputMoments({"y": layer})), _shared(parse, body))
    assert not result.modified
    assert result.remarks == ()


def test_moments_of_another_model_are_refused(parse: Parse, apply_pass: Apply) -> None:
    layer = _moments(np.ones((2, 2)), np.ones((1, 2, 2)))
    with pytest.raises(UsageError, match="none of the nodes"):
        apply_pass(Gptq(InputMoments({"other": layer})), _shared(parse))
    for wrong in (Gptq(InputMoments({}), damping=0.0), Gptq(InputMoments({}), sweeps=-1)):
        with pytest.raises(UsageError, match="damping"):
            apply_pass(wrong, _shared(parse))
