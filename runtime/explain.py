"""What is in a model, what stays in float and why, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.census import Census, ModelKind, has_codes, model_kind, take_census
from onnxfold.passes.io_types import with_float_io
from onnxfold.passes.islands import Island, find_islands
from onnxfold.passes.pair_saturation import LayerSaturation, saturating_layers
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.provenance import node_name
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.remark import Remark
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.profile import NodeTime, Profile, execution_profile

_QDQ = "qdq"
_PROFILE_FEEDS = 8


@dataclass(frozen=True)
class Explanation:
    """The facts about one model.

    Attributes:
        kind: How far it is on the way to integers.
        target: What it was folded for; empty where there was nothing to fold.
        census: Operators, multiply-accumulates, parameters, as the model came.
        folded: The same of the folded model; None where there was nothing to fold.
        islands: What the fold leaves in float, each with its reasons; the longest-running first.
        saturating: Integer layers that x86 machines without VNNI can compute differently.
        microseconds: What the nodes of the model take in one run, as it came.
        folded_microseconds: The same of the folded model; None where there was nothing to fold.
        costs: Time per node of the folded model (else of the model) as ONNX Runtime really runs
            it, largest first.
    """

    kind: ModelKind
    target: str
    census: Census
    folded: Census | None
    islands: tuple[Island, ...]
    saturating: tuple[LayerSaturation, ...]
    microseconds: float
    folded_microseconds: float | None
    costs: tuple[NodeTime, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {
            "kind": self.kind.value,
            "target": self.target,
            "census": self.census.to_json(),
            "folded": self.folded.to_json() if self.folded else None,
            "islands": [island.to_json() for island in self.islands],
            "saturating": [
                {
                    "node": node_name(each.node),
                    "channels": each.channels,
                    "of": each.of,
                    "largest": each.largest,
                }
                for each in self.saturating
            ],
            "microseconds": self.microseconds,
            "folded_microseconds": self.folded_microseconds,
            "costs": [cost.to_json() for cost in self.costs],
        }


def explain_model(model: ir.Model, feeds: FeedSource, target: str = "ort") -> Explanation:
    """Take the census, fold a copy as ``fold`` does, see what is left in float and what it costs.

    Args:
        model: Not modified.
        feeds: What to run it on for the costs.
        target: What to fold for.

    Raises:
        UsageError: The target is not known.
        ExecutionError: The model, or the folded one, does not run.
    """
    known = _inferred(model)
    samples = list(feeds.first(_PROFILE_FEEDS))
    before = execution_profile(model, samples)
    kind, census = model_kind(known), take_census(known)
    if not has_codes(known):
        islands = _timed(find_islands(known), before)
        return Explanation(
            kind, "", census, None, islands, (), before.total, None, before.slowest()
        )
    done = Pipeline(parse_passes(folding(target))).run(model.clone())
    remarks = [remark for _, each in done.results for remark in each.remarks]
    after = execution_profile(done.model, samples)
    islands = find_islands(done.model, remarks, qdq_form=target == _QDQ)
    return Explanation(
        kind,
        target,
        census,
        take_census(done.model),
        _timed(islands, after),
        saturating_layers(done.model),
        before.total,
        after.total,
        after.slowest(),
    )


def explain_islands(
    model: ir.Model, remarks: Sequence[Remark], feeds: FeedSource | None, target: str
) -> tuple[Island, ...]:
    """The islands of a rewritten model, the longest-running first.

    Args:
        model: Not modified.
        remarks: What its passes said.
        feeds: What to run it on for the shares of the time; None leaves these out.
        target: What it was folded for.
    """
    known = _inferred(model)
    islands = find_islands(known, remarks, qdq_form=target == _QDQ)
    if feeds is None or not islands:
        return islands
    # The feeds are those of the model that came in.
    floats = {spec.name for spec in feeds.inputs if spec.dtype == np.float32}
    profile = execution_profile(with_float_io(known, floats), list(feeds.first(_PROFILE_FEEDS)))
    return _timed(islands, profile)


def _inferred(model: ir.Model) -> ir.Model:
    return Pipeline(parse_passes("infer-shapes")).run(model.clone()).model


def _timed(islands: tuple[Island, ...], profile: Profile) -> tuple[Island, ...]:
    """The islands with their shares of the time, the largest first."""
    found = profile.shares([island.nodes for island in islands])
    timed = [replace(each, time_share=share) for each, share in zip(islands, found, strict=True)]
    return tuple(sorted(timed, key=lambda island: -(island.time_share or 0.0)))
