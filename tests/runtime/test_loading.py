from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes import serialization
from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.passes.serialization import model_bytes, written_ir_version
from onnxfold.runtime.loading import load_model, save_model

Parse = Callable[..., ir.Model]

WEIGHTS = np.array([1.5, 2.5, 3.5, 4.5], np.float32)


def add_model(**options: int) -> onnx.ModelProto:
    vectors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    weights = [numpy_helper.from_array(WEIGHTS, "w")]
    graph = helper.make_graph([node], "g", vectors[:1], vectors[1:], weights)
    opsets = [helper.make_opsetid("", options.pop("opset", 21))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=options.pop("ir_version", 10))


def external(model: onnx.ModelProto, location: str, **entries: str) -> onnx.ModelProto:
    """Move the weights of ``add_model`` to a file."""
    tensor = model.graph.initializer[0]
    point_outside(tensor, location, **entries)
    return model


def point_outside(tensor: onnx.TensorProto, location: str, **entries: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)


def write(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def weights_of(model: ir.Model) -> object:
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    return tensor.numpy()


def test_every_form_loads(tmp_path: Path) -> None:
    proto = add_model()
    path = write(proto, tmp_path)
    for model in (proto, proto.SerializeToString(), path, str(path), ir.from_proto(proto)):
        np.testing.assert_array_equal(np.asarray(weights_of(load_model(model))), WEIGHTS)


def test_what_is_loaded_from_is_never_modified(tmp_path: Path) -> None:
    proto = add_model()
    before = proto.SerializeToString()
    loaded = ir.from_proto(add_model())
    text = model_bytes(loaded)
    for model in (load_model(proto), load_model(loaded)):
        model.graph.initializers["w"].name = "renamed"
        model.graph[0].op_type = "Mul"
        model.metadata_props["k"] = "v"
    assert proto.SerializeToString() == before
    assert model_bytes(loaded) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"not a model at all", "not an ONNX model, or truncated"),
        (add_model().SerializeToString()[:-9], "not an ONNX model, or truncated"),
        (onnx.ModelProto(ir_version=10).SerializeToString(), "it has no graph"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"none\.onnx: no such file"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(InvalidModelError, match="a folder, not an ONNX model"):
        load_model(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidModelError, match="not a regular file"):
        load_model(tmp_path / "pipe")


def test_what_the_checker_rejects_is_refused() -> None:
    model = add_model()
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(InvalidModelError, match="invalid: No Op registered for Nonsense") as caught:
        load_model(model)
    assert "\n" not in str(caught.value)


def test_tensors_of_wrong_size_are_refused() -> None:
    model = add_model()
    model.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(InvalidModelError, match="tensor 'w' holds 4 bytes instead of 16"):
        load_model(model)
    model = add_model()
    model.graph.initializer[0].dims[0] = -4
    with pytest.raises(InvalidModelError, match="tensor 'w' has a negative dimension"):
        load_model(model)
    model.graph.initializer[0].dims[:] = [1 << 30, 1 << 30]
    with pytest.raises(InvalidModelError, match="declares 1152921504606846976 elements"):
        load_model(model)


def test_external_data_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"12345678" + WEIGHTS.tobytes())
    path = write(external(add_model(), "sub/w.bin", offset="8", length="16"), tmp_path)
    model = load_model(path)
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    np.testing.assert_array_equal(np.asarray(weights_of(model)), WEIGHTS)


@pytest.mark.parametrize(
    ("location", "entries", "message"),
    [
        ("../secret.bin", {}, "must be inside the model's folder"),
        ("sub/../../secret.bin", {}, "must be inside the model's folder"),
        ("/etc/passwd", {}, "must be inside the model's folder"),
        ("C:\\secret.bin", {}, "must be inside the model's folder"),
        ("", {}, "must be inside the model's folder"),
        ("link.bin", {}, "is a symbolic link"),
        ("linked/w.bin", {}, "is a symbolic link"),
        ("hard.bin", {}, "has 2 hard links"),
        ("sub", {}, "is not a regular file"),
        ("none.bin", {}, "No such file"),
        ("w.bin", {"offset": "4"}, "ends at byte 20 of w.bin, which has 16"),
        ("w.bin", {"length": "8"}, "declares 8 bytes of external data for 16"),
        ("w.bin", {"offset": "-4"}, "offset of its external data is '-4'"),
    ],
)
def test_hostile_external_data_is_refused(
    tmp_path: Path, location: str, entries: dict[str, str], message: str
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.bin").write_bytes(WEIGHTS.tobytes())
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHTS.tobytes())
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "hard.bin").hardlink_to(secret)
    path = write(external(add_model(), location, **entries), folder)
    with pytest.raises(InvalidModelError) as caught:
        load_model(path)
    assert "tensor 'w'" in str(caught.value)
    assert message in str(caught.value)


def in_attribute(model: onnx.ModelProto) -> onnx.TensorProto:
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHTS, "bad"))
    model.graph.node.insert(0, node)
    return model.graph.node[0].attribute[0].t


def in_body(model: onnx.ModelProto) -> onnx.TensorProto:
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])
    body = helper.make_graph([], "body", [], [value], [numpy_helper.from_array(WEIGHTS, "bad")])
    model.graph.node.append(
        helper.make_node("If", ["k"], ["z"], then_branch=body, else_branch=body)
    )
    return model.graph.node[-1].attribute[0].g.initializer[0]


def in_function(model: onnx.ModelProto) -> onnx.TensorProto:
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHTS, "bad"))
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("local", "f", [], ["c"], [node], opsets))
    return model.functions[0].node[0].attribute[0].t


def in_sparse(model: onnx.ModelProto) -> onnx.TensorProto:
    sparse = model.graph.sparse_initializer.add(dims=[8])
    sparse.values.CopyFrom(numpy_helper.from_array(WEIGHTS, "bad"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4, dtype=np.int64), "i"))
    return sparse.values


@pytest.mark.parametrize("place", [in_attribute, in_body, in_function, in_sparse])
def test_hostile_external_data_is_found_everywhere(
    tmp_path: Path, place: Callable[[onnx.ModelProto], onnx.TensorProto]
) -> None:
    model = add_model()
    point_outside(place(model), "/etc/hostname")
    with pytest.raises(InvalidModelError, match="tensor 'bad' lies at '/etc/hostname'"):
        load_model(write(model, tmp_path))


def test_external_data_of_an_unknown_folder_is_refused() -> None:
    with pytest.raises(InvalidModelError, match="of an unknown folder; pass the path"):
        load_model(external(add_model(), "w.bin"))


@pytest.mark.parametrize("coordinates", [False, True])
def test_sparse_constants_become_dense(coordinates: bool) -> None:
    model = add_model()
    del model.graph.initializer[:]
    indices = np.array([1, 3], np.int64)
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([5, 7], np.float32), "w"))
    sparse.indices.CopyFrom(
        numpy_helper.from_array(indices.reshape(2, 1) if coordinates else indices, "i")
    )
    np.testing.assert_array_equal(np.asarray(weights_of(load_model(model))), [0, 5, 0, 7])


def sparse_constant(indices: list[int], size: int) -> onnx.ModelProto:
    values = numpy_helper.from_array(np.ones(len(indices), np.float32), "s")
    places = numpy_helper.from_array(np.array(indices, np.int64), "i")
    sparse = helper.make_sparse_tensor(values, places, [size])
    model = add_model()
    node = helper.make_node("Constant", [], ["w2"], sparse_value=sparse)
    model.graph.node.insert(0, node)
    return model


def test_sparse_constant_nodes_become_dense() -> None:
    constant = load_model(sparse_constant([0, 2], 4)).graph[0]
    np.testing.assert_array_equal(constant.attributes["value"].as_tensor().numpy(), [1, 0, 1, 0])


def test_a_sparse_bomb_is_refused() -> None:
    with pytest.raises(InvalidModelError, match=r"sparse tensor 's' of shape .* is too large"):
        load_model(sparse_constant([0], 1 << 32))


def test_constant_inputs_of_old_models_are_dropped() -> None:
    model = add_model(ir_version=3, opset=8)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    loaded = load_model(model)
    assert [value.name for value in loaded.graph.inputs] == ["x"]
    assert loaded.ir_version == 4
    model.ir_version = 4
    assert [value.name for value in load_model(model).graph.inputs] == ["x", "w"]


def test_what_cannot_be_held_is_refused() -> None:
    model = add_model()
    model.training_info.add()
    with pytest.raises(InvalidModelError, match="training_info"):
        load_model(model)
    model = add_model()
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(kind))
    with pytest.raises(InvalidModelError, match=r"'y' is a map, .* without ZipMap"):
        load_model(model)
    model = add_model()
    model.graph.ClearField("output")
    with pytest.raises(InvalidModelError, match="the graph has no outputs"):
        load_model(model)


def nested(depth: int) -> onnx.ModelProto:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y0"])], "b", [], [out])
    body.output[0].name = "y0"
    for level in range(1, depth):
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=body, else_branch=body)
        out.name = f"y{level}"
        body = helper.make_graph([node], "b", [], [out])
        del body.node[0].attribute[1].g.node[:]
    model = add_model()
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=body))
    return model


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InvalidModelError, match="nested more than 16 deep"):
        load_model(nested(20))


def test_saving_and_loading(tmp_path: Path, parse: Parse) -> None:
    model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    path = tmp_path / "out.onnx"
    save_model(model, path)
    assert model_bytes(load_model(path)) == model_bytes(model) == path.read_bytes()
    assert [item.name for item in tmp_path.iterdir()] == ["out.onnx"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_saving_replaces_a_link_and_not_its_target(tmp_path: Path, parse: Parse) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Abs(x) }")
    victim, link = tmp_path / "victim", tmp_path / "out.onnx"
    victim.write_text("precious")
    link.symlink_to(victim)
    save_model(model, link)
    assert victim.read_text() == "precious"
    assert not link.is_symlink()


def test_unwritable_places_are_usage_errors(tmp_path: Path, parse: Parse) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Abs(x) }")
    with pytest.raises(UsageError, match="it is a folder"):
        save_model(model, tmp_path)
    with pytest.raises(UsageError, match=r"cannot write .*out\.onnx: No such file or directory"):
        save_model(model, tmp_path / "none" / "out.onnx")


def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.onnx"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        save_model(parse("g (float[2] x) => (float[2] y) { y = Abs(x) }"), path)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["out.onnx"]


def test_large_models_get_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "EMBEDDED_LIMIT", 1000)
    model = ir.from_proto(add_model())
    large = np.arange(1000, dtype=np.float32)
    model.graph.initializers.add(ir.Value(name="large", const_value=ir.tensor(large, name="large")))
    save_model(model, tmp_path / "out.onnx")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    loaded = load_model(tmp_path / "out.onnx").graph.initializers["large"].const_value
    assert loaded is not None
    np.testing.assert_array_equal(loaded.numpy(), large)


def test_a_model_can_be_saved_over_its_own_data(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    path = write(external(add_model(), "w.bin"), tmp_path)
    save_model(load_model(path), path)
    (tmp_path / "w.bin").unlink()
    np.testing.assert_array_equal(np.asarray(weights_of(load_model(path))), WEIGHTS)


@pytest.mark.parametrize(("own", "written"), [(4, 4), (9, 9), (10, 10), (13, 13), (14, 13)])
def test_the_ir_version_is_kept_where_runtimes_read_it(own: int, written: int) -> None:
    model = ir.from_proto(add_model())
    model.ir_version = own
    assert onnx.ModelProto.FromString(model_bytes(model)).ir_version == written


def test_the_ir_version_is_raised_for_what_needs_it() -> None:
    model = ir.from_proto(add_model(ir_version=8))
    assert written_ir_version(model) == 8
    model.graph[0].metadata_props["k"] = "v"
    assert written_ir_version(model) == 10
    model.graph[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT4E2M1)
    assert written_ir_version(model) == 11


def test_metadata_of_initializers_is_written_once() -> None:
    proto = add_model()
    proto.graph.initializer[0].metadata_props.add(key="k", value="v")
    written = onnx.ModelProto.FromString(model_bytes(ir.from_proto(proto))).graph.initializer[0]
    assert [(each.key, each.value) for each in written.metadata_props] == [("k", "v")]
