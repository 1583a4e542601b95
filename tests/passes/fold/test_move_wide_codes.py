"""move-wide-codes: 16-bit codes and codes with a scale a channel are moved as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.runtime.session import DEPLOYMENT, Session

Parse = Callable[..., ir.Model]

# The type of the codes, parameters, attributes of Q/DQ before and after, the ops on x [2,3,4].
MOVES: dict[str, tuple[str, str, str, str, str]] = {
    "16 bits": ("uint16", "float s = {0.01}, uint16 z = {30000}", "", "",
                "c = Transpose <perm = [2, 0, 1]> (x)"),
    "signed 16 bits": ("int16", "float s = {0.01}, int16 z = {-7}, int64[2] k = {3, 0}", "", "",
                       "c = Gather <axis = 2> (x, k)"),
    "a chain": ("uint16", "float s = {0.01}, uint16 z = {9}, int64[2] k = {-1, 2},"
                " int64[2] n = {2, 2}", "", "",
                "t = Transpose (x) r = Reshape (t, k) c = Tile (r, n)"),
    "no op at all": ("uint16", "float s = {0.01}, uint16 z = {30000}", "", "", ""),
    "per channel": ("uint8", "float[3] s = {0.01, 0.3, 2.0}, uint8[3] z = {1, 2, 128}",
                    "<axis = 1>", "<axis = 0>", "c = Transpose <perm = [1, 2, 0]> (x)"),
    "per channel, reshaped": ("int8", "float[3] s = {0.01, 0.3, 2.0}, int8[3] z = {1, 2, -8},"
                              " int64[4] k = {2, 3, 2, 2}",
                              "<axis = -2>", "<axis = 1>", "c = Reshape (x, k)"),
}  # fmt: skip


def _model(case: str, parse: Parse) -> ir.Model:
    dtype, parameters, before, after, ops = MOVES[case]
    model = parse(
        f"""
        agraph ({dtype}[2,3,4] q) => ({dtype}[A] y) <{parameters}>
        {{
          x = DequantizeLinear {before} (q, s, z)
          {ops}
          y = QuantizeLinear {after} ({"c" if ops else "x"}, s, z)
        }}
        """
    )
    model.graph.outputs[0].shape = None
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


@pytest.mark.parametrize("case", MOVES)
def test_codes_are_moved(case: str, parse: Parse, apply_pass: Callable[..., PassResult]) -> None:
    before, model = _model(case, parse), _model(case, parse)
    result = apply_pass("move-wide-codes", model)
    assert result.rules["move-wide-codes"] == 1
    assert not {node.op_type for node in model.graph} & {"QuantizeLinear", "DequantizeLinear"}
    dtype = MOVES[case][0]
    limits = np.iinfo(dtype)
    numbers = np.random.default_rng(0).integers(limits.min, limits.max, (2, 3, 4), endpoint=True)
    feed = {"q": numbers.astype(dtype)}
    wanted = Session(before).run(feed)["y"]
    np.testing.assert_array_equal(Session(model).run(feed)["y"], wanted)
    np.testing.assert_array_equal(Session(model, DEPLOYMENT).run(feed)["y"], wanted)


def test_text(parse: Parse, apply_pass: Any, assert_text: Any) -> None:
    """What else reads the reals still does."""
    model = parse(
        """
        agraph (uint16[2,3] q) => (uint16[3,2] y, float[2,3] v)
        <float s = {0.5}, uint16 z = {7}>
        {
          x = DequantizeLinear (q, s, z)
          c = Transpose (x)
          y = QuantizeLinear (c, s, z)
          v = Relu (x)
        }
        """
    )
    apply_pass("move-wide-codes", model)
    assert_text(
        model,
        """
        agraph (uint16[2,3] q) => (uint16[3,2] y, float[2,3] v)
        <float s = {0.5}, uint16 z = {7}>
        {
          x = DequantizeLinear (q, s, z)
          y = Transpose (q)
          v = Relu (x)
        }
        """,
    )


LEFT = {
    "other scale": ("uint16", "float s = {0.5}, float t = {0.25}, uint16 z = {7}", "",
                    "c = Transpose (x) y = QuantizeLinear (c, t, z)"),
    "other channels": ("uint8", "float[2] s = {0.5, 2.0}, uint8[2] z = {7, 1}", "<axis = 0>",
                       "c = Transpose (x) y = QuantizeLinear <axis = 0> (c, s, z)"),
    "arithmetic": ("uint16", "float s = {0.5}, uint16 z = {7}", "",
                   "c = Neg (x) y = QuantizeLinear (c, s, z)"),
    "8 bits": ("uint8", "float s = {0.5}, uint8 z = {7}", "",
               "c = Transpose (x) y = QuantizeLinear (c, s, z)"),
    "read elsewhere": ("uint16", "float s = {0.5}, uint16 z = {7}", "",
                       "c = Transpose (x) e = Relu (c) g = QuantizeLinear (c, s, z)"
                       " h = DequantizeLinear (g, s, z) f = Add (h, e)"
                       " y = QuantizeLinear (f, s, z)"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_left_alone(case: str, parse: Parse, apply_pass: Any) -> None:
    dtype, parameters, attributes, ops = LEFT[case]
    model = parse(
        f"agraph ({dtype}[2,2] q) => ({dtype}[2,2] y) <{parameters}>"
        f" {{ x = DequantizeLinear {attributes} (q, s, z) {ops} }}"
    )
    assert not apply_pass("move-wide-codes", model).rules
