"""Honest latency: candidates take turns, and are compared within each turn."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import Session
from onnxfold.runtime.specs import Feed

_SAMPLE_SECONDS = 0.004  # long against the clock's resolution, short against other load
_SETTLE_SECONDS = 0.002  # ONNX Runtime's threads spin for 1 ms after a run, on someone else's time
_CONFIDENCE = 0.95
_BUSY_LOAD = 1.5  # runnable threads per core; this process alone makes one per core

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What one candidate took, over all rounds.

    Attributes:
        name: The candidate.
        rounds: Turns it had.
        median_ms: Median milliseconds of one run.
        lower_quartile_ms: A quarter of the turns was faster.
        upper_quartile_ms: A quarter was slower.
        mad_ms: Median absolute deviation from the median.
        relative: Median of the ratios to the first candidate, both timed in the same turn: load
            that comes and goes hits both and cancels. Below 1 is faster.
        relative_low: Lower end of a 95 % confidence interval of that median.
        relative_high: Its upper end: the candidate is faster with confidence where this is below 1.
        relative_best: The ratio to the first candidate of the fastest turns, one of each feed:
            what is left of the truth where other load stops single turns.
    """

    name: str
    rounds: int
    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    mad_ms: float
    relative: float
    relative_low: float
    relative_high: float
    relative_best: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return asdict(self)


def measure_interleaved(
    sessions: Mapping[str, Session],
    feeds: Sequence[Feed],
    *,
    rounds: int = 15,
    min_seconds: float = 0.0,
    max_seconds: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time sessions against each other.

    Every round runs each of them on the same feed, in an order that turns from round to round,
    several times where one run is short.

    Args:
        sessions: Candidates by name; ratios are to the first.
        feeds: Taken in turns.
        rounds: Turns of each candidate, at least.
        min_seconds: Go on for at least this long.
        max_seconds: Stop after this long (and three rounds), even if rounds are left.
        clock: Seconds, increasing; ``time.thread_time`` for sessions of one thread does not count
            what other processes take.

    Raises:
        UsageError: There is no session or no feed.
        ExecutionError: A session failed.
    """
    if not sessions or not feeds:
        raise UsageError("timing needs at least one model and one feed")
    prepared = [{name: s.prepare(feed) for name, s in sessions.items()} for feed in feeds]
    repeats = {name: _repeats(run, clock) for name, run in prepared[0].items()}
    return measure_runs(prepared, repeats, rounds, min_seconds, max_seconds, clock)


def measure_runs(
    prepared: Sequence[Mapping[str, Run]],
    repeats: Mapping[str, int],
    rounds: int,
    min_seconds: float,
    max_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """The rounds of ``measure_interleaved``, for any functions.

    Args:
        prepared: One set of functions by name for each feed.
        repeats: How many calls make one sample.
        rounds: See ``measure_interleaved``.
        min_seconds: See ``measure_interleaved``.
        max_seconds: See ``measure_interleaved``.
        clock: Seconds, increasing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in prepared[0]}
    started = clock()
    with _no_garbage_collection():
        for number, runs in enumerate(cycle(prepared)):
            for name in _order(list(runs), number):
                seconds[name].append(_sample(runs[name], repeats[name], clock))
            passed = clock() - started
            enough = number + 1 >= rounds and passed >= min_seconds
            if enough or (number >= 2 and passed >= max_seconds):
                break
    first = next(iter(seconds.values()))
    feeds = len(prepared)
    return {name: _summary(name, taken, first, feeds) for name, taken in seconds.items()}


def is_machine_busy() -> bool:
    """Whether so much else runs that threads of one session wait for each other.

    Runs on several threads then take anything between once and ten times their time, some sessions
    persistently. False where the load is not known.
    """
    if not hasattr(os, "getloadavg"):
        return False
    return os.getloadavg()[0] > _BUSY_LOAD * (os.cpu_count() or 1)


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """A distribution-free confidence interval of the median, from sorted values.

    The k-th smallest and k-th largest of n values, with the largest k for which fewer than k of n
    fair coins fall heads with probability at most 2.5 %. All of the range where n is below 6.
    """
    count = len(ordered)
    tail, rank = 0.0, 0
    for heads in range(count // 2):
        tail += math.comb(count, heads) / 2**count
        if tail > (1 - _CONFIDENCE) / 2:
            break
        rank = heads
    return ordered[rank], ordered[count - 1 - rank]


def _order(names: list[str], number: int) -> Iterator[str]:
    """Every candidate takes every place, and each follows and precedes each other one."""
    turn = number // 2 % len(names)
    turned = names[turn:] + names[:turn]
    return iter(turned if number % 2 == 0 else reversed(turned))


def _sample(run: Run, repeats: int, clock: Callable[[], float]) -> float:
    settled = clock() + _SETTLE_SECONDS
    run()
    while clock() < settled:
        run()
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def _repeats(run: Run, clock: Callable[[], float]) -> int:
    run()
    start = clock()
    run()
    once = clock() - start
    return max(1, math.ceil(_SAMPLE_SECONDS / max(once, 1e-7)))


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _summary(name: str, seconds: Sequence[float], first: Sequence[float], feeds: int) -> Timing:
    times = [1e3 * each for each in seconds]
    median = statistics.median(times)
    quartiles = (
        statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    )
    ratios = sorted(mine / theirs for mine, theirs in zip(seconds, first, strict=True))
    low, high = median_interval(ratios)
    return Timing(
        name=name,
        rounds=len(times),
        median_ms=median,
        lower_quartile_ms=quartiles[0],
        upper_quartile_ms=quartiles[2],
        mad_ms=statistics.median(abs(each - median) for each in times),
        relative=statistics.median(ratios),
        relative_low=low,
        relative_high=high,
        relative_best=_best(seconds, feeds) / _best(first, feeds),
    )


def _best(seconds: Sequence[float], feeds: int) -> float:
    """The fastest turns of each feed together; turn i ran feed i modulo ``feeds``."""
    return sum(min(seconds[feed::feeds]) for feed in range(min(feeds, len(seconds))))
