"""What rules of vision networks decide: ties, frozen statistics, kinds of Resize, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from fixtures.gradients.case import Array
from fixtures.gradients.check import check_gradient, lower, weighted_sum
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import DEPLOYMENT, Session


def parsed(text: str, opset: int = 21) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')


def gradient(text: str, feeds: dict[str, Array], of: str = "y", wrt: str = "x") -> Array:
    """The gradient of the plain sum."""
    model = lower(parsed(text), [wrt], of)
    return np.asarray(Session(model, DEPLOYMENT).run(feeds)[f"grad_{wrt}"])


def op_types(text: str, wrt: list[str]) -> list[str]:
    return [node.op_type for node in lower(weighted_sum(parsed(text)), wrt).graph.node]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("MaxPool<kernel_shape = [2,2], strides = [2,2]>", [[1, 0, 1, 0], [0, 0, 0, 0]]),
        ("MaxPool<kernel_shape = [2,2]>", [[1, 1, 1, 0], [0, 0, 0, 0]]),
        ("GlobalMaxPool", [[1, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_the_first_of_equal_maxima_takes_all(node: str, expected: list[list[int]]) -> None:
    text = f"g (float[1,1,2,4] x) => (float[a,b,c,d] y) {{ y = {node}(x) }}"
    found = gradient(text, {"x": np.zeros((1, 1, 2, 4), np.float32)})
    np.testing.assert_array_equal(found[0, 0], expected)


def test_indices_that_are_given_already_are_used() -> None:
    text = """g (float[1,1,4,4] x) => (float[1,1,2,2] y, int64[1,1,2,2] i) {
        y, i = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x) }"""
    model = lower(parsed(text), ["x"], "y")
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    unpool = next(node for node in model.graph.node if node.op_type == "MaxUnpool")
    assert list(pool.output) == ["y", "i"]
    assert unpool.input[1] == "i"


def test_disjoint_windows_are_not_scattered() -> None:
    apart = "MaxPool<kernel_shape = [2,2], strides = [2,2]>"
    text = "g (float[1,1,4,4] x) => (float[1,1,a,b] y) { y = NODE(x) }"
    assert "ScatterElements" not in op_types(text.replace("NODE", apart), ["x"])
    assert "MaxUnpool" not in op_types(text.replace("NODE", "MaxPool<kernel_shape = [2,2]>"), ["x"])


def test_frozen_statistics_stay_frozen() -> None:
    text = """g (float[2,3,4,4] x, float[3] s, float[3] b, float[3] m, float[3] v)
        => (float[2,3,4,4] y) { y = BatchNormalization(x, s, b, m, v) }"""
    lowered = lower(parsed(text), ["x"], "y")
    assert "ReduceMean" not in [node.op_type for node in lowered.graph.node]
    random = np.random.default_rng(0)
    feeds = {n: random.uniform(0.5, 2, 3).astype(np.float32) for n in "sbmv"}
    feeds["x"] = random.standard_normal((2, 3, 4, 4)).astype(np.float32)
    found = np.asarray(Session(lowered).run(feeds)["grad_x"])
    factor = feeds["s"] / np.sqrt(feeds["v"] + 1e-5)
    expected = np.broadcast_to(factor.reshape(1, 3, 1, 1), (2, 3, 4, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "attributes",
    [
        'mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric"',
        'mode = "linear", coordinate_transformation_mode = "asymmetric"',
        'mode = "cubic", cubic_coeff_a = -0.5, coordinate_transformation_mode = "asymmetric"',
        'mode = "cubic", exclude_outside = 1',
        'mode = "nearest", nearest_mode = "ceil"',
        'mode = "nearest", nearest_mode = "round_prefer_ceil"',
        'mode = "nearest", coordinate_transformation_mode = "align_corners"',
    ],
)
@pytest.mark.parametrize("given", ["float[4] r = {1.0, 1.0, 1.7, 0.6}", "int64[4] r = {1,2,5,3}"])
def test_resize(attributes: str, given: str) -> None:
    place = "r" if given.startswith("float") else ", r"
    text = f"""g (float[1,2,3,5] x) => (float[] y) <{given}> {{
        y = Resize<{attributes}>(x, , {place}) }}"""
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 5)).astype(np.float32)
    check_gradient(text, {"x": x}, symbols="batch", double=False)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resize_of_a_region(mode: str) -> None:
    text = f"""g (float[1,1,4,5] x) => (float[] y)
        <float[4] roi = {{0.2, -0.1, 0.9, 1.2}}, int64[2] sizes = {{3, 6}}> {{
        y = Resize<mode = "{mode}", coordinate_transformation_mode = "tf_crop_and_resize",
            extrapolation_value = 3.0, axes = [2,3]>(x, roi, , sizes) }}"""
    x = np.random.default_rng(0).standard_normal((1, 1, 4, 5)).astype(np.float32)
    check_gradient(text, {"x": x}, symbols="none", double=False)


def test_resize_to_sizes_of_run_time() -> None:
    text = """g (float[N,2,H,W] x, int64[4] sizes) => (float[N,2,A,B] y) {
        y = Resize<mode = "linear">(x, , , sizes) }"""
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 5)).astype(np.float32)
    found = gradient(text, {"x": x, "sizes": np.array([1, 2, 6, 10])})
    # Each of two by two halves of a pixel is a mean of neighbours: four in all.
    np.testing.assert_allclose(found, np.full_like(x, 4.0), rtol=1e-6)


def test_pads_of_run_time() -> None:
    for mode, expected in (("constant", [1, 1, 1]), ("edge", [3, 1, 2]), ("reflect", [1, 3, 2])):
        text = f"""g (float[N,W] x, int64[2] p) => (float[N,M] y) <int64[1] axes = {{1}}> {{
            y = Pad<mode = "{mode}">(x, p, , axes) }}"""
        found = gradient(text, {"x": np.ones((1, 3), np.float32), "p": np.array([2, 1])})
        assert found.tolist() == [expected]


def test_group_normalization_of_a_scale_a_group() -> None:
    nodes = """s2 = Reshape(s, g) one = Constant<value_ints = [1,2]>() t = Expand(s2, one)
        flat = Constant<value_ints = [-1]>() s4 = Reshape(t, flat)
        b2 = Reshape(b, g) u = Expand(b2, one) b4 = Reshape(u, flat)"""
    inputs = "float[2,4,3] x, float[2] s, float[2] b"
    old = f"g ({inputs}) => (float[2,4,3] y) {{ y = GroupNormalization<num_groups = 2>(x, s, b) }}"
    new = f"""g ({inputs}) => (float[2,4,3] y) <int64[2] g = {{2,1}}> {{ {nodes}
        y = GroupNormalization<num_groups = 2>(x, s4, b4) }}"""
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        "x": random.standard_normal((2, 4, 3)).astype(np.float32),
        "s": random.standard_normal(2).astype(np.float32),
        "b": random.standard_normal(2).astype(np.float32),
        "weights_of_y": random.standard_normal((2, 4, 3)).astype(np.float32),
    }
    results = [
        Session(lower(weighted_sum(parsed(text, opset)), ["x", "s", "b"], check=False)).run(feeds)
        for text, opset in ((old, 18), (new, 21))
    ]
    for name in ("grad_x", "grad_s", "grad_b"):
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["half_pixel", "output_half_pixel"])
def test_roi_align(how: str) -> None:
    text = f"""g (float[2,2,6,5] x, float[3,4] r, int64[3] i) => (float[] y) {{
        y = RoiAlign<output_height = 2, output_width = 3, sampling_ratio = 2, spatial_scale = 0.5,
            coordinate_transformation_mode = "{how}">(x, r, i) }}"""
    regions = np.array([[0, 0, 7, 9], [2.3, 1, 13, 8], [-5, -3, 4, 3.5]], np.float32)
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 5)).astype(np.float32)
    feeds = {"x": x, "r": regions, "i": np.array([0, 1, 1])}
    check_gradient(text, feeds, ["x"], symbols="batch", double=False)
    # A change of a region moves samples over kinks more easily than those of an image.
    check_gradient(text, feeds, ["r"], symbols="none", double=False, tolerance=1e-4)


@dataclass(frozen=True)
class Deformed:
    """DeformConv of kernels of 2 by 2 in float64; the reference evaluator rounds its offsets."""

    stride: int
    dilation: int
    pads: tuple[int, int]
    groups: int

    def __call__(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        x, weight, offset = feeds["x"], feeds["w"], feeds["o"]
        n, space = len(x), offset.shape[2:]
        moved = offset.reshape(n, self.groups, 4, 2, *space)
        mask = feeds["m"].reshape(n, self.groups, 4, *space) if "m" in feeds else np.ones(())
        result = np.zeros((n, len(weight), *space))
        owners = [channel * self.groups // x.shape[1] for channel in range(x.shape[1])]
        starts: list[Array] = [
            np.arange(space[0]).reshape(-1, 1) * self.stride,
            np.arange(space[1]) * self.stride,
        ]
        per_group = len(weight) * weight.shape[1] // x.shape[1]
        for tap, channel in itertools.product(range(4), range(x.shape[1])):
            places = [
                moved[:, owners[channel], tap, axis]
                + starts[axis]
                + (tap // 2, tap % 2)[axis] * self.dilation
                - self.pads[axis]
                for axis in (0, 1)
            ]
            read = np.zeros((n, *space))
            for i, j in itertools.product(range(x.shape[2]), range(x.shape[3])):
                near = np.maximum(1 - np.abs(places[0] - i), 0)
                near = near * np.maximum(1 - np.abs(places[1] - j), 0)
                read += near * x[:, channel, i, j].reshape(-1, 1, 1)
            if mask.ndim:
                read = read * mask[:, owners[channel], tap]
            group, inside = divmod(channel, weight.shape[1])
            for out in range(group * per_group, (group + 1) * per_group):
                result[:, out] += weight[out, inside, tap // 2, tap % 2] * read
        return [result + feeds["b"].reshape(-1, 1, 1) if "b" in feeds else result]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attributes", "how", "given"),
    [
        (
            "strides = [2,2], pads = [1,1,0,0], group = 2, offset_group = 2",
            Deformed(2, 1, (1, 1), 2),
            "x, w, o, b, m",
        ),
        ("dilations = [2,2], pads = [1,0,0,1]", Deformed(1, 2, (1, 0), 1), "x, w, o"),
    ],
)
def test_deform_conv(attributes: str, how: Deformed, given: str) -> None:
    random = np.random.default_rng(0)
    shapes = {
        "x": (2, 2, 4, 3),
        "w": (4, 2 // how.groups, 2, 2),
        "o": (2, 8 * how.groups, *((2, 2) if how.stride == 2 else (3, 2))),
        "b": (4,),
        "m": (2, 4 * how.groups, 2, 2),
    }
    feeds = {n: random.standard_normal(shapes[n]).astype(np.float32) for n in given.split(", ")}
    declared = ", ".join(f"float[{','.join(map(str, shapes[n]))}] {n}" for n in feeds)
    text = f"g ({declared}) => (float[] y) {{ y = DeformConv<{attributes}>({given}) }}"
    check_gradient(text, feeds, opset=22, symbols="batch", double=False, forward=how)


def test_norms_of_nothing_have_no_gradient() -> None:
    for node in ("LpPool<kernel_shape = [2,2]>", "GlobalLpPool", "LpNormalization<axis = 1>"):
        text = f"g (float[1,2,2,2] x) => (float[a,b,c,d] y) {{ y = {node}(x) }}"
        found = gradient(text, {"x": np.zeros((1, 2, 2, 2), np.float32)})
        np.testing.assert_array_equal(found, np.zeros((1, 2, 2, 2)))


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("MaxPool<kernel_shape = [2,2], storage_order = 1>(x)", "column-major"),
        ("LRN<size = 3>(c)", "number of channels"),
        ('Conv<auto_pad = "SAME_UPPER", strides = [2,2]>(c, w)', "pads of auto_pad"),
        ("ConvTranspose<group = 2>(c, u)", "has groups"),
        ("Conv(c, k)", "size of its kernel"),
        ("RoiAlign(x, r, i)", "fixed number of samples"),
        ("MaxRoiPool<pooled_shape = [2,2]>(x, q)", "RoiAlign has a gradient"),
        (
            'Resize<keep_aspect_ratio_policy = "not_larger", axes = [2,3]>(x, , , sizes)',
            "aspect ratio",
        ),
    ],
)
def test_refusals(node: str, reason: str) -> None:
    text = f"""g (float[1,4,4,4] x, float[1,C,H,W] c, float[2,4,3,3] w, float[I,O,3,3] u,
        float[2,4,K,L] k, float[5,4] r, int64[5] i, float[5,5] q)
        => (float[a,b,d,e] y) <int64[2] sizes = {{3,3}}> {{ y = {node} }}"""
    wrt = ["c" if "c" in node.partition("(")[2] else "x", "u"]
    with pytest.raises(UsageError, match=reason):
        lower(parsed(text), wrt, "y")


def test_weights_of_1x1_convolutions_need_no_copies_of_taps() -> None:
    text = """g (float[2,9,4,4] x, float[8,9,1,1] w) => (float[2,8,4,4] y) {
        y = Conv(x, w) }"""
    assert not {"Slice", "Pad", "Concat"} & set(op_types(text, ["w"]))


def test_dynamic_sizes_cost_nothing_where_the_stride_is_one() -> None:
    text = """g (float[N,3,H,W] x, float[4,3,3,3] w) => (float[N,4,H,W] y) {
        y = Conv<pads = [1,1,1,1]>(x, w) }"""
    assert "Slice" not in op_types(text, ["x"])


def test_a_batch_of_minus_one_is_unknown() -> None:
    text = """g (float[2,3,4,4] x, float[4,3,3,3] w) => (float[2,4] y) {
        c = Conv(x, w) p = GlobalMaxPool(c) y = Flatten(p) }"""
    model = parsed(text)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    lowered = lower(model, ["x", "w"], "y", check=False)
    random = np.random.default_rng(0)
    feeds = {
        "x": random.standard_normal((5, 3, 4, 4)).astype(np.float32),
        "w": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
    }
    lowered.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    del lowered.graph.value_info[:]
    found = Session(lowered).run(feeds)
    expected = Session(lower(parsed(text.replace("[2,", "[5,")), ["x", "w"], "y")).run(feeds)
    for name in ("grad_x", "grad_w"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
