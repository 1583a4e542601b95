from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.errors import InvalidModelError, OnnxfoldError, UsageError
from onnxfold.passes.loss.inject_loss import InjectLoss
from onnxfold.passes.loss.record import KEY
from onnxfold.passes.loss.strip_loss import StripLoss
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.serialization import model_bytes

Parse = Callable[..., ir.Model]
Apply = Callable[[Pass | str, ir.Model], PassResult]

CE = "sparse-softmax-cross-entropy"
FIXTURES = sorted(path.name for path in (Path(__file__).parents[3] / "fixtures").glob("*.onnx"))
INTEGERS_ONLY = {"tiny_mobilenet.onnx", "tiny_resnet.onnx"}
NET = """
g (float[N,4] x) => (float[N,3] y)
<float[4,3] w = {1,2,3,4,5,6,-1,-2,-3,-4,-5,-6}, float[3] b = {1,2,3}, float[2] unread = {1,2}>
{ t = MatMul(x, w)  y = Add(t, b) }
"""


def reloaded(model: ir.Model) -> ir.Model:
    """The model as another process would read it."""
    return ir.from_proto(onnx.ModelProto.FromString(model_bytes(model)))


def apply_all(text: str, model: ir.Model) -> None:
    for each in parse_passes(text):
        each.run(model)


@pytest.mark.parametrize("loss", ["mse", CE, f"mse,{CE}"])
@pytest.mark.parametrize("name", FIXTURES)
def test_every_fixture_comes_back_byte_for_byte(fixtures_dir: Path, name: str, loss: str) -> None:
    model = ir.load(fixtures_dir / name)
    if model.graph.opset_imports[""] < 13:
        apply_all("upgrade-opset{to=13}", model)
    before = model_bytes(model)
    on = ("state",) if name == "control_flow.onnx" else ()
    if name in INTEGERS_ONLY:
        on = ("softmax_1_out",)
    InjectLoss(loss=loss, on=on).run(model)
    assert model_bytes(model) != before
    model = reloaded(model)
    result = StripLoss().run(model)
    assert model_bytes(model) == before
    assert result.remarks == ()


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_come_back_byte_for_byte(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    before = model_bytes(model)
    rng = np.random.default_rng(seed + 1000)
    losses = list(rng.choice(["mse", CE, "mse{reduction=none}"], size=rng.integers(1, 3)))
    output = model.graph.outputs[int(rng.integers(len(model.graph.outputs)))].name or ""
    InjectLoss(loss=",".join(losses), on=(output,)).run(model)
    model = reloaded(model)
    StripLoss().run(model)
    assert model_bytes(model) == before


def random_model(rng: np.random.Generator) -> ir.Model:
    """A chain with branches, names that losses want, types that are declared or not, and If."""
    names = ["x"]
    nodes: list[onnx.NodeProto] = []
    infos: list[onnx.ValueInfoProto] = []
    wanted = ["loss", "loss_mse", "labels", "grad_w", "loss_mse_sub", "t1", "t2", "t3", "t4"]
    float_ = onnx.TensorProto.FLOAT
    for name in rng.permutation(wanted)[: rng.integers(2, 7)].tolist():
        kind = str(rng.choice(["Neg", "Add", "Mul", "If"]))
        sources = rng.choice(names, size=2).tolist()
        if kind == "If":
            body = onnx.helper.make_graph(
                [onnx.helper.make_node("Neg", [sources[0]], ["inner"])],
                f"body_{name}",
                [],
                [onnx.helper.make_tensor_value_info("inner", float_, ["N", 3])],
            )
            node = onnx.helper.make_node("If", ["c"], [name], then_branch=body, else_branch=body)
        else:
            node = onnx.helper.make_node(kind, sources[: 1 if kind == "Neg" else 2], [name])
        if rng.integers(2):
            node.name = f"node of {name}"
        if rng.integers(2):
            shape: list[Any] = [str(rng.choice(["N", "M"])) if rng.integers(2) else None, 3]
            infos.append(onnx.helper.make_tensor_value_info(name, float_, shape))
        nodes.append(node)
        names.append(name)
    outputs = [names[-1], *([names[1]] if rng.integers(2) and len(names) > 2 else [])]
    graph = onnx.helper.make_graph(
        nodes,
        "random",
        [
            onnx.helper.make_tensor_value_info("x", float_, ["N", 3]),
            onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
        ],
        [onnx.helper.make_tensor_value_info(name, float_, ["N", 3]) for name in outputs],
        [onnx.helper.make_tensor("unread", float_, [1], [1.0])] if rng.integers(2) else [],
        value_info=[info for info in infos if info.name not in outputs],
    )
    imports = [onnx.helper.make_opsetid("", int(rng.choice([13, 17, 18, 21])))]
    model = onnx.helper.make_model(
        graph, opset_imports=imports, ir_version=int(rng.choice([7, 8, 10]))
    )
    if rng.integers(2):
        model.metadata_props.add(key="author", value="someone")
    onnx.checker.check_model(model)
    return ir.from_proto(model)


@pytest.mark.parametrize("optimizer", ["", ",add-optimizer", ",add-optimizer{kind=momentum}"])
def test_gradients_and_optimizers_go_with_it(parse: Parse, optimizer: str) -> None:
    model = parse(NET)
    before = model_bytes(model)
    apply_all(f"inject-loss{{loss=mse}},add-gradient,lower-gradient{optimizer}", model)
    assert any((value.name or "").startswith("grad_") for value in model.graph.outputs)
    model = reloaded(model)
    result = StripLoss().run(model)
    assert model_bytes(model) == before
    assert result.remarks == ()
    assert list(model.graph.initializers) == ["w", "b", "unread"]


@pytest.mark.parametrize(
    "pool",
    [
        "p = MaxPool<kernel_shape=[2,2]>(c)",
        "p, seen = MaxPool<kernel_shape=[2,2]>(c)",
        "t, k = TopK<axis=1>(c, one)  p = MaxPool<kernel_shape=[2,2]>(t)",
    ],
)
def test_outputs_that_gradients_asked_for_go_with_it(parse: Parse, pool: str) -> None:
    model = parse(f"""g (float[N,1,4,4] x) => (float[N,1,3,3] p)
        <float[1,1,1,1] w = {{2}}, int64[1] one = {{1}}> {{ c = Conv(x, w)  {pool} }}""")
    before = model_bytes(model)
    apply_all("inject-loss{loss=mse},add-gradient,lower-gradient", model)
    assert any(len(node.outputs) > 1 for node in model.graph)
    model = reloaded(model)
    StripLoss().run(model)
    assert model_bytes(model) == before


def test_what_was_trained_stays_trained(parse: Parse) -> None:
    model = parse(NET)
    apply_all("inject-loss{loss=mse},add-gradient,lower-gradient,add-optimizer", model)
    weight = model.graph.initializers["state_w"]
    weight.const_value = ir.tensor(np.zeros((4, 3), np.float32), name="state_w")
    result = StripLoss().run(model)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    assert not tensor.numpy().any()
    assert "not byte for byte" in result.remarks[0].reason


def test_other_passes_may_run_between(parse: Parse) -> None:
    model = parse(NET)
    apply_all("inject-loss{loss=mse},fuse-matmul-add", model)
    result = StripLoss().run(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert [node.op_type for node in model.graph] == ["Gemm"]
    assert "other passes have rewritten it since" in result.remarks[0].reason


def test_the_older_ir_version_comes_back(parse: Parse, apply_pass: Apply) -> None:
    model = parse(NET)
    model.ir_version = 7
    apply_pass("inject-loss{loss=mse}", model)
    model = reloaded(model)
    assert model.ir_version >= 10, "nodes have metadata"
    StripLoss().run(model)
    assert model.ir_version == 7


def test_a_model_without_a_loss_is_left_alone(parse: Parse, apply_pass: Apply) -> None:
    assert not apply_pass("strip-loss", parse(NET)).modified


def test_the_metadata_of_the_user_stays(parse: Parse) -> None:
    model = parse(NET)
    model.metadata_props.update({"author": "someone", "onnxfold.io": "{}"})
    InjectLoss(loss="mse").run(model)
    StripLoss().run(model)
    assert dict(model.metadata_props) == {"author": "someone", "onnxfold.io": "{}"}


def test_a_model_whose_output_is_gone_is_refused(parse: Parse) -> None:
    model = parse(NET)
    InjectLoss(loss="mse").run(model)
    model.graph.outputs.pop(0)
    with pytest.raises(UsageError, match="the output 'y' that the model had before the loss"):
        StripLoss().run(model)


def test_a_damaged_record_is_no_crash(parse: Parse) -> None:
    for text in ("", "{", "{}", "[]", '{"losses": 1}'):
        model = parse(NET)
        InjectLoss(loss="mse").run(model)
        model.metadata_props[KEY] = text
        with pytest.raises(OnnxfoldError) as caught:
            StripLoss().run(model)
        assert isinstance(caught.value, InvalidModelError)
        assert "was damaged" in str(caught.value)
