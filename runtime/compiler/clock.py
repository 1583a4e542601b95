"""Times models against each other, in the way that gives honest ratios on this machine now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxfold.passes.errors import ExecutionError
from onnxfold.passes.io_types import float_edges, with_float_io
from onnxfold.runtime.compiler.choice import Latency
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.session import DEPLOYMENT, Session, SessionConfig
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.timing import Timing, is_machine_busy, measure_interleaved

Clock = Callable[[Mapping[str, ir.Model]], Mapping[str, Latency]]
"""Latencies by name; ratios are to the first model. One that does not run is left out."""

_TIMING_FEEDS = 4
_TIMING_ROUNDS = 24
_TIMING_SECONDS = 10.0
_ONE_THREAD = " by processor time of one thread"


def make_clock(feeds: FeedSource, progress: Progress) -> Clock:
    """A clock that runs models as they are deployed, on the first of ``feeds``."""
    samples = list(feeds.first(_TIMING_FEEDS))

    def clock(models: Mapping[str, ir.Model]) -> Mapping[str, Latency]:
        if is_machine_busy():
            progress.stage(f"timing {len(models)} models{_ONE_THREAD}, for the machine is busy")
            return _timed(models, samples, one_thread=True)
        progress.stage(f"timing {len(models)} models")
        return _timed(models, samples, one_thread=False)

    return clock


def make_one_thread_clock(feeds: FeedSource, progress: Progress) -> Clock:
    """A clock by processor time of one thread: what other processes take does not count."""
    samples = list(feeds.first(_TIMING_FEEDS))

    def clock(models: Mapping[str, ir.Model]) -> Mapping[str, Latency]:
        progress.stage(f"timing {len(models)} models{_ONE_THREAD}")
        return _timed(models, samples, one_thread=True)

    return clock


def _timed(
    models: Mapping[str, ir.Model], samples: Sequence[Feed], *, one_thread: bool
) -> Mapping[str, Latency]:
    config = replace(DEPLOYMENT, threads=1) if one_thread else DEPLOYMENT
    edges = float_edges(next(iter(models.values())))
    sessions: dict[str, Session] = {}
    for name, model in models.items():
        session = _started(with_float_io(model, edges), config, samples)
        if session is not None:
            sessions[name] = session
    timings = measure_interleaved(
        sessions,
        samples,
        rounds=_TIMING_ROUNDS,
        max_seconds=_TIMING_SECONDS,
        clock=time.thread_time if one_thread else time.perf_counter,
    )
    return {
        name: Latency(each.median_ms, each.relative_best, _spread(each))
        for name, each in timings.items()
    }


def _spread(timing: Timing) -> float:
    return (timing.relative_high - timing.relative_low) / (2.0 * timing.relative)


def _started(model: ir.Model, config: SessionConfig, samples: Sequence[Feed]) -> Session | None:
    """A session that ran on each sample; None where ONNX Runtime cannot run the model."""
    try:
        session = Session(model, config)
        for sample in samples:
            session.run(sample)
    except ExecutionError:
        return None
    return session
