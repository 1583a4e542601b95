"""If, Scan and Loop: gradients of states, elements and captured values; second order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import parser

from fixtures.gradients.case import output_weights
from fixtures.gradients.check import check_gradient, lower, relative_error, weighted_sum
from fixtures.gradients.double import in_double
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import REFERENCE, Session

Array = npt.NDArray[Any]

SCAN = """
g (float[T, 2, 3] x, float[2, 4] h0, float[3, 4] w, float[4, 4] u)
    => (float[2, 4] last, float[T, 2, 4] all)
{
    last, all = Scan <num_scan_inputs = 1, body = step (float[2, 4] h, float[2, 3] row)
        => (float[2, 4] next, float[2, 4] seen)
    {
        driven = MatMul (row, w)
        kept = MatMul (h, u)
        sum = Add (driven, kept)
        next = Mul (sum, sum)
        seen = Mul (next, h)
    }> (h0, x)
}"""

LOOP = """
g (float[2, 4] h0, float[4, 4] u, int64 n) => (float[2, 4] last, float[T, 2, 4] all)
<bool go = {1}>
{
    last, all = Loop <body = step (int64 i, bool on, float[2, 4] h)
        => (bool still, float[2, 4] next, float[2, 4] seen)
    {
        moved = MatMul (h, u)
        next = Mul (moved, h)
        seen = Add (next, h)
        still = Identity (on)
    }> (n, go, h0)
}"""

WHILE = """
g (float[2, 2] h0, float[2, 2] u, float limit) => (float[] last, float[] product)
<bool go = {1}, float[1] one = {0.7}>
{
    last, product = Loop <body = step (int64 i, bool on, float[2, 2] h, float[1] p)
        => (bool still, float[2, 2] next, float[1] more)
    {
        number = Cast <to = 1> (i)
        turned = MatMul (h, u)
        scaled = Mul (turned, number)
        next = Add (scaled, h)
        largest = ReduceMax <keepdims = 0> (next)
        still = Less (largest, limit)
        square = Mul (p, p)
        total = ReduceSum <keepdims = 0> (next)
        more = Mul (square, total)
    }> (, go, h0, one)
}"""

IF = """
g (float[2, 4] x, float[4] w, float[2, 4] v, bool c) => (float[] y)
{
    y = If <then_branch = yes () => (float[2, 4] a) { a = Mul (x, w) },
            else_branch = no () => (float[2, 4] b) { twice = Mul (x, x)  b = Mul (twice, v) }> (c)
}"""

NESTED = """
g (float[T, 2, 3] x, float[2, 3] h0, float[3, 3] w) => (float[2, 3] last, float[T, 2, 3] all)
<float limit = {0.0}, bool go = {1}, int64 two = {2}>
{
    v = Mul (w, w)
    last, all = Scan <num_scan_inputs = 1, scan_input_directions = [1],
        scan_output_directions = [1], body = step (float[2, 3] h, float[2, 3] row)
        => (float[2, 3] next, float[2, 3] seen)
    {
        s = ReduceSum <keepdims = 0> (row)
        c = Greater (s, limit)
        k = If <then_branch = yes () => (float[2, 3] a) { a = MatMul (h, v) },
                else_branch = no () => (float[2, 3] b)
        {
            b = Loop <body = inner (int64 i, bool on, float[2, 3] q) => (bool still, float[2, 3] r)
            {
                moved = Mul (q, row)
                r = Add (moved, h)
                still = Identity (on)
            }> (two, go, h)
        }> (c)
        next = Add (k, row)
        seen = Mul (next, h)
    }> (h0, x)
}"""


def _feeds(**shapes: tuple[int, ...]) -> dict[str, Array]:
    random = np.random.default_rng(3)
    return {
        name: (random.standard_normal(shape) / 2).astype(np.float32)
        for name, shape in shapes.items()
    }


def _nested(feeds: Mapping[str, Array]) -> Sequence[Array]:
    x, h, w = feeds["x"], feeds["h0"], feeds["w"]
    seen = np.zeros(x.shape)
    for step in range(len(x))[::-1]:
        row = x[step]
        k = h @ (w * w) if row.sum() > 0 else (h * row + h) * row + h
        seen[step] = (k + row) * h
        h = k + row
    return h, seen


def test_scan() -> None:
    feeds = _feeds(x=(3, 2, 3), h0=(2, 4), w=(3, 4), u=(4, 4))
    found = check_gradient(SCAN, feeds, double=False)
    (forward, backward) = (node for node in found.model.graph.node if node.op_type == "Scan")
    assert len(forward.output) == 3, "only the state is saved"
    assert not any(name.endswith("saved") for name in backward.output)


def test_scan_along_other_axes() -> None:
    """Elements lie along axis 1; what is given is stacked along axis 2, from the end."""
    text = """
    g (float[2, T, 3] x, float[2, 3] h0) => (float[2, 3] last, float[2, 3, T] all)
    {
        last, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1],
            scan_output_directions = [1], body = step (float[2, 3] h, float[2, 3] row)
            => (float[2, 3] next, float[2, 3] seen)
        {
            next = Mul (h, row)
            seen = Mul (next, next)
        }> (h0, x)
    }"""

    def forward(feeds: Mapping[str, Array]) -> Sequence[Array]:
        h = feeds["h0"]
        seen: list[Array] = []
        for row in np.moveaxis(feeds["x"], 1, 0):
            h = h * row
            seen.append(h * h)
        return h, np.stack(seen[::-1], axis=-1)

    feeds = _feeds(x=(2, 3, 3), h0=(2, 3))
    check_gradient(text, feeds, double=False, forward=forward)


@pytest.mark.parametrize("steps", [1, 3])
def test_loop_with_a_count(steps: int) -> None:
    feeds = _feeds(h0=(2, 4), u=(4, 4)) | {"n": np.array(steps)}
    check_gradient(LOOP, feeds, double=False)


def test_loop_that_does_not_run() -> None:
    header = '<ir_version: 10, opset_import: ["" : 21]>'
    model = lower(weighted_sum(parser.parse_model(header + LOOP)), ["h0", "u"])
    feeds = _feeds(h0=(2, 4), u=(4, 4), weights_of_last=(2, 4)) | {"n": np.array(0)}
    feeds["weights_of_all"] = np.zeros((0, 2, 4), np.float32)
    results = Session(model, REFERENCE).run(feeds)
    np.testing.assert_array_equal(results["grad_h0"], feeds["weights_of_last"])
    np.testing.assert_array_equal(results["grad_u"], np.zeros((4, 4), np.float32))


@pytest.mark.parametrize("limit", [0.5, 3, 100])
def test_loop_with_a_condition(limit: float) -> None:
    """As often as it turns out; the number of the step is read too."""
    feeds = {name: abs(array) for name, array in _feeds(h0=(2, 2), u=(2, 2)).items()}
    feeds["limit"] = np.array(limit, np.float32)
    check_gradient(WHILE, feeds, ["h0", "u", "one"], double=False)


@pytest.mark.parametrize("condition", [True, False])
def test_if(condition: bool) -> None:
    feeds = _feeds(x=(2, 4), w=(4,), v=(2, 4)) | {"c": np.array(condition)}
    found = check_gradient(IF, feeds)
    unused = "v" if condition else "w"
    assert not found.gradients[unused].any()


def test_bodies_in_bodies() -> None:
    feeds = _feeds(x=(4, 2, 3), h0=(2, 3), w=(3, 3))
    assert {row.sum() > 0 for row in feeds["x"]} == {True, False}
    check_gradient(NESTED, feeds, double=False, forward=_nested)


_TWICE: dict[str, tuple[str, dict[str, Array], dict[str, tuple[int, ...]]]] = {
    "scan": (
        SCAN,
        _feeds(x=(3, 2, 3), h0=(2, 4), w=(3, 4), u=(4, 4)),
        {"last": (2, 4), "all": (3, 2, 4)},
    ),
    "loop": (
        LOOP,
        _feeds(h0=(2, 4), u=(4, 4)) | {"n": np.array(3)},
        {"last": (2, 4), "all": (3, 2, 4)},
    ),
    "if": (
        IF.replace("float[] y", "float[2, 4] y"),
        _feeds(x=(2, 4), w=(4,), v=(2, 4)) | {"c": np.array(False)},
        {"y": (2, 4)},
    ),
    "nested": (
        NESTED,
        _feeds(x=(4, 2, 3), h0=(2, 3), w=(3, 3)),
        {"last": (2, 3), "all": (4, 2, 3)},
    ),
}


@pytest.mark.parametrize("name", _TWICE)
def test_second_order(name: str) -> None:
    """The gradient of a weighted gradient: differences of the first gradient, in float64."""
    text, given, shapes = _TWICE[name]
    header = '<ir_version: 10, opset_import: ["" : 21]>'
    wrt = [each for each, array in given.items() if array.dtype.kind == "f"]
    feeds = given | {
        f"weights_of_{output}": output_weights(shape, index)
        for index, (output, shape) in enumerate(shapes.items())
    }
    first = lower(weighted_sum(parser.parse_model(header + text)), wrt)
    second = onnx.ModelProto()
    second.CopyFrom(first)
    del second.graph.output[: len(shapes) + 1]
    ends = {f"weights_of_grad_{each}": output_weights(feeds[each].shape, 7) for each in wrt}
    twice = lower(weighted_sum(second, "second"), wrt, of="second")
    double = Session(in_double(first), REFERENCE)
    results = Session(twice, REFERENCE).run({**feeds, **ends})
    direction = {each: output_weights(feeds[each].shape, 9) for each in wrt}

    def directed(step: float) -> float:
        exact = {
            each: array.astype(np.float64) if array.dtype.kind == "f" else array
            for each, array in feeds.items()
        }
        for each in wrt:
            exact[each] = exact[each] + step * direction[each]
        found = double.run(exact)
        return sum(
            float(np.sum(np.asarray(found[f"grad_{each}"]) * ends[f"weights_of_grad_{each}"]))
            for each in wrt
        )

    expected = np.array((directed(1e-5) - directed(-1e-5)) / 2e-5)
    along = sum(float(np.sum(results[f"grad_{each}_1"] * direction[each])) for each in wrt)
    assert relative_error(np.array(along), expected) < 1e-5


@pytest.mark.parametrize("op_type", ["Scan", "Loop"])
def test_a_loop_that_no_gradient_flows_through(op_type: str) -> None:
    """One state depends on what is differentiated by, another on nothing: the loss reads that."""
    given, first = ("x", "") if op_type == "Scan" else ("", "n, go, ")
    inputs = "float[2] row" if op_type == "Scan" else ""
    leading = "" if op_type == "Scan" else "int64 i, bool on, "
    still = "" if op_type == "Scan" else "bool still, "
    states = "float[2] h, float[2] k" + (f", {inputs}" if inputs else "")
    number = "num_scan_inputs = 1, " if op_type == "Scan" else ""
    call = f"{first}h0, k0{', ' + given if given else ''}"
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[T, 2] x, float[2] h0) => (float loss)
    <bool go = {{1}}, int64 n = {{2}}, float[2] k0 = {{1, 2}}>
    {{
        a, c = {op_type} <{number}body = step ({leading}{states}) => ({still}float[2] d, float[2] e)
        {{ d = Mul (h, h)  e = Add (k, k) {" still = Identity (on)" if still else ""} }}> ({call})
        loss = ReduceSum <keepdims = 0> (c)
    }}"""
    lowered = lower(parser.parse_model(text), ["h0"])
    assert [node.op_type for node in lowered.graph.node].count(op_type) == 1
    results = Session(lowered, REFERENCE).run(_feeds(x=(2, 2), h0=(2,)))
    np.testing.assert_array_equal(results["grad_h0"], [0, 0])


def test_a_state_whose_shape_only_its_start_tells() -> None:
    """As exporters write it; weights are read in every step, and scanned ones gathered."""
    text = """
    g (float[T, 2, 3] x, float[2, 3] h0) => (float[2, 3] last)
    <bool go = {1}, float[3, 3] w = {0.1, -0.2, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, 0.9}>
    {
        size = Shape <start = 0, end = 1> (x)
        n = Squeeze (size)
        last = Loop <body = step (int64 i, bool on, float[] h) => (bool still, float[] next)
        {
            row = Gather (x, i)
            moved = MatMul (h, w)
            bent = Tanh (moved)
            next = Add (bent, row)
            still = Identity (on)
        }> (n, go, h0)
    }"""
    check_gradient(text, _feeds(x=(4, 2, 3), h0=(2, 3)), ["x", "h0", "w"], double=False)


@pytest.mark.parametrize("declared", ["1, 2", ""])
def test_a_state_that_grows_is_refused(declared: str) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[1, 2] x, int64 n) => (float loss, float[M, 2] y) <bool go = {{1}}>
    {{
        y = Loop <body = step (int64 i, bool on, float[{declared}] h)
            => (bool still, float[] next)
        {{ next = Concat <axis = 0> (h, h)  still = Identity (on) }}> (n, go, x)
        loss = ReduceSum <keepdims = 0> (y)
    }}"""
    with pytest.raises(UsageError, match="its state 'x' changes its shape from step to step"):
        lower(parser.parse_model(text), ["x"])
