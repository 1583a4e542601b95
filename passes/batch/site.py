"""A node as the rules see it that follow a batch through a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.shapes import axes_of
from onnxfold.passes.walk import label

Axes = list["int | None"]
"""For each value, the axis along which samples follow each other; None where it has none."""


class MixedSamplesError(Exception):
    """An operator that computes across samples, or of which nobody knows; says why."""


@dataclass(frozen=True)
class NewConstant:
    """Input ``index`` of ``node`` becomes a constant that fits any batch."""

    node: ir.Node
    index: int
    array: Array


@dataclass(frozen=True)
class NoInput:
    """Input ``index`` of ``node`` is left out: what stands for it fits any batch."""

    node: ir.Node
    index: int


@dataclass(frozen=True)
class Repeated:
    """Input ``index`` of ``node``, the same for every sample, is repeated along ``axis``.

    Attributes:
        array: The constant for one sample; None where the value itself has one.
    """

    node: ir.Node
    index: int
    axis: int
    rank: int
    array: Array | None


@dataclass(frozen=True)
class WithBatch:
    """Input ``index`` of ``node``, a shape, gets the batch times ``factor`` at ``place``."""

    node: ir.Node
    index: int
    place: int
    factor: int
    array: Array


Edit = NewConstant | NoInput | Repeated | WithBatch


@dataclass
class Site:
    """A node that samples run through.

    Attributes:
        node: The node.
        batch: Samples in the model as it is.
        axes: Of its inputs.
        shapes: Shapes of values of the model, by name, for that many samples.
        symbolic: Axes that shape inference finds to be as long as the batch, by name.
        opset: The version of ai.onnx.
        outer: How many groups of all samples follow each other along the axis: 1 where samples are
            whole, T where [T, N, C] became [T * N, C]. A rule that changes it says so here.
        edits: What has to be done for other batches.
    """

    node: ir.Node
    batch: int
    axes: Axes
    shapes: Mapping[str, Sequence[int | None]]
    symbolic: Mapping[str, int]
    opset: int
    outer: int = 1
    edits: list[Edit] = field(default_factory=list[Edit])

    def refuse(self, reason: str) -> MixedSamplesError:
        """An error that names the node."""
        return MixedSamplesError(f"{label(self.node)} {reason}")

    @property
    def carriers(self) -> list[int]:
        """The inputs that hold samples."""
        return [index for index, axis in enumerate(self.axes) if axis is not None]

    def axis(self, index: int = 0, *others: int) -> int:
        """The axis of input ``index``; only it and ``others`` may hold samples.

        Raises:
            MixedSamplesError: It holds none, or another input does.
        """
        surplus = [each for each in self.carriers if each not in (index, *others)]
        if surplus:
            raise self.refuse(f"takes what differs from sample to sample as input {surplus[0]}")
        found = self.axes[index]
        if found is None:
            raise self.refuse(f"has no samples in input {index}")
        return found

    def shape(self, index: int) -> Sequence[int | None]:
        """The shape of input ``index``."""
        return self.shape_of(self.node.inputs[index])

    def shape_of(self, value: ir.Value | None) -> Sequence[int | None]:
        """The shape of a value.

        Raises:
            MixedSamplesError: Its rank is unknown.
        """
        name = "" if value is None else value.name or ""
        if name not in self.shapes:
            raise self.refuse(f"reads or gives '{name}', whose rank is unknown")
        return self.shapes[name]

    def sizes(self, value: ir.Value | None) -> list[int]:
        """The shape of a value, all of it known."""
        found = [each for each in self.shape_of(value) if each is not None]
        if len(found) < len(self.shape_of(value)):
            name = "" if value is None else value.name
            raise self.refuse(f"reads or gives '{name}', whose shape is unknown")
        return found

    def rank(self, index: int) -> int:
        """The rank of input ``index``."""
        return len(self.shape(index))

    def constant(self, index: int) -> Array | None:
        """Input ``index`` where it is a constant; None where it is none or left out."""
        inputs = self.node.inputs
        return constant_array(inputs[index]) if index < len(inputs) else None

    def has(self, index: int) -> bool:
        """Whether input ``index`` is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def listed(self, name: str, index: int, rank: int) -> list[int] | None:
        """Axes, from 0, of an attribute or a constant input; None where none are given.

        Raises:
            MixedSamplesError: They are computed.
        """
        if not self.has(index) and name not in self.node.attributes:
            return None
        found = axes_of(self.node, name, index)
        if found is None:
            raise self.refuse(f"computes its {name}")
        return [each % rank for each in found]

    def attribute(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        return self.node.attributes.get_int(name, default)

    def outputs(self, axis: int | None) -> Axes:
        """All outputs have their samples along ``axis``."""
        return [axis for _ in self.node.outputs]

    def one_of(self, index: int, axis: int) -> Array | None:
        """A constant input for one sample, where all samples have the same; None for a value.

        Raises:
            MixedSamplesError: They have not.
        """
        array = self.constant(index)
        if array is None:
            return None
        first: Array = np.take(array, [0], axis)
        if not np.array_equal(array, np.broadcast_to(first, array.shape)):
            raise self.refuse(f"has a constant of its own for each sample in input {index}")
        return first

    def fit_all(self, index: int, axis: int) -> None:
        """Have input ``index``, which broadcasts to samples along ``axis``, be there once.

        Raises:
            MixedSamplesError: It has a number of its own along the axis.
        """
        if self.shape(index)[axis] == 1:
            return
        array = self.one_of(index, axis)
        if array is None:
            raise self.refuse(f"combines samples with input {index}, which has a number of its own")
        self.edits.append(NewConstant(self.node, index, array))

    def repeat(self, index: int, axis: int) -> None:
        """Have input ``index``, which is the same for all samples, follow the batch."""
        value = self.node.inputs[index]
        if value is not None and self.symbolic.get(value.name or "") == axis:
            return
        rank = self.rank(index)
        if self.shape(index)[axis] != self.batch:
            raise self.refuse(f"wants samples along axis {axis} of input {index}")
        array = self.one_of(index, axis)
        if array is None and self.batch != 1:
            raise self.refuse(
                f"computes input {index} for {self.batch} samples without reading them"
            )
        self.edits.append(Repeated(self.node, index, axis, rank, array))
