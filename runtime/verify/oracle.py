"""The oracle for badly conditioned models: which of two roundings is nearer to the real numbers.

Two ways to compute the same function in float32 can differ by far more than a rounding where the
function cancels, such as a variance taken as E[x^2] - E[x]^2. Then the original is no measure:
what counts is that the rewritten model is no further from the real result than the original was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_loop

from onnxfold.passes.census import take_census
from onnxfold.passes.constants import Array
from onnxfold.passes.serialization import to_proto
from onnxfold.passes.walk import all_graphs, all_nodes
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.gates import PASSED, Verdict
from onnxfold.runtime.verify.metrics import OutputMetrics
from onnxfold.runtime.verify.softmax import before_softmax, exposed
from onnxfold.runtime.verify.window_ops import AveragePool, Conv

MOST_MACS = 1 << 30
"""Multiply-accumulates of one run above which a model is not evaluated in float64."""

_AMPLITUDE = 2.0
_FLOOR = 1e-6  # of the largest value: a dozen roundings of float32
_DOUBLE = ir.DataType.DOUBLE
_FLOAT = ir.DataType.FLOAT

# onnx's class has no type annotations.
_ReferenceLoop: Any = op_loop.Loop

Outputs = tuple[Mapping[str, Any], Mapping[str, Any]]
OracleSample = tuple[Feed, Outputs, Sequence[Outputs]]
"""A feed, and what the original and each way to run the rewritten model made of it."""


class GlobalMaxPool(OpRun):
    """Replaces onnx 1.23's own, which is wrong for any but two spatial dimensions."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True),)


class GatherElements(OpRun):
    """Replaces onnx 1.23's own, which takes at most 64 elements along the axis."""

    op_domain = ""

    def _run(self, x: Array, indices: Array, axis: int | None = None) -> tuple[Array]:
        at = axis or 0
        counted = np.where(indices < 0, indices + x.shape[at], indices)
        # Other axes of the indices may be shorter; numpy wants them alike.
        spans = [slice(None if i == at % x.ndim else n) for i, n in enumerate(indices.shape)]
        return (np.take_along_axis(x[tuple(spans)], counted, at),)


class Loop(_ReferenceLoop):
    """Corrects onnx 1.23's own, which joins what steps give instead of stacking it.

    It also never begins where no condition is given, which means true.
    """

    op_domain = ""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._joined_body = self._run_body
        self._run_body = self._stacked_body
        self._shapes: list[tuple[int, ...]] = []

    def _stacked_body(self, *arguments: Any, **options: Any) -> list[Any]:
        outputs = list(self._joined_body(*arguments, **options))
        first = len(outputs) - self.K
        self._shapes = [np.shape(each) for each in outputs[first:]]
        return outputs[:first] + [np.asarray(each)[np.newaxis] for each in outputs[first:]]

    def _run(self, trips: Any, condition: Any, *states: Any, **options: Any) -> tuple[Any, ...]:
        given: Any = np.array(True) if condition is None else condition
        outputs: list[Any] = list(_ReferenceLoop._run(self, trips, given, *states, **options))
        for index, shape in enumerate(self._shapes, self.N):
            outputs[index] = _restacked(outputs[index], shape)
        return tuple(outputs)


def _restacked(joined: Array, shape: tuple[int, ...]) -> Array:
    return joined.reshape(-1, *shape)


class NoOracleError(Exception):
    """The model cannot be evaluated in float64."""


class Float64Oracle:
    """Evaluates a float32 model in float64, node by node, with onnx's reference evaluator."""

    def __init__(self, model: ir.Model, softmaxes: Mapping[str, str]) -> None:
        """Prepare a copy of ``model``.

        Args:
            model: The model; not modified.
            softmaxes: Output name -> the value before its softmax, to be returned as well.

        Raises:
            NoOracleError: It holds other domains, functions or randomness, or is too large.
        """
        if model.functions or any(node.domain for node in all_nodes(model)):
            raise NoOracleError
        if take_census(model).macs > MOST_MACS:
            raise NoOracleError
        copy = exposed(model, softmaxes)
        _widen(copy)
        self._names = dict(softmaxes)
        try:
            self._evaluator = ReferenceEvaluator(
                to_proto(copy), new_ops=[AveragePool, Conv, GatherElements, GlobalMaxPool, Loop]
            )
        except Exception as error:  # no implementation of an operator at this version
            raise NoOracleError from error

    def run(self, feed: Feed) -> dict[str, Array]:
        """The outputs in float64, and the values before softmaxes under their own names.

        Raises:
            NoOracleError: The evaluator failed.
        """
        wide = {name: _wide(array) for name, array in feed.items()}
        try:
            with np.errstate(all="ignore"):
                results = self._evaluator.run(None, wide)
        except Exception as error:
            raise NoOracleError from error
        names = [str(name) for name in self._evaluator.output_names]
        values: dict[str, Array] = dict(zip(names, map(np.asarray, results), strict=True))
        named = {before_softmax(name): values.pop(value) for name, value in self._names.items()}
        return {**values, **named}


def nearer_to_truth(
    model: ir.Model,
    softmaxes: Mapping[str, str],
    samples: Iterable[OracleSample],
) -> Verdict | None:
    """Whether a rewritten model is no further from the real numbers than the original.

    An output passes where both its largest error and its noise are at most twice the original's.

    Args:
        model: The original.
        softmaxes: Output name -> the value before its softmax, in the original.
        samples: Feeds with what the original and the rewritten model computed, as pairs of the
            outputs and the values before softmaxes by output name. The model may be run in several
            ways, of which each is judged, by what it has.

    Returns:
        The verdict; None where the original cannot be evaluated in float64.
    """
    old, ways = Comparer(), list[Comparer]()
    try:
        oracle = Float64Oracle(model, softmaxes)
        for feed, mine, theirs in samples:
            truth = oracle.run(feed)
            ways = ways or [Comparer() for _ in theirs]
            for comparer, outputs in zip((old, *ways), (mine, *theirs), strict=True):
                found = _named(outputs)
                known = {name: truth[name].astype(found[name].dtype) for name in found}
                comparer.add(known, found)
    except (NoOracleError, KeyError):
        return None
    if any(each.structure for each in (old, *ways)) or not old.metrics:
        return None
    verdict = PASSED
    for errors in (each for way in ways for each in way.metrics.values()):
        verdict &= _judge(old.metrics[errors.name], errors)
    return verdict


def _judge(old: OutputMetrics, new: OutputMetrics) -> Verdict:
    floor = _FLOOR * new.max_abs_reference
    allowed = _AMPLITUDE * old.max_abs_diff + floor
    noise = _AMPLITUDE**2 * float(old.noise) + floor**2 * new.elements
    finite = new.nonfinite_mismatches <= old.nonfinite_mismatches
    if finite and new.max_abs_diff <= allowed and float(new.noise) <= noise:
        return PASSED
    reason = (
        f"output '{new.name}': max |difference| from the float64 result is {new.max_abs_diff:.6g}, "
        f"wanted <= {allowed:.3g}, twice the original's"
    )
    return Verdict(False, (reason,))


def _named(outputs: Outputs) -> dict[str, Array]:
    plain, before = outputs
    return {**plain, **{before_softmax(name): value for name, value in before.items()}}


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _widen(model: ir.Model) -> None:
    """Turn every float32 of ``model`` into float64, in place."""
    for graph in all_graphs(model):
        values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
        for value in (*values, *graph.initializers.values()):
            if value.dtype == _FLOAT:
                value.type = ir.TensorType(_DOUBLE)
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _wide_tensor(value.const_value)
    for node in all_nodes(model):
        _widen_attributes(node)


def _widen_attributes(node: ir.Node) -> None:
    if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
        raise NoOracleError
    for name, attribute in tuple(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR:
            node.attributes[name] = ir.AttrTensor(name, _wide_tensor(attribute.as_tensor()))
        elif name in ("to", "dtype") and attribute.as_int() == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(_DOUBLE))
        elif name in ("value_float", "value_floats"):
            raise NoOracleError


def _wide_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype != _FLOAT:
        return tensor
    return ir.tensor(tensor.numpy().astype(np.float64), name=tensor.name)
