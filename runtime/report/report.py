"""The report of one command: everything that was done, measured and left alone."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from onnxfold.passes.base import Contract, PassResult
from onnxfold.passes.islands import Island
from onnxfold.passes.remark import Remark

SCHEMA = "onnxfold-report/2"
"""Name and version of the JSON schema; the number grows when a field changes its meaning."""

_PACKAGES = ("onnxfold", "onnx", "onnx-ir", "onnx-graphsurgeon", "onnxruntime", "numpy")


@dataclass(frozen=True)
class PassRow:
    """What one pass did, and the evidence for it.

    Attributes:
        text: The pass as written in a pipeline.
        contract: What it promises.
        modified: Whether it changed anything.
        seconds: How long it took.
        rules: How often each rule was applied.
        evidence: The gate's verdict and metrics; empty where nothing changed or none was asked.
    """

    text: str
    contract: Contract
    modified: bool
    seconds: float
    rules: dict[str, int]
    evidence: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(
        cls, text: str, contract: Contract, result: PassResult, seconds: float, evidence: Any = None
    ) -> PassRow:
        """The row of a pass that ran."""
        rules = dict(sorted(result.rules.items()))
        return cls(text, contract, result.modified, seconds, rules, dict(evidence or {}))

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "pass": self.text,
            "contract": self.contract.value,
            "modified": self.modified,
            "seconds": round(self.seconds, 4),
            "rules": self.rules,
            "evidence": self.evidence,
        }


@dataclass(frozen=True)
class ModelFacts:
    """A model file as found or written.

    Attributes:
        path: Where it is; empty for a model in memory.
        sha256: Of its serialised bytes.
        size: Bytes of the serialised model.
        census: Operators, MACs, parameters.
    """

    path: str
    sha256: str
    size: int
    census: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "bytes": self.size,
            "census": self.census,
        }


@dataclass(frozen=True)
class Report:
    """What a command did to a model. Fields that a command has nothing to say about stay empty.

    Attributes:
        command: The command's name.
        passed: Whether the result is backed by its evidence.
        reasons: Why not, one line each.
        source: The model that came in.
        result: The model that goes out.
        options: What was asked for, and what the model was taken for.
        data: Where inputs came from, and how many.
        passes: One row per pass.
        equivalence: The end-to-end comparison against the original.
        task: Accuracy before and after, where the data has labels.
        latency: Interleaved medians of the original and the result.
        decisions: What was measured and chosen.
        islands: What stays in float beside integers, and why.
        remarks: What each pass left as it was, node by node.
        loss: Losses that were injected, with the inputs and outputs they brought.
    """

    command: str
    passed: bool
    reasons: tuple[str, ...]
    source: ModelFacts
    result: ModelFacts | None = None
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    passes: tuple[PassRow, ...] = ()
    equivalence: dict[str, Any] = field(default_factory=dict[str, Any])
    task: dict[str, Any] = field(default_factory=dict[str, Any])
    latency: dict[str, Any] = field(default_factory=dict[str, Any])
    decisions: tuple[dict[str, Any], ...] = ()
    islands: tuple[Island, ...] = ()
    remarks: tuple[Remark, ...] = ()
    loss: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-serialisable values, following ``SCHEMA``."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "verdict": {"passed": self.passed, "reasons": list(self.reasons)},
            "versions": package_versions(),
            "source": self.source.to_json(),
            "result": self.result.to_json() if self.result else None,
            "options": self.options,
            "data": self.data,
            "passes": [row.to_json() for row in self.passes],
            "equivalence": self.equivalence,
            "task": self.task,
            "latency": self.latency,
            "decisions": list(self.decisions),
            "islands": [island.to_json() for island in self.islands],
            "remarks": [remark_to_json(remark) for remark in self.remarks],
            "loss": self.loss,
        }


def package_versions() -> dict[str, str]:
    """Versions of Python and of every package that had a part in the result."""
    versions = {"python": platform.python_version()}
    versions.update({name: metadata.version(name) for name in _PACKAGES})
    return versions


def distinct_remarks(remarks: Sequence[Remark]) -> tuple[Remark, ...]:
    """The remarks without repetitions, in order; a later pass's word on a node wins."""
    latest = {(remark.node, remark.op_type): remark for remark in remarks}
    return tuple(latest.values())


def remark_to_json(remark: Remark) -> dict[str, str]:
    """A remark as a plain dict, for reports."""
    return {
        "node": remark.node,
        "op_type": remark.op_type,
        "pass": remark.pass_name,
        "reason": remark.reason,
        "advice": remark.advice,
    }
