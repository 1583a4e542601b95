"""What is asked for of losses, worked out on one model before anything is changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.attach import Attacher, Attachment
from onnxfold.passes.loss.build import (
    DEFAULT_OPSET,
    LossDescription,
    LossModel,
    build_loss,
    describe_loss,
    parse_losses,
)
from onnxfold.passes.loss.registry import opened_loss
from onnxfold.passes.spec import PassSpec, parse_pipeline

LABELS = "labels"
"""What the input with the right answers is called, unless the user says otherwise."""

_CHANNELS = (1, 2, 3, 4)
_ANSWERS = ("labels", "targets")
_ABOUT_ONE = ("on", "labels", "weight")


@dataclass(frozen=True)
class LossRequest:
    """Losses as they are asked for.

    Attributes:
        loss: Losses with their options, as text.
        on: Outputs, or tensors inside, that the losses are about.
        labels: Name of the input with the right answers.
        weight: The share of each loss in the total, in order; 1 where empty.
    """

    loss: str
    on: tuple[str, ...] = ()
    labels: str = LABELS
    weight: tuple[float, ...] = ()


@dataclass(frozen=True)
class PlannedLoss:
    """One loss, built for the tensors of one model.

    Attributes:
        built: The loss as a model of its own.
        attachments: The tensors of the model that it takes, in order.
        inputs: For each input of ``built`` that is fed, the name that is wanted for it.
        weight: Its share in the total.
    """

    built: LossModel
    attachments: tuple[Attachment, ...]
    inputs: dict[str, str]
    weight: float

    @property
    def output(self) -> str:
        """The name that is wanted for its output."""
        return f"loss_{self.built.name.replace('-', '_')}"

    @property
    def share(self) -> float:
        """What it counts with in a total that is better lower."""
        return self.weight if self.built.better == "lower" else -self.weight

    @property
    def class_axis(self) -> int:
        """The axis of classes that it was built for."""
        (spec,) = parse_pipeline(self.built.text)
        return int(spec.options.get("axis", ("-1",))[0])


def plan_losses(
    model: ir.Model, outputs: Sequence[str], request: LossRequest
) -> tuple[PlannedLoss, ...]:
    """Build every loss of ``request`` for the tensors of ``model``, which is not changed.

    Args:
        model: The model.
        outputs: The names of those of its outputs that a loss may be about.
        request: What is asked for.

    Raises:
        UsageError: A loss, an option or a tensor is unknown, or they do not fit each other.
    """
    opset = model.graph.opset_imports.get("", DEFAULT_OPSET)
    asked = [_Asked.of(spec, request.labels) for spec in parse_losses(request.loss)]
    weights = request.weight or (1.0,) * len(asked)
    if len(weights) != len(asked):
        raise UsageError(f"{len(weights)} weights for {len(asked)} losses")
    attacher = Attacher(model, outputs)
    planned: list[PlannedLoss] = []
    for each, weight, on in zip(asked, weights, _shared(request.on, asked), strict=True):
        attachments = attacher.attach(each.description, each.on or on)
        built = _build(each, attachments, opset)
        inputs = {name: each.labels if name in _ANSWERS else name for name in built.data}
        share = weight if each.weight is None else each.weight
        if not math.isfinite(share) or share == 0:
            raise UsageError(
                f"the weight of loss {built.name} is {share}: give a finite number, not 0"
            )
        planned.append(PlannedLoss(built, attachments, inputs, share))
    return tuple(planned)


@dataclass(frozen=True)
class _Asked:
    """One loss of a request, with what its text says about its place."""

    spec: PassSpec
    description: LossDescription
    on: tuple[str, ...]
    labels: str
    weight: float | None

    @classmethod
    def of(cls, spec: PassSpec, labels: str) -> _Asked:
        spec, given = without_place(spec), spec.options
        description = describe_loss(spec)
        for name in ("labels", "weight"):
            if name in given and len(given[name]) != 1:
                raise UsageError(f"loss {spec.name}, option {name}: expected one value")
        weight = None
        if "weight" in given:
            try:
                weight = float(given["weight"][0])
            except ValueError:
                text = given["weight"][0]
                raise UsageError(f"loss {spec.name}: weight '{text}' is no number") from None
        named = given["labels"][0] if "labels" in given else labels
        return cls(spec, description, given.get("on", ()), named, weight)


def without_place(spec: PassSpec) -> PassSpec:
    """A loss without what its text says about its place: on, labels and weight."""
    own = {name: values for name, values in spec.options.items() if name not in _ABOUT_ONE}
    return PassSpec(spec.name, own)


def _shared(on: tuple[str, ...], asked: Sequence[_Asked]) -> list[tuple[str, ...]]:
    """The names for each loss: the same for all, or one after the other what each takes."""
    open_ = [each for each in asked if not each.on]
    counts = [len(each.description.tensors) for each in open_]
    if not on or all(count == len(on) for count in counts):
        return [on] * len(asked)
    if sum(counts) != len(on):
        takes = ", ".join(
            f"{each.description.name} takes {count}"
            for each, count in zip(open_, counts, strict=True)
        )
        raise UsageError(f"{len(on)} tensors are named ({', '.join(on)}): {takes}")
    names = iter(on)
    return [
        () if each.on else tuple(next(names) for _ in each.description.tensors) for each in asked
    ]


def _build(asked: _Asked, attachments: Sequence[Attachment], opset: int) -> LossModel:
    description = asked.description
    if opset < description.min_opset:
        raise UsageError(
            f"loss {description.name} needs opset {description.min_opset}, the model has {opset}: "
            f"put upgrade-opset{{to={max(description.min_opset, 17)}}} before it"
        )
    tensors = [each.tensor for each in attachments]
    return build_loss(_fitted(asked.spec, attachments[0]), tensors, opset)


def _fitted(spec: PassSpec, attachment: Attachment) -> PassSpec:
    """``spec`` with the axis of classes and the layout of images that the model shows."""
    with opened_loss(spec.name) as loss:
        options = {field.name for field in dataclasses.fields(loss.options)} - set(spec.options)
    shape, axis = attachment.tensor.shape, attachment.class_axis
    found: dict[str, tuple[str, ...]] = {}
    if axis is None and shape[-1:] == (1,):
        # Scores of a convolution or a pooling: all other axes are 1 long.
        wide = [at for at, dim in enumerate(shape[1:], start=1) if dim != 1]
        axis = wide[0] if len(wide) == 1 else None
    if "axis" in options and axis is not None and axis % len(shape) != len(shape) - 1:
        found["axis"] = (str(axis % len(shape)),)
    if "layout" in options and len(shape) == 4:
        # Nothing but channels is that thin.
        first, last = shape[1] in _CHANNELS, shape[-1] in _CHANNELS
        if first != last:
            found["layout"] = ("nchw" if first else "nhwc",)
    return PassSpec(spec.name, {**spec.options, **found})
