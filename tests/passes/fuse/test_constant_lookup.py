"""fold-constant-lookup: places and types of tokens that are known beforehand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes

_HEAD = "g (int64[B,S] i) => (float[B,S,2] y)"
_TABLES = (
    "float[3,2] words = {1, 2, 3, 4, 5, 6}, float[2,2] types = {10, 20, 30, 40},"
    " float[4,2] places = {0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5}"
)
_IDS = "int64[1,4] count = {0, 1, 2, 3}, int64[1,4] ones = {1, 1, 1, 1}"
_NUMBERS = "int64[1] zero = {0}, int64[1] one = {1}"
_SIZES = "n = Shape <start = 1, end = 2> (i) t = Shape (i) w = Gather (words, i)"
_PLACES = "c = Slice (count, zero, n, one, one) p = Gather (places, c)"
_TYPES = "o = Slice (ones, zero, n, one, one) e = Expand (o, t) k = Gather (types, e)"
_BODY = f"{_SIZES} {_PLACES} {_TYPES} a = Add (w, k) y = Add (a, p)"
_FEED = {"i": np.array([[0, 2, 1], [2, 2, 0]])}


def _text(body: str = _BODY, head: str = _HEAD) -> str:
    return f"{head} <{_TABLES}, {_IDS}, {_NUMBERS}> {{ {body} }}"


def _inferred(model: ir.Model) -> ir.Model:
    return Pipeline(parse_passes("infer-shapes")).run(model).model


def test_tables_become_one(
    parse: Callable[..., ir.Model],
    rewrite: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = _inferred(parse(_text()))
    rules = {"lookup-of-slice": 1, "lookup-of-one-row": 1, "row-into-slice": 1}
    assert rewrite("fold-constant-lookup", model, _FEED).rules == rules
    Pipeline(parse_passes("remove-dead-code")).run(model)
    table = "30.5, 41.5, 32.5, 43.5, 34.5, 45.5, 36.5, 47.5"
    constants = (
        "float[3,2] words = {1, 2, 3, 4, 5, 6}, int64[1] zero = {0}, int64[1] one = {1},"
        f" int64[1] axes = {{1}}, float[1,4,2] p_cut_table = {{{table}}}"
    )
    body = (
        "n = Shape <start = 1, end = 2> (i) w = Gather (words, i)"
        " p_cut_cut = Slice (p_cut_table, zero, n, axes, one) y = Add (w, p_cut_cut)"
    )
    assert_text(model, f"{_HEAD} <{constants}> {{ {body} }}")


def test_types_of_a_filled_shape(
    parse: Callable[..., ir.Model], rewrite: Callable[..., PassResult]
) -> None:
    filled = "e = ConstantOfShape <value: tensor = int64[1] {1}> (t) k = Gather (types, e)"
    model = _inferred(parse(_text(f"{_SIZES} {filled} y = Add (k, w)")))
    assert rewrite("fold-constant-lookup", model, _FEED).rules == {"lookup-of-one-row": 1}


@pytest.mark.parametrize(
    ("body", "head"),
    [
        # As many rows as another input has.
        (
            f"{_SIZES} {_TYPES} y = Add (v, k)",
            _HEAD.replace("i)", "i, float[B,S,2] v)", 1),
        ),
        # Different rows.
        (f"{_SIZES} {_TYPES} y = Add (w, k)".replace("ones,", "count,"), _HEAD),
        # More may be sliced than it is expanded to.
        (f"{_SIZES} {_TYPES} y = Add (w, k)".replace("zero, n", "zero, one"), _HEAD),
        # The rows themselves are read.
        (f"{_SIZES} {_TYPES} y = Add (w, k)", _HEAD.replace("=> (", "=> (float[B,S,2] k, ")),
        (f"{_SIZES} {_TYPES} y = Mul (w, k)", _HEAD),
        # The table is read elsewhere.
        (
            f"{_SIZES} {_PLACES} y = Add (w, p) j = Identity (places)",
            _HEAD.replace("=> (", "=> (float[4,2] j, "),
        ),
    ],
)
def test_refuses(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult], body: str, head: str
) -> None:
    model = _inferred(parse(_text(body, head)))
    assert not apply_pass("fold-constant-lookup", model).modified


def test_places_out_of_the_table_stay(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    text = _text(f"{_SIZES} {_PLACES} y = Add (w, p)").replace("0, 1, 2, 3}", "0, 1, 2, 4}")
    assert not apply_pass("fold-constant-lookup", _inferred(parse(text))).modified
