"""Compares two models in the units of a loss: the mean of each, and how sure their difference is.

Neither model is changed: the tensors that the loss is about become their outputs, and the loss,
which is a small model of its own, is run on these and on the labels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.build import DEFAULT_OPSET, build_loss, parse_losses
from onnxfold.passes.loss.declaration import Better
from onnxfold.passes.loss.plan import LossRequest, PlannedLoss, plan_losses, without_place
from onnxfold.passes.loss.registry import opened_loss
from onnxfold.passes.spec import PassSpec, print_spec
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, mismatch
from onnxfold.runtime.specs import Feed, TensorSpec
from onnxfold.runtime.verify.bootstrap import Indices, mean_interval, statistic_interval
from onnxfold.runtime.verify.complete import complete_feed, reduced, without_losses
from onnxfold.runtime.verify.gates import PASSED, Verdict

CONFIDENCE = 0.95
_BY_SAMPLE = "BCa bootstrap of paired samples (Efron 1987)"
_AS_A_WHOLE = "jackknife over groups of samples with Student's t (Efron 1982)"
_UNKNOWN = (-math.inf, math.inf)
_RELATIVE_ROUNDING = 1e-5
_ABSOLUTE_ROUNDING = 1e-7
_SHIFTING = ("weighted", "class-weights", "ignore-index", "class_weights", "ignore_index")
"""Options with which the mean over all samples is no mean of the samples' own losses."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LossDifference:
    """How much better or worse a candidate is than a reference.

    Attributes:
        loss: The loss with its options, as text.
        on: The tensors of the reference that it is about.
        better: ``lower`` or ``higher``.
        samples: How many were compared.
        reference: The loss of the reference.
        candidate: The loss of the candidate.
        difference: Candidate minus reference.
        low: Lower end of the confidence interval of ``difference``.
        high: Upper end.
        confidence: Of the interval.
        method: How it was found.
        limit: By how much the candidate may be worse; None where it only must not be proven worse
            than by rounding, 1e-5 of the loss.
    """

    loss: str
    on: tuple[str, ...]
    better: Better
    samples: int
    reference: float
    candidate: float
    difference: float
    low: float
    high: float
    confidence: float
    method: str
    limit: float | None

    @property
    def verdict(self) -> Verdict:
        """Whether the candidate is within the limit, as far as the samples tell."""
        sign = 1 if self.better == "lower" else -1
        worse = sign * self.difference
        least, most = sorted((sign * self.low, sign * self.high))
        rounding = _RELATIVE_ROUNDING * abs(self.reference) + _ABSOLUTE_ROUNDING
        limit = rounding if self.limit is None else self.limit
        if math.isnan(self.candidate):
            return Verdict(False, (f"{self.loss}: that of the candidate is not a number",))
        interval = f"{self.confidence:.0%} interval {least:.4g} to {most:.4g}"
        text = f"{self.loss}: the candidate is worse by {worse:.4g} ({interval})"
        if least > limit:
            return Verdict(False, (f"{text}, wanted <= {limit:g}",))
        if self.limit is None or most <= limit:
            return PASSED
        reason = f"{text}: {self.samples} samples do not prove <= {limit:g}; give more"
        return Verdict(False, (reason,), inconclusive=True)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {**dataclasses.asdict(self), "verdict": self.verdict.to_json()}


def compare_losses(
    reference: ir.Model,
    candidate: ir.Model,
    feeds: FeedSource,
    request: LossRequest,
    limit: float | None = None,
) -> tuple[LossDifference, ...]:
    """Evaluate each loss of ``request`` for both models on the same samples.

    A loss that can be had of each sample by itself is averaged over the samples; any other, such
    as one with negatives from the batch, is computed of all samples as one batch.

    Args:
        reference: The original; both run as deployed.
        candidate: The rewritten model, with float inputs and outputs.
        feeds: Feeds of the reference, with labels beside them.
        request: The losses, and what they are about.
        limit: By how much the candidate may be worse.

    Raises:
        UsageError: A loss, a tensor or labels are unknown or do not fit; a label is no class.
        ExecutionError: A model does not run.
    """
    specs = parse_losses(request.loss)
    of_samples = [_of_samples(spec) for spec in specs]
    texts = [print_spec(each or spec) for each, spec in zip(of_samples, specs, strict=True)]
    asked = dataclasses.replace(request, loss=",".join(texts), weight=())
    models = without_losses(reference), without_losses(candidate)
    plans = zip(
        *(
            _planned(model, asked, who)
            for model, who in zip(models, ("the reference", "the candidate"), strict=True)
        ),
        strict=True,
    )
    found: list[LossDifference] = []
    for spec, by_sample, (planned, other) in zip(specs, of_samples, plans, strict=True):
        sides = _Side(models[0], planned), _Side(models[1], other)
        known = list(_pairs(sides, feeds))
        separable = by_sample is not None and _is_separable(sides[0], [old for old, _ in known])
        measured = _sampled(sides, known) if separable else _whole(sides, known)
        if math.isnan(measured["reference"]):
            raise UsageError(_not_a_number(sides[0], [old for old, _ in known], feeds))
        found.append(
            LossDifference(
                loss=print_spec(without_place(spec)),
                on=tuple(each.value.name or "" for each in planned.attachments),
                better=planned.built.better,
                confidence=CONFIDENCE,
                limit=limit,
                **measured,
            )
        )
    return tuple(found)


def _of_samples(spec: PassSpec) -> PassSpec | None:
    """The loss without reduction, where its mean is the mean over samples; else None."""
    if spec.options.get("reduction", ("mean",)) != ("mean",) or set(_SHIFTING) & set(spec.options):
        return None
    with opened_loss(spec.name) as loss:
        if "reduction" not in {field.name for field in dataclasses.fields(loss.options)}:
            return None
    return PassSpec(spec.name, {**spec.options, "reduction": ("none",)})


def _planned(model: ir.Model, request: LossRequest, who: str) -> tuple[PlannedLoss, ...]:
    """The losses, for batches of any size."""
    outputs = [value.name or "" for value in model.graph.outputs]
    try:
        planned = plan_losses(model, outputs, request)
    except UsageError as error:
        raise UsageError(f"{who}: {error}") from error
    return tuple(_for_any_batch(each, model) for each in planned)


def _for_any_batch(planned: PlannedLoss, model: ir.Model) -> PlannedLoss:
    tensors = [each.tensor for each in planned.attachments]
    if not any(isinstance(dim, int) for each in tensors for dim in each.shape[:1]):
        return planned
    opened = [dataclasses.replace(each, shape=("samples", *each.shape[1:])) for each in tensors]
    (spec,) = parse_losses(planned.built.text)
    opset = model.graph.opset_imports.get("", DEFAULT_OPSET)
    return dataclasses.replace(planned, built=build_loss(spec, opened, opset))


class _Side:
    """One of the models, and the loss built for its tensors."""

    def __init__(self, model: ir.Model, planned: PlannedLoss) -> None:
        self.planned = planned
        self._names = [each.value.name or "" for each in planned.attachments]
        self._session = Session(_showing(model, planned, self._names), DEPLOYMENT)
        self.loss = Session(planned.built.model, REFERENCE)

    @property
    def data(self) -> list[TensorSpec]:
        """What the loss is fed with beside the tensors of the model."""
        return [spec for spec in self.loss.inputs if spec.name in self.planned.built.data]

    def tensors(self, feed: Feed) -> dict[str, Array]:
        """The tensors for one feed, by the names that the loss has for them."""
        outputs = self._session.run(complete_feed(feed, {}, self._session.inputs))
        named = zip(self.planned.built.tensors, self.planned.attachments, self._names, strict=True)
        return {
            tensor: np.exp(outputs[name]) if each.is_log else outputs[name]
            for tensor, each, name in named
        }

    def value(self, arrays: Mapping[str, Array]) -> Array:
        """The loss of tensors and labels."""
        (result,) = self.loss.run(arrays).values()
        return np.asarray(result, np.float64)


def _showing(model: ir.Model, planned: PlannedLoss, names: Sequence[str]) -> ir.Model:
    """A copy of ``model`` that returns the tensors alone."""
    copy = reduced(model, list(dict.fromkeys(names)), ())
    types = {each.value.name: each.tensor for each in planned.attachments}
    for value in copy.graph.outputs:
        if value.type is None:
            value.type = ir.TensorType(types[value.name].dtype)
    return copy


def _pairs(
    sides: tuple[_Side, _Side], feeds: FeedSource
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """What goes into the loss of either model, feed by feed."""
    for number, (feed, labels) in enumerate(feeds.with_labels()):
        known = labels | feed
        arrays: list[dict[str, Array]] = []
        for side in sides:
            data = {
                spec.name: _label(spec, side.planned.inputs[spec.name], known, feeds, number)
                for spec in side.data
            }
            arrays.append({**side.tensors(feed), **data})
        yield arrays[0], arrays[1]


def _label(
    spec: TensorSpec, name: str, known: Mapping[str, Array], feeds: FeedSource, number: int
) -> Array:
    """The array ``name`` of one sample, as the loss wants it.

    Raises:
        UsageError: There is none, or it is of another type or shape.
    """
    place = f"{feeds.description}, sample {number}"
    if name not in known:
        there = ", ".join(f"'{each}'" for each in known)
        raise UsageError(
            f"{place}: no array '{name}' ({spec}) for the loss; there is {there}; give data with "
            "labels, and their name with labels (--labels)"
        )
    found = complete_feed({}, {spec.name: known[name]}, [spec])[spec.name]
    problem = mismatch(spec, found)
    if problem:
        raise UsageError(f"{place}: '{name}' {problem}")
    return found


def _is_separable(side: _Side, known: Sequence[Mapping[str, Array]]) -> bool:
    """Whether the loss of two samples is that of one, and that of the other, by trying."""
    feeds = [
        {name: array[row : row + 1] for name, array in arrays.items()}
        for arrays in known[:2]
        for row in range(min(2, len(next(iter(arrays.values())))))
    ][:2]
    alone = [side.value(each) for each in feeds]
    if any(not each.ndim for each in alone):
        return False
    if len(feeds) < 2 or _shapes(feeds[0]) != _shapes(feeds[1]):
        return True
    both = side.value({name: np.concatenate([feeds[0][name], feeds[1][name]]) for name in feeds[0]})
    apart = np.concatenate(alone)
    return both.shape == apart.shape and np.allclose(both, apart, 1e-4, 1e-6, equal_nan=True)


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in arrays.items()}


def _sampled(
    sides: tuple[_Side, _Side], known: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]
) -> dict[str, Any]:
    """Both means over the samples, and the interval of the mean difference."""
    columns: tuple[list[Floats], list[Floats]] = ([], [])
    for arrays in known:
        for side, each, column in zip(sides, arrays, columns, strict=True):
            values = side.value(each)
            column.append(values.reshape(len(values), -1).mean(axis=1))
    old, new = (np.concatenate(column) for column in columns)
    interval = mean_interval(new - old, CONFIDENCE) if len(old) > 1 else _UNKNOWN
    return _measured(len(old), float(old.mean()), float(new.mean()), interval, _BY_SAMPLE)


def _whole(
    sides: tuple[_Side, _Side], known: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]
) -> dict[str, Any]:
    """The loss of all samples as one batch, and the interval of the difference.

    Raises:
        UsageError: The samples are of several sizes.
    """
    first = known[0][0]
    if any(_shapes(old) != _shapes(first) for old, _ in known):
        name = sides[0].planned.built.name
        raise UsageError(f"loss {name} is one of all samples: give samples of one size")
    batches = [
        {name: np.concatenate([each[index][name] for each in known]) for name in known[0][index]}
        for index in range(2)
    ]
    samples = len(next(iter(batches[0].values())))

    def values(chosen: Indices) -> tuple[float, float]:
        old, new = (
            float(side.value({name: array[chosen] for name, array in batch.items()}).mean())
            for side, batch in zip(sides, batches, strict=True)
        )
        return old, new

    def difference(chosen: Indices) -> float:
        old, new = values(chosen)
        return new - old

    interval = statistic_interval(difference, samples, CONFIDENCE) if samples > 1 else _UNKNOWN
    return _measured(samples, *values(np.arange(samples)), interval, _AS_A_WHOLE)


def _not_a_number(side: _Side, known: Sequence[Mapping[str, Array]], feeds: FeedSource) -> str:
    """Says that the loss of the reference is NaN, and of which feed where one alone has such."""
    nans = (number for number, each in enumerate(known) if np.isnan(side.value(each)).any())
    number = next(nans, None)
    place = feeds.description if number is None else f"{feeds.description}, sample {number}"
    return (
        f"{place}: loss {side.planned.built.name} of the reference is not a number: labels have to "
        "be classes that it has (or ignore-index), and numbers finite"
    )


def _measured(
    samples: int, old: float, new: float, interval: tuple[float, float], method: str
) -> dict[str, Any]:
    low, high = interval
    return {
        "samples": samples,
        "reference": old,
        "candidate": new,
        "difference": new - old,
        "low": low,
        "high": high,
        "method": method,
    }
