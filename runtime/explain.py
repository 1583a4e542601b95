"""What is in a model, what stays in float and why, what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxfold.passes.census import Census, take_census
from onnxfold.passes.op_kinds import op_key
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.provenance import node_name
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.remark import Remark
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.profile import NodeTime, execution_profile
from onnxfold.runtime.report.report import distinct_islands, remark_to_json

_QUANTIZATION = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
_PROFILE_FEEDS = 8


@dataclass(frozen=True)
class Explanation:
    """The facts about one model.

    Attributes:
        census: Operators, multiply-accumulates, parameters.
        islands: What could be integer and is not, each with a reason.
        costs: Time per node as ONNX Runtime really runs it, largest first.
    """

    census: Census
    islands: tuple[Remark, ...]
    costs: tuple[NodeTime, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {
            "census": self.census.to_json(),
            "islands": [remark_to_json(island) for island in self.islands],
            "costs": [cost.to_json() for cost in self.costs],
        }


def explain_model(model: ir.Model, feeds: FeedSource) -> Explanation:
    """Take the model's census, ask the fold what it would leave, and profile one run.

    Args:
        model: Not modified.
        feeds: What to run it on for the costs.
    """
    known = Pipeline(parse_passes("infer-shapes")).run(model.clone()).model
    profile = execution_profile(model, list(feeds.first(_PROFILE_FEEDS)))
    return Explanation(take_census(known), _islands(known), profile.slowest())


def _islands(model: ir.Model) -> tuple[Remark, ...]:
    if any(node.op_type in _QUANTIZATION for node in all_nodes(model)):
        result = Pipeline(parse_passes("fold-qdq")).run(model.clone())
        remarks = [remark for _, each in result.results for remark in each.remarks]
        return distinct_islands(remarks)
    reason = "the model is not quantized here"
    advice = "onnxfold compile quantizes it where that is faster"
    return tuple(
        Remark("explain", node_name(node), op_key(node), reason, advice)
        for node in all_nodes(model)
        if op_key(node) in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    )
