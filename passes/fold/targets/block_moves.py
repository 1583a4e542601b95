"""SpaceToDepth and DepthToSpace on codes as the Transpose of blocks that they are.

Where only the number of channels is known, one axis after the other: a Reshape leaves one size
open, and copies those before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.types import is_wide

_IMAGE_RANK = 4


def space_to_depth(
    node: ir.Node, codes: ir.Value | None, affine: AffineType, build: Builder
) -> ir.Value | None:
    """SpaceToDepth, which has no kernel for codes; None for 8 bits where a size is not known."""
    sizes, block = _sizes(codes), node.attributes.get_int("blocksize", 1)
    if codes is None:
        return None
    if sizes is None:
        return _gathered(codes, block, node, affine, build) if is_wide(affine) else None
    channels, rows, columns = sizes[0], sizes[1] // block, sizes[2] // block
    split = [0, channels, rows, block, columns, block]
    joined = [0, channels * block * block, rows, columns]
    return _shuffled(codes, split, [0, 3, 5, 1, 2, 4], joined, node.outputs[0], affine, build)


def wide_depth_to_space(
    node: ir.Node, codes: ir.Value | None, affine: AffineType, build: Builder
) -> ir.Value | None:
    """DepthToSpace, which has no kernel for 16 bits; None for 8."""
    sizes, block = _sizes(codes), node.attributes.get_int("blocksize", 1)
    if codes is None or not is_wide(affine):
        return None
    if sizes is None:
        return _spread(codes, block, node, affine, build)
    channels, rows, columns = sizes[0] // (block * block), sizes[1], sizes[2]
    joined = [0, channels, rows * block, columns * block]
    if node.attributes.get_string("mode", "DCR") == "DCR":
        split, perm = [0, block, block, channels, rows, columns], [0, 3, 4, 1, 5, 2]
    else:
        split, perm = [0, channels, block, block, rows, columns], [0, 1, 4, 2, 5, 3]
    return _shuffled(codes, split, perm, joined, node.outputs[0], affine, build)


def channels_of(value: ir.Value | None) -> int | None:
    """The number of channels of an image; None where it is not known."""
    if value is None or value.shape is None or len(value.shape) != _IMAGE_RANK:
        return None
    channels = value.shape[1]
    return channels if isinstance(channels, int) else None


def _spread(
    codes: ir.Value, block: int, node: ir.Node, affine: AffineType, build: Builder
) -> ir.Value:
    """DepthToSpace of an image whose channels are known."""
    channels = channels_of(node.inputs[0])
    assert channels is not None
    step = _Step(node.outputs[0], affine.dtype, build)
    rest = channels // block
    value = step.transpose(codes, [0, 3, 2, 1])
    if node.attributes.get_string("mode", "DCR") != "DCR":
        value = step.reshape(value, [0, 0, 0, rest // block, block * block])
        value = step.transpose(value, [0, 1, 2, 4, 3])
        value = step.reshape(value, [0, 0, 0, channels])
    value = step.transpose(step.reshape(value, [0, 0, -1, rest]), [0, 2, 1, 3])
    value = step.reshape(value, [0, 0, -1, rest // block])
    return step.transpose(value, [0, 3, 1, 2], last=True)


def _gathered(
    codes: ir.Value, block: int, node: ir.Node, affine: AffineType, build: Builder
) -> ir.Value:
    """SpaceToDepth of an image whose channels are known."""
    channels = channels_of(node.inputs[0])
    assert channels is not None
    step = _Step(node.outputs[0], affine.dtype, build)
    value = step.reshape(step.transpose(codes, [0, 2, 3, 1]), [0, 0, -1, block * channels])
    value = step.transpose(value, [0, 2, 1, 3])
    value = step.reshape(value, [0, 0, -1, block * block * channels])
    return step.transpose(value, [0, 3, 2, 1], last=True)


@dataclass(frozen=True)
class _Step:
    """Writes moves of values of ``dtype``, named after ``output``."""

    output: ir.Value
    dtype: ir.DataType
    build: Builder

    def reshape(self, value: ir.Value, sizes: list[int]) -> ir.Value:
        shape = self.build.constant(np.array(sizes, np.int64), "shape")
        return self.build.insert("Reshape", [value, shape], self.output, self.dtype, shape=None)

    def transpose(self, value: ir.Value, perm: list[int], *, last: bool = False) -> ir.Value:
        shape = self.output.shape if last else None
        attributes = {"perm": perm}
        return self.build.insert(
            "Transpose", [value], self.output, self.dtype, attributes=attributes, shape=shape
        )


def _sizes(value: ir.Value | None) -> list[int] | None:
    """Channels, rows and columns of an image; None where one is not known."""
    if value is None or value.shape is None:
        return None
    sizes = [size for size in list(value.shape)[1:] if isinstance(size, int)]
    return sizes if len(sizes) == 3 and 0 not in sizes else None


def _shuffled(
    codes: ir.Value,
    split: list[int],
    perm: list[int],
    joined: list[int],
    output: ir.Value,
    affine: AffineType,
    build: Builder,
) -> ir.Value:
    """``codes`` with axes split, transposed and joined again; 0 stands for the batch size."""
    assert codes.shape is not None
    dtype, batch = affine.dtype, codes.shape[0]

    def reshape(value: ir.Value, to: list[int]) -> ir.Value:
        shape = build.constant(np.array(to, np.int64), "shape")
        known = ir.Shape([batch, *to[1:]])
        return build.insert("Reshape", [value, shape], output, dtype, shape=known)

    blocks = reshape(codes, split)
    shape = ir.Shape([batch, *[split[axis] for axis in perm[1:]]])
    turned = build.insert(
        "Transpose", [blocks], output, dtype, attributes={"perm": perm}, shape=shape
    )
    return reshape(turned, joined)
