"""Integer convolutions of few channels work on blocks of pixels, and no number changes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold import fold_qdq, placement
from onnxfold.passes.fold.costs import FAMILIES, CostTable
from onnxfold.passes.fold.default_costs import DEFAULT_COSTS
from onnxfold.passes.fold.fold_qdq import NO_COSTS, FoldQdq
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.verify.region_gate import check_integer_contract

_MANY = 40


@pytest.fixture
def always(tmp_path: Path) -> str:
    """A file of costs by which blocks of pixels win wherever they are possible."""
    data = DEFAULT_COSTS.to_json()
    for family, features in FAMILIES.items():
        constant = 1.0 if family in ("integer convolution", "change of layout") else 1000.0
        data["microseconds"][family] = dict.fromkeys(features, 0.0) | {"constant": constant}
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def _leave(plan: Plan, rewriter: Rewriter, costs: CostTable) -> None:
    """In place of what makes blocks."""
    del plan, rewriter, costs


def _none(*_: object) -> None:
    """In place of what finds blocks."""


def _is_merged(model: ir.Model) -> bool:
    return any((v.name or "").endswith("_blocks") for n in model.graph for v in n.outputs)


_SCALES = "float s = {0.5}, uint8 z = {7}, float sw = {0.25}, float sy = {0.75}, uint8 zy = {3}"
_TEXT = (
    "agraph (uint8[N,1,1,8] x) => (uint8[N,4,1,8] y) <"
    + _SCALES
    + ", int8[4,1,1,1] w = {1, -2, 3, 4}> {"
    " real = DequantizeLinear (x, s, z) wr = DequantizeLinear (w, sw)"
    " c = Conv (real, wr) y = QuantizeLinear (c, sy, zy) }"
)
_DIAGONAL = ", ".join(
    str(weight if pixel == place else 0)
    for pixel in range(4)
    for weight in (1, -2, 3, 4)
    for place in range(4)
)


def test_rewrite(
    always: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = parse(_TEXT)
    result = apply_pass(FoldQdq(costs=always), model)
    assert result.rules["merge-pixels"] == 1
    parameters = "scale, zero_point, c_weights_codes_blocks, scale_1, zero_point_1, scale_2"
    assert_text(
        model,
        "agraph (uint8[N,1,1,8] x) => (uint8[N,4,1,8] y) <int64[4] block_shape = {0,1,2,4},"
        " int64[4] block_shape_1 = {0,1,8,4},"
        f" int8[16,4,1,1] c_weights_codes_blocks = {{{_DIAGONAL}}},"
        " float scale = {0.5}, float scale_1 = {0.25}, float scale_2 = {0.75},"
        " uint8 zero_point = {7}, int8 zero_point_1 = {0}, uint8 zero_point_2 = {3}> {"
        " x_blocks = Reshape (x, block_shape)"
        " x_blocks_1 = Transpose <perm = [0, 3, 1, 2]> (x_blocks)"
        " y_original_1 = QLinearConv <dilations = [1, 1], group: int = 1, kernel_shape = [1, 1],"
        f" pads = [0, 0, 0, 0], strides = [1, 1]> (x_blocks_1, {parameters}, zero_point_2)"
        " y_pixels = Transpose <perm = [0, 2, 3, 1]> (y_original_1)"
        " y_pixels_1 = Reshape (y_pixels, block_shape_1)"
        " y = Transpose <perm = [0, 3, 1, 2]> (y_pixels_1) }",
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_of_any_size(batch: int, always: str, parse: Callable[..., ir.Model]) -> None:
    model = parse(_TEXT)
    feed = {"x": np.arange(batch * 8, dtype=np.uint8).reshape(batch, 1, 1, 8)}
    [wanted] = Session(model, REFERENCE).run(feed).values()
    FoldQdq(costs=always).run(model)
    for config in (REFERENCE, DEPLOYMENT):
        [found] = Session(model, config).run(feed).values()
        np.testing.assert_array_equal(found, wanted)


def _convolution(graph: Any, case: np.random.Generator) -> ir.Model | None:
    """One or two convolutions with few channels; None where the kernel is larger than the data."""
    inputs = int(case.choice([1, 2, 3, 4, 8]))
    height, width = int(case.integers(3, 20)), int(case.choice([8, 10, 12, 15, 16, 20]))
    group = inputs if case.integers(2) else 1
    outputs = inputs * 2 if group > 1 else int(case.choice([1, 4, 8, 12, 20]))
    kernel, strides = case.integers(1, 6, 2).tolist(), case.integers(1, 3, 2).tolist()
    turned, batch = bool(case.integers(2)), int(case.integers(1, 3))
    where: dict[str, Any] = {"pads": case.integers(0, 3, 4).tolist()}
    if case.integers(2):
        where["dilations"] = case.integers(1, 3, 2).tolist()
    elif case.integers(2):
        where = {"auto_pad": str(case.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))}
    reach = np.multiply(np.subtract(kernel, 1), where.get("dilations", [1, 1])) + 1
    if np.any(reach > [height, width]):
        return None
    sizes = (height, width, inputs) if turned else (inputs, height, width)
    value = graph.input((batch, *sizes), ir.DataType.UINT8.value)
    value = graph.dequantize(value, 0.1, int(case.integers(256)))
    if turned:
        value = graph.op("Transpose", value, perm=[0, 3, 1, 2])
    shape = (outputs, inputs // group, *kernel)
    weights, scale = graph.weights(shape, 0 if case.integers(2) else None)
    bias = [graph.bias(outputs, scale * np.float32(0.1))] if case.integers(2) else []
    value = graph.op("Conv", value, weights, *bias, strides=strides, group=group, **where)
    value = graph.fake(value, 0.4, int(case.integers(256)))
    if case.integers(2):
        weights, _ = graph.weights((4, outputs, 1, 1), 0)
        value = graph.fake(graph.op("Conv", value, weights), 0.8, 77)
    graph.outputs.append(value)
    return graph.model()


def test_no_number_changes(
    always: str, fake_quant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = 0
    for seed in range(_MANY):
        graph = fake_quant(seed)
        model = _convolution(graph, np.random.default_rng(seed))
        if model is None:
            continue
        blocks, feed = model.clone(), graph.feed()
        FoldQdq(costs=always).run(blocks)
        with monkeypatch.context() as patch:
            patch.setattr(fold_qdq, "merge_pixels", _leave)
            FoldQdq(costs=NO_COSTS).run(model)
        merged += _is_merged(blocks)
        [wanted] = Session(model, REFERENCE).run(feed).values()
        for config in (REFERENCE, DEPLOYMENT):
            [found] = Session(blocks, config).run(feed).values()
            np.testing.assert_array_equal(found, wanted, err_msg=f"seed {seed}, {config.name}")
    assert merged > _MANY // 2


def _first_layers(graph: Any, size: int = 48) -> ir.Model:
    """Three channels to 8, a depthwise one, and one to 16, of codes that are channels-last."""
    codes = graph.input((1, size, size, 3), ir.DataType.UINT8.value)
    value = graph.op("Transpose", graph.dequantize(codes, 0.1, 120), perm=[0, 3, 1, 2])
    step = 0.1
    for shape, where in (
        ((8, 3, 3, 3), {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
        ((8, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 8}),
        ((16, 8, 1, 1), {}),
    ):
        weights, scale = graph.weights(shape, 0)
        bias = graph.bias(shape[0], scale * np.float32(step))
        value, step = graph.fake(graph.op("Conv", value, weights, bias, **where), 0.3, 90), 0.3
    graph.outputs.append(value)
    return graph.model()


def test_layouts_cancel_in_onnxruntime(always: str, fake_quant: Callable[..., Any]) -> None:
    model = _first_layers(fake_quant(1))
    FoldQdq(costs=always).run(model)
    census = Counter(optimized_op_census(ir.to_proto(model), DEPLOYMENT))
    kinds = Counter({name.rpartition(".")[2]: count for name, count in census.items()})
    # The graph's output, in NCHW and real, is turned and nothing else.
    assert kinds["QLinearConv"] == 3
    assert kinds["Transpose"] == 1


@pytest.mark.parametrize("wrong", [False, True])
def test_blocks_are_compared_with_what_they_stand_for(
    wrong: bool, always: str, fake_quant: Callable[..., Any]
) -> None:
    graph = fake_quant(1)
    model = _first_layers(graph)
    folded = model.clone()
    FoldQdq(costs=always).run(folded)
    assert _is_merged(folded)
    if wrong:
        weights = next(node for node in folded.graph if node.op_type == "QLinearConv").inputs[3]
        codes = constant_array(weights)
        assert weights is not None
        assert codes is not None
        weights.const_value = ir.tensor(np.roll(codes, 1, axis=0))
    evidence = check_integer_contract(model, folded, [graph.feed()])
    assert evidence.checked == evidence.regions >= 2
    assert bool(evidence.reasons) == wrong


@pytest.mark.parametrize(("largest", "merges"), [(120, False), (60, True)])
def test_pairs_that_saturated_nowhere_do_not_come_together(
    largest: int, merges: bool, always: str, parse: Callable[..., ir.Model]
) -> None:
    # One behind the other the weights are paired (1, w), (w, 0); a block pairs (0, 1), (w, w) too.
    rows = ", ".join(["1", str(largest), str(largest)] * 4)
    text = _TEXT.replace("[4,1,1,1] w = {1, -2, 3, 4}", f"[4,1,1,3] w = {{{rows}}}")
    model = parse(text.replace("Conv (", "Conv <pads = [0, 1, 0, 1]> ("))
    FoldQdq(costs=always).run(model)
    assert any(node.op_type == "Reshape" for node in model.graph) == merges


def test_the_cheaper_mix_knows_of_blocks(
    fake_quant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _first_layers(fake_quant(1), 96)
    folded = model.clone()
    FoldQdq().run(folded)
    assert not any(node.op_type == "Conv" for node in folded.graph)
    assert _is_merged(folded)
    monkeypatch.setattr(placement, "fastest", _none)
    FoldQdq().run(model)
    assert any(node.op_type == "Conv" for node in model.graph)


def test_data_that_others_read_stay(always: str, fake_quant: Callable[..., Any]) -> None:
    graph = fake_quant(3)
    codes = graph.input((1, 8, 8, 3), ir.DataType.UINT8.value)
    turned = graph.op("Transpose", codes, perm=[0, 3, 1, 2])
    real = graph.dequantize(turned, 0.1, 120)
    weights, _ = graph.weights((8, 3, 3, 3), 0)
    product = graph.op("Conv", real, weights, pads=[1, 1, 1, 1])
    graph.outputs += [graph.quantize(product, 0.3, 90), turned]
    model = graph.model()
    folded, feed = model.clone(), graph.feed()
    FoldQdq(costs=always).run(folded)
    assert any((each.name or "").endswith("_blocks") for each in folded.graph)
    wanted = Session(model, REFERENCE).run(feed)
    for config in (REFERENCE, DEPLOYMENT):
        for name, value in Session(folded, config).run(feed).items():
            np.testing.assert_array_equal(value, wanted[name])
