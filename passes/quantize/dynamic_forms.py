"""How products and LSTMs with activation ranges taken at every run are written down."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.quantize.recurrent_weights import gate_codes, recurrent_obstacle
from onnxfold.passes.quantize.row_scales import type_of_channels
from onnxfold.passes.quantize.schemes import WeightRanges
from onnxfold.passes.quantize.weight_sites import WeightSite
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.unused import drop_unused

_CONTRIB = "com.microsoft"
_INT8 = ir.DataType.INT8
_LONGEST_SUM = 2**31 // (255 * 127)
_LSTM_ATTRIBUTES = (
    *("activation_alpha", "activation_beta", "activations", "clip", "direction"),
    *("hidden_size", "input_forget"),
)


class DynamicProducts:
    """Writes products as MatMulInteger, data that several of them read quantized once."""

    def __init__(self, ranges: WeightRanges, rewriter: Rewriter) -> None:
        self._ranges: WeightRanges = ranges
        self._rewriter = rewriter
        self._quantized: dict[tuple[ir.Value, ir.Graph | None], list[ir.Value]] = {}

    def obstacle(self, site: WeightSite) -> str:
        """Why the product cannot be written so; empty if it can."""
        depth = site.weights.shape[0]
        if depth >= _LONGEST_SUM:
            return f"sums of {depth} products may be more than int32 holds"
        return ""

    def write(self, site: WeightSite) -> None:
        """Replace the product by integer arithmetic and a factor."""
        node, output, rewriter = site.node, site.node.outputs[0], self._rewriter
        kind = type_of_channels(site.weights, 1, _INT8, self._ranges)
        with rewriter.step("quantize-product", node):
            codes, scale, zero_point = self._quantize(site)
            name = str(site.source.name)
            stored = rewriter.constant(node, kind.quantize(site.weights), name=f"{name}_quantized")
            factors = rewriter.constant(node, kind.scale, name=f"{name}_scale")
            sums = rewriter.insert(
                node,
                "MatMulInteger",
                [codes, stored, zero_point],
                name=f"{output.name}_sums",
                dtype=ir.DataType.INT32,
                shape=output.shape,
            )
            real = rewriter.insert(
                node,
                "Cast",
                [sums],
                name=f"{output.name}_cast",
                attributes={"to": int(ir.DataType.FLOAT)},
                dtype=ir.DataType.FLOAT,
                shape=output.shape,
            )
            step = self._float("Mul", [scale, factors], f"{output.name}_step", site, None)
            result = self._float("Mul", [real, step], f"{output.name}_product", site, output.shape)
            if site.bias is not None:
                bias = site.bias
                if not isinstance(bias, ir.Value):
                    bias = rewriter.constant(node, bias, name=f"{output.name}_bias")
                name = f"{output.name}_add"
                result = self._float("Add", [result, bias], name, site, output.shape)
            rewriter.replace_node(node, [result])
            drop_unused(site.source, rewriter)

    def _quantize(self, site: WeightSite) -> list[ir.Value]:
        """Codes, scale and zero point of the data."""
        data = site.data
        assert data is not None
        key = data, site.node.graph
        if key not in self._quantized:
            node = self._rewriter.insert_node(
                site.node,
                "DynamicQuantizeLinear",
                [data],
                name=f"{data.name}_quantized",
                outputs=3,
            )
            types = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
            for value, dtype, shape in zip(node.outputs, types, (data.shape, (), ()), strict=True):
                self._rewriter.set_type(value, dtype, shape)
            self._quantized[key] = list(node.outputs)
        return self._quantized[key]

    def _float(
        self,
        op_type: str,
        inputs: list[ir.Value],
        name: str,
        site: WeightSite,
        shape: ir.Shape | None,
    ) -> ir.Value:
        return self._rewriter.insert(
            site.node, op_type, inputs, name=name, dtype=ir.DataType.FLOAT, shape=shape
        )


def lstm_obstacle(node: ir.Node) -> str:
    """Why an LSTM cannot become a DynamicQuantizeLSTM; empty if it can."""
    reason = recurrent_obstacle(node)
    if reason:
        return reason
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return "its attributes are parameters of a local function"
    return "its data are batches of sequences (layout=1)" if _batch_first(node) else ""


def write_lstm(node: ir.Node, ranges: WeightRanges, rewriter: Rewriter) -> None:
    """Replace an LSTM by ONNX Runtime's DynamicQuantizeLSTM.

    It wants W as [directions, inputs, 4 * hidden] and R as [directions, hidden, 4 * hidden], the
    gates in the order of LSTM (i, o, f, c): the last two axes of LSTM exchanged. Scales and zero
    points are [directions, 4 * hidden], and of the same types as those of DequantizeLinear.
    """
    old = list(node.outputs)
    with rewriter.step("quantize-lstm", node):
        stored: list[ir.Value] = []
        parameters: list[ir.Value] = []
        for value in node.inputs[1:3]:
            weights = constant_array(value)
            assert weights is not None
            assert value is not None
            rows, scale = gate_codes(weights, ranges)
            codes = np.ascontiguousarray(np.moveaxis(rows, 1, 2))
            name = str(value.name)
            stored.append(rewriter.constant(node, codes, name=f"{name}_quantized"))
            zero: Array = np.zeros(scale.shape, np.int8)
            parameters.append(rewriter.constant(node, scale, name=f"{name}_scale"))
            parameters.append(rewriter.constant(node, zero, name=f"{name}_zero_point"))
        others = [node.inputs[i] if i < len(node.inputs) else None for i in range(3, 8)]
        attributes = {
            name: node.attributes[name] for name in _LSTM_ATTRIBUTES if name in node.attributes
        }
        new = rewriter.insert_node(
            node,
            "DynamicQuantizeLSTM",
            [node.inputs[0], *stored, *others, *parameters],
            name=f"{old[0].name or old[-1].name}_dynamic",
            attributes=attributes,
            domain=_CONTRIB,
            outputs=len(old),
        )
        for before, after in zip(old, new.outputs, strict=True):
            rewriter.set_type(after, before.dtype, before.shape)
        sources = node.inputs[1:3]
        rewriter.replace_node(node, new.outputs)
        for source in sources:
            drop_unused(source, rewriter)


def _batch_first(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("layout", 0))
