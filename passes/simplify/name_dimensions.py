"""name-dimensions: call open dimensions by what they are."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.batch.site import MixedSamplesError
from onnxfold.passes.batch.trace import Dim, shapes_for, trace_batch
from onnxfold.passes.rewriter import Rewriter

_NUMBERED = re.compile(r"\b(?:unk__|unknown_|dynamic_axes_|dim_|[su])\d+\b")
"""Names that exporters and shape inference make up."""
_BATCH, _HEIGHT, _WIDTH, _LENGTH = "batch", "height", "width", "length"
_IMAGE_RANK, _SEQUENCE_RANKS = 4, (2, 3)


@dataclass(frozen=True)
class NameDimensions(Pass):
    """Give open dimensions readable names where they have numbered ones, like ``unk__12``, or none.

    The first dimension of inputs is ``batch``; the others are ``height`` and ``width`` of images,
    ``length`` of sequences, or called after the input and the axis: ``x_2``. Dimensions of other
    inputs share a name only where they did before or where samples can be followed through the
    model: ONNX Runtime takes equal names for equal sizes. Outputs get the names that follow.
    """

    name: ClassVar[str] = "name-dimensions"
    contract: ClassVar[Contract] = Contract.EXACT

    @property
    def changes_interface(self) -> bool:
        """It renames dimensions."""
        return True

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Rename the dimensions of the main graph."""
        graph = model.graph
        computed = [value for node in graph for value in node.outputs]
        values = list(dict.fromkeys((*graph.inputs, *computed, *graph.outputs)))
        if not any(_is_numbered(value) for value in values):
            return
        given = _numbered_inputs(graph)
        batched = [each for each, dims in given.items() if dims and _is_open(dims[0])]
        axes = _axes_of_samples(model, batched)
        names = _names(given, batched if axes else batched[:1])
        with rewriter.step("name-dimensions"):
            for value, dims in given.items():
                rewriter.set_type(value, shape=[_renamed(dim, names) for dim in dims])
            following = shapes_for(model, {})
            for value in values:
                if value.is_graph_input() or value.shape is None:
                    continue
                rewriter.set_type(value, shape=_follow(value, names, following, axes))


def _axes_of_samples(model: ir.Model, batched: Sequence[ir.Value]) -> dict[ir.Value, int]:
    """Where samples lie in each value; nothing where they cannot be followed."""
    try:
        found = trace_batch(model, [value.name or "" for value in batched], 1)
    except MixedSamplesError:
        return {}
    # What holds their number as a constant does not fit another number of them.
    return {} if found.edits else {v: a for v, a in found.axes.items() if found.factors.get(v) == 1}


def _numbered_inputs(graph: ir.Graph) -> dict[ir.Value, list[Dim]]:
    """The dimensions of what has to be fed, with numbers for those that have no name at all."""
    count = itertools.count()
    return {
        value: [f"unknown_{next(count)}" if each is None else each for each in _dims(value) or ()]
        for value in graph.inputs
        if value.shape is not None and not value.is_initializer()
    }


def _names(given: Mapping[ir.Value, Sequence[Dim]], batched: Sequence[ir.Value]) -> dict[str, str]:
    """What numbered symbols become; each name once, but ``batch``."""
    names: dict[str, str] = {str(given[value][0]): _BATCH for value in batched}
    for value, dims in given.items():
        for axis, symbol in enumerate(dims):
            if not isinstance(symbol, str) or not _NUMBERED.fullmatch(symbol) or symbol in names:
                continue
            word = _word(dims, axis)
            is_free = word is not None and word not in names.values()
            names[symbol] = word if word is not None and is_free else f"{value.name}_{axis}"
    return names


def _follow(
    value: ir.Value,
    names: Mapping[str, str],
    following: Mapping[str, Sequence[Dim]],
    axes: Mapping[ir.Value, int],
) -> list[Dim]:
    """The dimensions of a computed value, in the names that its inputs have now."""
    declared = _dims(value) or []
    found = following.get(value.name or "", [None] * len(declared))
    result: list[Dim] = []
    for axis, dim in enumerate(declared):
        if not _is_open(dim):
            result.append(dim)
            continue
        inferred = found[axis] if axis < len(found) else None
        new = _renamed(dim, names) if isinstance(dim, str) else None
        if not _is_open(inferred):
            new = inferred
        elif axes.get(value) == axis:
            new = _BATCH
        elif isinstance(new, str) and _NUMBERED.search(new):
            new = None
        if new is None and value.is_graph_output():
            new = f"{value.name}_{axis}"
        result.append(new)
    return result


def _word(dims: Sequence[Dim], axis: int) -> str | None:
    """What a dimension of an input is, by its place; None where that does not say."""
    if len(dims) == _IMAGE_RANK:
        channels_last = isinstance(dims[-1], int) and not isinstance(dims[1], int)
        words = {1: _HEIGHT, 2: _WIDTH} if channels_last else {2: _HEIGHT, 3: _WIDTH}
        return words.get(axis)
    return _LENGTH if len(dims) in _SEQUENCE_RANKS and axis == 1 else None


def _renamed(dim: Dim, names: Mapping[str, str]) -> Dim:
    """A dimension, or an expression of several, with other symbols."""
    if not isinstance(dim, str):
        return dim
    return _NUMBERED.sub(lambda found: names.get(found[0], found[0]), dim)


def _is_numbered(value: ir.Value) -> bool:
    """Whether a value has a dimension without a readable name that others see."""
    dims = _dims(value) or []
    is_edge = value.is_graph_input() or value.is_graph_output()
    return any(
        (isinstance(dim, str) and _NUMBERED.search(dim) is not None) or (dim is None and is_edge)
        for dim in dims
    )


def _is_open(dim: Dim) -> bool:
    return dim is None or (isinstance(dim, str) and _NUMBERED.search(dim) is not None)


def _dims(value: ir.Value) -> list[Dim] | None:
    if value.shape is None:
        return None
    return [each if isinstance(each, int) else each.value for each in value.shape]
