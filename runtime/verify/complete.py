"""Completes a feed for a model that a pass has given more inputs: labels, noise, weights."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.loss.record import DataInput, LossRecord, read_record
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.generated_feeds import generate_feed
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.specs import Feed, TensorSpec, dtype_name, is_float, is_integer
from onnxfold.runtime.verify.cut import keep_outputs


def labelled(feeds: FeedSource | Iterable[Feed]) -> Iterator[tuple[Feed, Feed]]:
    """Feeds with their labels, where the source has any."""
    if isinstance(feeds, FeedSource):
        return feeds.with_labels()
    return ((feed, {}) for feed in feeds)


class MadeUpLabels:
    """Makes up what the losses of a model are fed with, in sizes that go with a feed.

    Class numbers lie among the classes, soft labels are distributions. Where the model does not
    say how large an input is, the tensor that it goes with is computed.
    """

    def __init__(self, model: ir.Model) -> None:
        """Read what was recorded in ``model``; nothing runs yet."""
        self._model = model
        self._record = read_record(model)
        self._probe: Session | None = None

    def make(
        self, spec: TensorSpec, sizes: dict[str, int], feed: Feed, rng: np.random.Generator
    ) -> Array | None:
        """Values for an input; None where no loss added it.

        Raises:
            ExecutionError: The tensor that it goes with cannot be computed.
        """
        record = self._record
        if record is None or spec.name not in record.data or not spec.is_tensor:
            return None
        data = record.data[spec.name]
        dims = [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape or ()]
        if not all(isinstance(dim, int) for dim in dims):
            dims = self._measured(dims, data, record, feed)
        shape = tuple(dim if isinstance(dim, int) else 1 for dim in dims)
        return _values(data, shape, rng).astype(spec.dtype)

    def _measured(
        self, dims: Sequence[int | str | None], data: DataInput, record: LossRecord, feed: Feed
    ) -> list[int | str | None]:
        """``dims`` with the sizes that the tensor really has."""
        if self._probe is None:
            tensors = dict.fromkeys(each.tensor for each in record.data.values())
            self._probe = Session(reduced(self._model, tuple(tensors), record.inputs), REFERENCE)
        wanted = {spec.name: feed[spec.name] for spec in self._probe.inputs}
        shape = np.shape(self._probe.run(wanted)[data.tensor])
        return [
            dim if axis is None else shape[axis] for dim, axis in zip(dims, data.axes, strict=True)
        ]


def complete_feed(
    feed: Feed, labels: Feed, inputs: Sequence[TensorSpec], made_up: MadeUpLabels | None = None
) -> Feed:
    """``feed`` with values for inputs that a pass added: labels, or made up the same every time.

    Args:
        feed: Values of the original model's inputs; those that ``inputs`` lacks are left out.
        labels: Arrays beside them, by name of input; cast where that loses nothing but precision.
        inputs: What has to be fed.
        made_up: Knows what the losses among the additions are fed with.
    """
    by_name = {spec.name: spec for spec in inputs}
    known = {name: _cast(array, by_name.get(name)) for name, array in labels.items()} | feed
    sizes = {
        dim: size
        for spec in inputs
        if spec.name in known and spec.shape is not None
        for dim, size in zip(spec.shape, np.shape(known[spec.name]), strict=False)
        if isinstance(dim, str)
    }
    full: Feed = {}
    for spec in inputs:
        # Seeded by its name, an input has the same values whatever other inputs come and go.
        rng = np.random.default_rng(zlib.crc32(spec.name.encode()))
        if spec.name in known:
            full[spec.name] = known[spec.name]
            continue
        array = None if made_up is None else made_up.make(spec, sizes, feed, rng)
        if array is None:
            array = generate_feed([spec], rng, ranges={}, dims=sizes)[spec.name]
        full[spec.name] = array
    return full


def without_losses(model: ir.Model) -> ir.Model:
    """A copy of a model with losses that computes its own outputs alone; itself without losses."""
    record = read_record(model)
    return model if record is None else reduced(model, record.outputs, record.inputs)


def reduced(model: ir.Model, outputs: Sequence[str], inputs: Collection[str]) -> ir.Model:
    """A copy of ``model`` that computes ``outputs`` alone, without unread inputs but ``inputs``."""
    copy = keep_outputs(model, outputs)
    for value in tuple(copy.graph.inputs):
        if value.name not in inputs and not value.uses():
            copy.graph.inputs.remove(value)
    return copy


def _values(data: DataInput, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if data.kind == "classes":
        return np.asarray(rng.integers(0, data.classes or 2, shape))
    if data.kind == "positive":
        return np.asarray(rng.uniform(0.5, 1.5, shape))
    if data.kind != "distribution":
        return np.asarray(rng.standard_normal(shape))
    shares: Array = np.asarray(rng.uniform(0.05, 0.95, shape))
    several = shares.ndim > 1 and shape[-1] > 1
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True)) if several else shares


def _cast(array: Array, spec: TensorSpec | None) -> Array:
    """``array`` as the input wants it, between integers and between real numbers alone."""
    if spec is None or not isinstance(spec.dtype, np.dtype):
        return array
    alike = any(kind(array.dtype) and kind(spec.dtype) for kind in (is_integer, is_float))
    if not alike or dtype_name(array.dtype) == dtype_name(spec.dtype):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        converted: Array = array.astype(spec.dtype)
    same = is_float(spec.dtype) or np.array_equal(converted, array)
    return converted if same else array
