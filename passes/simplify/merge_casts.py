"""merge-casts: one Cast for two, none where the second takes the first back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.size_arithmetic import entries
from onnxfold.passes.walk import use_count

_BITS: dict[ir.DataType, tuple[int, bool]] = {
    **{getattr(ir.DataType, f"INT{bits}"): (bits, True) for bits in (8, 16, 32, 64)},
    **{getattr(ir.DataType, f"UINT{bits}"): (bits, False) for bits in (8, 16, 32, 64)},
}
"""Integers: how many bits, and whether one of them is a sign."""

_MANTISSA: dict[ir.DataType, int] = {
    ir.DataType.BFLOAT16: 8,
    ir.DataType.FLOAT16: 11,
    ir.DataType.FLOAT: 24,
    ir.DataType.DOUBLE: 53,
}
"""Floats: up to how many bits every integer has its own number."""

_WIDER: dict[ir.DataType, tuple[ir.DataType, ...]] = {
    ir.DataType.BFLOAT16: (ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.FLOAT16: (ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.FLOAT: (ir.DataType.DOUBLE,),
}
_SIZES = (ir.DataType.INT32, ir.DataType.INT64)


@rule("merge-casts", "Cast")
def merge_casts(node: ir.Node, rewriter: Rewriter) -> None:
    """Cast of a Cast that loses nothing: of what that one reads."""
    middle = node.inputs[0]
    before = _cast(middle)
    source = before.inputs[0] if before is not None else None
    if before is None or middle is None or source is None or source.dtype is None:
        return
    last = _target(node)
    if last not in _BITS | _MANTISSA and last != ir.DataType.BOOL:
        return
    if not (_keeps(source.dtype, _target(before)) or _holds_sizes(source, before, node)):
        return
    rewriter.add_source(before)
    rewriter.set_input(node, 0, source)
    if not use_count(middle) and not middle.is_graph_output():
        rewriter.erase(before)


@dataclass(frozen=True)
class MergeCasts(PatternPass):
    """Merge a Cast with a Cast before it that loses nothing, such as int32 to int64 and back.

    Nothing is lost to a type that has all values of the other; sizes of tensors are taken to fit
    32 bits. What becomes a Cast to the type it has is dropped by ``remove-identity``.
    """

    name: ClassVar[str] = "merge-casts"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """The one rule."""
        return (merge_casts,)


def _cast(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "Cast" and not node.domain else None


def _target(node: ir.Node) -> ir.DataType | None:
    to = node.attributes["to"]
    return None if to.is_ref() else ir.DataType(to.as_int())


def _keeps(source: ir.DataType, target: ir.DataType | None) -> bool:
    """Whether ``target`` has every value of ``source``."""
    if target is None or source == target:
        return target is not None and source in _BITS | _MANTISSA
    if source == ir.DataType.BOOL:
        return target in _BITS | _MANTISSA
    if source not in _BITS:
        return target in _WIDER.get(source, ())
    bits, signed = _BITS[source]
    if target in _MANTISSA:
        return bits - signed <= _MANTISSA[target]
    if target not in _BITS:
        return False
    wider, with_sign = _BITS[target]
    return wider - with_sign >= bits - signed and (with_sign or not signed)


def _holds_sizes(source: ir.Value, before: ir.Node, node: ir.Node) -> bool:
    """Whether ``source`` holds sizes, which are the same in 32 and in 64 bits."""
    if source.dtype not in _SIZES or _target(before) not in _SIZES or _target(node) not in _SIZES:
        return False
    return all(
        each is not None and (not isinstance(each, int) or -(2**31) <= each < 2**31)
        for each in entries(source) or (None,)
    )
