"""Pass ``quantize-dynamic``: int8 products whose activation ranges are taken at every run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.dynamic_forms import (
    DynamicProducts,
    lstm_obstacle,
    write_lstm,
)
from onnxfold.passes.quantize.recurrent_weights import (
    recurrent_obstacle,
    recurrent_size,
    store_recurrent,
)
from onnxfold.passes.quantize.weight_sites import SMALLEST, WeightSite, find_site
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.walk import all_nodes

_OPS = ("MatMul", "Gemm", "LSTM", "GRU", "RNN")
_STORED_ONLY = ("GRU", "RNN")
_OLDEST = 11
_WITHOUT_FORM = {
    "Conv": "ConvInteger is slower than Conv",
    "ConvTranspose": "there is no operator for it on codes",
}


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Compute products with constant weights on int8, without calibration.

    Data is quantized to uint8 by its own range at every run (DynamicQuantizeLinear, once for all
    readers), weights to int8 with a scale a column; MatMulInteger, Cast and Mul follow, which
    ONNX Runtime fuses. An LSTM becomes its DynamicQuantizeLSTM. ONNX Runtime has no GRU or RNN on
    codes: their weights are only stored in int8 (Cast and Mul make float numbers of them when the
    model is loaded), which takes a quarter of the room and the time of before. Everything else
    stays float: ConvInteger is slower than Conv. What stays is listed in the remarks, with the
    reason.

    On a CPU with VNNI, one thread, against float: 3.1 times as fast at 768x3072 and one row of
    data, 3.5 at 128 rows; 1.35 and 3.1 at 384x384, 0.9 and 1.8 at 128x128, 0.85 and 1.2 at 64x64.
    An LSTM of 64 units 1.4 to 1.6, of 256 units 2.5 to 2.8 (one step: 1.0 and 1.5). On x86 without
    VNNI the kernels may saturate.

    Attributes:
        op_types: The operators to quantize.
        smallest: Operators with fewer weights stay: they would be slower at few rows of data. (GRU
            and RNN are no slower: those with 1024 weights or more are stored.)
        weight_ranges: How scales are chosen: ``max`` clips nothing, ``mse`` has the least squared
            error, column by column.
        skip: Names of nodes to leave in float (of their first output where they have no name).
    """

    op_types: tuple[str, ...] = _OPS
    smallest: int = 32768
    weight_ranges: Literal["max", "mse"] = "max"
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "quantize-dynamic"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Quantize in every graph.

        Raises:
            UsageError: An option names nothing.
            PassError: The opset is older than 11.
        """
        self._check(model)
        products = DynamicProducts(self.weight_ranges, rewriter)
        for node in list(all_nodes(model)):
            if node.domain or node_name(node) in self.skip:
                continue
            if node.op_type not in self.op_types:
                self._remark_on(node, rewriter)
            elif node.op_type == "LSTM":
                self._lstm(node, rewriter)
            elif node.op_type in _STORED_ONLY:
                self._stored(node, rewriter)
            else:
                self._product(node, products, rewriter)

    def _remark_on(self, node: ir.Node, rewriter: Rewriter) -> None:
        """Say of an operator with weights why there is no form for it; not where none was asked."""
        reason = _WITHOUT_FORM.get(node.op_type, "")
        weights = constant_tensor(node.inputs[1]) if len(node.inputs) > 1 else None
        if reason and self.op_types == _OPS and weights is not None:
            rewriter.remark(node, f"it stays in float: {reason}")

    def _product(self, node: ir.Node, products: DynamicProducts, rewriter: Rewriter) -> None:
        site = find_site(node)
        if isinstance(site, WeightSite) and site.weights.size < self.smallest:
            self._remark_on_size(node, site.weights.size, rewriter)
            return
        reason = products.obstacle(site) if isinstance(site, WeightSite) else site
        if reason:
            rewriter.remark(node, f"it stays in float: {reason}")
        elif isinstance(site, WeightSite):
            _check_opset(node, rewriter)
            products.write(site)

    def _lstm(self, node: ir.Node, rewriter: Rewriter) -> None:
        if 0 < recurrent_size(node) < self.smallest:
            self._remark_on_size(node, recurrent_size(node), rewriter)
            return
        reason = lstm_obstacle(node)
        if reason:
            rewriter.remark(node, f"it stays in float: {reason}")
        else:
            write_lstm(node, self.weight_ranges, rewriter)

    def _stored(self, node: ir.Node, rewriter: Rewriter) -> None:
        """Store the weights of a GRU or RNN: no size makes it slower, small ones save little."""
        reason = recurrent_obstacle(node)
        if reason:
            rewriter.remark(node, f"it stays in float: {reason}")
        elif recurrent_size(node) >= SMALLEST:
            store_recurrent(node, self.weight_ranges, rewriter)

    def _remark_on_size(self, node: ir.Node, weights: int, rewriter: Rewriter) -> None:
        reason = f"its {weights} weights are less than {self.smallest} (option smallest)"
        rewriter.remark(node, f"it stays in float: {reason}")

    def _check(self, model: ir.Model) -> None:
        for op_type in self.op_types:
            if op_type not in _OPS:
                hint = did_you_mean(op_type, _OPS) or f"; it can be {', '.join(_OPS)}"
                raise UsageError(f"quantize-dynamic: '{op_type}' has no such form{hint}")
        names = {node_name(node) for node in all_nodes(model)} if self.skip else set[str]()
        for name in self.skip:
            if name not in names:
                hint = did_you_mean(name, names)
                raise UsageError(f"quantize-dynamic: the model has no node '{name}'{hint}")


def _check_opset(node: ir.Node, rewriter: Rewriter) -> None:
    opset = rewriter.opset(node)
    if opset < _OLDEST:
        raise PassError(
            f"quantize-dynamic needs opset {_OLDEST}, the model has {opset}: "
            "run upgrade-opset first"
        )
