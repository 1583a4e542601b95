"""Where samples go in operators that move data: reshapes, slices, lookups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxfold.passes.batch.site import Axes, NewConstant, Site
from onnxfold.passes.constants import Array

Rule = Callable[[Site], Axes]

_END = np.iinfo(np.int64).max


def transpose(site: Site) -> Axes:
    """Axes in another order."""
    axis, rank = site.axis(), site.rank(0)
    order = site.node.attributes.get_ints("perm", list(range(rank))[::-1])
    return site.outputs(list(order).index(axis))


def reshape(site: Site) -> Axes:
    """Other axes over the same order of values."""
    axis = site.axis()
    before, after = site.sizes(site.node.inputs[0]), site.sizes(site.node.outputs[0])
    new = _place_of_samples(site, before, after, axis)
    target = site.constant(1)
    if target is None:
        return site.outputs(new)
    if site.attribute("allowzero", 0) and 0 in target:
        raise site.refuse("makes an empty tensor")
    open_ = [*after]
    open_[new] = -1
    if not np.array_equal(open_, target) and not _follows(target.tolist(), new, axis):
        site.edits.append(NewConstant(site.node, 1, np.array(open_, np.int64)))
    return site.outputs(new)


def _follows(target: Sequence[int], new: int, axis: int) -> bool:
    """Whether a target takes whatever number of samples there is."""
    return target[new] == -1 or (target[new] == 0 and new == axis)


def _place_of_samples(site: Site, before: Sequence[int], after: Sequence[int], axis: int) -> int:
    """The axis of ``after`` along which samples follow each other, as along ``axis`` before.

    As many values lie before a sample in both. One sample fits in several places: taken is the one
    where it stays, else one of its own, else one that is not the last, whose values are most often
    summed over; better one in which it is whole.
    """
    steps = math.prod(before[:axis]) * site.outer
    fitting: dict[int, int] = {}
    for place, size in enumerate(after):
        prefix = math.prod(after[:place])
        outer = steps // prefix if prefix and steps % prefix == 0 else 0
        if outer and size and size % (outer * site.batch) == 0:
            fitting[place] = outer
    if not fitting:
        raise site.refuse(f"mixes samples: {list(before)} becomes {list(after)}")
    stays = site.outer == 1 and list(after[: axis + 1]) == list(before[: axis + 1])
    alone = [place for place, outer in fitting.items() if after[place] == site.batch and outer == 1]
    inner = [place for place in fitting if place < len(after) - 1]
    whole = [place for place in inner if fitting[place] == 1]
    new = axis if stays else next(iter([*alone, *whole, *inner, *fitting]))
    site.outer = fitting[new]
    return new


def flatten(site: Site) -> Axes:
    """A matrix of all axes before and all axes from one on."""
    axis, before = site.axis(), site.sizes(site.node.inputs[0])
    cut = site.attribute("axis", 1)
    cut = cut + len(before) if cut < 0 else cut
    start, new = (0, 0) if axis < cut else (cut, 1)
    site.outer *= math.prod(before[start:axis])
    return site.outputs(new)


def squeeze(site: Site) -> Axes:
    """Axes of size 1 go away."""
    axis, rank = site.axis(), site.rank(0)
    axes = site.listed("axes", 1, rank)
    if axes is None:
        axes = [each for each, size in enumerate(site.sizes(site.node.inputs[0])) if size == 1]
    if axis in axes:
        raise site.refuse("takes away the axis of the samples")
    return site.outputs(axis - sum(1 for each in axes if each < axis))


def unsqueeze(site: Site) -> Axes:
    """New axes of size 1."""
    axis = site.axis()
    rank = len(site.shape_of(site.node.outputs[0]))
    new = site.listed("axes", 1, rank) or []
    old = [each for each in range(rank) if each not in new]
    return site.outputs(old[axis])


def concat(site: Site) -> Axes:
    """Side by side along another axis; what is no sample is repeated for all."""
    places = {axis for axis in site.axes if axis is not None}
    if len(places) > 1:
        raise site.refuse("joins samples that lie along different axes")
    axis = places.pop()
    rank = site.rank(site.carriers[0])
    if site.attribute("axis", 0) % rank == axis:
        raise site.refuse("puts something beside the samples")
    for index, each in enumerate(site.axes):
        if each is None:
            site.repeat(index, axis)
    return site.outputs(axis)


def split(site: Site) -> Axes:
    """Parts along another axis."""
    axis = site.axis()
    if site.attribute("axis", 0) % site.rank(0) == axis:
        raise site.refuse("takes samples apart")
    return site.outputs(axis)


def slice_(site: Site) -> Axes:
    """A part along other axes; along that of the samples, all of it."""
    axis, rank = site.axis(), site.rank(0)
    starts, ends, steps = site.constant(1), site.constant(2), site.constant(4)
    axes = site.listed("axes", 3, rank)
    if axes is None:
        axes = list(range(int(site.shape(1)[0] or 0)))
    if axis not in axes:
        return site.outputs(axis)
    place, size = axes.index(axis), site.shape(0)[axis]
    step = 1 if steps is None else int(steps[place])
    if starts is None or ends is None or size is None:
        raise site.refuse("computes which samples it takes")
    if int(starts[place]) not in (0, -size) or step != 1 or int(ends[place]) < size:
        raise site.refuse("takes some of the samples")
    if int(ends[place]) < _END // 2**32:
        opened = ends.astype(np.int64)
        opened[place] = _END
        site.edits.append(NewConstant(site.node, 2, opened.astype(ends.dtype)))
    return site.outputs(axis)


def gather(site: Site) -> Axes:
    """Lookups: the table or the indices hold samples."""
    along = site.attribute("axis", 0) % site.rank(0)
    if site.axes[0] is not None and site.axes[1] is not None:
        raise site.refuse("looks each sample up in all of them")
    if site.axes[1] is not None:
        return site.outputs(along + site.axes[1])
    axis = site.axis()
    if axis == along:
        raise site.refuse("picks one of the samples")
    return site.outputs(axis if axis < along else axis + site.rank(1) - 1)


def gather_elements(site: Site) -> Axes:
    """Values picked along another axis."""
    if site.axes[0] is None or site.axes[0] != site.axes[1]:
        raise site.refuse("looks each sample up in all of them")
    if site.attribute("axis", 0) % site.rank(0) == site.axes[0]:
        raise site.refuse("picks among the samples")
    return site.outputs(site.axes[0])


def gather_nd(site: Site) -> Axes:
    """Lookups by several indices at once."""
    batched = site.attribute("batch_dims", 0)
    both = (site.axes[0], site.axes[1])
    if both == (0, 0) and batched:
        return site.outputs(0)
    axis = both[1]
    if both[0] is not None or axis is None or axis == site.rank(1) - 1:
        raise site.refuse("looks each sample up in all of them")
    return site.outputs(axis)


def pad(site: Site) -> Axes:
    """Borders along other axes."""
    axis, rank = site.axis(), site.rank(0)
    pads = site.constant(1)
    if not site.has(1) and "pads" in site.node.attributes:
        pads = np.array(site.node.attributes["pads"].as_ints())
    axes = site.listed("axes", 3, rank) if site.has(3) else list(range(rank))
    if pads is None or axes is None:
        raise site.refuse("computes its borders")
    if axis in axes:
        place = axes.index(axis)
        if pads[place] or pads[place + len(axes)]:
            raise site.refuse("puts something beside the samples")
    return site.outputs(axis)


def expand(site: Site) -> Axes:
    """Repeated along other axes; a 1 leaves the samples as many as they are."""
    axis, target = site.axis(), site.constant(1)
    rank = len(site.shape_of(site.node.outputs[0]))
    new = axis + rank - site.rank(0)
    if target is not None:
        place = new - (rank - target.size)
        if place >= 0 and target[place] != 1:
            if target[place] != site.shape(0)[axis]:
                raise site.refuse("repeats the samples")
            opened: Array = np.array(target)
            opened[place] = 1
            site.edits.append(NewConstant(site.node, 1, opened))
    return site.outputs(new)


def tile(site: Site) -> Axes:
    """Repeated along other axes."""
    axis, repeats = site.axis(), site.constant(1)
    if repeats is None or repeats[axis] != 1:
        raise site.refuse("repeats the samples")
    return site.outputs(axis)


RULES: dict[str, Rule] = {
    "Concat": concat,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
