"""What a model is tuned on: feeds, cut where they are large, with what the float model gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.specs import Feed, TensorSpec
from onnxfold.runtime.verify.cut import keep_outputs

_SIDE = 128
"""Of the largest square that an image is cut to: borders are few then, and steps quick."""
_GRID = 32
"""Cuts begin at multiples: patterns of sensors and strides stay where they were."""
_HELD_OUT = 4
"""One of so many feeds judges what was learned on the others."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Feeds to learn from, and others to judge by.

    Attributes:
        training: One array per input and per target each.
        held_out: Likewise; others, unless there is one feed only.
    """

    training: tuple[Feed, ...]
    held_out: tuple[Feed, ...]

    @classmethod
    def take(
        cls,
        original: ir.Model | None,
        targets: Mapping[str, str],
        feeds: Iterable[Feed],
        *,
        limit: int,
        seed: int = 0,
    ) -> Samples:
        """Run the float model on cuts of ``feeds``.

        Args:
            original: The float model; None where feeds are taken as they are.
            targets: Names of its tensors -> what to call them in the samples.
            feeds: One array per input each. Read once.
            limit: At most so many are read.
            seed: Decides where images are cut.

        Raises:
            UsageError: There is no data.
            ExecutionError: The model fails.
        """
        chosen = islice(feeds, limit)
        found = list(chosen if original is None else _answered(original, targets, chosen, seed))
        if not found:
            raise UsageError("there is no data to tune on: give at least one sample")
        if len(found) == 1:
            return cls(tuple(found), tuple(found))
        step = min(_HELD_OUT, len(found))
        held_out = found[step - 1 :: step]
        training = [each for index, each in enumerate(found) if index % step != step - 1]
        return cls(tuple(training), tuple(held_out))


def _answered(
    original: ir.Model, targets: Mapping[str, str], feeds: Iterable[Feed], seed: int
) -> Iterator[Feed]:
    session = Session(keep_outputs(original, targets), DEPLOYMENT)
    cut = _Cutter.of(original, np.random.default_rng(seed))
    for feed in feeds:
        given = cut(feed)
        answers = session.run(_of(session.inputs, given))
        yield {**given, **{targets[name]: array for name, array in answers.items()}}


class _Cutter:
    """Cuts one large image to a square, where the model takes images of any size."""

    def __init__(self, name: str, axes: tuple[int, int] | None, random: np.random.Generator):
        self._name = name
        self._axes = axes
        self._random = random

    @classmethod
    def of(cls, model: ir.Model, random: np.random.Generator) -> _Cutter:
        inputs = [each for each in model.graph.inputs if each.name not in model.graph.initializers]
        dims = list(inputs[0].shape or ()) if len(inputs) == 1 else []
        axes = next(
            (
                pair
                for pair in ((2, 3), (1, 2))
                if len(dims) == 4 and not any(isinstance(dims[axis], int) for axis in pair)
            ),
            None,
        )
        return cls(inputs[0].name or "" if inputs else "", axes, random)

    def __call__(self, feed: Mapping[str, Array]) -> Feed:
        if self._axes is None:
            return dict(feed)
        image = feed[self._name]
        for axis in self._axes:
            image = self._cut(image, axis)
        return {**feed, self._name: image}

    def _cut(self, image: Array, axis: int) -> Array:
        room = int(image.shape[axis]) - _SIDE
        if room <= 0:
            return image
        start = int(self._random.integers(room // _GRID + 1)) * _GRID
        return image.take(range(start, start + _SIDE), axis=axis)


def batches(samples: Sequence[Feed], size: int, seed: int) -> Iterator[Feed]:
    """Batches of ``samples`` for ever, in an order that ``seed`` decides.

    Each holds ``size`` samples, joined along the first axis; fewer where not so many have the same
    shapes.
    """
    random = np.random.default_rng(seed)
    groups: dict[object, list[Feed]] = {}
    for each in samples:
        shapes = tuple((name, array.shape) for name, array in each.items())
        groups.setdefault(shapes, []).append(each)
    while True:
        parts: list[list[Feed]] = []
        for group in groups.values():
            order = random.permutation(len(group))
            count = max(len(group) // size, 1)
            parts += [[group[i] for i in part] for part in np.array_split(order, count)]
        for index in random.permutation(len(parts)):
            yield joined(parts[int(index)])


def joined(samples: Sequence[Feed]) -> Feed:
    """One feed of several, along the first axis."""
    if len(samples) == 1:
        return samples[0]
    return {name: np.concatenate([each[name] for each in samples]) for name in samples[0]}


def _of(inputs: Iterable[TensorSpec], feed: Mapping[str, Array]) -> Feed:
    return {each.name: feed[each.name] for each in inputs}
