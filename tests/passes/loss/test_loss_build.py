from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.build import (
    LossModel,
    LossTensor,
    build_loss,
    describe_loss,
    parse_losses,
)
from onnxfold.passes.loss.declaration import Loss, loss
from onnxfold.passes.loss.registry import ALSO_CALLED, LOSSES, opened_loss, registered_loss
from onnxfold.passes.serialization import model_bytes

Array = npt.NDArray[Any]
FLOAT, DOUBLE = ir.DataType.FLOAT, ir.DataType.DOUBLE
IMAGES = ("psnr", "ssim")


def built(text: str, *shapes: tuple[int | str | None, ...], **how: Any) -> LossModel:
    dtype = how.pop("dtype", FLOAT)
    tensors = [LossTensor(f"t{n}", dtype, shape) for n, shape in enumerate(shapes)]
    return build_loss(parse_losses(text)[0], tensors, **how)


def shape_for(name: str, batch: int | str) -> tuple[int | str | None, ...]:
    return (batch, 3, 12, 13) if name in IMAGES else (batch, 4)


@pytest.mark.parametrize("opset", [13, 18, 22])
@pytest.mark.parametrize("batch", [6, "N"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_valid_model_of_standard_operators(
    name: str, batch: int | str, opset: int
) -> None:
    known = describe_loss(parse_losses(name)[0])
    model = built(name, *[shape_for(name, batch)] * len(known.tensors), opset=opset)
    proto = ir.to_proto(model.model)
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in model.model.graph} == {""}
    assert model.model.opset_imports == {"": opset}
    assert [each.name for each in model.model.graph.inputs] == [*model.tensors, *model.data]
    (output,) = model.model.graph.outputs
    assert (output.name, output.dtype) == ("loss", FLOAT)
    if name != "cosine-distance-with-negative-samples":
        assert output.shape == ir.Shape([])
    again = built(name, *[shape_for(name, batch)] * len(known.tensors), opset=opset)
    assert model_bytes(model.model) == model_bytes(again.model)


@pytest.mark.parametrize("half", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str, half: ir.DataType) -> None:
    count = len(describe_loss(parse_losses(name)[0]).tensors)
    model = built(name, *[shape_for(name, "N")] * count, dtype=half)
    onnx.checker.check_model(ir.to_proto(model.model), full_check=True)
    inputs = {each.name: each.dtype for each in model.model.graph.inputs}
    assert {inputs[each] for each in model.tensors} == {half}
    assert {inputs[each] for each in model.data} <= {FLOAT, ir.DataType.INT64}
    assert model.model.graph.outputs[0].dtype == FLOAT


def test_half_precision_runs(run: Callable[..., Array]) -> None:
    x = np.array([[300, -300.0]], np.float16)  # its square overflows float16
    assert run("mse", x, np.zeros((1, 2), np.float32)) == 90000


def test_labels_take_the_dynamic_sizes_of_the_logits() -> None:
    model = built("sparse-softmax-cross-entropy{axis=1 weighted}", ("N", 10, None, "W"))
    labels, weights = model.model.graph.inputs[1:]
    assert model.data == ("labels", "weights")
    assert (labels.dtype, weights.dtype) == (ir.DataType.INT64, FLOAT)
    assert str(labels.shape) == str(weights.shape) == "[N,None,W]"


def test_what_is_known_before_it_is_built() -> None:
    specs = parse_losses("ssim{layout=nhwc},kl-divergence{from_probabilities=true reduction=sum}")
    known = [describe_loss(each) for each in specs]
    assert [each.text for each in known] == [
        "ssim{layout=nhwc}",
        "kl-divergence{reduction=sum from-probabilities}",
    ]
    assert [each.better for each in known] == ["higher", "lower"]
    assert [each.scores for each in known] == ["values", "probabilities"]
    assert known[1].tensors == ("predictions",)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("vae-elbo", "logits"),
        ("vae-elbo{likelihood=gaussian}", "values"),
        ("sparse-softmax-cross-entropy", "logits"),
        ("sparse-softmax-cross-entropy{from-probabilities}", "probabilities"),
        ("kl-divergence{from-log-probabilities}", "log-probabilities"),
        ("mutual-information", "probabilities"),
        ("mutual-information{from-logits}", "logits"),
        ("mse", "values"),
    ],
)
def test_what_the_tensors_are_taken_for(text: str, scores: str) -> None:
    assert describe_loss(parse_losses(text)[0]).scores == scores


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mze", "unknown loss 'mze'; did you mean 'mse'?"),
        ("mae", "unknown loss 'mae'; did you mean 'l1'?"),
        ("vae_kl", "unknown loss 'vae_kl'; did you mean 'vae-kl'?"),
        ("zzzzzzz", r"unknown loss 'zzzzzzz' \(there are all-pairs, .* and file.py:function\)"),
        ("mse{reductoin=sum}", "loss mse has no option 'reductoin'; did you mean 'reduction'?"),
        ("mse{reduction=avg}", "loss mse, option reduction: 'avg' is not one of none, mean, sum"),
        ("huber{delta=0}", r"loss huber on 't0' float\[6,4\]: delta is 0.0; it must be positive"),
        ("ssim", r"loss ssim on 't0' float\[6,4\]: images must have 4 dimensions, not 2"),
        ("psnr", "images have three dimensions at least"),
        ("triplet", r"takes 3 tensors of the model \(anchor, positive, negative\), 1 given"),
        ("sparse-softmax-cross-entropy{axis=2}", "there is no axis 2 in 2 dimensions"),
        ("sparse-softmax-cross-entropy{class_weights=1,2}", "2 class weights for 4 classes"),
        ("sparse-softmax-cross-entropy{temperature=0}", "temperature is 0.0; it must be positive"),
        (
            "sparse-softmax-cross-entropy{temperature=2 from_probabilities}",
            "temperature divides logits; there are none where probabilities are given",
        ),
        (
            "kl-divergence{from_probabilities from_log_probabilities}",
            "takes one of from_probabilities and from_log_probabilities",
        ),
        ("distillation{alpha=0}", r"alpha is 0.0; it must be in \(0, 1\]"),
        ("normalized-mutual-information{classes=-1}", "classes is -1; it must be positive"),
    ],
)
def test_bad_use_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        built(text, (6, 4))
    assert "\n" not in str(caught.value)


def test_tensors_that_a_loss_cannot_take() -> None:
    with pytest.raises(UsageError, match="takes floating-point logits, 't0' is int64; name the"):
        built("bce-with-logits", (6, 4), dtype=ir.DataType.INT64)
    with pytest.raises(UsageError, match="needs opset 13, the model has 11; run upgrade-opset"):
        built("mse", (6, 4), opset=11)
    mixed = [LossTensor("a", FLOAT, (2, 3)), LossTensor("b", DOUBLE, (2, 3))]
    with pytest.raises(UsageError, match=r"tensors of one dtype: 'a' float\[2,3\], 'b' double"):
        build_loss(parse_losses("vae-kl")[0], mixed)
    with pytest.raises(UsageError, match="the rank of 'y' is unknown; run infer-shapes first"):
        LossTensor.of(ir.Value(name="y", type=ir.TensorType(FLOAT)))
    with pytest.raises(UsageError, match="no loss is named"):
        parse_losses(" ")


def test_a_tensor_keeps_names_of_dynamic_sizes() -> None:
    value = ir.Value(name="y", type=ir.TensorType(FLOAT), shape=ir.Shape(["N", 3, None]))
    assert LossTensor.of(value) == LossTensor("y", FLOAT, ("N", 3, None))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_documents_itself(name: str) -> None:
    found = registered_loss(name)
    text = inspect.cleandoc(found.function.__doc__ or "")  # Python 3.13 takes the indent away
    assert found.name == name
    for part in ("Source: ", "Shapes: ", "Args:"):
        assert part in text
    assert "Units: " in text or "Unit: " in text
    for option in vars(found.options)["__dataclass_fields__"]:
        assert f"\n    {option}: " in text


SCRIPT = """
from onnxfold.passes.loss import LossGraph, Variable, loss

@loss("hinge")
def hinge(graph: LossGraph, predictions: Variable, *, margin: float = 1.0) -> Variable:
    targets = graph.data_input("targets", graph.dtype, predictions.shape)
    product = graph.layer("Mul", [predictions, targets], ["product"])[0]
    short = graph.op("Relu", graph.op("Sub", margin, product))
    return graph.reduce("ReduceMean", short)

@loss("broken")
def broken(graph, predictions):
    return graph.missing(predictions)

@loss("wrong")
def wrong(graph, predictions):
    return graph.op("NoSuchOperator", predictions)

@loss("nothing")
def nothing(graph, predictions):
    return None

def plain(graph, predictions):
    return predictions
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "my_losses.py"
    path.write_text(SCRIPT)
    return path


def test_a_loss_of_ones_own(script: Path, run: Callable[..., Array]) -> None:
    predictions, targets = np.array([0.5, -3], np.float32), np.array([1, -1], np.float32)
    assert run(f"{script}:hinge{{margin=2}}", predictions, targets) == np.float32(0.75)
    known = describe_loss(parse_losses(f"{script}:hinge{{margin=2}}")[0])
    assert (known.name, known.text) == ("hinge", f"{script}:hinge{{margin=2.0}}")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("hinj", "has no function 'hinj'; did you mean 'hinge'?"),
        ("plain", r"plain is no loss: decorate it with @onnxfold.passes.loss.loss\(...\)"),
        ("broken", "failed in line 13: AttributeError: 'LossGraph' object has no attribute"),
        ("wrong", "loss wrong builds an invalid model: .*NoSuchOperator"),
        ("nothing", "returned NoneType; it must return the variable that holds the loss"),
    ],
)
def test_a_loss_of_ones_own_that_does_not_work(script: Path, function: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built(f"{script}:{function}", (6, 4))


def test_declarations_are_checked() -> None:
    def required(graph: Any, x: Any, *, margin: float) -> Any:
        return x

    with pytest.raises(UsageError, match="option margin needs an annotation and a default"):
        loss("mine")(required)
    with pytest.raises(UsageError, match="kebab-case, 'My_Loss' is not"):
        loss("My_Loss")
    with pytest.raises(UsageError, match="a tensor's name is an identifier"):
        loss("mine", tensors=("a b",))


@pytest.mark.parametrize("name", ALSO_CALLED)
def test_other_names_lead_to_losses(name: str) -> None:
    assert ALSO_CALLED[name] in LOSSES


def test_losses_open_by_name() -> None:
    with opened_loss("mse") as found:
        assert isinstance(found, Loss)
    with pytest.raises(UsageError, match="is not of the form"), opened_loss(":x"):
        pass
