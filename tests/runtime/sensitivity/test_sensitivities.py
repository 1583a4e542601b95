"""Sensitivities: what is foretold for each layer, against what quantizing it alone does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import OPTIMIZE
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.sensitivity.measure import OUTPUT_ERROR, sensitivities
from onnxfold.runtime.sensitivity.table import Method, Sensitivities, Sensitivity
from onnxfold.runtime.session import REFERENCE, Session

Array = npt.NDArray[Any]
Feeds = list[dict[str, Array]]
Parse = Callable[..., ir.Model]

BODY = """c = Conv<pads = [1,1,1,1]>(x, a, b)  r = Relu(c)  d = Conv<pads = [1,1,1,1]>(r, e, f)
 s = Relu(d)  g = GlobalAveragePool(s)  h = Flatten(g)  y = Gemm(h, i, j)"""
SHAPES = {"a": (4, 2, 3, 3), "b": (4,), "e": (6, 4, 3, 3), "f": (6,), "i": (6, 5), "j": (5,)}
LAYERS = {"c", "d", "y"}


def _model(parse: Parse) -> ir.Model:
    random = np.random.default_rng(2)
    constants: list[str] = []
    for name, shape in SHAPES.items():
        numbers = ", ".join(map(str, random.normal(size=shape).astype(np.float32).reshape(-1)))
        constants.append(f"float[{','.join(map(str, shape))}] {name} = {{{numbers}}}")
    head = f"g (float[N,2,6,6] x) => (float[N,5] y) <{', '.join(constants)}>"
    model = parse(f"{head} {{ {BODY} }}")
    for node in model.graph:
        node.name = node.outputs[0].name
    return Pipeline(parse_passes("infer-shapes")).run(model).model


def _feeds(model: ir.Model, count: int = 8) -> Feeds:
    random = np.random.default_rng(3)
    given = model.graph.inputs[0]
    shape = [dim if isinstance(dim, int) else 1 for dim in given.shape or ()]
    name = given.name or ""
    return [{name: random.random(size=shape).astype(np.float32)} for _ in range(count)]


def _quantized(model: ir.Model, feeds: Feeds) -> ir.Model:
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    return Pipeline((InsertQdq(ranges, weights="s4"),)).run(model.clone()).model


def _labelled(model: ir.Model, feeds: Feeds) -> Feeds:
    random = np.random.default_rng(4)
    session, output = Session(model, REFERENCE), model.graph.outputs[0].name or ""
    found: Feeds = []
    for feed in feeds:
        scores: Array = session.run(feed)[output]
        noisy: Array = scores + random.normal(size=scores.shape) * scores.std()
        found.append({**feed, "labels": noisy.argmax(axis=-1), "targets": noisy.astype("float32")})
    return found


def _totals(found: Sensitivities) -> Array:
    return np.array([row.total for row in found.values()])


def _rank_correlation(left: Array, right: Array) -> float:
    """Spearman's, without ties."""
    orders = [np.argsort(each).tolist() for each in (left, right)]
    first, second = ({layer: rank for rank, layer in enumerate(each)} for each in orders)
    squares = sum((first[layer] - second[layer]) ** 2 for layer in first)
    return 1 - 6 * squares / (len(first) * (len(first) ** 2 - 1))


def test_measured_changes_are_those_of_the_loss(parse: Parse) -> None:
    model = _model(parse)
    feeds = _feeds(model, 4)
    quantized = _quantized(model, feeds)
    found = sensitivities(model, quantized, feeds, method="measured")
    assert set(found) >= LAYERS
    assert all(row.total > 0 for row in found.values())
    assert [found[name].bits for name in sorted(LAYERS)] == [4, 4, 4]
    # Where nothing else is quantized, it is the error of the model.
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    insert = InsertQdq(ranges, weights="s4", only=("d",))
    alone = Pipeline((insert,)).run(model.clone()).model
    one = sensitivities(model, alone, feeds, method="measured")
    old, new = (Session(each, REFERENCE) for each in (model, alone))
    pairs = [(old.run(feed)["y"], new.run(feed)["y"]) for feed in feeds]
    error = sum(_mean_square(right - left) for left, right in pairs)
    power = sum(_mean_square(left) for left, _ in pairs)
    assert float(_totals(one).sum()) == pytest.approx(error / power, rel=0.2)


def _mean_square(array: Array) -> float:
    return float(np.mean(np.square(array)))


@pytest.mark.parametrize("method", ["fisher", "hessian"])
def test_errors_of_outputs_are_foretold(parse: Parse, method: Method) -> None:
    model = _model(parse)
    feeds = _feeds(model)
    quantized = _quantized(model, feeds)
    true = sensitivities(model, quantized, feeds, method="measured")
    found = sensitivities(model, quantized, feeds, method=method, probes=32)
    assert found.loss == OUTPUT_ERROR
    assert list(found) == list(true)
    assert np.allclose(_totals(found), _totals(true), rtol=0.5, atol=1e-6)
    assert all(abs(row.first) <= 1e-6 for row in found.values())


@pytest.mark.parametrize("loss", ["mse", "sparse-softmax-cross-entropy"])
def test_changes_of_a_loss_are_foretold(parse: Parse, loss: str) -> None:
    model = _model(parse)
    feeds = _labelled(model, _feeds(model))
    quantized = _quantized(model, [{"x": feed["x"]} for feed in feeds])
    name = "targets" if loss == "mse" else "labels"
    given = [{"x": feed["x"], "labels": feed[name]} for feed in feeds]
    true = sensitivities(model, quantized, given, loss=loss, method="measured")
    found = sensitivities(model, quantized, given, loss=loss)
    assert (found.method, found.loss) == ("hessian", loss)
    assert np.allclose(
        _totals(found), _totals(true), rtol=0.5, atol=2e-3 * abs(_totals(true)).max()
    )
    # The gradient alone foretells less: the curvature is what is left of the difference.
    first = np.array([row.first for row in found.values()])
    assert abs(_totals(found) - _totals(true)).sum() < abs(first - _totals(true)).sum()


def test_the_same_seed_gives_the_same_numbers(parse: Parse) -> None:
    model = _model(parse)
    feeds = _feeds(model, 2)
    quantized = _quantized(model, feeds)
    found = [sensitivities(model, quantized, feeds, probes=2).to_json() for _ in range(2)]
    assert found[0] == found[1]
    other = sensitivities(model, quantized, feeds, probes=2, seed=1)
    assert other.to_json() != found[0]


def test_the_table_survives_a_file(tmp_path: Path) -> None:
    rows = [Sensitivity("a", 4, 0.5, 0.25), Sensitivity("b", 8, -0.5, 2.0)]
    table = Sensitivities(rows, method="fisher", loss="mse")
    assert [row.layer for row in table.worst_first] == ["b", "a"]
    table.save(tmp_path / "table.json")
    loaded = Sensitivities.load(tmp_path / "table.json")
    assert loaded.to_json() == table.to_json()
    assert loaded["b"].total == 1.5
    assert get_args(Method) == ("fisher", "hessian", "measured")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UsageError, match="not a file of sensitivities"):
        Sensitivities.load(tmp_path / "other.json")
    with pytest.raises(UsageError, match="no such file; measure sensitivities first"):
        Sensitivities.load(tmp_path / "none.json")


def test_an_output_that_is_rounded_counts_for_itself(parse: Parse) -> None:
    constants = "float[2,2] w = {1.1, 2.2, 3.3, 4.4}, float s = {0.5}, uint8 z = {128}"
    head = f"g (float[2,2] x) => (float[2,2] y) <{constants}>"
    model = parse(f"{head} {{ y = MatMul(x, w) }}")
    rounded = "m = MatMul(x, w)  q = QuantizeLinear(m, s, z)  y = DequantizeLinear(q, s, z)"
    quantized = parse(f"{head} {{ {rounded} }}")
    feed = {"x": np.array([[0.3, -0.7], [1.2, 0.4]], np.float32)}
    found = sensitivities(model, quantized, [feed], method="measured")
    wanted = Session(model, REFERENCE).run(feed)["y"]
    error = _mean_square(Session(quantized, REFERENCE).run(feed)["y"] - wanted)
    assert list(found) == ["output y"]
    assert found["output y"].total == pytest.approx(error / _mean_square(wanted), rel=1e-4)
    foretold = sensitivities(model, quantized, [feed], probes=400)
    assert foretold["output y"].total == pytest.approx(found["output y"].total, rel=0.3)


def test_what_has_no_sensitivities(parse: Parse) -> None:
    model = _model(parse)
    with pytest.raises(UsageError, match="there is no data"):
        sensitivities(model, model, [])
    plain = parse("g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}> {y = MatMul(x,w)}")
    with pytest.raises(UsageError, match="nothing in the quantized model reads"):
        sensitivities(plain, plain, [{"x": np.ones((2, 2), np.float32)}])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_resnet_float", "tiny_mobilenet_float"])
@pytest.mark.parametrize("loss", ["", "sparse-softmax-cross-entropy"])
def test_layers_are_ordered_as_measured(fixtures_dir: Path, name: str, loss: str) -> None:
    text = f"{OPTIMIZE},upgrade-opset{{to=21}},infer-shapes"
    model = ir.load(fixtures_dir / f"{name}.onnx")
    model = Pipeline(parse_passes(text)).run(model).model
    # Of a loss, each sample's gradient is another one: its mean square takes more of them.
    feeds = _feeds(model, 16 if loss else 8)
    quantized = _quantized(model, feeds)
    given = _labelled(model, feeds) if loss else feeds
    true = sensitivities(model, quantized, given, loss=loss, method="measured")
    for method in ("fisher", "hessian"):
        found = sensitivities(model, quantized, given, loss=loss, method=method)
        assert _rank_correlation(_totals(found), _totals(true)) > 0.95
