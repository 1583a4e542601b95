"""Running a model on data, two feeds at a time, with an observer on each tensor.

A processor is better used by a feed of its own than by a share of each operator: threads inside an
operator wait for each other at its end, and idle while the tensors are observed. Observers merge to
the same bits however the feeds were dealt out, so the result does not depend on who was faster.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.runtime.calibrate.body_taps import expose_bodies
from onnxfold.runtime.calibrate.method import Observer, ObserverT
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.session import DEPLOYMENT, Session, SessionConfig

LANES = 2
"""Feeds running at a time: the activations of so many are in memory."""

AHEAD = 2 * LANES
"""Feeds read and not yet done, so that no lane waits for the reader."""


def observe(
    model: ir.Model,
    names: Sequence[str],
    new_observer: Callable[[], ObserverT],
    feeds: Iterable[Mapping[str, Array]],
    progress: Progress | None = None,
    *,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, ObserverT]:
    """Run ``model`` on ``feeds``; for each of ``names`` an observer that has seen all its values.

    Args:
        model: Not changed.
        names: Inputs of the model, tensors its main graph computes, or those that ``body_tensors``
            gives without a reason.
        new_observer: Makes an observer that has seen nothing.
        feeds: Read once, in the calling thread, up to ``AHEAD`` feeds ahead, and copied: the reader
            may use its arrays again.
        progress: Hears one step per feed, in the calling thread.
        shard: (i, n) where ``feeds`` are every n-th sample of all from the i-th on.

    Raises:
        UsageError: There is no data, or a feed does not fit the model.
        InvalidModelError: A tensor became NaN or infinite; names the first such sample.
        ExecutionError: ONNX Runtime failed.
    """
    inputs = {value.name for value in model.graph.inputs}
    outputs = [name for name in names if name not in inputs]
    observed, tensor_of = _with_outputs(model, outputs)
    session = Session(observed, _config())
    lanes = [{name: new_observer() for name in names} for _ in range(LANES)]
    free: SimpleQueue[dict[str, ObserverT]] = SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def values(feed: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """The observed tensors of one run, inputs first, then in the order of the outputs."""
        yield from ((name, feed[name]) for name in feed if name in inputs.intersection(names))
        found = session.run(feed)
        yield from ((tensor_of[name], found[name]) for name in found if name in tensor_of)

    def work(index: int, feed: Mapping[str, Array]) -> None:
        observers = free.get()
        try:
            _update(observers, values(feed), shard[0] + shard[1] * index)
        finally:
            free.put(observers)

    if _run_all(work, feeds, progress) == 0:
        raise UsageError("the calibration data is empty: give at least one sample")
    merged = lanes[0]
    for lane in lanes[1:]:
        for name, observer in lane.items():
            merged[name].merge(observer)
    return merged


def _run_all(
    work: Callable[[int, Mapping[str, Array]], None],
    feeds: Iterable[Mapping[str, Array]],
    progress: Progress | None,
) -> int:
    """Do ``work`` on all feeds and count them; the error of the first feed that has one."""
    pending: deque[Future[None]] = deque()
    count = 0

    def finish_one() -> None:
        pending.popleft().result()
        if progress is not None:
            progress.advance()

    with ThreadPoolExecutor(LANES, thread_name_prefix="calibration") as pool:
        for feed in feeds:
            own = {name: copy.deepcopy(values) for name, values in feed.items()}
            pending.append(pool.submit(work, count, own))
            count += 1
            if len(pending) == AHEAD:
                finish_one()
        while pending:
            finish_one()
    return count


def _config() -> SessionConfig:
    """What users will run, on as many processors as are left to a lane."""
    spare = (os.cpu_count() or 1) > LANES
    return replace(DEPLOYMENT, name="calibration", threads=0 if spare else 1)


def _update(
    observers: Mapping[str, Observer], values: Iterable[tuple[str, Array]], sample: int
) -> None:
    for name, array in values:
        try:
            observers[name].update(array, sample)
        except ValueError as error:
            raise InvalidModelError(
                f"tensor '{name}' has {error} on calibration sample {sample}; "
                "check that sample, or leave it out"
            ) from None


def _with_outputs(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """A copy of ``model`` whose outputs are the named tensors (its own where none is named).

    And which tensor each of its outputs is.
    """
    clone = model.clone()
    if not names:
        return clone, {}
    wanted = set(names)
    values = [output for node in clone.graph for output in node.outputs if output.name in wanted]
    clone.graph.outputs.clear()
    for value in values:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        # A wrong declared shape must not stop the run.
        value.shape = None
        clone.graph.outputs.append(value)
    own = {value.name or "": value.name or "" for value in values}
    return clone, {**own, **expose_bodies(clone, wanted)}
