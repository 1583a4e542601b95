"""Tuning of quantized models: nearer to the float model, in the same graph, and never worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.schemes import Weights
from onnxfold.passes.quantize.set_constants import SetConstants
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.finetune.finetune import FinetuneOptions, Tuned, finetune_constants
from onnxfold.runtime.finetune.parameters import Parameters
from onnxfold.runtime.session import REFERENCE, Session

Array = npt.NDArray[np.float32]
Feeds = list[dict[str, Array]]
Parse = Callable[..., ir.Model]

CONVOLUTIONS = """g (float[N,2,H,W] x) => (float[N,3,H,W] y) <CONSTANTS> {
 h = Conv<pads = [1,1,1,1]>(x, a, b)  r = Relu(h)  y = Conv(r, c, d) }"""
PRODUCTS = """g (float[N,8] x) => (float[N,5] y) <CONSTANTS> {
 p = MatMul(x, a)  h = Add(p, b)  r = Relu(h)  s = Gemm(r, c, d)  y = Softmax(s) }"""
UNFLATTENED = """g (float[N,4] x) => (float[N,4] y) <CONSTANTS, int64 one = {1},
  int64[1] flat = {-1}, int64[1] zero = {0}, int64[2] parts = {2, 3}> {
 e = MatMul(x, a)  p = Add(e, b)
 all = Shape(p)  end = Reshape(one, flat)  lead = Slice(all, zero, end)
 shape = Concat<axis = 0>(lead, parts)  h = Reshape(p, shape)
 r = Gather<axis = 1>(h, one)  s = MatMul(r, c)  y = Add(s, d) }"""
"""PyTorch's unflatten: the number of leading dimensions is computed, and hides the ranks."""
SHAPES = {
    UNFLATTENED: [(4, 6), (6,), (3, 4), (4,)],
    CONVOLUTIONS: [(6, 2, 3, 3), (6,), (3, 6, 1, 1), (3,)],
    PRODUCTS: [(8, 16), (16,), (16, 5), (5,)],
}
OPTIONS = FinetuneOptions(steps=40, batch=4, rate=0.02)


def _model(parse: Parse, text: str, batch: str = "N") -> ir.Model:
    random = np.random.default_rng(5)
    constants: list[str] = []
    for name, shape in zip("abcd", SHAPES[text], strict=True):
        numbers = ", ".join(map(str, random.normal(size=shape).astype(np.float32).reshape(-1)))
        constants.append(f"float[{','.join(map(str, shape))}] {name} = {{{numbers}}}")
    model = parse(text.replace("CONSTANTS", ", ".join(constants)).replace("[N,", f"[{batch},"))
    return Pipeline(parse_passes("infer-shapes")).run(model).model


def _feeds(shape: tuple[int, ...], count: int = 12) -> Feeds:
    random = np.random.default_rng(6)
    return [{"x": random.normal(size=shape).astype(np.float32)} for _ in range(count)]


def _quantized(model: ir.Model, feeds: Feeds, weights: Weights = "s4") -> ir.Model:
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    return _after(model, InsertQdq(ranges, weights=weights))


def _after(model: ir.Model, *passes: Pass) -> ir.Model:
    return Pipeline(passes).run(model.clone()).model


def _error(model: ir.Model, other: ir.Model, feeds: Feeds) -> float:
    found = [Session(each, REFERENCE) for each in (model, other)]
    errors = [found[0].run(feed)["y"] - found[1].run(feed)["y"] for feed in feeds]
    return float(np.mean(np.square(errors)))


@pytest.fixture(name="case", params=["convolutions", "products"])
def _case(request: pytest.FixtureRequest, parse: Parse) -> tuple[ir.Model, ir.Model, Feeds]:
    text = {"convolutions": CONVOLUTIONS, "products": PRODUCTS}[request.param]
    shape = {"convolutions": (2, 2, 6, 6), "products": (16, 8)}[request.param]
    model, feeds = _model(parse, text), _feeds(shape)
    return model, _quantized(model, feeds), feeds


def test_tuning_brings_the_model_nearer(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    model, quantized, feeds = case
    tuned = finetune_constants(quantized, feeds, original=model, options=OPTIONS)
    result = _after(quantized, SetConstants(tuned.constants))
    assert tuned.after < 0.85 * tuned.before
    assert _error(model, result, feeds) < 0.9 * _error(model, quantized, feeds)
    assert tuned.gain_db > 0.7
    # The form stays: the same operators on the same types.
    assert [node.op_type for node in result.graph] == [node.op_type for node in quantized.graph]
    assert {value.dtype for value in result.graph.initializers.values()} == {
        value.dtype for value in quantized.graph.initializers.values()
    }


def test_what_was_tuned_still_folds(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    model, _, feeds = case
    quantized = _quantized(model, feeds, "s8")
    tuned = finetune_constants(quantized, feeds, original=model, options=OPTIONS)
    assert tuned.constants
    results = [
        Pipeline(parse_passes("infer-shapes,fold-qdq")).run(each.clone()).model
        for each in (quantized, _after(quantized, SetConstants(tuned.constants)))
    ]
    kinds = [[node.op_type for node in each.graph] for each in results]
    assert kinds[0] == kinds[1]
    assert not {"Conv", "MatMul", "Gemm"} & set(kinds[1])


def test_the_same_input_gives_the_same_constants(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    model, quantized, feeds = case
    few = replace(OPTIONS, steps=10, activations=True)
    found = [finetune_constants(quantized, feeds, original=model, options=few) for _ in range(2)]
    assert found[0] == found[1]
    other = replace(few, seed=1)
    assert finetune_constants(quantized, feeds, original=model, options=other) != found[0]


def test_it_is_never_worse_than_it_was(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    model, quantized, feeds = case
    wild = replace(OPTIONS, rate=30.0, steps=10)
    tuned = finetune_constants(quantized, feeds, original=model, options=wild)
    assert tuned == Tuned(tuned.constants, tuned.before, tuned.before, tuned.steps)
    assert not tuned.constants


def test_parts_can_be_left_alone(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    model, quantized, feeds = case
    fixed = replace(OPTIONS, scales=False)
    result = _after(
        quantized,
        SetConstants(finetune_constants(quantized, feeds, original=model, options=fixed).constants),
    )
    scales = [
        [
            node.inputs[1].const_value.numpy().tolist()
            for node in each.graph
            if node.op_type in ("QuantizeLinear", "DequantizeLinear")
            and node.inputs[1] is not None
            and node.inputs[1].const_value is not None
        ]
        for each in (quantized, result)
    ]
    assert scales[0] == scales[1]


def test_a_loss_with_labels(parse: Parse) -> None:
    model, feeds = _model(parse, PRODUCTS), _feeds((4, 8), 16)
    quantized = _quantized(model, feeds)
    session = Session(model, REFERENCE)
    labelled = [
        {**feed, "labels": session.run(feed)["y"].argmax(axis=-1).astype(np.int64)}
        for feed in feeds
    ]
    tuned = finetune_constants(
        quantized,
        labelled,
        original=model,
        loss="sparse-softmax-cross-entropy",
        options=replace(OPTIONS, batch=1),
    )
    assert tuned.after < 0.95 * tuned.before


def test_a_model_that_takes_one_sample_at_a_time(parse: Parse) -> None:
    model = _model(parse, PRODUCTS, "1")
    feeds = _feeds((1, 8))
    quantized = _quantized(model, feeds)
    tuned = finetune_constants(quantized, feeds, original=model, options=OPTIONS)
    assert tuned.after < tuned.before


def test_ranks_hidden_by_arithmetic_on_shapes_are_found(parse: Parse) -> None:
    model, feeds = _model(parse, UNFLATTENED), _feeds((4, 4))
    assert model.graph.node(6).outputs[0].shape is None
    tuned = finetune_constants(_quantized(model, feeds), feeds, original=model, options=OPTIONS)
    assert tuned.after < tuned.before


def test_what_cannot_be_tuned(parse: Parse) -> None:
    model, feeds = _model(parse, PRODUCTS), _feeds((1, 8))
    quantized = _quantized(model, feeds)
    with pytest.raises(UsageError, match="needs the float model to stay near to, or a loss"):
        finetune_constants(quantized, feeds)
    with pytest.raises(UsageError, match="there is no data to tune on"):
        finetune_constants(quantized, [], original=model)
    with pytest.raises(UsageError, match="no weights or scales in Q/DQ pairs to tune"):
        finetune_constants(
            parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), feeds, loss="mse"
        )


def test_rows_of_tables_stay(parse: Parse) -> None:
    text = """g (int64[N] i) => (float[N,2] y)
     <int8[3,2] t = {1, 2, 3, 4, 5, 6}, int8[2,2] m = {1, 2, 3, 4}, float s = {0.5}> {
     r = DequantizeLinear(t, s)  w = DequantizeLinear(m, s)
     h = Gather(r, i)  y = MatMul(h, w) }"""
    parameters = Parameters(parse(text), {})
    assert sorted(parameters.values) == ["w"]
    assert parameters.count == 4 + 1
