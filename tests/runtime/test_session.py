from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import ExecutionError, InvalidModelError, UsageError
from onnxfold.runtime.profile import execution_profile, optimized_op_census
from onnxfold.runtime.session import (
    DEPLOYMENT,
    REFERENCE,
    Session,
    is_layer_norm_stable,
    max_ir_version,
    max_opset_version,
    version,
)

ONES = np.ones((1, 2), np.float32)


def parse(text: str) -> onnx.ModelProto:
    header = '<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 1]>\n'
    return onnx.parser.parse_model(header + text)


def scale_model() -> onnx.ModelProto:
    model = parse("g (float[N,2] x) => (float[N,3] y) { y = MatMul(x, w) }")
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return model


def identity(element_type: int, opset: int = 21) -> onnx.ModelProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, element_type, ["N", 3]) for name in "xy"]
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("form", ["path", "str", "bytes", "proto", "ir"])
def test_every_form_of_model_runs(form: str, tmp_path: Path) -> None:
    proto = scale_model()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    model = {
        "path": path,
        "str": str(path),
        "bytes": proto.SerializeToString(),
        "proto": proto,
        "ir": ir.from_proto(proto),
    }[form]

    session = Session(model)

    assert [str(spec) for spec in session.inputs] == ["float32[N,2]"]
    assert [(spec.name, str(spec)) for spec in session.outputs] == [("y", "float32[N,3]")]
    np.testing.assert_array_equal(session.run({"x": ONES})["y"], [[3, 5, 7]])


@pytest.mark.parametrize("form", ["path", "ir"])
@pytest.mark.parametrize("newer", [False, True])
def test_external_data_is_found(form: str, newer: bool, tmp_path: Path) -> None:
    proto = scale_model()
    if newer:
        proto.ir_version = max_ir_version() + 1
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, size_threshold=0, location="m.data")
    before = path.read_bytes()

    session = Session(path if form == "path" else ir.load(path))

    np.testing.assert_array_equal(session.run({"x": ONES})["y"], [[3, 5, 7]])
    assert path.read_bytes() == before


def test_external_data_of_two_folders_is_found(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "m.onnx"
        data = f"{folder}.data"
        onnx.save(scale_model(), path, save_as_external_data=True, size_threshold=0, location=data)
    model = ir.load(tmp_path / "a" / "m.onnx")
    other = ir.load(tmp_path / "b" / "m.onnx").graph.initializers["w"].const_value
    second = ir.Value(name="second", const_value=other)
    model.graph.register_initializer(second)

    session = Session(model)

    np.testing.assert_array_equal(session.run({"x": ONES})["y"], [[3, 5, 7]])


@pytest.mark.parametrize("form", ["proto", "ir"])
def test_model_too_large_for_one_message(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfold.runtime.model_source._PROTOBUF_LIMIT", 10)
    proto = scale_model()
    weights: Array = np.tile(np.arange(6, dtype=np.float32).reshape(2, 3), (1, 100))
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 300
    model = proto if form == "proto" else ir.from_proto(proto)
    for _ in range(2):  # what was written for the first session is gone, the model is not
        assert Session(model).run({"x": ONES})["y"].tolist() == [[3, 5, 7] * 100]


def test_unknown_dimension_written_as_minus_one_takes_any_size() -> None:
    session = Session(parse("g (float[-1,2] x) => (float[-1,2] y) { y = Neg(x) }"))
    assert str(session.inputs[0]) == "float32[?,2]"
    assert session.run({"x": ONES})["y"].shape == (1, 2)


def test_external_data_of_a_proto_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(scale_model(), path, save_as_external_data=True, size_threshold=0, location="m.data")
    proto = onnx.load(path, load_external_data=False)
    with pytest.raises(UsageError, match="'w' is external data of an unknown folder"):
        Session(proto)


def test_newer_ir_version_runs_and_the_model_keeps_it() -> None:
    proto = scale_model()
    proto.ir_version = max_ir_version() + 1
    Session(proto).run({"x": ONES})
    assert proto.ir_version == max_ir_version() + 1


def test_versions_are_found_by_trying() -> None:
    assert max_ir_version() >= 11
    assert max_opset_version() >= 23


@pytest.mark.parametrize(
    ("element_type", "dtype"),
    [
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        (TensorProto.BOOL, np.bool_),
        (TensorProto.UINT64, np.uint64),
        (TensorProto.STRING, object),
    ],
)
def test_element_types_survive(element_type: int, dtype: type) -> None:
    values: Array = np.array([[0, 1, 3], [1, 0, 2]], dtype=np.dtype(dtype))
    if dtype is object:
        values = np.array([["a", "b", "ü"]], object)
    result = Session(identity(element_type)).run({"x": values})["y"]
    assert result.dtype == np.dtype(dtype)
    assert result.tolist() == values.tolist()


@pytest.mark.parametrize(("name", "values"), [("int4", [-8, 3, 7]), ("uint4", [0, 9, 15])])
def test_packed_types_survive(name: str, values: list[int]) -> None:
    proto = parse(f"""g ({name}[N,3] x) => ({name}[N,3] y, float[N,3] r)
        <float s = {{1.0}}> {{ r = DequantizeLinear(x, s)  y = QuantizeLinear(r, s, z) }}""")
    element_type = TensorProto.INT4 if name == "int4" else TensorProto.UINT4
    proto.graph.initializer.append(helper.make_tensor("z", element_type, [], [0]))
    feed = np.array([values, values[::-1], values], dtype=getattr(ml_dtypes, name))

    result = Session(proto).run({"x": feed})

    np.testing.assert_array_equal(result["r"], feed.astype(np.float32))
    assert result["y"].dtype == feed.dtype
    np.testing.assert_array_equal(result["y"].astype(int), feed.astype(int))


def test_empty_bfloat16_tensor() -> None:
    feed = np.zeros((0, 3), ml_dtypes.bfloat16)
    assert Session(identity(TensorProto.BFLOAT16)).run({"x": feed})["y"].shape == (0, 3)


def test_sequence_of_maps_is_returned_as_it_is() -> None:
    node = helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[4, 7])
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_value_info("z", helper.make_sequence_type_proto(kind))],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 1)]
    session = Session(helper.make_model(graph, opset_imports=opsets, ir_version=10))

    assert session.outputs[0].dtype == "seq(map(int64,tensor(float)))"
    assert session.run({"x": ONES})["z"] == [{4: 1.0, 7: 1.0}]


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, r"input 'x' \(float32\[N,2\]\) is not fed"),
        ({"x": ONES, "xx": ONES}, "has no input 'xx'; did you mean 'x'"),
        ({"x": ONES.astype(np.float64)}, r"'x': wants float32\[N,2\], got float64\[1, 2\]"),
        ({"x": np.ones((1, 3), np.float32)}, r"wants float32\[N,2\], got float32\[1, 3\]"),
        ({"x": np.ones(2, np.float32)}, r"wants float32\[N,2\], got float32\[2\]"),
        ({"x": [[1.0, 2.0]]}, r"wants an array of float32\[N,2\], got list"),
    ],
)
def test_wrong_feed_is_refused(feed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Session(scale_model()).run(feed)


def test_refused_model_names_the_node() -> None:
    proto = scale_model()
    proto.graph.node[0].name = "head"
    proto.graph.node[0].op_type = "MatMull"
    with pytest.raises(ExecutionError, match=r"refuses model 'g': .*head.*MatMull") as caught:
        Session(proto)
    assert "\n" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


def test_failing_node_is_named() -> None:
    proto = parse("g (float[N] x, int64[M] i) => (float[M] y) { [pick] y = Gather(x, i) }")
    with pytest.raises(ExecutionError, match=r"failed: .*Gather node.*pick.*out of data bounds"):
        Session(proto).run({"x": np.ones(2, np.float32), "i": np.array([5])})


@pytest.mark.parametrize("content", [b"not a model at all", None])
def test_no_model(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"m\.onnx: (not an ONNX model|no such file)"):
        Session(path)


def test_matmulnbits_keeps_float_activations() -> None:
    rng = np.random.default_rng(0)
    proto = parse("""g (float[N,64] x) => (float[N,32] y) {
        d = DequantizeLinear(w, s) y = MatMul(x, d) }""")
    weights = rng.integers(-127, 127, (64, 32)).astype(np.int8)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "s"))
    feed = {"x": rng.normal(size=(4, 64)).astype(np.float32)}

    reference, deployed = (Session(proto, c).run(feed)["y"] for c in (REFERENCE, DEPLOYMENT))

    assert np.abs(reference - deployed).max() <= 1e-5 * np.abs(reference).max()


def test_profile_and_census() -> None:
    proto = parse("g (float[N,2] x) => (float[N,3] y) { [mm] m = MatMul(x, w) [act] y = Relu(m) }")
    proto.graph.initializer.append(scale_model().graph.initializer[0])

    times = execution_profile(proto, [{"x": ONES}], runs=2).times

    assert [(t.node, t.op_type, t.calls) for t in times] == [
        ("mm", "MatMul", 1),
        ("act", "Relu", 1),
    ]
    assert all(t.microseconds >= 0 and t.provider == "CPUExecutionProvider" for t in times)
    assert optimized_op_census(proto) == {"MatMul": 1, "Relu": 1}
    with pytest.raises(UsageError, match="at least one feed"):
        execution_profile(proto, [])


def test_without_optimizations_a_constant_weight_gives_the_bits_of_a_computed_one() -> None:
    """Packed weights take another kernel, which rounds differently: folding would change bits."""
    header = '<ir_version: 10, opset_import: ["" : 21]>\n'
    rng = np.random.default_rng(0)
    initial = {
        "w": rng.standard_normal((1, 512, 128)).astype(np.float32),
        "r": rng.standard_normal((1, 512, 128)).astype(np.float32),
    }
    feed = {"x": rng.standard_normal((4, 1, 128)).astype(np.float32)}
    lstm = "h, last = LSTM <hidden_size = 128> (x, {0}, {1})"
    outputs: list[Array] = []
    for before, names in (("", ("w", "r")), ("v = Identity(w) s = Identity(r)", ("v", "s"))):
        text = f"g (float[4,1,128] x) => (float[4,1,1,128] h) {{ {before} {lstm.format(*names)} }}"
        model = onnx.parser.parse_model(header + text)
        tensors = [numpy_helper.from_array(array, name) for name, array in initial.items()]
        model.graph.initializer.extend(tensors)
        outputs.append(Session(model, REFERENCE).run(feed)["h"])
    assert np.array_equal(outputs[0], outputs[1])


def test_an_unstable_layer_normalization_is_found_by_trying() -> None:
    release = tuple(int(part) for part in version().split(".")[:2])
    if (1, 23) < release < (1, 32):
        pytest.skip(f"it is not known of onnxruntime {version()}")
    assert is_layer_norm_stable() is (release >= (1, 32))


STATEFUL = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N] x, float[2] state) => (float[2] new_state, float total)
<float[2] state = {1, 2}> {
    moved = ReduceSum<keepdims = 0>(x)  new_state = Add(state, moved)
    total = ReduceSum<keepdims = 0>(new_state)
}"""


def test_an_input_with_a_default_may_be_fed() -> None:
    session = Session(onnx.parser.parse_model(STATEFUL))
    assert [spec.name for spec in session.inputs] == ["x"]
    assert [spec.name for spec in session.defaults] == ["state"]
    feed = {"x": np.ones(3, np.float32)}
    assert session.run(feed)["total"] == 9
    assert session.run({**feed, "state": np.zeros(2, np.float32)})["total"] == 6
    with pytest.raises(UsageError, match="input 'state': wants float32"):
        session.run({**feed, "state": np.zeros(2)})


def test_bound_arrays_are_read_and_written_in_place() -> None:
    binding = Session(onnx.parser.parse_model(STATEFUL)).bind()
    x, total = np.ones(3, np.float32), np.zeros((), np.float32)
    first, second = np.ones(2, np.float32), np.zeros(2, np.float32)
    binding.read("x", x)
    binding.write("total", total)
    for old, new in ((first, second), (second, first)):
        binding.read("state", old)
        binding.write("new_state", new)
        binding.run()
    assert (first.tolist(), second.tolist(), float(total)) == ([7, 7], [4, 4], 14)
    x[:] = 0
    binding.run()
    assert first.tolist() == [4, 4]
    with pytest.raises(UsageError, match="contiguous"):
        binding.read("x", np.ones(6, np.float32)[::2])
