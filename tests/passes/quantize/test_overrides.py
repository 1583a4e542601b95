"""Overrides: what they match, which one wins, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.overrides import Override, Overrides
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.schemes import Scheme
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.spec import print_pipeline

Parse = Callable[..., ir.Model]

TWO = """
g (float[N,2] x) => (float[N,2] y)
<float[2,2] w = {1, 0, 0.5, 1}>
{
  [block_one] a = MatMul(x, w)
  s = Sigmoid(a)
  [block_two] y = Gemm(s, w)
}
"""


def _schemes(parse: Parse, *entries: dict[str, Any]) -> list[Scheme]:
    overrides = Overrides.from_entries(entries)
    return [overrides.scheme(node, Scheme()) for node in parse(TWO).graph]


@pytest.mark.parametrize(
    ("condition", "matched"),
    [
        ({"op_type": "MatMul"}, [True, False, False]),
        ({"name": "block_two"}, [False, False, True]),
        ({"name": "s"}, [False, True, False]),
        ({"regex": "block_.*"}, [True, False, True]),
        ({"regex": "block"}, [False, False, False]),
        ({"regex": "block_.*", "op_type": "Gemm"}, [False, False, True]),
    ],
)
def test_a_node_meets_all_conditions(
    parse: Parse, condition: dict[str, Any], matched: list[bool]
) -> None:
    assert [each != Scheme() for each in _schemes(parse, {**condition, "block": 32})] == matched


@pytest.mark.parametrize(
    ("precision", "activations", "weights"),
    [(16, "u16", "s8"), (8, "u8", "s8"), ("4", "u8", "s4"), ("float", "u8", "s8")],
)
def test_a_precision_is_a_bundle_of_types(
    parse: Parse, precision: int | str, activations: str, weights: str
) -> None:
    scheme = _schemes(parse, {"op-type": "MatMul", "precision": precision})[0]
    assert (scheme.activations, scheme.weights) == (activations, weights)


def test_a_precision_keeps_the_sign_of_activations(parse: Parse) -> None:
    node = next(iter(parse(TWO).graph))
    overrides = Overrides((Override(op_type="MatMul", precision="16"),))
    assert overrides.scheme(node, Scheme("s8")).activations == "s16"
    narrow = Overrides((Override(op_type="MatMul", precision="8"),))
    assert narrow.scheme(node, Scheme("s16")).activations == "s8"


def test_later_entries_go_before_earlier_ones_field_by_field(parse: Parse) -> None:
    entries = (
        {"regex": ".*", "precision": 16, "weight_ranges": "mse"},
        {"op_type": "Gemm", "precision": "8", "per-channel": False},
    )
    first, _, last = _schemes(parse, *entries)
    assert (first.activations, first.weight_ranges, first.per_channel) == ("u16", "mse", True)
    assert (last.activations, last.weight_ranges, last.per_channel) == ("u8", "mse", False)


def test_types_of_an_entry_go_before_its_precision(parse: Parse) -> None:
    entry = {"op_type": "MatMul", "precision": 16, "weights": "s16"}
    assert _schemes(parse, entry)[0].weights == "s16"


def test_the_last_precision_says_whether_a_node_stays_in_float(parse: Parse) -> None:
    first, middle, last = parse(TWO).graph
    overrides = Overrides.from_entries(
        [{"regex": "block.*", "precision": "float"}, {"op_type": "Gemm", "precision": 8}]
    )
    assert overrides.in_float(first)
    assert not overrides.in_float(middle)
    assert not overrides.in_float(last)


def test_text_and_back(tmp_path: Path) -> None:
    overrides = Overrides(
        (Override(regex=r"a\.b, \"c\"", precision="4"), Override(op_type="Conv", per_channel=False))
    )
    assert Overrides.from_text(overrides.to_text()) == overrides
    assert Overrides.from_text("[]").to_text() == "[]"
    path = tmp_path / "overrides.json"
    path.write_text(overrides.to_text(), encoding="utf-8")
    assert Overrides.from_text(str(path)) == overrides


def test_as_an_option_of_a_textual_pipeline() -> None:
    overrides = Overrides((Override(regex=r"l\d+, x", precision="16"),))
    insert = InsertQdq(Ranges({"x": (0.0, 1.0)}), overrides=overrides)
    assert parse_passes(print_pipeline((insert,))) == (insert,)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "needs one of op_type, name and regex"),
        ({"nam": "x"}, "no key 'nam'; did you mean 'name'"),
        ({"name": "x", "precision": 7}, "precision '7' is not one of float, 16, 8, 4"),
        ({"name": "x", "weights": "s5"}, "weights 's5' is not one of .*; did you mean 's"),
        ({"name": "x", "block": "32"}, "block is '32'; expected int"),
        ({"name": "x", "per_channel": 1}, "per_channel is 1; expected bool"),
        ({"name": 3}, "name is 3; expected str"),
        ({"regex": "("}, "'\\(' is no regular expression"),
    ],
)
def test_malformed_entries_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Overrides.from_entries([entry])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "overrides: not JSON"),
        ("[3]", "expected a list of objects"),
        ("missing.json", "missing.json: cannot read the overrides"),
    ],
)
def test_malformed_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Overrides.from_text(text)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "block_ono"}, "no node with name 'block_ono'; did you mean 'block_one'"),
        ({"op_type": "Matmul"}, "no node with op-type 'Matmul'; did you mean 'MatMul'"),
        ({"regex": "nothing.*"}, r"no node with regex 'nothing\.\*'$"),
        ({"name": "block_one", "op_type": "Gemm"}, "op-type 'Gemm', name 'block_one'"),
    ],
)
def test_what_matches_nothing_is_an_error(
    parse: Parse, entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Overrides.from_entries([entry]).check(parse(TWO))
