"""transpose-heads: heads of 8-bit codes are split and joined by transposes of matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import REFERENCE, Session

_SPLIT = "g (uint8[B,S,48] x) => (uint8[B,3,S,16] y) <int64[4] t = {0,0,3,16}>"
_SPLITTING = "r = Reshape (x, t) y = Transpose <perm = [0,2,1,3]> (r)"
_JOIN = "g (int8[B,3,S,16] x) => (int8[B,S,48] y) <int64[3] t = {0,0,48}>"
_JOINING = "r = Transpose <perm = [0,2,1,3]> (x) y = Reshape (r, t)"


def _inferred(model: ir.Model) -> ir.Model:
    return Pipeline(parse_passes("infer-shapes")).run(model).model


@pytest.mark.parametrize(
    ("head", "body", "rule", "expected"),
    [
        (
            _SPLIT,
            _SPLITTING,
            "split-heads",
            "g (uint8[B,S,48] x) => (uint8[B,3,S,16] y) <int64[4] sizes = {0,3,16,-1}> {"
            " x_turned = Transpose <perm = [0,2,1]> (x) x_turned_heads = Reshape (x_turned, sizes)"
            " y = Transpose <perm = [0,1,3,2]> (x_turned_heads) }",
        ),
        (
            _JOIN,
            _JOINING,
            "join-heads",
            "g (int8[B,3,S,16] x) => (int8[B,S,48] y) <int64[3] sizes = {0,48,-1}> {"
            " x_turned = Transpose <perm = [0,1,3,2]> (x)"
            " x_turned_heads = Reshape (x_turned, sizes)"
            " y = Transpose <perm = [0,2,1]> (x_turned_heads) }",
        ),
    ],
)
def test_both_directions(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
    head: str,
    body: str,
    rule: str,
    expected: str,
) -> None:
    model = _inferred(parse(f"{head} {{ {body} }}"))
    codes = np.random.default_rng(0).integers(0, 120, (2, 5, 48))
    shape = (2, 5, 48) if rule == "split-heads" else (2, 3, 5, 16)
    kind = np.uint8 if rule == "split-heads" else np.int8
    feed = {"x": codes.reshape(shape).astype(kind)}
    before = Session(model, REFERENCE).run(feed)["y"]
    assert apply_pass("transpose-heads", model).rules == {rule: 1}
    Pipeline(parse_passes("remove-dead-code")).run(model)
    assert_text(model, expected)
    np.testing.assert_array_equal(Session(model, REFERENCE).run(feed)["y"], before)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (_SPLIT.replace("uint8", "float"), _SPLITTING),
        (_SPLIT.replace("S,48", "S,24").replace("16", "8"), _SPLITTING),
        (_SPLIT.replace("S,48", "S,384").replace("16", "128"), _SPLITTING),
        (_SPLIT.replace("[B,S", "[B,8").replace("3,S", "3,8"), _SPLITTING),
        (_SPLIT.replace("{0,0", "{-1,2"), _SPLITTING),
        (_SPLIT.replace("B,3,S,16", "B,S,16,3"), _SPLITTING.replace("2,1,3", "1,3,2")),
        (_SPLIT.replace("=> (", "=> (uint8[B,S,3,16] r, "), _SPLITTING),
        (_JOIN.replace("=> (", "=> (int8[B,S,3,16] r, "), _JOINING),
        (_JOIN.replace("{0,0,48}", "{-1,2,48}"), _JOINING),
        (_JOIN.replace("{0,0,48}", "{0,-1,24}").replace("B,S,48", "B,S,24"), _JOINING),
    ],
)
def test_refuses(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult], head: str, body: str
) -> None:
    model = _inferred(parse(f"{head} {{ {body} }}"))
    assert not apply_pass("transpose-heads", model).modified
