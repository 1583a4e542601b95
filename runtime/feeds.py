"""Where a model's inputs come from: files, folders, data readers, functions, or thin air."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.suggest import did_you_mean
from onnxfold.runtime.casts import cast as cast_array
from onnxfold.runtime.feed_readers import Reader, open_reader
from onnxfold.runtime.generated_feeds import DEFAULT_SAMPLES, ValueRange, generate_feed
from onnxfold.runtime.specs import Feed, TensorSpec, dtype_name, is_float


class FeedSource:
    """Feeds for one model, checked and ready to run; may be iterated any number of times.

    Attributes:
        description: Where they come from, for reports.
        generated: Whether they were made up from shapes and dtypes.
        inputs: The model inputs they are for.
    """

    def __init__(
        self,
        reader: Reader,
        inputs: Sequence[TensorSpec],
        *,
        limit: int | None = None,
        part: tuple[int, int] = (0, 1),
        generated: bool = False,
        allow_nonfinite: bool = False,
        unread: frozenset[str] = frozenset(),
    ) -> None:
        """Wrap ``reader``; see ``open_feeds``. ``part`` (i, n) is every n-th feed from the i-th.

        ``unread`` are arrays of the reader that are left out.
        """
        self.description = reader.description
        self.generated = generated
        self.inputs = tuple(inputs)
        self._reader = reader
        self._limit = limit
        self._part = part
        self._allow_nonfinite = allow_nonfinite
        self._unread = unread

    def __iter__(self) -> Iterator[Feed]:
        """The feeds, without labels.

        Raises:
            UsageError: A feed does not suit the model, or there is none.
        """
        for feed, _ in self.with_labels():
            yield feed

    def with_labels(self) -> Iterator[tuple[Feed, Feed]]:
        """Each feed with the arrays beside it that are not inputs of the model."""
        names = {spec.name for spec in self.inputs}
        sample = -1
        index, of = self._part
        numbered = islice(enumerate(self._reader.read()), index, None, of)
        for sample, raw in islice(numbered, self._limit):
            extra = {name: raw[name] for name in raw if name not in names | self._unread}
            if extra and not self._reader.labels_allowed:
                name = next(iter(extra))
                raise self._error(sample, f"the model has no input '{name}'", name, names)
            yield {spec.name: self._checked(spec, raw, sample) for spec in self.inputs}, extra
        if sample < 0:
            raise UsageError(f"{self.description}: no samples")

    def first(self, limit: int) -> FeedSource:
        """The same source, with at most ``limit`` feeds."""
        return self._with(limit=limit if self._limit is None else min(limit, self._limit))

    def part(self, index: int, of: int) -> FeedSource:
        """Every ``of``-th feed of the whole source, from feed ``index`` on; parts are disjoint."""
        return self._with(part=(index, of))

    def without(self, names: Collection[str]) -> FeedSource:
        """The same source, without some of its inputs."""
        inputs = [spec for spec in self.inputs if spec.name not in names]
        return self._with(inputs=inputs, unread=self._unread | frozenset(names))

    def _with(self, **changed: Any) -> FeedSource:
        """The same source with other arguments."""
        arguments: dict[str, Any] = {
            "inputs": self.inputs,
            "limit": self._limit,
            "part": self._part,
            "generated": self.generated,
            "allow_nonfinite": self._allow_nonfinite,
            "unread": self._unread,
        }
        return FeedSource(self._reader, **(arguments | changed))

    @property
    def shard(self) -> tuple[int, int]:
        """(i, n) where these feeds are every n-th sample of the whole source from the i-th on."""
        return self._part

    @property
    def count(self) -> int | None:
        """How many feeds there are, where that is known without reading them."""
        if self._reader.count is None:
            return None
        index, of = self._part
        available = len(range(index, self._reader.count, of))
        return available if self._limit is None else min(available, self._limit)

    @functools.cached_property
    def sha256(self) -> str | None:
        """Hash of the files read, names and contents; None where no file is read."""
        if not self._reader.files:
            return None
        total = hashlib.sha256()
        for path in self._reader.files:
            with path.open("rb") as file:
                total.update(f"{path.name}\0{_digest(file)}\n".encode())
        return total.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {
            "description": self.description,
            "generated": self.generated,
            "sha256": self.sha256,
            "count": self.count,
        }

    def _checked(self, spec: TensorSpec, raw: Mapping[str, Any], sample: int) -> Any:
        if spec.name not in raw:
            found = ", ".join(f"'{name}'" for name in raw) or "nothing"
            message = f"input '{spec.name}' ({spec}) has no data; there is {found}"
            raise self._error(sample, message)
        value = raw[spec.name]
        if not isinstance(spec.dtype, np.dtype):
            return value
        given = np.asarray(value)
        try:
            array = cast_array(given, spec.dtype)
        except ValueError as error:
            message = f"input '{spec.name}' wants {spec}, got {_describe(given)}{error}"
            raise self._error(sample, message) from None
        if not _fits(spec, array):
            message = f"input '{spec.name}' wants {spec}, got {_describe(array)}"
            raise self._error(sample, message)
        if self._allow_nonfinite or not is_float(array.dtype):
            return array
        bad = np.asarray(~np.isfinite(array), dtype=np.bool_)
        if bad.any():
            place = [int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape)]
            message = f"input '{spec.name}' holds {array[tuple(place)]} at index {place}"
            raise self._error(sample, message)
        return array

    def _error(
        self, sample: int, message: str, name: str = "", known: Iterable[str] = ()
    ) -> UsageError:
        hint = did_you_mean(name, known) if name else ""
        return UsageError(f"{self.description}, sample {sample}: {message}{hint}")


def open_feeds(
    source: object,
    inputs: Sequence[TensorSpec],
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    ranges: Mapping[str, ValueRange] | None = None,
    dims: Mapping[str, int] | None = None,
    allow_nonfinite: bool = False,
) -> FeedSource:
    """Open DATA for a model.

    Args:
        source: An .npz (one array per input, the first axis counts samples), a folder of .npz
            (one feed a file), an ONNX ``test_data_set_*`` folder or a folder of such, a .parquet
            (one column per input, one row a sample), ``file.py:function`` yielding dicts of
            arrays, an object with ``get_next()``, a sequence of dicts, a dict of arrays (as an
            .npz), or an open ``FeedSource``. None generates feeds.
        inputs: The model's inputs (``Session.inputs`` or ``specs.input_specs``).
        limit: Use at most this many feeds.
        batch_size: Samples per feed, where the source is one array per input and the model leaves
            its first dimension open; 1 if None.
        seed: Of generated feeds.
        ranges: What generated values must lie in, by input (``generated_feeds.input_ranges``).
        dims: Sizes of symbolic dimensions in generated feeds.
        allow_nonfinite: Let NaN and infinity through.

    Raises:
        UsageError: The source is missing, unknown or unusable for these inputs.
    """
    if isinstance(source, FeedSource):
        return source if limit is None else source.first(limit)
    if limit is not None and limit < 1:
        raise UsageError(f"the limit of samples is {limit}; it must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}; it must be at least 1")
    if source is not None:
        reader = open_reader(source, inputs, batch_size)
        return FeedSource(reader, inputs, limit=limit, allow_nonfinite=allow_nonfinite)
    count = DEFAULT_SAMPLES if limit is None else limit

    def read() -> Iterator[Mapping[str, Any]]:
        for sample in range(count):
            rng = np.random.default_rng((seed, sample))
            yield generate_feed(inputs, rng, ranges=ranges or {}, dims=dims or {})

    reader = Reader(f"generated feeds (seed {seed})", read, count=count, labels_allowed=False)
    return FeedSource(reader, inputs, generated=True, allow_nonfinite=allow_nonfinite)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := cast(bytes, file.read(1 << 20)):
        digest.update(block)
    return digest.hexdigest()


def _describe(array: Array) -> str:
    return f"{dtype_name(array.dtype)}{list(array.shape)}"


def _fits(spec: TensorSpec, array: Array) -> bool:
    if spec.shape is None:
        return True
    if array.ndim != len(spec.shape):
        return False
    wanted = zip(array.shape, spec.shape, strict=True)
    return all(not isinstance(dim, int) or size == dim for size, dim in wanted)
