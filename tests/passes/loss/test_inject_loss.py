from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.inject_loss import InjectLoss
from onnxfold.passes.loss.record import LossRecord, read_record
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.serialization import model_bytes

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[[Pass | str, ir.Model], PassResult]
Evaluate = Callable[[ir.Model, Mapping[str, Array]], dict[str, Any]]
AssertText = Callable[[ir.Model, str], None]

CE = "sparse-softmax-cross-entropy"
LINEAR = """
g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,4,5,6,-1,-2,-3,-4,-5,-6}>
{ y = MatMul(x, w) }
"""
CLASSIFIER = """
g (float[N,4] x) => (float[N,3] p) <float[4,3] w = {1,2,3,4,5,6,-1,-2,-3,-4,-5,-6}>
{ z = MatMul(x, w)  p = Softmax(z) }
"""


def record_of(model: ir.Model) -> LossRecord:
    record = read_record(model)
    assert record is not None
    return record


def inputs_of(model: ir.Model) -> list[str]:
    return [f"{value.name} {value.dtype}{value.shape}" for value in model.graph.inputs]


def outputs_of(model: ir.Model) -> list[str]:
    return [value.name or "" for value in model.graph.outputs]


def mean_square(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).mean())


def test_mse_is_spliced_behind_the_model(
    parse: Parse, apply_pass: Apply, assert_text: AssertText
) -> None:
    model = parse(LINEAR, opset=18)
    result = apply_pass("inject-loss{loss=mse}", model)
    assert result.rules == {"inject-loss": 1}
    assert result.statistics["inserted"] == 4, "3 of the loss, 1 for the total"
    assert result.statistics["inputs_added"] == 1
    assert result.statistics["outputs_added"] == 2
    assert_text(
        model,
        """
        g (float[N,4] x, float[N,3] labels) => (float[N,3] y, float loss_mse, float loss)
        <float[4,3] w = {1,2,3,4,5,6,-1,-2,-3,-4,-5,-6}>
        {
            y = MatMul(x, w)
            loss_mse_sub = Sub(y, labels)
            loss_mse_mul = Mul(loss_mse_sub, loss_mse_sub)
            loss_mse = ReduceMean<keepdims = 0>(loss_mse_mul)
            loss = Identity(loss_mse)
        }
        """,
    )


def test_the_values_are_those_of_the_formula(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse(LINEAR)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    before = evaluate(model, {"x": x})["y"]
    labels = np.zeros((5, 3), np.float32)
    apply_pass("inject-loss{loss=mse weight=0.25}", model)
    after = evaluate(model, {"x": x, "labels": labels})
    assert after["y"].tobytes() == before.tobytes()
    assert after["loss_mse"] == pytest.approx(mean_square(before), rel=1e-6)
    assert after["loss"] == pytest.approx(0.25 * after["loss_mse"], rel=1e-6)


def test_the_logits_before_a_softmax_are_taken(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse(CLASSIFIER)
    apply_pass(f"inject-loss{{loss={CE}}}", model)
    (found,) = record_of(model).losses
    assert found.on == ("z",)
    assert found.note == "the logits before Softmax 'p' of 'p'"
    assert inputs_of(model) == ["x FLOAT[N,4]", "labels INT64[N]"]
    feed = {"x": np.eye(4, dtype=np.float32)[:2], "labels": np.array([2, 0])}
    got = evaluate(model, feed)
    wanted = -np.log(got["p"][[0, 1], [2, 0]]).mean()
    assert got["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("tail", "output", "taken"),
    [
        ("p = Identity(z)", "float[N,3] p", "p"),
        ("p = LogSoftmax(z)", "float[N,3] p", "z"),
        ("p = Sigmoid(z)", "float[N,3] p", "z"),
        ("s = Softmax(z)  p = Identity(s)", "float[N,3] p", "z"),
        ("s = Softmax(z)  p = ArgMax<axis=1, keepdims=0>(s)", "int64[N] p", "z"),
        ("p = ArgMax<axis=1, keepdims=0>(z)", "int64[N] p", "z"),
        ("s = Softmax(z)  p = Cast<to=10>(s)", "float16[N,3] p", "z"),
        (
            "e = Exp(z)  a = Constant<value_ints=[1]>()  t = ReduceSum(e, a)  p = Div(e, t)",
            "float[N,3] p",
            "z",
        ),
    ],
)
def test_what_a_loss_on_logits_takes(
    parse: Parse, apply_pass: Apply, tail: str, output: str, taken: str
) -> None:
    text = f"g (float[N,4] x) => ({output}) <float[4,3] w = {{0,0,0,0,0,0,0,0,0,0,0,0}}>"
    model = parse(f"{text} {{ z = MatMul(x, w)  {tail} }}")
    apply_pass(f"inject-loss{{loss={CE}}}", model)
    assert record_of(model).losses[0].on == (taken,)


def test_a_loss_on_values_takes_the_output_itself(parse: Parse, apply_pass: Apply) -> None:
    model = parse(CLASSIFIER)
    apply_pass("inject-loss{loss=mse}", model)
    assert record_of(model).losses[0].on == ("p",)


def test_the_axis_of_the_softmax_is_the_axis_of_the_classes(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse(
        "g (float[N,5,H,W] x) => (float[N,5,H,W] p) { z = Neg(x)  p = Softmax<axis=1>(z) }"
    )
    apply_pass(f"inject-loss{{loss={CE}}}", model)
    record = record_of(model)
    assert inputs_of(model)[1] == "labels INT64[N,H,W]"
    assert "axis=1" in record.losses[0].loss
    assert record.data["labels"].classes == 5
    assert record.data["labels"].axes == (0, 2, 3)
    x = np.random.default_rng(1).normal(size=(2, 5, 3, 4)).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 5, (2, 3, 4))
    got = evaluate(model, {"x": x, "labels": labels})
    picked = np.take_along_axis(got["p"], labels[:, None], axis=1)
    assert got["loss"] == pytest.approx(-np.log(picked).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "layout"), [("N,3,H,W", "nchw"), ("N,16,16,3", "nhwc"), ("N,3,16,3", "nchw")]
)
def test_channels_are_where_the_shape_is_thin(
    parse: Parse, apply_pass: Apply, shape: str, layout: str
) -> None:
    model = parse(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Neg(x) }}")
    apply_pass('inject-loss{loss="ssim{size=3}"}', model)
    assert ("layout=nhwc" in record_of(model).losses[0].loss) == (layout == "nhwc")


def test_scores_of_a_convolution_lie_on_the_only_wide_axis(parse: Parse, apply_pass: Apply) -> None:
    model = parse("g (float[1,10,1,1] x) => (float[1,10,1,1] y) { y = Neg(x) }")
    apply_pass(f"inject-loss{{loss={CE}}}", model)
    assert inputs_of(model)[1] == "labels INT64[1,1,1]"
    assert record_of(model).data["labels"].classes == 10


def test_a_softmax_tells_the_shape_of_its_logits(parse: Parse, apply_pass: Apply) -> None:
    # Nothing is known of what an operator of another domain computes.
    model = parse("""<ir_version: 10, opset_import: ["" : 21, "else" : 1]>
        g (float[N,5] x) => (float[N,5] p) { z = else.Mix(x)  p = Softmax(z) }""")
    model.graph[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    parse_passes(f"inject-loss{{loss={CE}}}")[0].run(model)
    assert record_of(model).losses[0].on == ("z",)
    assert inputs_of(model)[1] == "labels INT64[N]"
    assert model.graph[0].outputs[0].shape is None, "of the model itself nothing is declared"


def test_sequences_have_a_label_a_step(parse: Parse, apply_pass: Apply, evaluate: Evaluate) -> None:
    model = parse("g (float[N,T,7] x) => (float[N,T,7] y) { y = Neg(x) }")
    apply_pass(f"inject-loss{{loss={CE}}}", model)
    assert inputs_of(model)[1] == "labels INT64[N,T]"
    feed = {"x": np.zeros((2, 3, 7), np.float32), "labels": np.zeros((2, 3), np.int64)}
    assert evaluate(model, feed)["loss"] == pytest.approx(np.log(7), rel=1e-6)


def test_half_precision_is_widened_before_the_loss(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse("g (float16[N,3] x) => (float16[N,3] y) { y = Neg(x) }")
    apply_pass("inject-loss{loss=mse}", model)
    assert inputs_of(model)[1] == "labels FLOAT[N,3]"
    feed = {"x": np.full((2, 3), 300, np.float16), "labels": np.zeros((2, 3), np.float32)}
    assert evaluate(model, feed)["loss"] == 90000, "more than float16 holds"


def test_several_losses_are_summed_by_their_weights(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse(CLASSIFIER)
    apply_pass(f'inject-loss{{loss="mse,{CE}" weight=0.5,2}}', model)
    assert outputs_of(model) == ["p", "loss_mse", f"loss_{CE.replace('-', '_')}", "loss"]
    # Targets and labels differ in type: the second one gets a name of its own.
    assert inputs_of(model) == ["x FLOAT[N,4]", "labels FLOAT[N,3]", "labels_1 INT64[N]"]
    feed = {
        "x": np.ones((2, 4), np.float32),
        "labels": np.ones((2, 3), np.float32),
        "labels_1": np.array([0, 1]),
    }
    got = evaluate(model, feed)
    wanted = 0.5 * got["loss_mse"] + 2 * got["loss_sparse_softmax_cross_entropy"]
    assert got["loss"] == pytest.approx(wanted, rel=1e-6)


def test_losses_that_mean_the_same_labels_share_them(parse: Parse, apply_pass: Apply) -> None:
    model = parse(CLASSIFIER)
    apply_pass(f'inject-loss{{loss="{CE},{CE}{{label-smoothing=0.1}}"}}', model)
    assert inputs_of(model) == ["x FLOAT[N,4]", "labels INT64[N]"]
    name = "loss_sparse_softmax_cross_entropy"
    assert outputs_of(model) == ["p", name, f"{name}_1", "loss"]


def test_each_loss_may_say_what_it_is_about(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse("g (float[N] x) => (float[N] a, float[N] b) { a = Neg(x)  b = Abs(x) }")
    spec = "mse{on=a labels=first},mse{on=b labels=second weight=3}"
    apply_pass(f'inject-loss{{loss="{spec}"}}', model)
    assert [each.on for each in record_of(model).losses] == [("a",), ("b",)]
    x, zero = np.array([2], np.float32), np.zeros(1, np.float32)
    assert evaluate(model, {"x": x, "first": zero, "second": zero})["loss"] == 16


def test_tensors_are_handed_out_in_order(parse: Parse, apply_pass: Apply) -> None:
    model = parse("g (float[N] x) => (float[N] a, float[N] b) { a = Neg(x)  b = Abs(x) }")
    apply_pass('inject-loss{loss="mse,mse" on=b,a}', model)
    assert [each.on for each in record_of(model).losses] == [("b",), ("a",)]


def test_a_tensor_inside_is_named(parse: Parse, apply_pass: Apply, evaluate: Evaluate) -> None:
    model = parse("g (float[N] x) => (float[N] y) { t = Abs(x)  y = Sqrt(t) }")
    before = model_bytes(model)
    apply_pass("inject-loss{loss=mse on=t}", model)
    feed = {"x": np.array([-4], np.float32), "labels": np.zeros(1, np.float32)}
    assert evaluate(model, feed)["loss"] == 16
    apply_pass("strip-loss", model)
    assert model_bytes(model) == before


def test_an_input_of_the_model_serves_as_target(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse("g (float[N] x) => (float[N] y) { y = Neg(x) }")
    apply_pass("inject-loss{loss=mse labels=x}", model)
    assert inputs_of(model) == ["x FLOAT[N]"]
    assert evaluate(model, {"x": np.array([3], np.float32)})["loss"] == 36


def test_taken_names_are_made_unique(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""g (float[N] x) => (float[N] loss, float[N] loss_mse)
        { loss = Neg(x)  loss_mse = Abs(x) }""")
    apply_pass("inject-loss{loss=mse on=loss}", model)
    assert outputs_of(model) == ["loss", "loss_mse", "loss_mse_1", "loss_1"]
    assert record_of(model).total == "loss_1"


def test_a_loss_that_is_no_number_counts_with_its_mean(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }")
    apply_pass('inject-loss{loss="mse{reduction=none}"}', model)
    feed = {"x": np.array([[1, 2], [3, 4]], np.float32), "labels": np.zeros((2, 2), np.float32)}
    got = evaluate(model, feed)
    np.testing.assert_array_equal(got["loss_mse"], [[1, 4], [9, 16]])
    assert got["loss"] == 7.5


def test_a_model_of_another_domain_gets_an_opset(apply_pass: Apply) -> None:
    node = onnx.helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm="L2")
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in "xy"
    ]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    imports = [onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8))
    before = model_bytes(model)
    apply_pass("inject-loss{loss=mse}", model)
    assert model.graph.opset_imports[""] >= 13
    apply_pass("strip-loss", model)
    assert model_bytes(model) == before


def test_bodies_of_the_model_stay_as_they_are(
    fixtures_dir: Path, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = ir.load(fixtures_dir / "control_flow.onnx")
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    before = evaluate(model, {"x": x})
    apply_pass("inject-loss{loss=mse on=state}", model)
    after = evaluate(model, {"x": x, "labels": np.zeros((2, 8), np.float32)})
    assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())
    assert after["loss"] == pytest.approx(mean_square(before["state"]), rel=1e-6)


def test_a_loss_of_the_users_own(parse: Parse, apply_pass: Apply, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from onnxfold.passes.loss import LossGraph, Variable, loss\n"
        "@loss('largest-error')\n"
        "def largest(graph, predictions, *, scale: float = 1.0):\n"
        "    targets = graph.data_input('targets', graph.dtype, predictions.shape)\n"
        "    error = graph.op('Abs', graph.op('Sub', predictions, targets))\n"
        "    return graph.op('Mul', graph.reduce('ReduceMax', error), scale)\n"
    )
    model = parse(LINEAR)
    apply_pass(InjectLoss(loss=f'"{path}:largest"{{scale=2}}'), model)
    assert outputs_of(model) == ["y", "loss_largest_error", "loss"]


def test_a_loss_on_probabilities_of_log_softmax(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate, tmp_path: Path
) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from onnxfold.passes.loss import loss\n"
        "@loss('most', tensors=('shares',), scores='probabilities', better='higher')\n"
        "def most(graph, shares):\n"
        "    return graph.reduce('ReduceMax', shares)\n"
    )
    model = parse("g (float[N,2] x) => (float[N,2] y) { y = LogSoftmax(x) }")
    apply_pass(InjectLoss(loss=f"{path}:most"), model)
    got = evaluate(model, {"x": np.array([[0, np.log(3)]], np.float32)})
    assert got["loss_most"] == pytest.approx(0.75)
    assert got["loss"] == pytest.approx(-0.75), "what is better higher counts negative"


TWO = "g (float[N] x) => (float[N] a, float[N] b) { a = Neg(x)  b = Abs(x) }"
INTEGER = "g (int64[N] x) => (int64[N] y) { y = Neg(x) }"
QUANTIZED = """g (float[N] x) => (uint8[N] q) <float s = {0.1}, uint8 z = {0}>
{ t = Abs(x)  q = QuantizeLinear(t, s, z) }"""
LOOP = """g (int64 n, bool c, float[N] x) => (float[N] y) {
    y = Loop(n, c, x) <body = b (int64 i, bool d, float[N] u) => (bool e, float[N] v)
        { e = Identity(d)  inner = Neg(u)  v = Abs(inner) }>
}"""
CODES = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (uint8[N,3] q) => (uint8[N,3] p) <float s = {0.1}, uint8 z = {0}>
{ p = com.microsoft.QLinearSoftmax<axis=1, opset=13>(q, s, z, s, z) }"""


@pytest.mark.parametrize(
    ("text", "spec", "message"),
    [
        (LINEAR, "loss=msee", "unknown loss 'msee'; did you mean 'mse'?"),
        (LINEAR, "loss=mse on=yy", "no tensor 'yy'; did you mean 'y'?"),
        (LINEAR, "loss=mse on=x,y", "2 tensors are named (x, y): mse takes 1"),
        (LINEAR, "loss=mse labels=x", "'x' already, float[N,4], and loss mse wants float[N,3]"),
        (LINEAR, "loss=mse weight=1,2", "2 weights for 1 losses"),
        (LINEAR, "loss=mse weight=0", "the weight of loss mse is 0.0"),
        (LINEAR, 'loss="mse{weight=much}"', "weight 'much' is no number"),
        (LINEAR, 'loss="mse{speed=1}"', "has no option 'speed'"),
        (LINEAR, 'loss="mse,mse,mse" on=y,x', "2 tensors are named (y, x): mse takes 1"),
        (TWO, "loss=mse", "2 outputs of real numbers ('a', 'b'): say which one"),
        (INTEGER, "loss=mse", "'y' int64; use the float model, put a DequantizeLinear"),
        (INTEGER, "loss=mse on=y", "'y' is int64: name the tensor before it was rounded"),
        (QUANTIZED, "loss=mse", "'q' is quantized to uint8; attach it to what is quantized with"),
        (QUANTIZED, "loss=mse on=q", "'q' is uint8: attach it to what is quantized, on=t"),
        (CODES, f"loss={CE}", "use the float model, put a DequantizeLinear behind its output"),
        (LOOP, "loss=mse on=inner", "'inner' lies inside a body of Loop 'y'"),
    ],
)
def test_bad_input_is_one_clear_line(parse: Parse, text: str, spec: str, message: str) -> None:
    model = parse(text)
    before = model_bytes(model)
    with pytest.raises(UsageError) as caught:
        parse_passes(f"inject-loss{{{spec}}}")[0].run(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model_bytes(model) == before


def test_probabilities_whose_logits_nobody_sees_are_refused(parse: Parse) -> None:
    model = parse("""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (uint8[N,3] q) => (float[N,3] p) <float s = {0.1}, uint8 z = {0}> {
            c = com.microsoft.QLinearSoftmax<axis=1, opset=13>(q, s, z, s, z)
            p = DequantizeLinear(c, s, z)
        }""")
    with pytest.raises(UsageError, match="QLinearSoftmax 'c', which shows no logits"):
        InjectLoss(loss=CE).run(model)


def test_an_older_opset_says_what_to_do(parse: Parse) -> None:
    with pytest.raises(UsageError, match=r"needs opset 13, the model has 12: put upgrade-opset"):
        InjectLoss(loss="mse").run(parse(LINEAR, opset=12))


def test_a_second_loss_says_what_to_do(parse: Parse, apply_pass: Apply) -> None:
    model = parse(LINEAR)
    apply_pass("inject-loss{loss=mse}", model)
    with pytest.raises(UsageError, match=r"has a loss already \(mse\): run strip-loss first"):
        InjectLoss(loss="mse").run(model)


def test_the_same_model_gives_the_same_bytes(parse: Parse, apply_pass: Apply) -> None:
    found: set[bytes] = set()
    for _ in range(2):
        model = parse(CLASSIFIER)
        apply_pass(f'inject-loss{{loss="mse,{CE}"}}', model)
        found.add(model_bytes(model))
    assert len(found) == 1


def test_bfloat16_is_a_real_number(parse: Parse, apply_pass: Apply) -> None:
    model = parse("g (bfloat16[N] x) => (bfloat16[N] y) { y = Neg(x) }")
    apply_pass("inject-loss{loss=mse}", model)
    assert inputs_of(model)[1] == "labels FLOAT[N]"
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2
