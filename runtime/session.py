"""ONNX Runtime behind a typed door: the only module that imports onnxruntime."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime

from onnxfold.passes.errors import ExecutionError, InvalidModelError, UsageError
from onnxfold.passes.suggest import did_you_mean
from onnxfold.runtime.model_source import open_model
from onnxfold.runtime.packing import pack, unpack
from onnxfold.runtime.specs import (
    Array,
    ModelLike,
    TensorSpec,
    describe_model,
    dtype_name,
    one_line,
    onnx_type,
    parse_ort_type,
)

# The facade: onnxruntime ships no types, and everything below gives its own.
_ort: Any = cast(Any, onnxruntime)

_PROVIDERS = ["CPUExecutionProvider"]
_QUIET = 4  # fatal only: every error also arrives as an exception
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE_PLACE = re.compile(r"/?\S*onnxruntime\S*\.(?:cc|h):\d+ .*?\) (?=[A-Z])")


@dataclass(frozen=True)
class SessionConfig:
    """How ONNX Runtime runs a model.

    Attributes:
        name: What reports call this configuration.
        optimize: Whether all of ONNX Runtime's graph optimizations are on and constant weights are
            repacked, or neither: kernels on packed weights round differently (an LSTM does), so
            folding a weight to a constant would change bits.
        threads: Threads inside an operator; 0 takes ONNX Runtime's default, one per core.
        matmulnbits_accuracy_level: What DequantizeLinear -> MatMul is turned into. ONNX Runtime's
            own default (4) quantizes the activations too, which changes numbers; 1 computes in
            float32.
        spinning: Whether threads that wait for work keep their cores busy: a little faster, for
            twice the processor time. Numbers are the same.
    """

    name: str
    optimize: bool
    threads: int
    matmulnbits_accuracy_level: int = 1
    spinning: bool = True

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {
            "name": self.name,
            "optimize": self.optimize,
            "threads": self.threads,
            "matmulnbits_accuracy_level": self.matmulnbits_accuracy_level,
            "onnxruntime": version(),
        }


REFERENCE = SessionConfig("reference", optimize=False, threads=1)
"""What the model means: no graph optimization, one thread, repeatable bit for bit."""
DEPLOYMENT = SessionConfig("deployment", optimize=True, threads=0)
"""What users will run."""


class Session:
    """A model loaded into ONNX Runtime.

    Attributes:
        label: The model's name in messages.
        config: How it runs.
        inputs: What has to be fed.
        defaults: What may be fed besides: inputs whose initializer is their default.
        outputs: What it returns, in order.
    """

    def __init__(
        self,
        model: ModelLike,
        config: SessionConfig = REFERENCE,
        *,
        profile_prefix: Path | None = None,
        optimized_model_path: Path | None = None,
    ) -> None:
        """Load ``model``.

        Args:
            model: The model, in any form.
            config: How it runs.
            profile_prefix: Turns the profiler on; where it writes.
            optimized_model_path: Where to write the graph that is really executed.

        Raises:
            InvalidModelError: The file is missing or not an ONNX model.
            ExecutionError: ONNX Runtime refuses the model; the message carries its words.
        """
        self.label = describe_model(model)
        self.config = config
        options = _options(config)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_prefix)
        if optimized_model_path is not None:
            options.optimized_model_filepath = str(optimized_model_path)
        self._session = _create(model, self.label, options)
        self.inputs = _specs(self._session.get_inputs())
        self.outputs = _specs(self._session.get_outputs())
        self.defaults = _specs(self._session.get_overridable_initializers())
        self._input_specs = {spec.name: spec for spec in (*self.inputs, *self.defaults)}
        self._output_names = [spec.name for spec in self.outputs]
        # numpy has no such types: these values go through OrtValue, bit for bit.
        self._plain = not any(_is_extended(spec) for spec in (*self.inputs, *self.outputs))

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model on one feed.

        Args:
            feed: One array per input, of exactly its dtype, rank and fixed dimensions; inputs
                with a default may be left out.

        Returns:
            The outputs in order: arrays, or lists and dicts for sequences and maps.

        Raises:
            UsageError: An input is missing, unknown, or of another dtype or shape.
            ExecutionError: The model failed on this feed; the message names the node.
        """
        self.check(feed)
        try:
            values = self._run_arrays(feed) if self._plain else self._run_values(feed)
        except Exception as error:
            raise ExecutionError(f"{self.label} failed: {_clean(error)}") from error
        return dict(zip(self._output_names, values, strict=True))

    def prepare(self, feed: Mapping[str, Any]) -> Callable[[], object]:
        """A function that runs the model on ``feed``, checked once, with nothing else around it.

        For timing. Raises what ``run`` raises.
        """
        self.run(feed)
        if not self._plain:
            return lambda: self._run_values(feed)
        arrays = {name: _contiguous(value) for name, value in feed.items()}
        names, run = self._output_names, self._session.run
        return lambda: run(names, arrays)

    def bind(self) -> Binding:
        """Bind inputs and outputs to arrays that are read and written in place."""
        return Binding(self._session, self.label)

    def check(self, feed: Mapping[str, Any]) -> None:
        """Check a feed, as ``run`` does.

        Raises:
            UsageError: An input is missing, unknown, or of another dtype or shape.
        """
        for spec in self.inputs:
            if spec.name not in feed:
                raise UsageError(f"{self.label}: input '{spec.name}' ({spec}) is not fed")
        for name, value in feed.items():
            if name not in self._input_specs:
                hint = did_you_mean(name, self._input_specs)
                raise UsageError(f"{self.label} has no input '{name}'{hint}")
            problem = mismatch(self._input_specs[name], value)
            if problem:
                raise UsageError(f"{self.label}: input '{name}': {problem}")

    def end_profiling(self) -> Path:
        """Stop the profiler and return the file it wrote."""
        return Path(self._session.end_profiling())

    def _run_arrays(self, feed: Mapping[str, Any]) -> list[Any]:
        arrays = {name: _contiguous(value) for name, value in feed.items()}
        return self._session.run(self._output_names, arrays)

    def _run_values(self, feed: Mapping[str, Any]) -> list[Any]:
        values = {name: _to_ort_value(np.asarray(value)) for name, value in feed.items()}
        results = self._session.run_with_ort_values(self._output_names, values)
        return [
            _from_ort_value(result, spec)
            for result, spec in zip(results, self.outputs, strict=True)
        ]


class Binding:
    """Inputs and outputs of a model, bound to arrays that onnxruntime reads and writes in place.

    Bound arrays stay bound from run to run; outputs that are not bound are not returned.
    """

    def __init__(self, session: Any, label: str) -> None:
        self._session = session
        self._label = label
        self._binding = session.io_binding()
        self._options = _ort.RunOptions()
        # onnxruntime's values only point into the arrays.
        self._kept: dict[tuple[str, str], Array] = {}

    def read(self, name: str, array: Array) -> None:
        """Let runs read input ``name`` from ``array``, which is C-contiguous."""
        self._binding.bind_ortvalue_input(name, _in_place(array))
        self._kept["input", name] = array

    def write(self, name: str, array: Array) -> None:
        """Let runs write output ``name`` into ``array``: C-contiguous, of its dtype and shape."""
        self._binding.bind_ortvalue_output(name, _in_place(array))
        self._kept["output", name] = array

    def run(self) -> None:
        """Run the model.

        Raises:
            ExecutionError: The model failed; the message names the node.
        """
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise ExecutionError(f"{self._label} failed: {_clean(error)}") from error


def mismatch(spec: TensorSpec, value: object) -> str:
    """Why ``value`` cannot be fed as ``spec``: what is wanted and what was got; empty if it can."""
    if not isinstance(spec.dtype, np.dtype):
        return ""
    if not isinstance(value, np.ndarray | np.generic):
        return f"wants an array of {spec}, got {type(value).__name__}"
    array = cast(Array, value)
    got = f"{dtype_name(array.dtype)}{list(array.shape)}"
    if dtype_name(array.dtype) != dtype_name(spec.dtype):
        return f"wants {spec}, got {got}"
    if spec.shape is None:
        return ""
    same_rank = array.ndim == len(spec.shape)
    fixed = zip(array.shape, spec.shape, strict=False)
    if not same_rank or any(isinstance(want, int) and want != dim for dim, want in fixed):
        return f"wants {spec}, got {got}"
    return ""


@functools.cache
def max_ir_version() -> int:
    """The newest model IR version this ONNX Runtime loads, found by trying."""
    return _newest(lambda version: (version, 13))


@functools.cache
def max_opset_version() -> int:
    """The newest ai.onnx opset this ONNX Runtime loads, found by trying."""
    return _newest(lambda version: (8, version))


@functools.cache
def is_layer_norm_stable() -> bool:
    """Whether LayerNormalization is right where the mean is far above the spread, by trying.

    Older kernels compute the variance as mean(x^2) - mean^2 in float32, which can be negative:
    https://github.com/microsoft/onnxruntime/issues/21935.
    """
    values = np.array([40000, 40001, 40002, 40003], np.float32)
    node = onnx.helper.make_node("LayerNormalization", ["x", "scale"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4]) for n in "xy"]
    scale = onnx.numpy_helper.from_array(np.ones_like(values), "scale")
    graph = onnx.helper.make_graph([node], "probe", value[:1], value[1:], [scale])
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found = Session(model).run({"x": values})["y"]
    wanted = (values - values.mean()) / values.std()
    return bool(np.allclose(found, wanted, atol=0.01))


def version() -> str:
    """The version of ONNX Runtime."""
    return str(_ort.__version__)


def _options(config: SessionConfig) -> Any:
    levels = _ort.GraphOptimizationLevel
    options = _ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = config.threads
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if config.optimize else levels.ORT_DISABLE_ALL
    )
    if not config.optimize:
        # Else all weights are dequantized before anything reads one, and are all in memory.
        options.execution_order = _ort.ExecutionOrder.PRIORITY_BASED
    level = str(config.matmulnbits_accuracy_level)
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    options.add_session_config_entry("session.disable_prepacking", "0" if config.optimize else "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(config.spinning)))
    return options


def _create(model: ModelLike, label: str, options: Any) -> Any:
    with open_model(model, max_ir_version()) as source:
        if source.folder is not None:
            key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(key, source.folder)
        try:
            session = _ort.InferenceSession(source.payload, options, providers=_PROVIDERS)
        except Exception as error:
            if type(error).__name__ in ("InvalidProtobuf", "NoModel"):
                raise InvalidModelError(f"{label}: not an ONNX model: {_clean(error)}") from error
            raise ExecutionError(f"onnxruntime refuses {label}: {_clean(error)}") from error
    # It keeps the file for a change of providers, as large as what it made of it.
    session._model_bytes = None
    return session


def _newest(versions: Callable[[int], tuple[int, int]]) -> int:
    newest = 0
    for candidate in range(8, 64):
        ir_version, opset = versions(candidate)
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
        graph = onnx.helper.make_graph([node], "probe", value[:1], value[1:])
        opsets = [onnx.helper.make_opsetid("", opset)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        options = _ort.SessionOptions()
        options.log_severity_level = _QUIET
        try:
            _ort.InferenceSession(model.SerializeToString(), options, providers=_PROVIDERS)
        except Exception:  # noqa: BLE001 - a refusal is the answer
            break
        newest = candidate
    return newest


def _clean(error: BaseException) -> str:
    """ONNX Runtime's message on one line, without its codes and its source places."""
    return _SOURCE_PLACE.sub("", _PREFIX.sub("", one_line(error)))


def _specs(nodes: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(node) for node in nodes)


def _spec(node: Any) -> TensorSpec:
    dtype = parse_ort_type(str(node.type))
    dims = tuple(_dim(dim) for dim in node.shape)
    # ONNX Runtime gives [] for a scalar and for an unknown rank alike.
    return TensorSpec(str(node.name), dtype, dims or None)


def _dim(dim: Any) -> int | str | None:
    """Some exporters write -1 for a dimension that is not known."""
    known = isinstance(dim, str) or (isinstance(dim, int) and dim >= 0)
    return dim if known else None


def _is_extended(spec: TensorSpec) -> bool:
    return isinstance(spec.dtype, np.dtype) and spec.dtype.isbuiltin == 2


def _contiguous(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    array = cast(Array, value)
    return np.ascontiguousarray(array).reshape(array.shape)


def _in_place(array: Array) -> Any:
    """An OrtValue on the memory of ``array``."""
    if not array.flags.c_contiguous:
        raise UsageError("an array to bind has to be contiguous")
    return _ort.OrtValue.ortvalue_from_numpy(array)


def _to_ort_value(array: Array) -> Any:
    data_type = onnx_type(array.dtype)
    data = np.ascontiguousarray(array).reshape(array.shape)
    if data_type.bitwidth < 8:
        # ONNX Runtime reads the elements packed, from the front of an unpacked-size buffer.
        packed = pack(data, data_type.bitwidth)
        data = np.zeros_like(data)
        data.reshape(-1).view(np.uint8)[: packed.size] = packed
    return _ort.OrtValue.ortvalue_from_numpy_with_onnx_type(data, int(data_type))


def _from_ort_value(value: Any, spec: TensorSpec) -> Any:
    if not isinstance(spec.dtype, np.dtype) or not _is_extended(spec):
        return value.numpy()
    shape: tuple[int, ...] = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    bits = onnx_type(spec.dtype).bitwidth
    raw = ctypes.string_at(value.data_ptr(), (count * bits + 7) // 8) if count else b""
    if bits < 8:
        raw = unpack(np.frombuffer(raw, np.uint8), bits, count).tobytes()
    array: Array = np.empty(shape, spec.dtype)
    array[...] = np.frombuffer(raw, spec.dtype).reshape(shape)
    return array
