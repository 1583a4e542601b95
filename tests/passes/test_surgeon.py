from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract
from onnxfold.passes.errors import PassError, UsageError, VerificationError
from onnxfold.passes.instruments import VerifyEach
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.provenance import PASS_KEY
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.script import ScriptReference
from onnxfold.passes.serialization import model_bytes
from onnxfold.passes.spec import print_pipeline
from onnxfold.passes.surgeon import Surgeon, from_graphsurgeon, to_graphsurgeon
from onnxfold.passes.verifier import verify

Parse = Callable[..., ir.Model]
AssertText = Callable[[ir.Model, str], None]

MODEL = """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}>
{ [first] t = Mul(x, w) [second] y = Relu(t) }"""
BRANCHES = """g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
    t = Add(x, w)
    y = If (c) <
        then_branch = a () => (float[2] p) <float[2] k = {5, 6}> { i = Add(t, w)  p = Mul(i, k) },
        else_branch = b () => (float[2] q) { q = Add(x, v) }>
}"""
FUNCTION = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (float[2] x) => (float[2] y) { y = local.f <alpha = 0.5> (x) }
<domain: "local", opset_import: ["" : 21]>
f <alpha> (a) => (b) { b = LeakyRelu <alpha: float = @alpha> (a) }"""


ORDER = """g (float[2] x) => (float[2] y) <float[2] b = {1, 2}, float[2] a = {3, 4}>
{ t = Mul(x, a) y = Add(t, b) }"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], ScriptReference]:
    def write(body: str) -> ScriptReference:
        path = tmp_path / "my_pass.py"
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        path.write_text(
            f"import numpy as np\nimport onnx_graphsurgeon as gs\ndef fn(graph):\n{lines}\n"
        )
        return ScriptReference(path, "fn")

    return write


Script = Callable[[str], ScriptReference]


def there_and_back(model: ir.Model) -> ir.Model:
    return from_graphsurgeon(to_graphsurgeon(model), model)


@pytest.mark.parametrize(
    "text",
    [MODEL, BRANCHES, FUNCTION, ORDER],
    ids=["plain", "branches", "function", "initializers-against-use"],
)
def test_a_round_trip_changes_nothing(parse: Parse, text: str) -> None:
    model = parse(text)
    before = model_bytes(model)
    back = there_and_back(model)
    assert model_bytes(model) == before, "the original is left alone"
    assert model_bytes(back) == before
    verify(back)


def describe(model: ir.Model) -> None:
    """Fill every field that graphsurgeon loses."""
    model.doc_string, model.domain, model.model_version = "doc", "com.example", 7
    model.metadata_props["m"] = "1"
    graph = model.graph
    graph.doc_string = "graph doc"
    graph.metadata_props["g"] = "2"
    graph[0].doc_string = "node doc"
    graph[0].metadata_props["n"] = "3"
    graph[0].outputs[0].metadata_props["v"] = "4"
    graph.inputs[0].doc_string = "input doc"
    graph.inputs[0].type = ir.TensorType(ir.DataType.FLOAT, denotation="IMAGE")
    graph.inputs[0].shape = ir.Shape([2], denotations=["DATA_BATCH"])
    graph.initializers["w"].metadata_props["i"] = "5"
    tensor = ir.Tensor(np.zeros(3, np.float32), name="unused", doc_string="tensor doc")
    graph.initializers.add(ir.Value(name="unused", const_value=tensor))


def test_what_graphsurgeon_loses_is_restored(parse: Parse) -> None:
    model = parse(MODEL)
    describe(model)
    annotation = model.graph.initializers["w"]
    annotation.meta["quant_parameter_tensor_names"] = {"SCALE_TENSOR": "w"}
    before = ir.to_proto(model)
    assert before.graph.quantization_annotation
    assert ir.to_proto(there_and_back(model)) == before


def test_inputs_with_defaults_come_back(parse: Parse) -> None:
    model = parse(
        "g (float[2] w, float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"
    )
    back = there_and_back(model)
    assert [value.name for value in back.graph.inputs] == ["w", "x"]
    assert "w" in back.graph.initializers
    verify(back)


def test_captured_constants_are_not_copied(parse: Parse, assert_text: AssertText) -> None:
    model = parse(BRANCHES)
    back = there_and_back(model)
    assert_text(back, BRANCHES)


def test_sequences_keep_their_type(parse: Parse) -> None:
    model = parse("g (seq(float[2]) s) => (float[M] y) { y = ConcatFromSequence <axis = 0> (s) }")
    assert str(there_and_back(model).graph.inputs[0].type) == str(model.graph.inputs[0].type)
    verify(there_and_back(model))


def give_type_attribute(model: ir.Model) -> None:
    value = ir.TypeAndShape(ir.TensorType(ir.DataType.FLOAT), ir.Shape([2]))
    model.graph[0].attributes["t"] = ir.Attr("t", ir.AttributeType.TYPE_PROTO, value)


def give_tensors(model: ir.Model) -> None:
    tensors = [ir.tensor([1.0])]
    model.graph[0].attributes["ts"] = ir.Attr("ts", ir.AttributeType.TENSORS, tensors)


def give_graphs(model: ir.Model) -> None:
    graphs = [ir.Graph([], [], nodes=[])]
    model.graph[0].attributes["gs"] = ir.Attr("gs", ir.AttributeType.GRAPHS, graphs)


def give_empty_list(model: ir.Model) -> None:
    model.graph[0].attributes["axes"] = ir.AttrInt64s("axes", [])


def give_optional(model: ir.Model) -> None:
    model.graph.inputs[0].type = ir.OptionalType(ir.TensorType(ir.DataType.FLOAT))


def give_overload(model: ir.Model) -> None:
    function = ir.Function("d", "f", "o", graph=ir.Graph([], [], nodes=[]), attributes=[])
    model.functions[function.identifier()] = function


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (give_type_attribute, "the attribute 't' (TYPE_PROTO) of Mul 'first'"),
        (give_tensors, "the attribute 'ts' (TENSORS) of Mul 'first'"),
        (give_graphs, "the attribute 'gs' (GRAPHS) of Mul 'first'"),
        (give_empty_list, "the empty list in the attribute 'axes' of Mul 'first'"),
        (give_optional, "the type Optional(Tensor(FLOAT)) of 'x'"),
        (give_overload, "the overload 'o' of function d.f"),
    ],
)
def test_what_cannot_be_restored_is_refused(
    parse: Parse, change: Callable[[ir.Model], None], field: str
) -> None:
    model = parse(MODEL)
    change(model)
    with pytest.raises(UsageError) as caught:
        to_graphsurgeon(model)
    assert str(caught.value) == f"onnx-graphsurgeon would lose {field}"


@pytest.mark.parametrize(
    "name", ["int4", "uint4", "int2", "float4_e2m1fn", "float8_e4m3fnuz", "bfloat16"]
)
def test_touched_constants_of_small_types_survive(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    array = np.array([0, 1, 1, 0, 1]).astype(dtype)
    weight = ir.Value(name="w", const_value=ir.tensor(array, name="w"))
    weight.type, weight.shape = ir.TensorType(ir.DataType.from_numpy(dtype)), ir.Shape([5])
    node = ir.node("Cast", [weight], {"to": int(ir.DataType.FLOAT)})
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 25})
    model = ir.Model(graph, ir_version=13)
    edited = to_graphsurgeon(model)
    constant = edited.tensors()["w"]
    constant.values = np.array(constant.values)
    back = from_graphsurgeon(edited, model).graph.initializers["w"].const_value
    assert back is not None
    assert back.dtype == ir.DataType.from_numpy(dtype)
    np.testing.assert_array_equal(back.numpy().astype(np.float32), array.astype(np.float32))


def test_external_tensors_are_read(parse: Parse, assert_text: AssertText, tmp_path: Path) -> None:
    model = parse(MODEL)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    back = there_and_back(ir.load(tmp_path / "m.onnx"))
    assert not isinstance(back.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert_text(back, MODEL)


def test_a_function_edits_the_graph(parse: Parse, script: Script, assert_text: AssertText) -> None:
    reference = script(
        "node = graph.nodes[1]\n"
        "node.op = 'Clip'\n"
        "node.inputs.append(gs.Constant('low', np.zeros((), np.float32)))"
    )
    model = parse(MODEL)
    describe(model)
    result = Surgeon(script=reference).run(model)
    assert result.modified
    assert result.rules == {"fn": 1}
    assert_text(
        result.model,
        """g (float[2] x) => (float[2] y)
        <float[2] w = {1, 2}, float low = {0}, float[3] unused = {0, 0, 0}>
        { t = Mul(x, w) y = Clip(t, low) }""",
    )
    first, second = result.model.graph
    assert first.metadata_props == {"n": "3"}
    assert second.metadata_props == {PASS_KEY: "surgeon"}
    verify(result.model)


def test_a_function_may_return_another_graph(parse: Parse, script: Script) -> None:
    reference = script("copy = graph.copy()\ncopy.nodes[1].op = 'Abs'\nreturn copy")
    result = Surgeon(script=reference).run(parse(MODEL))
    assert [node.op_type for node in result.model.graph] == ["Mul", "Abs"]


def test_a_function_that_changes_nothing(parse: Parse, script: Script) -> None:
    model = parse(MODEL)
    result = Surgeon(script=script("pass")).run(model)
    assert not result.modified
    assert result.model is model


def test_what_a_function_leaves_is_verified(parse: Parse, script: Script) -> None:
    reference = script("graph.nodes[1].inputs[0] = gs.Variable('nowhere', np.float32, [2])")
    with pytest.raises(
        VerificationError, match="pass surgeon left an invalid model: Relu 'second'"
    ):
        Pipeline((Surgeon(script=reference),), (VerifyEach(),)).run(parse(MODEL))


def test_what_cannot_be_exported_is_an_error_of_the_pass(parse: Parse, script: Script) -> None:
    reference = script("graph.outputs[0].dtype = None")
    with pytest.raises(PassError, match="onnx-graphsurgeon cannot export the graph: Graph input"):
        Surgeon(script=reference).run(parse(MODEL))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("graph.nodes[9]", "my_pass.py:fn failed in line 4: IndexError: list index out of range"),
        ("def (", "my_pass.py:fn failed in line 4: SyntaxError"),
        ("return 7", "my_pass.py:fn returned int; it must return None or an onnx_graphsurgeon.Gr"),
    ],
)
def test_a_failing_function_is_a_usage_error(
    parse: Parse, script: Script, body: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Surgeon(script=script(body)).run(parse(MODEL))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_function_is_a_usage_error(parse: Parse, script: Script) -> None:
    reference = script("pass")
    with pytest.raises(UsageError, match=r"no function 'fm'; did you mean 'fn'\?"):
        Surgeon(script=ScriptReference(reference.path, "fm")).run(parse(MODEL))
    with pytest.raises(UsageError, match=r"none\.py: no such file"):
        Surgeon(script=ScriptReference(Path("none.py"), "fn")).run(parse(MODEL))


def test_a_script_leaves_no_traces(parse: Parse, script: Script, tmp_path: Path) -> None:
    reference = script("from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int")
    path, modules = list(sys.path), set(sys.modules)
    Surgeon(script=reference).run(parse(MODEL))
    assert sys.path == path
    assert not [name for name in set(sys.modules) - modules if "script" in name]
    assert [item.name for item in tmp_path.iterdir()] == ["my_pass.py"]


def test_the_contract_is_the_users(script: Script) -> None:
    path = script("pass").path
    (pass_,) = parse_passes(f'surgeon{{script="{path}:fn" contract=additive}}')
    assert pass_.contract is Contract.ADDITIVE
    assert parse_passes(print_pipeline([pass_])) == (pass_,)
    assert parse_passes(f'surgeon{{script="{path}:fn"}}')[0].contract is Contract.EXACT
    assert Surgeon.contract is Contract.EXACT


def test_results_are_deterministic(parse: Parse, script: Script) -> None:
    reference = script("graph.nodes[1].op = 'Abs'")

    def run() -> bytes:
        return model_bytes(Surgeon(script=reference).run(parse(BRANCHES)).model)

    assert run() == run()


def test_graphsurgeon_prints_nothing(parse: Parse, capfd: pytest.CaptureFixture[str]) -> None:
    there_and_back(parse(FUNCTION))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_the_file_has_no_foreign_fields(parse: Parse) -> None:
    proto: Any = onnx.ModelProto.FromString(model_bytes(there_and_back(parse(MODEL))))
    assert proto.ir_version == 10
    assert [(each.domain, each.version) for each in proto.opset_import] == [("", 21)]
