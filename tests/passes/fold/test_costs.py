"""Tables of costs: sums over features, and their files."""

from __future__ import annotations

import json
import math

import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.fold.costs import (
    FAMILIES,
    convolution_features,
    element_features,
    float_family,
    integer_family,
    pool_features,
    read_costs,
)
from onnxfold.passes.fold.default_costs import DEFAULT_COSTS


def test_a_table_survives_its_file() -> None:
    text = json.dumps(DEFAULT_COSTS.to_json())
    assert read_costs(text, "costs.json") == DEFAULT_COSTS


def test_the_built_in_table_has_every_cost() -> None:
    assert set(DEFAULT_COSTS.microseconds) == set(FAMILIES)
    for family, features in FAMILIES.items():
        costs = DEFAULT_COSTS.microseconds[family]
        assert set(costs) == set(features)
        assert all(math.isfinite(cost) and cost >= 0 for cost in costs.values())
        assert sum(costs.values()) > 0


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        (None, "no table of costs"),
        ({"constant": 1.0}, "no table of costs"),
        ({"constant": "much", "elements": 0.0}, "no table of costs"),
        ({"constant": -1.0, "elements": 0.0}, "not negative"),
        ({"constant": math.inf, "elements": 0.0}, "finite"),
    ],
)
def test_what_is_no_table_is_refused_by_name(rounding: object, expected: str) -> None:
    data = DEFAULT_COSTS.to_json()
    data["microseconds"]["rounding"] = rounding
    with pytest.raises(UsageError, match=rf"costs\.json: .*{expected}"):
        read_costs(json.dumps(data), "costs.json")


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(UsageError, match=r"costs\.json: no table of costs"):
        read_costs("{", "costs.json")


def test_features_of_a_first_layer() -> None:
    features = convolution_features((3, 3), 3, 8, 100)
    assert features["rows"] == 300
    assert features["products"] == 9 * 3 * 8 * 100
    assert features["blocked products"] == 2 * features["products"]
    assert convolution_features((1, 1), 3, 16, 100)["rows"] == 0


@pytest.mark.parametrize(
    ("inputs", "outputs", "group", "family"),
    [
        (4, 16, 1, "integer convolution"),
        (4, 24, 1, "integer convolution"),
        (3, 16, 1, "integer ragged convolution"),
        (16, 8, 1, "integer ragged convolution"),
        (8, 32, 2, "integer ragged convolution"),
        (1, 1, 1, "integer ragged convolution"),
        (1, 32, 32, "integer depthwise convolution"),
        (1, 24, 24, "integer ragged depthwise convolution"),
    ],
)
def test_the_way_an_integer_convolution_goes(
    inputs: int, outputs: int, group: int, family: str
) -> None:
    assert integer_family(inputs, outputs, group) == family


def test_a_group_a_channel_is_depthwise() -> None:
    assert float_family(8, 8) == "float depthwise convolution"
    assert float_family(8, 2) == float_family(1, 1) == "float convolution"
    features = pool_features((2, 2), 28, 10)
    assert features["unaligned products"] == 4 * 10 * 12
    assert features["single products"] == 4 * 10 * 4


def test_a_cost_is_a_sum() -> None:
    costs = DEFAULT_COSTS.microseconds["rounding"]
    expected = costs["constant"] + 50 * costs["elements"]
    assert DEFAULT_COSTS.cost("rounding", element_features(50)) == pytest.approx(expected)
