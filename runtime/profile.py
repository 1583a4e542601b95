"""Where the time of a model goes: per-node times, and the operators really executed."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import DEPLOYMENT, Session, SessionConfig
from onnxfold.runtime.specs import Feed, ModelLike

_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """What one node of the executed graph took.

    Attributes:
        node: The node's name; fused nodes carry names ONNX Runtime made up.
        op_type: Its operator.
        provider: The execution provider that ran it.
        microseconds: Mean time of one execution.
        calls: Executions per run of the model (more than one inside loops).
    """

    node: str
    op_type: str
    provider: str
    microseconds: float
    calls: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return asdict(self)


def execution_profile(
    model: ModelLike, feeds: Sequence[Feed], config: SessionConfig = DEPLOYMENT, runs: int = 5
) -> tuple[NodeTime, ...]:
    """Per-node mean times in order of execution, without the first (warm-up) run.

    Args:
        model: The model.
        feeds: At least one feed; each is run ``runs`` times.
        config: How the model runs; the nodes are those left after its optimizations.
        runs: Measured runs of each feed.

    Raises:
        UsageError: No feed was given.
        ExecutionError: The model does not load or run.
    """
    if not feeds:
        raise UsageError("a profile needs at least one feed")
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        session = Session(model, config, profile_prefix=Path(folder) / "profile")
        for feed in [feeds[0], *(list(feeds) * runs)]:
            session.run(feed)
        events = json.loads(session.end_profiling().read_text(encoding="utf-8"))
    return _node_times(_without_first_run(events), len(feeds) * runs)


def optimized_op_census(model: ModelLike, config: SessionConfig = DEPLOYMENT) -> dict[str, int]:
    """How often each operator is left after ONNX Runtime's own optimization, sorted by name.

    Operators outside ai.onnx are written ``domain.Op``; bodies of If and Loop are not counted.
    """
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        path = Path(folder) / "optimized.onnx"
        Session(model, config, optimized_model_path=path)
        nodes = onnx.load(path, load_external_data=False).graph.node
    names = Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes)
    return dict(sorted(names.items()))


def _without_first_run(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    ends = [event["ts"] + event["dur"] for event in events if event["name"] == "model_run"]
    nodes = [event for event in events if event.get("cat") == "Node"]
    return [event for event in nodes if event["ts"] >= ends[0]]


def _node_times(events: Sequence[dict[str, Any]], runs: int) -> tuple[NodeTime, ...]:
    durations: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        arguments = event["args"]
        name = str(event["name"])
        if not name.endswith(_SUFFIX):
            continue
        key = (name[: -len(_SUFFIX)], str(arguments["op_name"]), str(arguments["provider"]))
        durations[key].append(float(event["dur"]))
    return tuple(
        NodeTime(*key, microseconds=sum(times) / len(times), calls=len(times) / runs)
        for key, times in durations.items()
    )
