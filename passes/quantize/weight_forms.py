"""How weights in codes are written down: as DequantizeLinear, or for ONNX Runtime's own kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.nbits import packed_weights, packed_zero_points, plain_block_size
from onnxfold.passes.quantize.row_scales import type_of_blocks, type_of_channels
from onnxfold.passes.quantize.schemes import WeightRanges
from onnxfold.passes.quantize.weight_sites import WeightSite
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.unused import drop_unused

_CONTRIB = "com.microsoft"
_TYPES = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """Weights as codes.

    Attributes:
        codes: Of the type of ``kind``, of the weights' shape.
        kind: What they stand for.
        bits: 4 or 8.
        name: Base of the names of constants.
    """

    codes: Array
    kind: AffineType
    bits: int
    name: str

    @classmethod
    def of(
        cls, site: WeightSite, bits: int, block: int, *, symmetric: bool, ranges: WeightRanges
    ) -> StoredWeights:
        """Quantize the weights of ``site``; ``block`` 0 means one scale a column, or a row."""
        dtype = _TYPES[bits, symmetric]
        if block or site.is_table:
            block = block or site.weights.shape[1]
            kind = type_of_blocks(site.weights, site.axis, block, dtype, ranges)
        else:
            kind = type_of_channels(site.weights, 1, dtype, ranges)
        name = str(site.source.name)
        return cls(kind.quantize(site.weights), kind, bits, name)

    @property
    def symmetric(self) -> bool:
        """Whether all zero points are those that are implied."""
        return self.kind.limits[0] < 0

    def parameters(self) -> dict[str, Array]:
        """Codes, scales and, where they are not implied, zero points by name."""
        arrays = {"quantized": self.codes, "scale": self.kind.scale}
        return arrays if self.symmetric else {**arrays, "zero_point": self.kind.zero_point}

    def unsigned(self) -> Array:
        """uint8 codes; signed ones have the middle of the type added."""
        offset = 1 << (self.bits - 1) if self.symmetric else 0
        return (self.codes.astype(np.int16) + offset).astype(np.uint8)


def write_standard(site: WeightSite, stored: StoredWeights, rewriter: Rewriter) -> None:
    """Write weights as DequantizeLinear; of a table rows are gathered first."""
    kind = stored.kind
    block: dict[str, AttributeValue] = {"block_size": kind.block} if kind.block else {}
    with rewriter.step("store-weights", site.node):
        if site.is_table:
            _write_rows(site, stored, rewriter)
            drop_unused(site.source, rewriter)
            return
        constants = _constants(site, stored, stored.parameters(), rewriter)
        real = rewriter.insert(
            site.node,
            "DequantizeLinear",
            constants,
            name=f"{stored.name}_dequantized",
            attributes={"axis": kind.axis or 0, **block},
            dtype=ir.DataType.FLOAT,
            shape=site.weights.shape,
        )
        if site.node.op_type == "Gemm":
            _write_product(site, "MatMul", [site.data, real], {}, rewriter)
        else:
            rewriter.set_input(site.node, 1, real)
        drop_unused(site.source, rewriter)


Write = Callable[[WeightSite, "StoredWeights", Rewriter], None]


def write_for_onnxruntime(accuracy_level: int) -> Write:
    """Writes MatMulNBits of an accuracy level, and GatherBlockQuantized."""

    def write(site: WeightSite, stored: StoredWeights, rewriter: Rewriter) -> None:
        if site.is_table and stored.bits == 8:
            write_standard(site, stored, rewriter)
            return
        with rewriter.step("pack-weights", site.node):
            if site.is_table:
                _write_lookup(site, stored, rewriter)
            else:
                _write_packed(site, stored, accuracy_level, rewriter)
            drop_unused(site.source, rewriter)

    return write


def _write_rows(site: WeightSite, stored: StoredWeights, rewriter: Rewriter) -> None:
    """Gather codes, scales and zero points, then dequantize: the table is never dequantized.

    Gather takes no 4-bit integers: two columns share a byte, and are taken apart again.
    """
    node, output = site.node, site.node.outputs[0]
    arrays = stored.parameters()
    if stored.bits == 4:
        arrays["quantized"] = _halves(stored.unsigned())
        if not stored.symmetric:
            arrays["zero_point"] = stored.kind.zero_point.astype(np.uint8)
    gathered: list[ir.Value | None] = [
        rewriter.insert(
            node,
            "Gather",
            [value, site.data],
            name=f"{output.name}_rows",
            attributes={"axis": 0},
            dtype=value.dtype,
        )
        for value in _constants(site, stored, arrays, rewriter)
    ]
    if stored.bits == 4:
        gathered[0] = _unpacked(site, gathered[0], rewriter, signed=stored.symmetric)
    real = rewriter.insert(
        node,
        "DequantizeLinear",
        gathered,
        name=f"{output.name}_dequantized",
        attributes={"axis": -1, "block_size": stored.kind.block},
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    rewriter.replace_node(node, [real])


def _halves(codes: Array) -> Array:
    """4-bit codes, the second half of the columns in the upper bits of the first."""
    low, high = np.split(codes, 2, axis=1)
    packed: Array = low | (high << 4)
    return packed


def _unpacked(
    site: WeightSite, packed: ir.Value | None, rewriter: Rewriter, *, signed: bool
) -> ir.Value:
    """The inverse of ``_halves`` on gathered rows, as uint8 or int8."""
    node, name = site.node, site.node.outputs[0].name

    def insert(op_type: str, inputs: list[ir.Value | None], **attributes: int | str) -> ir.Value:
        dtype = ir.DataType.INT8 if op_type in ("Cast", "Sub") else ir.DataType.UINT8
        return rewriter.insert(
            node, op_type, inputs, name=f"{name}_codes", attributes=attributes, dtype=dtype
        )

    def constant(value: int, dtype: ir.DataType) -> ir.Value:
        return rewriter.constant(node, np.array(value, dtype.numpy()), name=f"{name}_{value}")

    low = insert("BitwiseAnd", [packed, constant(15, ir.DataType.UINT8)])
    high = insert("BitShift", [packed, constant(4, ir.DataType.UINT8)], direction="RIGHT")
    codes = insert("Concat", [low, high], axis=-1)
    if not signed:
        return codes
    cast = insert("Cast", [codes], to=int(ir.DataType.INT8))
    return insert("Sub", [cast, constant(8, ir.DataType.INT8)])


def _write_lookup(site: WeightSite, stored: StoredWeights, rewriter: Rewriter) -> None:
    width = site.weights.shape[1]
    block = stored.kind.block
    arrays = stored.parameters()
    if block >= width:
        # One scale a row: blocks have to be powers of two.
        block = plain_block_size(width)
        for name in [each for each in arrays if each != "quantized"]:
            arrays[name] = np.repeat(arrays[name], -(-width // block), axis=1)
    codes, *others = _constants(site, stored, arrays, rewriter)
    output = site.node.outputs[0]
    rows = rewriter.insert(
        site.node,
        "GatherBlockQuantized",
        [codes, site.data, *others],
        name=f"{output.name}_lookup",
        attributes={"gather_axis": 0, "quantize_axis": 1, "block_size": block},
        domain=_CONTRIB,
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    rewriter.replace_node(site.node, [rows])


def _write_packed(
    site: WeightSite, stored: StoredWeights, accuracy_level: int, rewriter: Rewriter
) -> None:
    depth, columns = site.weights.shape
    kind = stored.kind
    block = kind.block or plain_block_size(depth)
    blocks = -(-depth // block)
    scales: Array = np.broadcast_to(kind.scale, (blocks, columns))
    arrays: dict[str, Array] = {
        "packed": packed_weights(stored.unsigned(), stored.bits, block),
        "scale": np.transpose(scales).flatten(),
    }
    if not stored.symmetric:
        zero_points: Array = np.broadcast_to(kind.zero_point.astype(np.uint8), scales.shape)
        arrays["zero_point"] = packed_zero_points(zero_points, stored.bits)
    inputs = [site.data, *_constants(site, stored, arrays, rewriter)]
    attributes = {
        "K": depth,
        "N": columns,
        "bits": stored.bits,
        "block_size": block,
        "accuracy_level": accuracy_level,
    }
    _write_product(site, "MatMulNBits", inputs, attributes, rewriter)


def _write_product(
    site: WeightSite,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict[str, AttributeValue],
    rewriter: Rewriter,
) -> None:
    """Put a product, and an Add of the bias, in the place of the site's node."""
    node, output = site.node, site.node.outputs[0]
    product = rewriter.insert(
        node,
        op_type,
        inputs,
        name=f"{output.name}_product",
        attributes=attributes,
        domain="" if op_type == "MatMul" else _CONTRIB,
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    if site.bias is not None:
        bias = site.bias
        if not isinstance(bias, ir.Value):
            bias = rewriter.constant(node, bias, name=f"{output.name}_bias")
        product = rewriter.insert(
            node,
            "Add",
            [product, bias],
            name=f"{output.name}_add",
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
        )
    rewriter.replace_node(node, [product])


def _constants(
    site: WeightSite, stored: StoredWeights, arrays: dict[str, Array], rewriter: Rewriter
) -> list[ir.Value]:
    return [
        rewriter.constant(site.node, array, name=f"{stored.name}_{name}")
        for name, array in arrays.items()
    ]
