"""Searches for the input on which two models differ most, inside the ranges of the data.

Projected gradient ascent (Madry et al., 2018, arXiv:1706.06083) on the difference of the outputs:
each step moves the input by the sign of the gradient and clips it to the range. The difference is
that of the models as they run; its gradient is (J_f - J_g)^T (f - g), with the Jacobians taken in
the graphs, through quantizers as if they were not there inside their range. Where the candidate
has no gradient, or one leads nowhere, steps of random signs are tried and kept if they help.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import OnnxfoldError, UsageError
from onnxfold.passes.grad.add_cotangents import PREFIX, AddCotangents
from onnxfold.passes.grad.add_gradient import AddGradient
from onnxfold.passes.grad.lower_gradient import LowerGradient
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.specs import Feed, ModelLike, TensorSpec, is_float, load_ir

_LOOKED_AT = 256
_FIRST_STEP = 0.1
_LAST_STEP = 0.005
_PREPARE = (
    "inline-functions{which=all},lift-qoperator,upgrade-opset{to=21},fold-constants{only-integers}"
)
"""What gradients need: no calls, no fused codes, and ranks that no arithmetic on shapes hides."""


@dataclass(frozen=True)
class WorstInput:
    """The input on which two models were found to differ most.

    Attributes:
        feed: The input.
        difference: Root mean square of the difference there, over the root mean square of the
            reference's output on the data; of the output where that is largest.
        output: That output.
        typical: The median of the same over the data.
        before: The largest of the same over the data.
        sample: The number of the feed that the search began with.
        steps: Steps taken, over all starts.
        method: ``gradient``, or ``search`` where the candidate has none.
        reason: Why there is no gradient; empty if there is one.
    """

    feed: Feed
    difference: float
    output: str
    typical: float
    before: float
    sample: int
    steps: int
    method: Literal["gradient", "search"]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports; without the feed."""
        return {
            "difference": self.difference,
            "output": self.output,
            "typical": self.typical,
            "before": self.before,
            "sample": self.sample,
            "steps": self.steps,
            "method": self.method,
            "reason": self.reason,
        }


def find_worst_input(
    reference: ModelLike,
    candidate: ModelLike,
    feeds: Iterable[Feed],
    *,
    steps: int = 40,
    starts: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> WorstInput:
    """Search from the feeds on which the models differ most already.

    Args:
        reference: The original model.
        candidate: The rewritten model.
        feeds: What they are usually fed; real inputs stay between the least and the greatest
            value seen of each, all others stay as they are.
        steps: Steps from each start.
        starts: Feeds to start from.
        seed: Of the random signs.
        progress: Told how far it is.

    Raises:
        UsageError: There is no data, no real input or output, or the models do not take the
            same inputs.
        ExecutionError: A model does not run.
    """
    pair = _Pair(reference, candidate)
    data = list(islice(feeds, _LOOKED_AT))
    if not data:
        raise UsageError("there is no data to begin the search with")
    ranges = _ranges(pair.inputs, data)
    pair.measure_scales(data)
    begun = [pair.difference(feed)[0] for feed in data]
    order = sorted(range(len(data)), key=lambda index: -begun[index])[:starts]
    bar = progress or Silent()
    bar.stage("worst input", steps * len(order))
    rng = np.random.default_rng(seed)
    best, best_sample = data[order[0]], order[0]
    best_difference = begun[order[0]]
    for sample in order:
        climber = _Climber(pair, ranges, rng, data[sample], begun[sample])
        for step in range(steps):
            climber.climb(_step_size(step, steps))
            bar.advance()
        if climber.difference > best_difference:
            best, best_difference, best_sample = climber.feed, climber.difference, sample
    return WorstInput(
        feed=best,
        difference=best_difference,
        output=pair.difference(best)[1],
        typical=float(np.median(begun)),
        before=max(begun),
        sample=best_sample,
        steps=steps * len(order),
        method="search" if pair.reason else "gradient",
        reason=pair.reason,
    )


class _Pair:
    """Both models, how far apart they are on a feed, and the gradient of that.

    Attributes:
        inputs: What has to be fed.
        reason: Why there is no gradient; empty if there is one.
    """

    def __init__(self, reference: ModelLike, candidate: ModelLike) -> None:
        self._old = Session(reference, REFERENCE)
        self._new = Session(candidate, DEPLOYMENT)
        self.inputs = self._old.inputs
        self._outputs = [each.name for each in self._old.outputs if _is_real(each)]
        if not self._outputs:
            raise UsageError(f"{self._old.label} has no real output to compare")
        _check_alike(self._old, self._new, self._outputs)
        self._scales: dict[str, float] = {}
        self.reason = ""
        self._jacobians: tuple[Session, Session] | None = None
        moved = [each.name for each in self.inputs if _is_real(each)]
        if not moved:
            raise UsageError(f"{self._old.label} has no real input that could be moved")
        try:
            self._jacobians = (
                _with_jacobian(reference, self._outputs, moved),
                _with_jacobian(candidate, self._outputs, moved),
            )
        except OnnxfoldError as error:
            self.reason = str(error)

    def measure_scales(self, data: Sequence[Feed]) -> None:
        """Take the root mean square of each output over the data as its unit."""
        power = dict.fromkeys(self._outputs, 0.0)
        for feed in data:
            outputs = self._old.run(feed)
            for name in power:
                power[name] += _mean_square(outputs[name]) / len(data)
        self._scales = {name: math.sqrt(each) or 1.0 for name, each in power.items()}

    def difference(self, feed: Feed) -> tuple[float, str]:
        """How far apart the models are, and on which output."""
        errors = self._errors(feed)
        found = {
            name: math.sqrt(_mean_square(error)) / self._scales[name]
            for name, error in errors.items()
        }
        worst = max(found, key=lambda name: found[name])
        return found[worst], worst

    def gradient(self, feed: Feed) -> dict[str, Array] | None:
        """The gradient of the difference by each real input; None where there is none."""
        if self._jacobians is None:
            return None
        cotangents = {
            f"{PREFIX}{name}": (error / (max(error.size, 1) * self._scales[name] ** 2)).astype(
                np.float32
            )
            for name, error in self._errors(feed).items()
        }
        old, new = (
            session.run(_of(session.inputs, feed | cotangents)) for session in self._jacobians
        )
        return {name.removeprefix("grad_"): old[name] - new[name] for name in old if name in new}

    def _errors(self, feed: Feed) -> dict[str, Array]:
        old, new = self._old.run(feed), self._new.run(_of(self._new.inputs, feed))
        return {
            name: np.asarray(old[name], np.float64) - np.asarray(new[name], np.float64)
            for name in self._outputs
        }


class _Climber:
    """Moves one feed uphill.

    Attributes:
        feed: Where it has come to.
        difference: How far apart the models are there.
    """

    def __init__(
        self,
        pair: _Pair,
        ranges: Mapping[str, tuple[float, float]],
        rng: np.random.Generator,
        feed: Feed,
        difference: float,
    ) -> None:
        self.feed = feed
        self.difference = difference
        self._pair = pair
        self._ranges = ranges
        self._rng = rng

    def climb(self, size: float) -> None:
        """Take one step, of ``size`` times the range, if one leads upwards."""
        gradient = self._pair.gradient(self.feed)
        signs = {
            name: self._signs(name, None if gradient is None else gradient.get(name))
            for name in self._ranges
        }
        if self._try(signs, size) or gradient is None:
            return
        self._try({name: self._signs(name, None) for name in self._ranges}, size)

    def _try(self, signs: Mapping[str, Array], size: float) -> bool:
        moved = dict(self.feed)
        for name, (low, high) in self._ranges.items():
            step = signs[name] * np.asarray(size * (high - low), signs[name].dtype)
            moved[name] = np.clip(moved[name] + step, low, high).astype(moved[name].dtype)
        difference, _ = self._pair.difference(moved)
        if not difference > self.difference:
            return False
        self.feed, self.difference = moved, difference
        return True

    def _signs(self, name: str, gradient: Array | None) -> Array:
        array = self.feed[name]
        if gradient is not None and np.any(gradient):
            return np.sign(gradient).astype(array.dtype)
        return self._rng.choice(np.array([-1, 0, 1], array.dtype), size=array.shape)


def _with_jacobian(model: ModelLike, outputs: Sequence[str], inputs: Sequence[str]) -> Session:
    """A session that returns the vector-Jacobian product by ``inputs`` beside the outputs."""
    copy = load_ir(model).clone()
    passes = (
        *parse_passes(_PREPARE),
        AddCotangents(outputs=tuple(outputs)),
        AddGradient(of=AddCotangents.total, wrt=tuple(re.escape(name) for name in inputs)),
        LowerGradient(),
    )
    for each in passes:
        each.run(copy)
    return Session(copy, DEPLOYMENT)


def _step_size(step: int, steps: int) -> float:
    """Falls geometrically from the first to the last."""
    return _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** (step / max(steps - 1, 1))


def _ranges(inputs: Sequence[TensorSpec], data: Sequence[Feed]) -> dict[str, tuple[float, float]]:
    return {
        each.name: (
            float(min(feed[each.name].min() for feed in data if feed[each.name].size)),
            float(max(feed[each.name].max() for feed in data if feed[each.name].size)),
        )
        for each in inputs
        if _is_real(each) and any(feed[each.name].size for feed in data)
    }


def _of(inputs: Sequence[TensorSpec], feed: Mapping[str, Array]) -> Feed:
    return {each.name: feed[each.name] for each in inputs}


def _mean_square(array: Any) -> float:
    values = np.asarray(array, np.float64)
    return float(np.mean(values * values)) if values.size else 0.0


def _check_alike(old: Session, new: Session, outputs: Sequence[str]) -> None:
    """Refuse a candidate that the feeds of the reference do not fit, or that lacks its outputs."""
    known = {each.name: each for each in old.inputs}
    for each in new.inputs:
        if each.name not in known:
            raise UsageError(
                f"input '{each.name}' of the candidate is not in the reference: nothing can be "
                "searched where the models take different inputs"
            )
        if each.dtype != known[each.name].dtype:
            raise UsageError(
                f"input '{each.name}' is {each} in the candidate and {known[each.name]} in the "
                "reference: search with a candidate that takes the reference's inputs"
            )
    for name in outputs:
        if name not in {each.name for each in new.outputs}:
            raise UsageError(f"output '{name}' of the reference is not in the candidate")


def _is_real(spec: TensorSpec) -> bool:
    return isinstance(spec.dtype, np.dtype) and is_float(spec.dtype)
