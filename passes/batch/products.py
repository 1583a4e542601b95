"""Where samples go in products, convolutions, pooling and recurrent layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxfold.passes.batch.site import Axes, NoInput, Site, WithBatch

Rule = Callable[[Site], Axes]

_IMAGES = (
    *("AveragePool", "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DepthToSpace"),
    *("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization"),
    *("InstanceNormalization", "LpPool", "LRN", "MaxPool", "QLinearConv", "SpaceToDepth"),
)
_RECURRENT = ("LSTM", "GRU", "RNN")
_LENGTHS, _STATE, _CELL = 4, 5, 6
_PRODUCTS = {"MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}


def image(site: Site) -> Axes:
    """Samples lie along the first axis, and every one by itself."""
    if site.axis() != 0:
        raise site.refuse("wants samples along the first axis")
    return site.outputs(0)


def product(site: Site) -> Axes:
    """Matrix products: samples are rows, columns, or whole matrices."""
    left, right = _PRODUCTS[site.node.op_type]
    ranks = site.rank(left), site.rank(right)
    rank = max(*ranks, 2)
    places: set[int] = set()
    for index, own, inner in ((left, ranks[0], 1), (right, ranks[1], 2)):
        axis = site.axes[index]
        if axis is None:
            continue
        place = own - axis
        if own == 1 or place == inner:
            raise site.refuse("sums over the samples")
        places.add(place)
    if len(site.carriers) > 1 and (len(places) > 1 or min(places) < 3):
        raise site.refuse("multiplies samples with each other")
    if any(index not in (left, right) for index in site.carriers):
        raise site.refuse("takes scales that differ from sample to sample")
    place = places.pop()
    for index, own in ((left, ranks[0]), (right, ranks[1])):
        if place > 2 and site.axes[index] is None and own >= place:
            site.fit_all(index, own - place)
    if ranks[0] == 1 and place == 1:
        return site.outputs(rank - 2)
    # A vector has no second axis, nor has its product.
    return site.outputs(rank - place)


def gemm(site: Site) -> Axes:
    """Samples are the rows of the first matrix."""
    if site.axis(0, 2) != site.attribute("transA", 0):
        raise site.refuse("sums over the samples")
    if site.has(2) and site.axes[2] is None and site.rank(2) == 2:
        site.fit_all(2, 0)
    if site.has(2) and site.axes[2] is not None and (site.rank(2) != 2 or site.axes[2] != 0):
        raise site.refuse("adds samples that lie along another axis")
    return site.outputs(0)


def resize(site: Site) -> Axes:
    """Images of other sizes; the sizes hold the number of samples too."""
    axis = site.axis()
    axes = site.listed("axes", len(site.node.inputs), site.rank(0))
    order = list(range(site.rank(0))) if axes is None else axes
    if axis not in order:
        return site.outputs(axis)
    place = order.index(axis)
    scales, sizes = site.constant(2 if site.node.op_type == "Resize" else 1), site.constant(3)
    if scales is not None and scales.size:
        if scales[place] != 1:
            raise site.refuse("changes the number of samples")
    elif sizes is not None and sizes.size:
        if sizes[place] != site.shape(0)[axis]:
            raise site.refuse("changes the number of samples")
        factor = int(sizes[place]) // site.batch
        site.edits.append(WithBatch(site.node, 3, place, factor, sizes))
    return site.outputs(axis)


def recurrent(site: Site) -> Axes:
    """Samples lie along the second axis of sequences and states; the first where it says so."""
    states = (_STATE, _CELL)
    first = site.attribute("layout", 0)
    wanted = 0 if first else 1
    if site.axis(0, _LENGTHS, *states) != wanted:
        raise site.refuse(f"wants samples along axis {wanted}")
    for index in states:
        if site.has(index) and site.axes[index] not in (None, wanted):
            raise site.refuse(f"wants samples along axis {wanted} of its state")
        if site.has(index) and site.axes[index] is None:
            _open_state(site, index, wanted)
    if site.has(_LENGTHS) and site.axes[_LENGTHS] is None:
        _open_lengths(site, 1 if first else 0)
    places: Axes = [0, 0, 0] if first else [2, 1, 1]
    return places[: len(site.node.outputs)]


def _open_state(site: Site, index: int, axis: int) -> None:
    constant = site.constant(index)
    if constant is not None and not np.any(constant):
        # No state at all means zeros for any number of samples.
        site.edits.append(NoInput(site.node, index))
    else:
        site.repeat(index, axis)


def _open_lengths(site: Site, time: int) -> None:
    lengths, longest = site.constant(_LENGTHS), site.shape(0)[time]
    if lengths is not None and longest is not None and np.all(lengths == longest):
        site.edits.append(NoInput(site.node, _LENGTHS))
    else:
        site.repeat(_LENGTHS, 0)


def einsum(site: Site) -> Axes:
    """A letter stands for the samples: the same in all inputs that have them, and in the output."""
    equation = site.node.attributes["equation"].as_string().replace(" ", "")
    if "." in equation or "->" not in equation:
        raise site.refuse("has an equation that does not name all axes")
    given, _, result = equation.partition("->")
    terms = given.split(",")
    letters = {terms[index][axis] for index, axis in enumerate(site.axes) if axis is not None}
    letter = letters.pop()
    if letters or letter not in result:
        raise site.refuse("sums over the samples, or combines them with each other")
    for index, term in enumerate(terms):
        if site.axes[index] is None and letter in term:
            site.fit_all(index, term.index(letter))
    return [result.index(letter)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(_IMAGES, image),
    **dict.fromkeys(_PRODUCTS, product),
    **dict.fromkeys(_RECURRENT, recurrent),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "Einsum": einsum,
    "Gemm": gemm,
}
