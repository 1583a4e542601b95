"""Where the time of a model goes: per-node times, and the operators really executed."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.provenance import node_name
from onnxfold.passes.walk import all_graphs, all_nodes
from onnxfold.runtime.attribution import Coverage, coverage, unnamed
from onnxfold.runtime.session import DEPLOYMENT, Session, SessionConfig
from onnxfold.runtime.specs import Feed, ModelLike

_SUFFIX = "_kernel_time"
_CONTAINERS = frozenset({"If", "Loop", "Scan"})
"""Their times hold those of the nodes in their bodies, which are listed as well."""

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
"""Names that need no escape in JSON."""

_LARGEST_SAVED = 1 << 30
"""Bytes of parameters up to which the executed graph is written to a file to be read."""


@dataclass(frozen=True)
class NodeTime:
    """What one node of the executed graph took.

    Attributes:
        node: The node's name; fused nodes carry names ONNX Runtime made up.
        op_type: Its operator.
        provider: The execution provider that ran it.
        microseconds: Median time of one execution.
        calls: Executions per run of the model (more than one inside loops).
        covers: Names of the model's nodes whose work it does, where that is known.
    """

    node: str
    op_type: str
    provider: str
    microseconds: float
    calls: float
    covers: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Microseconds in one run of the model."""
        return self.microseconds * self.calls

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return asdict(self)


@dataclass(frozen=True)
class Profile:
    """Where the time of one run goes.

    Attributes:
        times: Of each executed node, in order of execution.
    """

    times: tuple[NodeTime, ...]

    @property
    def total(self) -> float:
        """Microseconds all nodes take together; those that hold bodies count through these."""
        return sum(each.total for each in self.times if each.op_type not in _CONTAINERS)

    def slowest(self) -> tuple[NodeTime, ...]:
        """The times, the largest first."""
        return tuple(sorted(self.times, key=lambda each: -each.total))

    def shares(self, groups: Sequence[Collection[str]]) -> list[float]:
        """The share of the time, 0 to 1, that goes into each group of the model's nodes.

        The time of an executed node is split evenly over the nodes it covers.
        """
        total = self.total or 1.0
        places: dict[str, int] = {}
        for index, group in enumerate(groups):
            places.update(dict.fromkeys(group, index))
        found = [0.0] * len(groups)
        for each in self.times:
            if each.op_type in _CONTAINERS:
                continue
            for name in each.covers:
                if name in places:
                    found[places[name]] += each.total / len(each.covers) / total
        return found


def execution_profile(
    model: ModelLike,
    feeds: Sequence[Feed],
    config: SessionConfig = DEPLOYMENT,
    runs: int = 5,
    max_seconds: float = 5.0,
) -> Profile:
    """Per-node median times, without the first (warm-up) run.

    Args:
        model: The model. Only of an ``ir.Model`` is it known which nodes were fused into which.
        feeds: At least one feed; each is run up to ``runs`` times.
        config: How the model runs; the nodes are those left after its optimizations.
        runs: Measured runs of each feed.
        max_seconds: No run begins after this time, but for the first measured one.

    Raises:
        UsageError: No feed was given.
        ExecutionError: The model does not load or run.
    """
    if not feeds:
        raise UsageError("a profile needs at least one feed")
    attributed = isinstance(model, ir.Model) and _parameter_bytes(model) <= _LARGEST_SAVED
    renamed: dict[str, str] = {}
    if isinstance(model, ir.Model):
        model, renamed = _with_names(model)
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        graph = Path(folder) / "executed.onnx" if attributed else None
        prefix = Path(folder) / "profile"
        session = Session(model, config, profile_prefix=prefix, optimized_model_path=graph)
        session.run(feeds[0])
        count = 0
        started = time.perf_counter()
        for feed in chain.from_iterable(repeat(feeds, runs)):
            session.run(feed)
            count += 1
            if time.perf_counter() - started > max_seconds:
                break
        events = json.loads(session.end_profiling().read_text(encoding="utf-8"))
        executed = onnx.load(graph, load_external_data=False).graph if graph else None
    times = _node_times(_without_first_run(events), count)
    if executed is not None and isinstance(model, ir.Model):
        times = _attributed(times, coverage(model, executed))
    return Profile(tuple(_as_called(each, renamed) for each in times))


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


def _attributed(times: Iterable[NodeTime], covered: Coverage) -> Iterator[NodeTime]:
    """With what each covers; the n-th unknown name of a kind is its n-th unnamed node."""
    seen: Counter[str] = Counter()
    for each in times:
        key = each.node
        if key not in covered:
            key = unnamed(each.op_type, seen[each.op_type])
            seen[each.op_type] += 1
        yield replace(each, covers=covered.get(key, ()))


def _with_names(model: ir.Model) -> tuple[ir.Model, dict[str, str]]:
    """A copy whose nodes all have plain names, and what those are called that got another.

    The profile knows nodes by nothing else, and ONNX Runtime 1.23 writes names into JSON as they
    are, quotes and all.
    """
    if all(node.name and _PLAIN.fullmatch(node.name) for node in all_nodes(model)):
        return model, {}
    named = model.clone()
    renamed: dict[str, str] = {}
    for index, node in enumerate(all_nodes(named)):
        name = node_name(node)
        node.name = name
        if not _PLAIN.fullmatch(name):
            node.name = f"renamed_{index}_"
            renamed[node.name] = name
    return named, renamed


def _as_called(time: NodeTime, renamed: Mapping[str, str]) -> NodeTime:
    if not renamed:
        return time
    covers = tuple(renamed.get(name, name) for name in time.covers)
    return replace(time, node=renamed.get(time.node, time.node), covers=covers)


def _parameter_bytes(model: ir.Model) -> int:
    values = [value for graph in all_graphs(model) for value in graph.initializers.values()]
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _without_first_run(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    ends = [event["ts"] + event["dur"] for event in events if event["name"] == "model_run"]
    nodes = [event for event in events if event.get("cat") == "Node"]
    return [event for event in nodes if event["ts"] >= ends[0]]


def _node_times(events: Sequence[dict[str, Any]], runs: int) -> Iterator[NodeTime]:
    durations: defaultdict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for event in events:
        arguments = event["args"]
        name = str(event["name"])
        if not name.endswith(_SUFFIX):
            continue
        operator, provider = str(arguments["op_name"]), str(arguments["provider"])
        key = (name[: -len(_SUFFIX)], operator, provider, str(arguments["node_index"]))
        durations[key].append(float(event["dur"]))
    for (name, operator, provider, _), times in durations.items():
        yield NodeTime(name, operator, provider, median(times), len(times) / runs)
