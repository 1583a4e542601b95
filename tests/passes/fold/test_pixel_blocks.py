"""Blocks of pixels: the axes and weights of a convolution of blocks, and which are chosen."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.fold.default_costs import DEFAULT_COSTS
from onnxfold.passes.fold.targets.pixel_blocks import Axis, Block, Layer, Merging, fastest, layer_of


@pytest.mark.parametrize(
    ("axis", "block", "expected"),
    [
        # 3 taps, stride 2, padded behind: two results read five pixels, those of two blocks.
        (Axis(96, 48, 3, 2, 1, 0), Block(4, 2), Axis(24, 24, 2, 1, 1, 0)),
        (Axis(96, 48, 3, 2, 1, 0), Block(4, 4), Axis(24, 12, 3, 2, 1, 0)),
        # Padded on both sides: a block in front and one behind.
        (Axis(48, 48, 3, 1, 1, 1), Block(4, 4), Axis(12, 12, 3, 1, 1, 1)),
        (Axis(48, 48, 3, 1, 1, 1), Block(1, 4), Axis(48, 12, 6, 4, 1, 1)),
        # A whole row: padding adds nothing.
        (Axis(10, 5, 4, 2, 1, 1), Block(10, 5), Axis(1, 1, 1, 1, 1, 0)),
        (Axis(10, 5, 4, 2, 1, 1), Block(2, 5), Axis(5, 1, 5, 5, 1, 0)),
        # Taps apart from each other.
        (Axis(12, 8, 3, 1, 2, 0), Block(4, 4), Axis(3, 2, 2, 1, 1, 0)),
    ],
)
def test_an_axis_in_blocks(axis: Axis, block: Block, expected: Axis) -> None:
    assert block.of(axis) == expected
    assert expected.is_exact


def test_padding_behind_is_what_the_last_window_needs() -> None:
    assert Axis(96, 48, 3, 2, 1, 0).after == 1
    assert Axis(48, 48, 3, 1, 1, 1).after == 1
    assert Axis(8, 2, 1, 2, 1, 0).after == 0
    assert not Axis(8, 2, 1, 2, 1, 0).is_exact, "it writes four"


def test_weights_lie_where_the_pixel_is_under_the_kernel() -> None:
    axis = Axis(8, 8, 3, 1, 1, 1)
    merged = Block(4, 2).merge(np.array([5, 6, 7], np.int8).reshape(1, 1, 3, 1), axis)
    # Results 0 and 1 read the pixels -1, 0, 1 and 0, 1, 2, in blocks -4..-1 and 0..3.
    assert merged.shape == (2, 4, 2, 1)
    assert merged[0, :, :, 0].T.tolist() == [[0, 0, 0, 5], [6, 7, 0, 0]]
    assert merged[1, :, :, 0].T.tolist() == [[0, 0, 0, 0], [5, 6, 7, 0]]


def _layer(
    channels: tuple[int, int] = (3, 8),
    size: int = 96,
    taps: int = 3,
    stride: int = 2,
    before: int = 0,
    group: int = 1,
) -> Layer:
    axis = Axis(size, size // stride, taps, stride, 1, before)
    return Layer(1, *channels, group, axis, axis)


@pytest.mark.parametrize(
    ("layer", "merging"),
    [
        (_layer(), Merging(Block(), Block(4, 4))),
        (_layer((8, 8), 48, stride=1, before=1, group=8), Merging(Block(), Block(1, 4))),
        (
            Layer(1, 1, 64, 1, Axis(50, 25, 10, 2, 1, 4), Axis(10, 5, 4, 2, 1, 1)),
            Merging(Block(2, 1), Block(10, 5)),
        ),
    ],
)
def test_blocks_of_first_layers(layer: Layer, merging: Merging) -> None:
    found = fastest(layer, DEFAULT_COSTS, 1e6)
    assert found is not None
    assert found[0] == merging
    assert fastest(layer, DEFAULT_COSTS, found[1]) is None


@pytest.mark.parametrize(
    "layer",
    [
        _layer((16, 16)),
        _layer((64, 64), group=64),
        _layer(size=46, stride=1, before=1, channels=(3, 3)),
    ],
    ids=["many channels", "many groups", "sizes without divisors"],
)
def test_layers_that_stay(layer: Layer) -> None:
    assert fastest(layer, DEFAULT_COSTS, 1e6) is None


@pytest.mark.parametrize(
    ("auto_pad", "pads"), [("SAME_UPPER", (0, 1)), ("SAME_LOWER", (1, 2)), ("VALID", (0, 0))]
)
def test_padding_that_follows_from_sizes(auto_pad: str, pads: tuple[int, int]) -> None:
    valid = auto_pad == "VALID"
    data = ir.Value(name="x", shape=ir.Shape(["N", 1, 8, 9]))
    result = ir.Value(name="y", shape=ir.Shape(["N", 4, 3 if valid else 4, 2 if valid else 3]))
    node = ir.Node(
        "",
        "QLinearConv",
        [data],
        [ir.AttrInt64s("strides", [2, 3]), ir.AttrString("auto_pad", auto_pad)],
        outputs=[result],
    )
    layer = layer_of(node, data, result, np.ones((4, 1, 3, 6), np.int8))
    assert layer is not None
    assert (layer.rows.before, layer.columns.before) == pads
    assert layer.batch == 1


@pytest.mark.parametrize("shape", [(1, 3, None, 8), (1, 3, 8), None])
def test_sizes_that_are_not_known(shape: tuple[int | None, ...] | None) -> None:
    data = ir.Value(name="x", shape=None if shape is None else ir.Shape(shape))
    result = ir.Value(name="y", shape=ir.Shape((1, 4, 8, 8)))
    node = ir.Node("", "QLinearConv", [data], outputs=[result])
    assert layer_of(node, data, result, np.ones((4, 3, 1, 1), np.int8)) is None
