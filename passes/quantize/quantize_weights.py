"""Pass ``quantize-weights``: stores weights in 4 or 8 bits and leaves activations in float."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.ir_version import fitting_ir_version
from onnxfold.passes.nbits import is_block_size
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.recurrent_weights import (
    RECURRENT_OPS,
    recurrent_obstacle,
    recurrent_size,
    store_recurrent,
)
from onnxfold.passes.quantize.weight_forms import (
    StoredWeights,
    Write,
    write_for_onnxruntime,
    write_standard,
)
from onnxfold.passes.quantize.weight_rounding import WeightRounding
from onnxfold.passes.quantize.weight_sites import SMALLEST, WeightSite, find_site
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.walk import all_nodes, label

_OPS = ("MatMul", "Gemm", "Gather", *RECURRENT_OPS)
_PER_CHANNEL_OPSET = 13
_NEWER_OPSET = 21
_ACCURACY_LEVELS = range(5)


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store the weights of products and lookup tables as codes in blocks with a scale each.

    A block is ``block`` weights along the dimension that is summed, or along a row of a table.
    Gemm becomes MatMul and Add. Where the dimension is no multiple of the block, the last block
    is shorter. Those of LSTM, GRU and RNN always have 8 bits and a scale for each row of a gate
    (Cast and Mul make float numbers of them when the model is loaded: it runs as fast as before).
    Convolutions stay: ONNX Runtime has no kernel for packed ones.

    On a CPU with VNNI, one thread, 768x768 and 768x3072: 4 bits in the form ``nbits`` take 1/2.6
    to 1/5.9 of the time of float for one row of data and 1/1.2 to 1/1.6 for 128, 8 bits 1/1.7 to
    1/4.5 and 1/1.3 to 1/1.8; with accuracy level 1 4 bits are a draw at many rows, and 8 bits take
    2 to 20 times as long as float. 4 bits take 1/6.4 of the size with blocks of 32, 1/7.5 with 128.

    Attributes:
        bits: 4 or 8.
        block: 16 or more, a power of two; 0 for one scale a column (a row of a table).
        symmetric: Whether zero points are in the middle; else each block has its own.
        form: ``dq`` for DequantizeLinear, which every runtime reads (opset 21; ONNX Runtime makes
            MatMulNBits of it when it loads the model, and rounds the data to int8 unless the
            session is told otherwise); ``nbits`` for ONNX Runtime's own operators
            MatMulNBits and GatherBlockQuantized, at any opset.
        op_types: The operators whose weights are stored so.
        weight_ranges: How scales are chosen: ``max`` clips nothing, ``mse`` has the least squared
            error, block by block.
        accuracy_level: What MatMulNBits computes in: 4 rounds the data to int8, block by block, by
            its own range, which is what makes it fast; 1 computes in float32.
        skip: Names of nodes to leave alone (of their first output where they have no name).
        rounding: Codes that were learned for the weights of nodes, by name, instead of the nearest;
            empty where none were.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = True
    form: Literal["dq", "nbits"] = "dq"
    op_types: tuple[str, ...] = _OPS
    weight_ranges: Literal["max", "mse"] = "mse"
    accuracy_level: int = 4
    skip: tuple[str, ...] = ()
    rounding: WeightRounding = field(default_factory=lambda: WeightRounding({}))

    name: ClassVar[str] = "quantize-weights"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Quantize in every graph.

        Raises:
            UsageError: An option is out of range or names nothing.
            PassError: The opset is too old for the form.
        """
        self._check(model)
        write: Write = write_standard
        if self.form == "nbits":
            write = write_for_onnxruntime(self.accuracy_level)
        known: dict[Hashable, StoredWeights] = {}
        tensors: list[object] = []  # keeps the ids in the keys unique
        for node in list(all_nodes(model)):
            if node.op_type not in self.op_types or node_name(node) in self.skip:
                continue
            if node.op_type in RECURRENT_OPS:
                self._store_recurrent(node, rewriter)
                continue
            site = find_site(node)
            if isinstance(site, WeightSite):
                self._check_opset(site, rewriter.opset(node))
                stored = known.get(site.key) or self._stored(site)
                known[site.key] = stored
                tensors.append(constant_tensor(site.source))
                write(site, stored, rewriter)
            elif site:
                rewriter.remark(node, f"its weights stay in float: {site}")
        if known:
            version = fitting_ir_version(model.ir_version, model.opset_imports)
            with rewriter.step("raise-ir-version"):
                rewriter.set_ir_version(version)

    def _store_recurrent(self, node: ir.Node, rewriter: Rewriter) -> None:
        reason = recurrent_obstacle(node)
        if reason:
            rewriter.remark(node, f"its weights stay in float: {reason}")
        elif recurrent_size(node) >= SMALLEST:
            store_recurrent(node, self.weight_ranges, rewriter)

    def _stored(self, site: WeightSite) -> StoredWeights:
        # Two columns of a table share a byte.
        packable = not site.is_table or self.form == "nbits" or site.weights.shape[1] % 2 == 0
        bits = self.bits if packable else 8
        ranges = self.weight_ranges
        stored = StoredWeights.of(site, bits, self.block, symmetric=self.symmetric, ranges=ranges)
        codes = self.rounding.get(node_name(site.node))
        if codes is None:
            return stored
        if codes.shape != stored.codes.shape:
            name = node_name(site.node)
            raise UsageError(f"quantize-weights: the codes of node '{name}' are another model's")
        return replace(stored, codes=codes.astype(stored.codes.dtype))

    def _check(self, model: ir.Model) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"quantize-weights: bits={self.bits}; it can be 4 or 8")
        if self.block and not is_block_size(self.block):
            raise UsageError(
                f"quantize-weights: block={self.block}; it can be 0 or a power of two from 16 on"
            )
        if self.accuracy_level not in _ACCURACY_LEVELS:
            raise UsageError(f"quantize-weights: accuracy-level={self.accuracy_level} is not 0..4")
        for op_type in self.op_types:
            if op_type not in _OPS:
                hint = did_you_mean(op_type, _OPS) or f"; it can be {', '.join(_OPS)}"
                raise UsageError(f"quantize-weights: '{op_type}' has no such weights{hint}")
        names = {node_name(node) for node in all_nodes(model)} if self.skip else set[str]()
        for name in self.skip:
            if name not in names:
                hint = did_you_mean(name, names)
                raise UsageError(f"quantize-weights: the model has no node '{name}'{hint}")

    def _check_opset(self, site: WeightSite, opset: int) -> None:
        standard = self.form == "dq" or (site.is_table and self.bits == 8)
        newer = self.bits == 4 or self.block > 0 or site.is_table
        needed = _NEWER_OPSET if newer else _PER_CHANNEL_OPSET
        if standard and opset < needed:
            raise PassError(
                f"quantize-weights: these weights of {label(site.node)} need opset {needed}, the "
                f"model has {opset}: run upgrade-opset{{to={needed}}} first"
            )
