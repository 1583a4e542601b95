"""Rewrites fake-quantized ConvTranspose as Conv, for which there are integer kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.types import DEQUANTIZE, TypeState, is_dequantize
from onnxfold.passes.fold.wants import find_wants
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs

_TO_THE_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class LowerConvTranspose(Pass):
    """Rewrite ConvTranspose between Dequantize- and QuantizeLinear as Conv and a shuffle.

    Output s m + r of a stride s reads only the taps r, r + s, r + 2 s ... of the kernel: each of
    the s phases is an ordinary convolution, and all phases are one Conv with s times as many
    channels (per spatial axis), interleaved by DepthToSpace and cropped (Shi et al., "Is the
    deconvolution layer the same as a convolutional layer?", 2016). The codes of the weights are
    only moved; where a phase has fewer taps, codes of zero are added.
    """

    name: ClassVar[str] = "lower-conv-transpose"
    contract: ClassVar[Contract] = Contract.INTEGER

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Rewrite each ConvTranspose whose data, weights and result are quantized."""
        graphs = tuple(all_graphs(model))
        types = TypeState(recode=False)
        find_wants(graphs, types)
        for node in [each for graph in graphs for each in graph]:
            if node.op_type != "ConvTranspose" or node.domain:
                continue
            if types.want(node.outputs[0]) is None:
                continue
            found = _Transposed.match(node, types)
            if isinstance(found, str):
                rewriter.remark(node, found)
            elif found is not None:
                found.rewrite(rewriter)


@dataclass(frozen=True, eq=False)
class _Axis:
    """One spatial axis of a ConvTranspose.

    Attributes:
        size: Taps of the kernel, spread by its dilation.
        stride: Its stride, the number of phases.
        begin: What is cropped in front.
        end: What is cropped behind; negative where output_padding exceeds it.
    """

    size: int
    stride: int
    begin: int
    end: int

    @property
    def taps(self) -> int:
        """Taps of one phase."""
        return -(-self.size // self.stride)

    @property
    def surplus(self) -> int:
        """Outputs behind the last one wanted, with ``taps - 1`` of padding on either side."""
        return self.stride * self.taps - self.size + self.end

    @property
    def pads(self) -> tuple[int, int]:
        """Padding of the Conv: as little as the wanted outputs need."""
        begin = max(self.taps - 1 - self.begin // self.stride, 0)
        return begin, max(self.taps - 1 - self.surplus // self.stride, 0)

    @property
    def crop(self) -> tuple[int, int]:
        """Outputs of the interleaved phases to drop in front and behind."""
        begin, end = self.pads
        spare = self.taps - 1
        front = self.begin - (spare - begin) * self.stride
        return front, self.surplus - (spare - end) * self.stride


@dataclass(frozen=True, eq=False)
class _Transposed:
    """A ConvTranspose that can be rewritten.

    Attributes:
        node: The operator.
        affine: The type of its weights.
        codes: Their codes, [C, M / group, k...].
        bias: Its real bias, [M], or None.
        axes: Its spatial axes.
        groups: Its groups.
    """

    node: ir.Node
    affine: AffineType
    codes: Array
    bias: Array | None
    axes: tuple[_Axis, ...]
    groups: int

    @classmethod
    def match(cls, node: ir.Node, types: TypeState) -> _Transposed | str | None:
        """``node`` taken apart; None where it is not quantized, a reason where it cannot be."""
        weights = None if node.inputs[1] is None else node.inputs[1].producer()
        if weights is None or not is_dequantize(weights) or node.inputs[0] is None:
            return None
        affine, codes = types.parameters(weights), constant_array(weights.inputs[0])
        if affine is None or codes is None:
            return None
        if affine.axis not in (None, 1):
            return f"its weights have one scale per index of axis {affine.axis}, not 1"
        groups = node.attributes.get_int("group", 1)
        bias = None if len(node.inputs) < 3 else node.inputs[2]
        real_bias = None if bias is None else _real(bias, types)
        if bias is not None and real_bias is None:
            return f"its bias '{bias.name}' is not constant"
        axes = _axes(node, codes.shape[2:])
        if isinstance(axes, str):
            return axes
        spread = _spread(codes, affine, node.attributes.get_ints("dilations"))
        found = cls(node, affine, spread, real_bias, axes, groups)
        if not found._interleaves():
            return "its strides differ and its sizes are not known"
        return found

    def rewrite(self, rewriter: Rewriter) -> None:
        """Put Conv, the shuffle and the crop in its place."""
        node = self.node
        with rewriter.step(LowerConvTranspose.name, node):
            phases = self._convolution(rewriter)
            real = self._interleaved(phases, rewriter)
            rewriter.replace_node(node, [self._cropped(real, rewriter)])

    @property
    def _phases(self) -> int:
        return math.prod(axis.stride for axis in self.axes)

    @property
    def _phases_first(self) -> bool:
        """Whether all channels of a phase lie side by side: then DepthToSpace moves whole pixels.

        Within groups they cannot.
        """
        return self.groups == 1 and self._square()

    def _for_phases(self, channels: Array) -> Array:
        """One number a channel, for each phase of it."""
        count = self._phases
        return np.tile(channels, count) if self._phases_first else np.repeat(channels, count)

    def _convolution(self, rewriter: Rewriter) -> ir.Value:
        node, name = self.node, self.node.outputs[0].name or "conv"
        scale, zero_point = self.affine.scale, self.affine.zero_point
        axis = None
        if self.affine.axis is not None:
            # [M / group] for each group; a phase is a channel of its own.
            scale, zero_point = (
                self._for_phases(np.tile(each, self.groups)) for each in (scale, zero_point)
            )
            axis = {"axis": 0}
        weights = rewriter.insert(
            node,
            DEQUANTIZE,
            [
                rewriter.constant(node, self._weights(), name=f"{name}_weights"),
                rewriter.constant(node, scale, name=f"{name}_scale"),
                rewriter.constant(node, zero_point, name=f"{name}_zero_point"),
            ],
            name=f"{name}_dequantized",
            attributes=axis,
            dtype=ir.DataType.FLOAT,
        )
        inputs = [node.inputs[0], weights]
        if self.bias is not None:
            bias = self._for_phases(self.bias)
            inputs.append(rewriter.constant(node, bias, name=f"{name}_bias"))
        pads = [axis.pads for axis in self.axes]
        return rewriter.insert(
            node,
            "Conv",
            inputs,
            name=f"{name}_phases",
            attributes={
                "group": self.groups,
                "kernel_shape": [axis.taps for axis in self.axes],
                "pads": [begin for begin, _ in pads] + [end for _, end in pads],
            },
            dtype=ir.DataType.FLOAT,
            shape=self._shape(self._sizes(1), self._phases),
        )

    def _weights(self) -> Array:
        """Codes [M * phases, C / group, taps...], in the order of ``_for_phases``."""
        codes, groups = self.codes, self.groups
        zero = self.affine.zero_point.reshape(
            [-1 if self.affine.axis else 1] + [1] * len(self.axes)
        )
        zero = np.broadcast_to(zero.astype(codes.dtype), (codes.shape[1],) + (1,) * len(self.axes))
        whole = [axis.taps * axis.stride for axis in self.axes]
        padded = np.empty([*codes.shape[:2], *whole], codes.dtype)
        padded[...] = zero
        padded[(..., *(slice(0, axis.size) for axis in self.axes))] = codes
        rank = len(self.axes)
        split = [each for axis in self.axes for each in (axis.taps, axis.stride)]
        inputs = codes.shape[0] // groups
        phased: Array = padded.reshape([groups, inputs, codes.shape[1], *split])
        taps = [3 + 2 * index for index in range(rank)]
        strides = [4 + 2 * index for index in range(rank)]
        order = [*strides, 2] if self._phases_first else [2, *strides]
        turned: Array = np.transpose(phased, [0, *order, 1, *taps])
        flipped: Array = np.flip(turned, axis=tuple(range(turned.ndim - rank, turned.ndim)))
        outputs = groups * codes.shape[1] * self._phases
        shape = [outputs, inputs, *(axis.taps for axis in self.axes)]
        return np.ascontiguousarray(flipped).reshape(shape)

    def _interleaves(self) -> bool:
        """Whether the phases can be interleaved: see ``_interleaved``."""
        if len(self.axes) == 1 or self._square():
            return True
        return all(size is not None for size in self._sizes(1))

    def _square(self) -> bool:
        return len(self.axes) == 2 and self.axes[0].stride == self.axes[1].stride

    def _interleaved(self, phases: ir.Value, rewriter: Rewriter) -> ir.Value:
        name = f"{self.node.outputs[0].name}_interleaved"
        if self._phases == 1:
            return phases
        shape = self._shape(self._sizes(None), 1)
        if self._square():
            mode = "DCR" if self._phases_first else "CRD"
            block = {"blocksize": self.axes[0].stride, "mode": mode}
            return rewriter.insert(
                self.node,
                "DepthToSpace",
                [phases],
                name=name,
                attributes=block,
                dtype=ir.DataType.FLOAT,
                shape=shape,
            )
        rank, channels = len(self.axes), self.groups * self.codes.shape[1]
        strides = [axis.stride for axis in self.axes]
        inner = [-1] if rank == 1 else [size or 0 for size in self._sizes(1)]
        split = self._reshape(phases, [0, channels, *strides, *inner], name, rewriter)
        order = [0, 1]
        for index in range(rank):
            order += [2 + rank + index, 2 + index]
        turned = rewriter.insert(
            self.node,
            "Transpose",
            [split],
            name=name,
            attributes={"perm": order},
            dtype=ir.DataType.FLOAT,
        )
        outer = [-1] if rank == 1 else [a * b for a, b in zip(inner, strides, strict=True)]
        joined = self._reshape(turned, [0, channels, *outer], name, rewriter)
        rewriter.set_type(joined, ir.DataType.FLOAT, shape)
        return joined

    def _reshape(
        self, value: ir.Value, sizes: list[int], name: str, rewriter: Rewriter
    ) -> ir.Value:
        shape = rewriter.constant(self.node, np.asarray(sizes, np.int64), name=f"{name}_shape")
        return rewriter.insert(
            self.node, "Reshape", [value, shape], name=name, dtype=ir.DataType.FLOAT
        )

    def _cropped(self, value: ir.Value, rewriter: Rewriter) -> ir.Value:
        crops = [axis.crop for axis in self.axes]
        if not any(begin or end for begin, end in crops):
            return value
        name = f"{self.node.outputs[0].name}_cropped"
        bounds = [
            [begin for begin, _ in crops],
            [-end if end else _TO_THE_END for _, end in crops],
            [2 + index for index in range(len(crops))],
        ]
        constants = [
            rewriter.constant(self.node, np.asarray(each, np.int64), name=f"{name}_{what}")
            for each, what in zip(bounds, ("starts", "ends", "axes"), strict=True)
        ]
        return rewriter.insert(
            self.node,
            "Slice",
            [value, *constants],
            name=name,
            dtype=ir.DataType.FLOAT,
            shape=self._shape([self._length(i) for i in range(len(crops))], 1),
        )

    def _length(self, index: int) -> int | None:
        """The size of the result along one spatial axis."""
        whole, (begin, end) = self._sizes(None)[index], self.axes[index].crop
        return None if whole is None else whole - begin - end

    def _sizes(self, stride: int | None) -> list[int | None]:
        """Spatial sizes of the Conv's output (stride 1) or of the phases interleaved (None)."""
        source = self.node.inputs[0]
        shape = None if source is None else source.shape
        sizes: list[int | None] = []
        for index, axis in enumerate(self.axes):
            length = None if shape is None else shape[2 + index]
            begin, end = axis.pads
            count = length + begin + end - axis.taps + 1 if isinstance(length, int) else None
            factor = stride or axis.stride
            sizes.append(None if count is None else count * factor)
        return sizes

    def _shape(self, sizes: list[int | None], phases: int) -> ir.Shape:
        source = self.node.inputs[0]
        batch = None if source is None or source.shape is None else source.shape[0]
        return ir.Shape([batch, self.groups * self.codes.shape[1] * phases, *sizes])


def _real(value: ir.Value, types: TypeState) -> Array | None:
    array = constant_array(value)
    if array is not None:
        return array.astype(np.float32).reshape(-1)
    producer = value.producer()
    if producer is None or not is_dequantize(producer):
        return None
    affine, codes = types.parameters(producer), constant_array(producer.inputs[0])
    if affine is None or codes is None:
        return None
    return affine.dequantize(codes).reshape(-1)


def _spread(codes: Array, affine: AffineType, dilations: Sequence[int] | None) -> Array:
    """The kernel with the codes of zero between its taps that its dilation leaves out."""
    steps = dilations or ()
    if all(step == 1 for step in steps):
        return codes
    sizes = [(size - 1) * step + 1 for size, step in zip(codes.shape[2:], steps, strict=True)]
    zero = affine.zero_point.astype(codes.dtype)
    fill = zero.reshape([1, -1] + [1] * len(sizes)) if affine.axis is not None else zero
    spread = np.empty([*codes.shape[:2], *sizes], codes.dtype)
    spread[...] = fill
    spread[(..., *(slice(None, None, step) for step in steps))] = codes
    return spread


def _axes(node: ir.Node, kernel: tuple[int, ...]) -> tuple[_Axis, ...] | str:
    """The spatial axes; a reason where their cropping is not known."""
    rank = len(kernel)
    attributes = node.attributes
    strides = attributes.get_ints("strides") or (1,) * rank
    dilations = attributes.get_ints("dilations") or (1,) * rank
    padding = attributes.get_ints("output_padding") or (0,) * rank
    pads = attributes.get_ints("pads") or (0,) * (2 * rank)
    if "output_shape" in attributes:
        return "its output_shape decides the cropping at run time"
    mode = attributes.get_string("auto_pad", "NOTSET")
    axes: list[_Axis] = []
    for index in range(rank):
        size = (kernel[index] - 1) * dilations[index] + 1
        begin, end = pads[index], pads[index + rank]
        if mode == "VALID":
            begin = end = 0
        elif mode != "NOTSET":
            # The output is stride times as long as the data, whatever its length.
            total = max(size - strides[index] + padding[index], 0)
            begin = total - total // 2 if mode == "SAME_LOWER" else total // 2
            end = total - begin
        axes.append(_Axis(size, strides[index], begin, end - padding[index]))
    return tuple(axes)
