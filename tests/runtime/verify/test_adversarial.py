"""The search for the input on which two models differ most."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.adversarial import find_worst_input

_SQUARES = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 3] x) => (float[N, 3] y)
<float[3] a = {FACTORS}> { square = Mul (x, x)  y = Mul (square, a) }
"""


def _squares(*factors: float) -> onnx.ModelProto:
    return parser.parse_model(_SQUARES.replace("FACTORS", ", ".join(map(str, factors))))


def _feeds(count: int = 6) -> list[Feed]:
    rng = np.random.default_rng(0)
    return [{"x": rng.uniform(-1, 2, (1, 3)).astype(np.float32)} for _ in range(count)]


def test_the_gradient_leads_to_the_edge_of_the_range() -> None:
    feeds = _feeds()
    high = max(feed["x"].max() for feed in feeds)
    found = find_worst_input(_squares(1, 1, 1), _squares(1, 1, 1.5), feeds)
    assert found.method == "gradient"
    # Only the third number makes a difference, and it makes most where it is largest.
    assert found.feed["x"][0, 2] == high
    assert found.difference > found.before >= found.typical > 0


def test_ranks_that_arithmetic_on_shapes_hides_are_found() -> None:
    # What PyTorch writes for unflatten: the number of leading dimensions is computed.
    split = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 3] x) => (float[N, 3] y)
        <int64 one = {1}, int64[1] flat = {-1}, int64[1] zero = {0}, int64[2] parts = {1, 3}> {
          all = Shape (x)
          end = Reshape (one, flat)
          lead = Slice (all, zero, end)
          shape = Concat <axis = 0> (lead, parts)
          parted = Reshape (x, shape)
          row = Gather <axis = 1> (parted, zero)
          joined = Reshape (row, all)
          y = Mul (joined, joined)
        }
        """
    )
    assert find_worst_input(_squares(1, 1, 1.5), split, _feeds()).method == "gradient"


def test_nothing_leaves_the_range_of_the_data() -> None:
    feeds = _feeds()
    found = find_worst_input(_squares(1, 1, 1), _squares(3, 2, 1.5), feeds)
    everything = np.concatenate([feed["x"] for feed in feeds])
    assert everything.min() <= found.feed["x"].min()
    assert found.feed["x"].max() <= everything.max()
    assert found.feed["x"].dtype == np.float32


def test_it_is_repeatable() -> None:
    first = find_worst_input(_squares(1, 1, 1), _squares(1, 2, 1), _feeds())
    second = find_worst_input(_squares(1, 1, 1), _squares(1, 2, 1), _feeds())
    np.testing.assert_array_equal(first.feed["x"], second.feed["x"])
    assert first.to_json() == second.to_json()


def test_without_a_gradient_signs_are_tried() -> None:
    scaler = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20, "ai.onnx.ml" : 3]>
        g (float[N, 3] x) => (float[N, 3] y)
        { moved = ai.onnx.ml.Scaler <offset = [0.0], scale = [1.1]> (x)  y = Mul (moved, x) }
        """
    )
    found = find_worst_input(_squares(1, 1, 1), scaler, _feeds())
    assert found.method == "search"
    assert "Scaler" in found.reason
    assert found.difference > found.before


def test_equal_models_have_no_difference() -> None:
    found = find_worst_input(_squares(1, 1, 1), _squares(1, 1, 1), _feeds(), steps=3)
    assert found.difference == 0.0


def test_no_data_is_an_error() -> None:
    with pytest.raises(UsageError, match="no data"):
        find_worst_input(_squares(1, 1, 1), _squares(1, 1, 1), [])


def test_models_without_real_inputs_are_an_error() -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (int64[2] x) => (float[2] y) '
        "{ y = Cast <to = 1> (x) }"
    )
    with pytest.raises(UsageError, match="no real input"):
        find_worst_input(model, model, [{"x": np.zeros(2, np.int64)}])
