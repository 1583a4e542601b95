"""A loss as the measure by which ``compile`` chooses: what it computes from outputs and labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.build import parse_losses
from onnxfold.passes.loss.plan import LossRequest, PlannedLoss, plan_losses
from onnxfold.passes.loss.registry import opened_loss
from onnxfold.passes.spec import PassSpec, print_spec
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.session import REFERENCE, Session, mismatch
from onnxfold.runtime.specs import TensorSpec, is_integer
from onnxfold.runtime.verify.complete import complete_feed
from onnxfold.runtime.verify.labels import first_outside, no_class

_FROM_PROBABILITIES = "from_probabilities"


class LossMetric:
    """The negative of a loss, or of the weighted sum of several: more is better.

    Only outputs are at hand: a loss on logits of a model that ends in a softmax takes the
    probabilities where it can.

    Attributes:
        losses: What is computed.
    """

    def __init__(self, model: ir.Model, request: LossRequest) -> None:
        """Build the losses for the outputs of ``model``.

        Raises:
            UsageError: A loss or a tensor is unknown, or lies inside the model.
        """
        outputs = [value.name or "" for value in model.graph.outputs]
        planned = plan_losses(model, outputs, request)
        if not all(_is_on(each, outputs) for each in planned):
            planned = plan_losses(model, outputs, _from_probabilities(request))
        for each in planned:
            if not _is_on(each, outputs):
                inside = each.attachments[0].value.name
                raise UsageError(
                    f"loss {each.built.name} is about '{inside}', which is no output of the model: "
                    "compile measures by outputs"
                )
        self.losses = planned
        self._sessions = [Session(each.built.model, REFERENCE) for each in planned]
        self.__name__ = f"minus {request.loss}"

    def __call__(self, samples: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> float:
        """The figure of pairs of outputs and arrays.

        Raises:
            UsageError: Labels are missing, or of another type or shape than the loss wants.
        """
        known = list(samples)
        return -sum(each.share * _value(each, session, known) for each, session in self._pairs)

    def check_labels(self, model: ir.Model, feeds: FeedSource) -> None:
        """Refuse data of which a label is no class, unless the loss leaves such labels out.

        Args:
            model: That the losses were built for.
            feeds: Its feeds, with labels beside them.

        Raises:
            UsageError: A label is no class and makes a loss NaN; names the sample.
        """
        counts = [(each, session, _class_counts(each, session)) for each, session in self._pairs]
        if not any(known for _, _, known in counts):
            return
        original: Session | None = None
        for number, (feed, extra) in enumerate(feeds.with_labels()):
            arrays = {**feed, **extra}
            for planned, session, known in counts:
                for name, count in known.items():
                    label = first_outside(arrays.get(name), count)
                    if label is None:
                        continue
                    original = original or Session(model, REFERENCE)
                    if math.isnan(_value(planned, session, [(original.run(feed), arrays)])):
                        place = f"{feeds.description}, sample {number}"
                        raise no_class(place, name, label, count)

    @property
    def _pairs(self) -> Iterable[tuple[PlannedLoss, Session]]:
        return zip(self.losses, self._sessions, strict=True)


def _class_counts(planned: PlannedLoss, session: Session) -> dict[str, int]:
    """How many classes there are for each array of class numbers, where that is known."""
    shape = planned.attachments[0].tensor.shape
    if planned.built.scores == "values" or not shape:
        return {}
    count = shape[planned.class_axis]
    return {
        planned.inputs[spec.name]: count
        for spec in session.inputs
        if spec.name in planned.built.data
        and isinstance(spec.dtype, np.dtype)
        and is_integer(spec.dtype)
        and len(spec.shape or ()) == len(shape) - 1
        and isinstance(count, int)
    }


def _is_on(planned: PlannedLoss, outputs: Sequence[str]) -> bool:
    return all(each.value.name in outputs for each in planned.attachments)


def _from_probabilities(request: LossRequest) -> LossRequest:
    """The losses on probabilities instead of logits, where they have that option."""
    texts: list[str] = []
    for spec in parse_losses(request.loss):
        with opened_loss(spec.name) as loss:
            names = {field.name for field in dataclasses.fields(loss.options)}
        added = {"from-probabilities": ()} if _FROM_PROBABILITIES in names else {}
        texts.append(print_spec(PassSpec(spec.name, {**spec.options, **added})))
    return dataclasses.replace(request, loss=",".join(texts))


def _value(
    planned: PlannedLoss,
    session: Session,
    samples: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> float:
    """The loss of all samples as one batch; of samples of several sizes, the mean of theirs."""
    feeds = [_feed(planned, session, number, *each) for number, each in enumerate(samples)]
    sizes = {name: {array.shape[1:] for array in _column(feeds, name)} for name in feeds[0]}
    if all(len(shapes) == 1 for shapes in sizes.values()) and _is_open(session.inputs):
        feeds = [{name: np.concatenate(_column(feeds, name)) for name in feeds[0]}]
    values: list[Array] = [next(iter(session.run(feed).values())) for feed in feeds]
    return sum(float(each.mean()) for each in values) / len(values)


def _column(feeds: Sequence[Mapping[str, Array]], name: str) -> list[Array]:
    return [feed[name] for feed in feeds]


def _is_open(inputs: Sequence[TensorSpec]) -> bool:
    """Whether a batch may have any size."""
    return not any(isinstance(dim, int) for spec in inputs for dim in (spec.shape or ())[:1])


def _feed(
    planned: PlannedLoss,
    session: Session,
    number: int,
    outputs: Mapping[str, Any],
    arrays: Mapping[str, Any],
) -> dict[str, Array]:
    """What one sample gives the loss."""
    named = zip(planned.built.tensors, planned.attachments, strict=True)
    found: dict[str, Array] = {}
    for name, each in named:
        array: Array = outputs[each.value.name or ""]
        found[name] = np.exp(array) if each.is_log else array
    for spec in session.inputs:
        if spec.name not in planned.built.data:
            continue
        name = planned.inputs[spec.name]
        if name not in arrays:
            there = ", ".join(f"'{each}'" for each in arrays)
            raise UsageError(
                f"sample {number}: no array '{name}' ({spec}) for loss {planned.built.name}; there "
                f"is {there}; give data with labels, and their name with labels"
            )
        array = complete_feed({}, {spec.name: arrays[name]}, [spec])[spec.name]
        problem = mismatch(spec, array)
        if problem:
            raise UsageError(f"sample {number}: '{name}' {problem}")
        found[spec.name] = array
    return found
