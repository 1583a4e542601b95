"""Teacher-forced comparison: each rewritten region alone, fed with the original's tensors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.targets.padded_channels import PADDED_SUFFIX
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.walk import iterate_graphs
from onnxfold.runtime.session import REFERENCE, Session, SessionConfig
from onnxfold.runtime.verify.cut import (
    cut_at,
    dequantizing_nodes,
    is_only_quantized,
    keep_outputs,
    named_values,
    region_inputs,
)
from onnxfold.runtime.verify.exact import MOST_PRODUCTS, ExactCodes, ExactRegion

RECODED_SUFFIX = "_u8"
"""A value named so holds, as uint8, the int8 codes of the value without the suffix, plus 128."""

_RECODING_SHIFT = 128
_CHANNEL_AXIS = 1
_STEP_ROUNDING = 1e-3  # a float32 holds 255 steps to 1.5e-5 of one
_REAL_ROUNDING = 2.0**-22  # of a float32, two operations behind its codes: of 16 bits that is more
_WIDE_BYTES = 2
_WIDE_MISMATCHES = 2.0**-4
"""Rate at which float32 sums are on the other side of a half, of 16-bit codes."""
_FEW_MISMATCHES = 2.5e-4
"""Rate below which only what is quickly evaluated again is looked at for ties."""
_FEW_PRODUCTS = 1 << 20
_UNKNOWN_BYTES = 1 << 20
_COMPARABLE = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.DOUBLE,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.BOOL,
    }
)


@dataclass(frozen=True)
class RegionBudget:
    """How much is checked; every region is seen on one feed before any on a second.

    Attributes:
        feeds: Feeds at most.
        seconds: No further region is looked at after this long, the first one excepted.
        bytes: Tensors at the borders of the regions that are held at one time.
    """

    feeds: int = 4
    seconds: float = 20.0
    bytes: int = 256 << 20


@dataclass(frozen=True)
class RegionResult:
    """How one region compares over all feeds.

    Attributes:
        name: The value the region computes.
        op_type: The op that computes it.
        elements: How many numbers were compared.
        mismatches: How many differ: codes at all, reals by more than rounding.
        largest: The largest difference: in codes where ``quantized``, else relative to the
            largest real number.
        quantized: Whether the value holds codes, or real numbers dequantized from them.
        ties: Codes that differ where the exact number lies half-way between them, so that both
            are correctly rounded; not among the ``mismatches``. Where convolutions show few
            differences, all count as mismatches. Of 16-bit codes those count as ties that differ
            by one, at the rate of float32 sums, where the exact number is too long in the making.
    """

    name: str
    op_type: str = ""
    elements: int = 0
    mismatches: int = 0
    largest: float = 0.0
    quantized: bool = True
    ties: int = 0

    @property
    def rate(self) -> float:
        """Share of mismatching numbers."""
        return self.mismatches / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class RegionSurvey:
    """What was compared.

    Attributes:
        results: The regions that were compared, in the order of the model.
        regions: How many regions the rewriting changed.
        samples: How many feeds all compared regions saw.
    """

    results: tuple[RegionResult, ...]
    regions: int
    samples: int


def check_regions(
    before: ir.Model,
    after: ir.Model,
    feeds: Iterable[Mapping[str, Array]],
    *,
    config: SessionConfig = REFERENCE,
    real_tolerance: float = 1e-5,
    budget: RegionBudget | None = None,
) -> RegionSurvey:
    """Compare the values both models have by name, each region fed with the original's values.

    A region is what lies between one shared value and the shared values nearest upstream, so a
    difference is charged to the op that makes it and never to what amplifies it. Regions that
    the rewriting left as they were are not compared, nor is the inside of bodies.

    Args:
        before: The original.
        after: The rewritten model, whose passes kept the names of the tensors at the borders.
        feeds: Inputs of the original.
        config: How the regions of ``after`` run; the original always runs as reference.
        real_tolerance: Allowed difference of real numbers, relative to the largest of the tensor.
        budget: How much to check.

    Raises:
        ExecutionError: A model or region does not run.
    """
    budget = budget or RegionBudget()
    deadline = time.monotonic() + budget.seconds
    before = before.clone()
    parse_passes("infer-shapes")[0].run(before)
    pair = _Pair(before, after, config, real_tolerance)
    groups: list[_Group] | None = None
    samples = 0
    for feed, _ in zip(feeds, range(budget.feeds), strict=False):
        groups = pair.groups(feed, budget.bytes) if groups is None else groups
        if not all(group.compare(feed, deadline) for group in groups):
            break
        samples += 1
    results = [result for group in groups or () for result in group.totals.values()]
    compared = tuple(each for each in results if each.elements)
    return RegionSurvey(compared, len(pair.targets), samples)


class _Pair:
    """The two models, and which of their values stand for each other."""

    def __init__(
        self, before: ir.Model, after: ir.Model, config: SessionConfig, real_tolerance: float
    ) -> None:
        self.before, self.after = before, after
        self.config, self.real_tolerance = config, real_tolerance
        self.old, self.new = named_values(before.graph), named_values(after.graph)
        self.shared = dict(_shared(self.old, self.new))
        self.exact = ExactRegion(self.old, before.opset_imports.get("", 1))
        self.exact_new = ExactRegion(self.new, after.opset_imports.get("", 1))
        self.compared = 0
        overridable = {each.name or "": each.const_value for each in before.graph.inputs}
        self.defaults = {
            name: each.numpy() for name, each in overridable.items() if each is not None
        }
        self.targets = [name for name in self.shared if self._is_changed(name)]

    def groups(self, feed: Mapping[str, Array], most_bytes: int) -> list[_Group]:
        """The targets, in groups whose tensors fit into ``most_bytes``."""
        batch = next((len(each) for each in feed.values() if np.ndim(each)), 1)
        groups: list[list[str]] = [[]]
        size = 0
        for name in self.targets:
            size += 2 * _bytes(self.old[self.shared[name]], batch)
            if size > most_bytes and groups[-1]:
                groups.append([])
                size = 2 * _bytes(self.old[self.shared[name]], batch)
            groups[-1].append(name)
        return [_Group(self, tuple(names)) for names in groups if names]

    def border(self, name: str) -> ir.Value:
        """The value whose declared shape a region is fed with: the original's, but for channels."""
        padded = name.endswith(PADDED_SUFFIX)
        return self.new[name] if padded else self.old[self.shared[name]]

    def _is_changed(self, name: str) -> bool:
        node = self.new[name].producer()
        original = self.old[self.shared[name]].producer()
        if node is None or not (self.new[name].uses() or self.new[name].is_graph_output()):
            return False  # what nothing reads need not be what it was
        return original is None or not self._same_node(node, original)

    def _same_node(self, node: ir.Node, original: ir.Node) -> bool:
        if node.op_identifier() != original.op_identifier() or any(iterate_graphs(node)):
            return False
        if node.op_identifier() in self.after.functions or len(node.inputs) != len(original.inputs):
            return False
        if [each.name for each in node.outputs] != [each.name for each in original.outputs]:
            return False
        inputs = zip(node.inputs, original.inputs, strict=True)
        return _attributes(node) == _attributes(original) and all(
            self._same_input(mine, theirs) for mine, theirs in inputs
        )

    def _same_input(self, mine: ir.Value | None, theirs: ir.Value | None) -> bool:
        if mine is None or theirs is None:
            return mine is theirs
        if self.shared.get(mine.name or "") == theirs.name:
            return True
        first, second = constant_array(mine), constant_array(theirs)
        if first is None or second is None:
            return False
        return first.dtype == second.dtype and np.array_equal(first, second)


@dataclass
class _Group:
    """Regions that are compared at one time.

    Attributes:
        pair: The two models.
        targets: The values compared.
        totals: What was found so far.
    """

    pair: _Pair
    targets: tuple[str, ...]
    totals: dict[str, RegionResult] = field(default_factory=dict[str, RegionResult])

    def __post_init__(self) -> None:
        pair = self.pair
        self._inputs = region_inputs(pair.after.graph, self.targets, pair.shared)
        wanted = dict.fromkeys(pair.shared[each] for each in (*sorted(self._inputs), *self.targets))
        inputs = {each.name for each in pair.before.graph.inputs}
        self._original = [name for name in wanted if name not in inputs]
        self._sessions: tuple[Session, Session] | None = None
        self._outputs: dict[str, str] = {}
        for name in self.targets:
            node = pair.new[name].producer()
            self.totals[name] = RegionResult(name, "" if node is None else node.op_type)

    def compare(self, feed: Mapping[str, Array], deadline: float) -> bool:
        """Add what ``feed`` shows to the totals; whether there was time for all regions."""
        pair = self.pair
        if time.monotonic() > deadline and pair.compared:
            return False
        if self._sessions is None:
            original = Session(keep_outputs(pair.before, self._original), REFERENCE)
        else:
            original = self._sessions[0]
        values = {**pair.defaults, **feed, **original.run(feed)}
        shared = {
            name: _value(values[pair.shared[name]], recoded=_is_recoded(name, pair.shared[name]))
            for name in (*self._inputs, *self.targets)
        }
        fed = {name: _padded(shared[name], pair.new[name]) for name in self._inputs}
        if self._sessions is None:
            borders = {each: _border(fed[each], pair.border(each)) for each in sorted(self._inputs)}
            regions, self._outputs = cut_at(pair.after, self.targets, borders)
            self._sessions = original, Session(regions, pair.config)
        session = self._sessions[1]
        results = session.run({spec.name: fed[spec.name] for spec in session.inputs})
        for name in self.targets:
            if time.monotonic() > deadline and pair.compared:
                return False
            self._add(name, shared[name], results[self._outputs[name]], values)
            pair.compared += 1
        return True

    def _add(self, name: str, want: Array, got: Array, values: Mapping[str, Array]) -> None:
        pair, source = self.pair, self.pair.shared[name]
        step = _code_step(pair.old[source]) or _code_step(pair.new[name])
        quantized = want.dtype.kind in "iu" or step is not None
        ties = 0
        if name.endswith(PADDED_SUFFIX) and got.ndim == want.ndim > _CHANNEL_AXIS:
            got = got[:, : want.shape[_CHANNEL_AXIS]]  # nothing reads the others but weights of 0
        if want.shape != got.shape:
            largest, mismatches = float("inf"), max(want.size, 1)
        elif not quantized:
            largest, wrong = _real_difference(want, got, pair.real_tolerance)
            mismatches = int(np.count_nonzero(wrong))
        else:
            want_codes, got_codes = _codes(want, step), _codes(got, step)
            difference = np.abs(want_codes - got_codes)
            rounding = np.maximum(_STEP_ROUNDING, _REAL_ROUNDING * np.abs(want_codes))
            wrong = ~(difference <= rounding)
            largest = float(np.max(np.where(wrong, difference, 0), initial=0))
            mismatches = int(np.count_nonzero(wrong))
            if mismatches:
                few = mismatches <= _FEW_MISMATCHES * want.size
                exact = self._exact(name, values, _FEW_PRODUCTS if few else MOST_PRODUCTS)
                zero = self._zero_point(name) if step is None else 0
                excused = _ties(exact, want_codes - zero, got_codes - zero) & wrong
                if exact is None and want.dtype.itemsize == _WIDE_BYTES:
                    excused = wrong & (difference <= 1)
                    excused &= mismatches <= _WIDE_MISMATCHES * want.size
                ties = int(np.count_nonzero(excused))
                mismatches -= ties
        known = self.totals[name]
        self.totals[name] = RegionResult(
            name=name,
            op_type=known.op_type,
            elements=known.elements + want.size,
            mismatches=known.mismatches + mismatches,
            largest=max(known.largest, largest),
            quantized=quantized,
            ties=known.ties + ties,
        )

    def _exact(
        self, name: str, values: Mapping[str, Array], most_products: int
    ) -> ExactCodes | None:
        pair = self.pair
        inputs = region_inputs(pair.after.graph, [name], pair.shared)
        if self._is_rounded(name):
            borders = {pair.shared[each]: values[pair.shared[each]] for each in inputs}
            return pair.exact.codes(pair.shared[name], borders, most_products)
        # A quantized operator does not show the number it rounds; the one it was lifted to does.
        borders = {
            each: _value(values[pair.shared[each]], recoded=_is_recoded(each, pair.shared[each]))
            for each in inputs
        }
        return pair.exact_new.codes(name, borders, most_products)

    def _is_rounded(self, name: str) -> bool:
        """Whether the original shows what it rounds to ``name``."""
        producer = self.pair.old[self.pair.shared[name]].producer()
        return producer is None or producer.op_type in ("QuantizeLinear", "DequantizeLinear")

    def _zero_point(self, name: str) -> float:
        source = self.pair.shared[name]
        if self._is_rounded(name):
            return _zero_point(self.pair.old[source], _is_recoded(name, source))
        return _zero_point(self.pair.new[name], recoded=False)


def _shared(old: Mapping[str, ir.Value], new: Mapping[str, ir.Value]) -> Iterator[tuple[str, str]]:
    """Names in the new model with the name in the old one of what they stand for."""
    for name, value in new.items():
        own = name.removesuffix(PADDED_SUFFIX)
        source = own.removesuffix(RECODED_SUFFIX)
        if is_only_quantized(value):
            continue
        if name in old and _comparable(old[name], value):
            yield name, name
        elif own in old and _comparable(old[own], value):
            yield name, own
        elif source != own and source in old and old[source].dtype == ir.DataType.INT8:
            yield name, source


def _comparable(old: ir.Value, new: ir.Value) -> bool:
    dtype = old.dtype or new.dtype
    if dtype not in _COMPARABLE or not isinstance(old.type, ir.TensorType | None):
        return False
    return new.dtype is None or new.dtype == dtype


def _attributes(node: ir.Node) -> dict[str, bytes]:
    attributes = node.attributes.items()
    return {name: ir.to_proto(each).SerializeToString() for name, each in attributes}


def _border(array: Array, value: ir.Value) -> ir.TypeAndShape:
    """Type and shape to feed a value as: a size is fixed where the model says so."""
    sizes: list[int | None] = [None] * array.ndim
    if value.shape is not None and len(value.shape) == array.ndim:
        known = zip(value.shape, array.shape, strict=True)
        sizes = [size if declared == size else None for declared, size in known]
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.TypeAndShape(ir.TensorType(dtype), ir.Shape(sizes))


def _bytes(value: ir.Value, batch: int) -> int:
    if value.shape is None:
        return _UNKNOWN_BYTES
    sizes = [dim if isinstance(dim, int) else batch for dim in value.shape]
    return int(np.prod(sizes, dtype=np.float64)) * (value.dtype or ir.DataType.FLOAT).bitwidth // 8


def _is_recoded(name: str, source: str) -> bool:
    return name.removesuffix(PADDED_SUFFIX) != source


def _padded(array: Array, value: ir.Value) -> Array:
    """The array as ``value``, which may have more channels: they are read with weights of 0."""
    name, shape = value.name or "", value.shape
    if not name.endswith(PADDED_SUFFIX) or shape is None or array.ndim != len(shape):
        return array
    channels = shape[_CHANNEL_AXIS]
    more = channels - array.shape[_CHANNEL_AXIS] if isinstance(channels, int) else 0
    widths = [(0, more if axis == _CHANNEL_AXIS else 0) for axis in range(array.ndim)]
    return np.pad(array, widths)


def _value(array: Array, *, recoded: bool) -> Array:
    if not recoded:
        return array
    # numpy makes a scalar of a sum of rank 0, which is nothing that can be fed.
    return np.asarray(array.astype(np.int16) + _RECODING_SHIFT).astype(np.uint8)


def _code_step(value: ir.Value) -> float | None:
    """The real number one code of ``value`` stands for; None where it is not dequantized.

    That of the coarsest codes, where the bodies of an If dequantize with several scales.
    """
    steps: list[float] = []
    for node in dequantizing_nodes(value):
        codes, scale = node.inputs[0], constant_array(node.inputs[1])
        if codes is not None and codes.dtype == ir.DataType.INT32:
            return None  # an accumulator, whose steps are finer than float32
        if scale is None or scale.size != 1:
            return None
        steps.append(float(scale.reshape(())))
    return max(steps, default=None)


def _zero_point(value: ir.Value, recoded: bool) -> float:
    producer = value.producer()
    inputs: Sequence[ir.Value | None] = () if producer is None else producer.inputs
    constant = constant_array(inputs[2]) if len(inputs) > 2 else None
    zero = 0.0 if constant is None or constant.size != 1 else float(constant.reshape(()))
    return zero + (_RECODING_SHIFT if recoded else 0)


def _codes(array: Array, step: float | None) -> Array:
    return array.astype(np.float64) / (1.0 if step is None else step)


def _ties(exact: ExactCodes | None, want: Array, got: Array) -> Array:
    if exact is None or exact.position.shape != want.shape:
        return np.zeros(want.shape, np.bool_)
    return exact.ties(np.rint(want), np.rint(got))


def _real_difference(want: Array, got: Array, tolerance: float) -> tuple[float, Array]:
    difference = np.abs(want.astype(np.float64) - got.astype(np.float64))
    difference = difference / (float(np.max(np.abs(want), initial=0)) or 1.0)
    both = np.asarray(want != want) & np.asarray(got != got)
    difference = np.where(both | (want == got), 0.0, difference)
    return float(np.max(difference, initial=0)), ~(difference <= tolerance)
