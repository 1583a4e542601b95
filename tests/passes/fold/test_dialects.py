"""Fake-quantized networks as each tool writes them fold, within the contract, on every target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from fixtures.dialects import DIALECTS, attention_network, image_network
from onnxfold.passes.census import take_census
from onnxfold.passes.constants import constant_array
from onnxfold.passes.op_kinds import OpKind
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import FOLD, TIDY
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.remark import Remark
from onnxfold.runtime.session import DEPLOYMENT, Session, version
from onnxfold.runtime.verify.pass_gate import ContractGate
from onnxfold.runtime.verify.region_gate import check_integer_contract

TARGETS = ("ort", "standard", "integer", "qdq")
NETWORKS: dict[str, Callable[..., onnx.ModelProto]] = {
    "image": image_network,
    "attention": attention_network,
}

_NEWEST_IN_OLDEST = 22
"""The newest opset whose Q and DQ the oldest supported ONNX Runtime, 1.23, has kernels for."""
_WIDE = ("aimet-16-bit", "onnxruntime-16-bit")
_OPEN_END = {"torch-pt2e", "nncf", "nncf-mixed"}
"""Their last product is left real: one multiplication by its scale."""


def _integers_only(dialect: str) -> int:
    """Float operators that ``standard`` and ``integer`` leave in an 8-bit dialect."""
    return 1 if dialect in _OPEN_END else 0


def _most_in_ort(dialect: str, network: str) -> int:
    """MaxPool is faster in float; a real bias may be too fine for an int32 one."""
    if network == "attention":
        return 4
    if dialect == "torch-pt2e":
        return 11  # besides a sum with a convolution whose result is not rounded
    return 9 if DIALECTS[dialect].bias == "float" else 3


def _fold(
    proto: onnx.ModelProto, target: str, *, gate: bool = True
) -> tuple[ir.Model, list[Remark]]:
    """The folded model, after the contract gate of every pass, and what was said."""
    model = ir.from_proto(proto)
    contract = ContractGate(_feeds(model), region_check=check_integer_contract)
    passes = parse_passes(f"{FOLD},fold-qdq{{target={target}}},{TIDY}")
    result = Pipeline(passes, (contract,) if gate else ()).run(model)
    assert all(each.verdict.passed for each in contract.evidence)
    return result.model, [remark for _, each in result.results for remark in each.remarks]


def _feeds(model: ir.Model, count: int = 2) -> list[dict[str, Any]]:
    feeds: list[dict[str, Any]] = []
    for seed in range(count):
        numbers = np.random.default_rng(seed)
        feed: dict[str, Any] = {}
        for value in model.graph.inputs:
            assert value.name is not None
            assert value.shape is not None
            assert value.dtype is not None
            shape = value.shape.numpy()
            if value.dtype == ir.DataType.FLOAT:
                feed[value.name] = numbers.standard_normal(shape).astype(np.float32)
            else:
                feed[value.name] = numbers.integers(0, 256, shape).astype(value.dtype.numpy())
        feeds.append(feed)
    return feeds


def _skip_where_too_new(proto: onnx.ModelProto) -> None:
    (opset,) = [each.version for each in proto.opset_import if each.domain == ""]
    if opset > _NEWEST_IN_OLDEST and version().startswith("1.23."):
        pytest.skip(f"onnxruntime {version()} does not run Q/DQ of opset {opset}, folded or not")


def _float_ops(model: ir.Model) -> int:
    return take_census(model).kinds.get(OpKind.FLOAT.value, 0)


PAIRS = [
    (dialect, network)
    for dialect in DIALECTS
    for network in NETWORKS
    if network == "image" or not dialect.startswith("opset")
]


def test_a_dialect_is_written_the_same_each_time() -> None:
    for dialect in ("torch-qat", "onnxruntime-int4"):
        for network in NETWORKS.values():
            first, second = network(DIALECTS[dialect]), network(DIALECTS[dialect])
            onnx.checker.check_model(first, full_check=True)
            assert first.SerializeToString() == second.SerializeToString()


@pytest.mark.parametrize(("dialect", "network"), [pair for pair in PAIRS if pair[0] not in _WIDE])
def test_every_dialect_folds_within_the_contract(dialect: str, network: str) -> None:
    proto = NETWORKS[network](DIALECTS[dialect])
    _skip_where_too_new(proto)
    left = {target: _float_ops(_fold(proto, target)[0]) for target in TARGETS if target != "qdq"}
    wanted = _integers_only(dialect)
    assert left["standard"] == left["integer"] == wanted
    assert left["ort"] <= _most_in_ort(dialect, network) + wanted


@pytest.mark.parametrize(("dialect", "network"), PAIRS)
def test_every_dialect_becomes_canonical(dialect: str, network: str) -> None:
    """Q and DQ are of ai.onnx, and every weight is int8 codes behind a DequantizeLinear."""
    proto = NETWORKS[network](DIALECTS[dialect])
    _skip_where_too_new(proto)
    model, _ = _fold(proto, "qdq")
    if dialect in _WIDE:
        return
    assert not any(node.domain for node in model.graph)
    for node in model.graph:
        codes = constant_array(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if codes is not None:
            assert codes.dtype in (np.int8, np.int32)
        if node.op_type in ("Conv", "Gemm"):
            weights = node.inputs[1]
            assert weights is not None
            producer = weights.producer()
            assert producer is not None
            assert producer.op_type == "DequantizeLinear"


@pytest.mark.parametrize("target", ["standard", "integer"])
@pytest.mark.parametrize("dialect", _WIDE)
def test_16_bit_activations_are_computed_in_halves(dialect: str, target: str) -> None:
    model, remarks = _fold(image_network(DIALECTS[dialect]), target)
    counts = Counter(node.op_type for node in model.graph)
    assert counts["ConvInteger"] == 6
    assert counts["MatMulInteger"] == 2
    if dialect.startswith("aimet"):  # the sizes are known
        assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 1
        assert not remarks


@pytest.mark.parametrize("target", ["ort", "qdq"])
@pytest.mark.parametrize("dialect", _WIDE)
def test_16_bit_activations_stay_with_a_reason(dialect: str, target: str) -> None:
    model, remarks = _fold(image_network(DIALECTS[dialect]), target)
    assert {"Conv", "Add", "MaxPool", "Gemm"} <= {node.op_type for node in model.graph}
    assert any("uint16" in remark.reason.lower() for remark in remarks)


_ROW = "float xs = {0.05}, uint8 xz = {120}, float ys = {0.3}, uint8 yz = {125}"
_MATRIX = "int8[3,2] w = {10, -20, 33, 4, 50, -66}, float ws = {0.02}"
_SMALL = "g (uint8[4,3] q) => (uint8[4,2] y)"
_IN = "x = DequantizeLinear (q, xs, xz)"
_OUT = "y = QuantizeLinear (m, ys, yz)"

SHAPES_OF_A_PRODUCT = {
    "weights behind Identity": "d = DequantizeLinear (w, ws) e = Identity (d) m = MatMul (x, e)",
    "codes of weights behind Identity": (
        "e = Identity (w) d = DequantizeLinear (e, ws) m = MatMul (x, d)"
    ),
    "data behind Identity": "d = DequantizeLinear (w, ws) e = Identity (x) m = MatMul (e, d)",
    "data behind a Cast that does nothing": (
        "d = DequantizeLinear (w, ws) e = Cast <to: int = 1> (x) m = MatMul (e, d)"
    ),
    "result behind a Cast that does nothing": (
        "d = DequantizeLinear (w, ws) p = MatMul (x, d) m = Cast <to: int = 1> (p)"
    ),
    "weights behind two Transposes": (
        "d = DequantizeLinear (w, ws) t = Transpose (d) u = Transpose (t) m = MatMul (x, u)"
    ),
    "codes of weights behind a Reshape": (
        "t = Transpose (w) u = Transpose (t) d = DequantizeLinear (u, ws) m = MatMul (x, d)"
    ),
    "scaled, shifted and scaled": (
        "d = DequantizeLinear (w, ws) p = MatMul (x, d) s = Mul (p, factors) "
        "t = Add (s, factors) u = Div (t, half) m = Sub (u, half)"
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", SHAPES_OF_A_PRODUCT)
def test_what_stands_between_is_seen_through(
    case: str, target: str, parse: Callable[..., ir.Model]
) -> None:
    constants = f"{_ROW}, {_MATRIX}, float[2] factors = {{0.5, -0.25}}, float half = {{0.5}}"
    text = f"{_SMALL} <{constants}> {{ {_IN} {SHAPES_OF_A_PRODUCT[case]} {_OUT} }}"
    model, remarks = _fold(ir.to_proto(parse(text)), target)
    assert not [each for each in remarks if each.op_type == "MatMul"]
    kinds = [node.op_type for node in model.graph]
    if target in ("ort", "standard"):
        assert set(kinds) <= {"QLinearMatMul", "QGemm", *_STANDARD_PRODUCT}
    elif target == "qdq":
        assert sorted(set(kinds) - {"Gemm", "MatMul", "Add"}) == [
            "DequantizeLinear",
            "QuantizeLinear",
        ]


_STANDARD_PRODUCT = {
    *("MatMulInteger", "Add", "Cast", "Mul", "BitShift", "BitwiseAnd", "Mod", "Clip", "Sub"),
}


def test_shared_weights_and_biases_follow_each_reader(parse: Callable[..., ir.Model]) -> None:
    """One bias, two activations: its int32 codes must differ."""
    text = """
    g (uint8[1,1,2,2] q, uint8[1,1,2,2] r) => (uint8[1,1,2,2] y, uint8[1,1,2,2] v)
    <float s = {0.5}, float t = {0.25}, uint8 z = {100}, float os = {3.0},
     int8[1,1,1,1] w = {50}, float ws = {0.5}, int32[1] b = {400}, float bs = {0.25}>
    {
      x = DequantizeLinear (q, s, z)
      u = DequantizeLinear (r, t, z)
      d = DequantizeLinear (w, ws)
      e = DequantizeLinear (b, bs)
      c = Conv (x, d, e)
      y = QuantizeLinear (c, os, z)
      k = Conv (u, d, e)
      v = QuantizeLinear (k, os, z)
    }
    """
    model, _ = _fold(ir.to_proto(parse(text)), "ort")
    convolutions = [node for node in model.graph if node.op_type == "QLinearConv"]
    biases = [constant_array(node.inputs[8]) for node in convolutions]
    assert [each.tolist() for each in biases if each is not None] == [[400], [800]]
    assert convolutions[0].inputs[3] is convolutions[1].inputs[3], "the weights stay shared"


_NARROW = {
    TensorProto.INT2: (25, 13, [1, 0, -2, 1, 0, -1]),
    TensorProto.UINT2: (25, 13, [1, 0, 3, 1, 0, 2]),
    TensorProto.INT4: (21, 10, [1, 0, -8, 7, 0, -3]),
    TensorProto.UINT4: (21, 10, [1, 0, 15, 7, 0, 9]),
}


def _narrow_product(
    dtype: TensorProto.DataType, *, block: int = 0, quantized: bool = True, rows: int = 3
) -> onnx.ModelProto:
    """A product with narrow weights [rows, 2], and data that is quantized or not."""
    opset, ir_version, codes = _NARROW[dtype]
    count = rows * 2
    weights = helper.make_tensor("w", dtype, [rows, 2], (codes * rows)[:count])
    blocks = [rows // block, 2] if block else [2]
    scales = np.linspace(0.25, 0.5, int(np.prod(blocks)), dtype=np.float32)
    dequantize = helper.make_node("DequantizeLinear", ["w", "ws"], ["d"], axis=0 if block else 1)
    if block:
        dequantize.attribute.append(helper.make_attribute("block_size", block))
    nodes = [dequantize, helper.make_node("MatMul", ["x", "d"], ["m" if quantized else "y"])]
    if quantized:
        nodes.insert(0, helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["x"]))
        nodes.append(helper.make_node("QuantizeLinear", ["m", "ys", "xz"], ["y"]))
    ends = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "narrow",
        [helper.make_tensor_value_info("q" if quantized else "x", ends, [4, rows])],
        [helper.make_tensor_value_info("y", ends, [4, 2])],
        [
            weights,
            helper.make_tensor("ws", TensorProto.FLOAT, blocks, scales.reshape(-1)),
            helper.make_tensor("xs", TensorProto.FLOAT, [], [0.05]),
            helper.make_tensor("xz", TensorProto.UINT8, [], [120]),
            helper.make_tensor("ys", TensorProto.FLOAT, [], [0.5]),
        ],
    )
    if not quantized:
        del graph.initializer[2:]
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", _NARROW, ids=TensorProto.DataType.Name)
def test_narrow_weights_fold_as_8_bit_codes(dtype: TensorProto.DataType, target: str) -> None:
    proto = _narrow_product(dtype)
    _skip_where_too_new(proto)
    model, remarks = _fold(proto, target)
    assert not remarks
    kinds = {node.op_type for node in model.graph}
    assert kinds & {"QLinearMatMul", "MatMulInteger"} or target == "qdq"
    assert {value.dtype for value in model.graph.initializers.values()} & {ir.DataType.INT8}
    feed = _feeds(model, 1)[0]
    assert Session(ir.to_proto(model), DEPLOYMENT).run(feed)["y"].shape == (4, 2)


@pytest.mark.parametrize("target", TARGETS)
def test_blocked_weights_stay_with_a_reason(target: str) -> None:
    proto = _narrow_product(TensorProto.INT4, block=16, rows=32)
    model, remarks = _fold(proto, target)
    assert "MatMul" in {node.op_type for node in model.graph}
    assert any("blocked" in remark.reason for remark in remarks)


@pytest.mark.parametrize("target", ["standard", "integer", "qdq"])
@pytest.mark.parametrize("block", [0, 16])
def test_weights_packed_for_size_stay_packed(block: int, target: str) -> None:
    proto = _narrow_product(TensorProto.INT4, block=block, quantized=False, rows=32)
    model, _ = _fold(proto, target)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul"]
    packed = model.graph[0].inputs[0]
    assert packed is not None
    assert packed.dtype == ir.DataType.INT4


@pytest.mark.parametrize("target", TARGETS)
def test_8_bit_floats_pass_through_untouched(target: str) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="a"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["r"], name="b"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], name="c"),
        helper.make_node("MatMul", ["r", "d"], ["m"], name="d"),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["p"], name="e"),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"], name="f"),
    ]
    kind = TensorProto.FLOAT8E4M3FN
    graph = helper.make_graph(
        nodes,
        "float8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2])],
        [
            helper.make_tensor("s", TensorProto.FLOAT, [], [0.5]),
            helper.make_tensor("z", kind, [], [0.0]),
            helper.make_tensor("w", kind, [3, 2], [0.5, -1.0, 2.0, 3.0, -4.0, 0.25]),
        ],
    )
    opsets = [helper.make_opsetid("", 19)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    before = [node.SerializeToString() for node in proto.graph.node]
    model, _ = _fold(proto, target, gate=False)
    after = ir.to_proto(model)
    for node in after.graph.node:
        del node.metadata_props[:]  # why they are left
    assert [node.SerializeToString() for node in after.graph.node] == before
    assert sorted(each.SerializeToString() for each in after.graph.initializer) == sorted(
        each.SerializeToString() for each in proto.graph.initializer
    )


def test_a_clip_that_is_known_to_hold_is_dropped() -> None:
    """Each activation of 7-bit training is clipped again after every movement."""
    proto = attention_network(DIALECTS["torch-qat"])
    clips = [node.op_type for node in proto.graph.node].count("Clip")
    model, _ = _fold(proto, "ort")
    left = [node.op_type for node in model.graph].count("Clip")
    assert clips == 10
    assert left == 9, "the Transpose of the keys adds nothing"
