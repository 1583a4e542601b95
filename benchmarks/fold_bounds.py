"""What a folded network takes at least: executed nodes alone, without what is between them."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.specs import Feed

ONE_THREAD = dataclasses.replace(DEPLOYMENT, name="one thread", threads=1)
"""As deployed, but on one thread, whose processor time other load does not change."""

_AS_IT_IS = dataclasses.replace(ONE_THREAD, name="as it is", optimize=False)
_COPIES = 8
_CHAIN = 32
_ONE = np.ones((1, 1), np.float32)
_OUTPUT = "output"
_PRODUCTS = frozenset(
    {
        *("Conv", "FusedConv", "ConvInteger", "QLinearConv", "NhwcFusedConv"),
        *("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "QLinearMatMul"),
        *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
    }
)
"""Operators that multiply: what no fold can leave out."""

_SMALLEST: dict[str, tuple[str, list[Any]]] = {
    "Neg": ("", []),
    "QGemm": (
        "com.microsoft",
        [
            *(np.float32(0.1), np.uint8(1), np.ones((1, 1), np.int8)),
            *(np.float32(0.1), np.int8(0), np.zeros(1, np.int32), np.float32(0.1), np.uint8(1)),
        ],
    ),
    "QLinearConv": (
        "",
        [
            *(np.float32(0.1), np.uint8(1), np.ones((1, 1, 1, 1), np.int8)),
            *(np.float32(0.1), np.int8(0), np.float32(0.1), np.uint8(1), np.zeros(1, np.int32)),
        ],
    ),
}
"""Operators with the inputs of their smallest call; Neg stands for every other."""


def smallest_calls() -> dict[str, float]:
    """Milliseconds of a call with one element, by operator, on one thread.

    "" is a run of no nodes, and "output" what it takes to hand over one more result.
    """
    calls: dict[str, float] = {}
    for op_type in _SMALLEST:
        few, many = (_chain_ms(op_type, count) for count in (1, _CHAIN + 1))
        calls[op_type] = max((many - few) / _CHAIN, 0.0)
        calls.setdefault("", few - calls[op_type])
    neg = _chain("Neg", 1)
    handed_over = _node_ms(neg.graph.node[0], neg, {"v0": _ONE, "v1": _ONE}) - calls["Neg"]
    calls[_OUTPUT] = max(handed_over, 0.0)
    return calls


def _chain_ms(op_type: str, count: int) -> float:
    """Milliseconds of ``count`` smallest calls, one after the other; the least of many runs."""
    return least_ms(_chain(op_type, count))


def _chain(op_type: str, count: int) -> onnx.ModelProto:
    """``count`` smallest calls, one after the other."""
    domain, constants = _SMALLEST[op_type]
    dtype = TensorProto.UINT8 if constants else TensorProto.FLOAT
    shape = [1] * (4 if op_type == "QLinearConv" else 2)
    names = [f"c{index}" for index in range(len(constants))]
    nodes = [
        helper.make_node(op_type, [f"v{index}", *names], [f"v{index + 1}"], domain=domain)
        for index in range(count)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", dtype, shape)],
        [helper.make_tensor_value_info(f"v{count}", dtype, shape)],
        [numpy_helper.from_array(np.asarray(c), n) for c, n in zip(constants, names, strict=True)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def kernels_alone(
    folded: onnx.ModelProto, calls: Mapping[str, float], real: onnx.ModelProto | None = None
) -> float:
    """Milliseconds that the executed nodes of ``folded`` take at least.

    That is a run of no nodes, its products as they are, each in a model of its own, and of all
    that is between them the calls alone, as with one element. With ``real``, the float model, each
    product takes the cheaper of two exact forms: as it is, or the float kernel for weights of the
    same shape and one Round of its result, without the ways between the two.
    """
    model = _executed(folded)
    values = _values(model)
    in_float = {} if real is None else _rounded_in_float(_executed(real), calls)
    total = calls[""]
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS:
            total += calls["Neg"]
            continue
        as_it_is = max(_node_ms(node, model, values) - calls[_OUTPUT], 0.0)
        total += min(as_it_is, in_float.get(_weights_shape(node, model), as_it_is))
    return total


def _rounded_in_float(
    model: onnx.ModelProto, calls: Mapping[str, float]
) -> dict[tuple[int, ...], float]:
    """Milliseconds of each product of a float model and a Round, by the shape of its weights."""
    values = _values(model)
    found: dict[tuple[int, ...], float] = {}
    for node in model.graph.node:
        shape = _weights_shape(node, model)
        if node.op_type not in _PRODUCTS or not shape:
            continue
        rounding = helper.make_node("Round", node.output, ["rounded"])
        both = _node_ms(node, model, values)
        both += _node_ms(rounding, model, {**values, "rounded": values[node.output[0]]})
        cost = max(both - 2 * calls[_OUTPUT], 0.0)
        found[shape] = min(cost, found.get(shape, cost))
    return found


def _weights_shape(node: onnx.NodeProto, model: onnx.ModelProto) -> tuple[int, ...]:
    """The shape of the constant that a product multiplies by; empty where there is none."""
    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    return next((shapes[name] for name in node.input if len(shapes.get(name, ())) > 1), ())


def _executed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as ONNX Runtime runs it."""
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        path = Path(folder) / "optimized.onnx"
        Session(model, ONE_THREAD, optimized_model_path=path)
        return onnx.load(path)


def _values(model: onnx.ModelProto) -> Feed:
    """Every tensor of a run on random inputs, by name."""
    everything = onnx.ModelProto()
    everything.CopyFrom(model)
    known = {each.name for each in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    inner = [onnx.ValueInfoProto(name=name) for name in names if name not in known]
    everything.graph.output.extend(inner)
    session = Session(everything, _AS_IT_IS)
    feed = random_feed(session)
    return {**feed, **session.run(feed)}


def _node_ms(node: onnx.NodeProto, model: onnx.ModelProto, values: Feed) -> float:
    """Milliseconds of one node: several of it, each on data of its own, less a single one."""
    few, many = (least_ms(_several(node, model, values, count)) for count in (1, _COPIES + 1))
    return max((many - few) / _COPIES, 0.0)


def _several(
    node: onnx.NodeProto, model: onnx.ModelProto, values: Feed, count: int
) -> onnx.ModelProto:
    """Copies of ``node`` on the same data; their results are outputs, so that all are computed."""
    constants = {each.name: each for each in model.graph.initializer if each.name in node.input}
    data = list(dict.fromkeys(name for name in node.input if name and name not in constants))
    copies: list[onnx.NodeProto] = []
    for index in range(count):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"copy_{index}"
        copy.ClearField("output")
        copy.output.extend(f"{each}_{index}" if each else "" for each in node.output)
        copies.append(copy)
    inputs = [_info(name, values[name]) for name in data]
    outputs = [
        _info(f"{name}_{i}", values[name]) for i in range(count) for name in node.output if name
    ]
    graph = helper.make_graph(copies, "copies", inputs, outputs, list(constants.values()))
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _info(name: str, array: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
    )


def least_ms(model: onnx.ModelProto) -> float:
    """Processor milliseconds of a run, the least of many."""
    session = Session(model, ONE_THREAD)
    run = session.prepare(random_feed(session))
    taken: list[float] = []
    for _ in range(_CHAIN):
        started = time.thread_time()
        for _ in range(_CHAIN):
            run()
        taken.append((time.thread_time() - started) * 1e3 / _CHAIN)
    return min(taken)


def random_feed(session: Session) -> Feed:
    """Random inputs: normal numbers, or any codes; the same for the same signature."""
    numbers = np.random.default_rng(1)
    feed: dict[str, Any] = {}
    for spec in session.inputs:
        shape = [size if isinstance(size, int) else 1 for size in spec.shape or ()]
        if np.dtype(spec.dtype).kind == "f":
            feed[spec.name] = numbers.standard_normal(shape).astype(spec.dtype)
        else:
            limits = np.iinfo(spec.dtype)
            feed[spec.name] = numbers.integers(limits.min, limits.max, shape).astype(spec.dtype)
    return feed
