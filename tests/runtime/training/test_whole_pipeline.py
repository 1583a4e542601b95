"""A model in, losses, gradients and an optimizer added and verified, trained, and the model out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from fixtures.structured_models import control_flow
from fixtures.training_networks import NETWORKS
from onnxfold.passes.constants import Array
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.training import Batches, Trainer
from onnxfold.runtime.verify.pass_gate import ContractGate


def training_graph(model: onnx.ModelProto, loss: str, optimizer: str, feed: Feed) -> ir.Model:
    passes = parse_passes(f"{loss},add-gradient,lower-gradient,add-optimizer{{{optimizer}}}")
    gate = ContractGate([feed])
    made = Pipeline(passes, instruments=(gate,)).run(ir.from_proto(model)).model
    assert all(evidence.verdict.passed for evidence in gate.evidence)
    return made


def test_a_classifier_learns_and_comes_out_as_it_was() -> None:
    network = NETWORKS["mlp"]()
    data = network.feed(60)
    loss = "inject-loss{loss=sparse-softmax-cross-entropy}"
    options = 'kind=adamw learning-rate=0.02 clip-norm=1 no-decay=".*bias"'
    trainer = Trainer(training_graph(network.model, loss, options, {"x": data["x"][:4]}))
    losses = trainer.fit(Batches(data, 16), epochs=40)
    assert losses[-1] < 0.1 < losses[0]
    trained = trainer.export()
    logits = Session(trained, REFERENCE).run({"x": data["x"]})["logits"]
    assert np.mean(logits.argmax(1) == data["labels"]) > 0.95
    assert_same_but_for_weights(trained, network.model, trainer.weights())


def assert_same_but_for_weights(
    trained: ir.Model, original: onnx.ModelProto, weights: dict[str, Array]
) -> None:
    before, after = original.graph, ir.to_proto(trained).graph
    assert set(weights) <= {tensor.name for tensor in before.initializer}
    for part in ("input", "output", "node"):
        assert list(getattr(after, part)) == list(getattr(before, part))
    assert len(after.initializer) == len(before.initializer)
    for tensor in before.initializer:
        found, old = _array(trained, tensor.name), numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(found, weights.get(tensor.name, old))
        assert np.array_equal(found, old) is (tensor.name not in weights)


def _array(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_weights_read_by_an_if_and_a_loop_learn() -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((8, 8)).astype(np.float32)
    loss = "inject-loss{loss=mse on=state}"
    made = training_graph(control_flow(), loss, "kind=adam learning-rate=0.01", {"x": x})
    trainer = Trainer(made, config=REFERENCE)
    labels = np.tanh(random.standard_normal((8, 8))).astype(np.float32)
    feeds: list[Feed] = [{"x": sign * abs(x), "labels": labels} for sign in (1, -1)]
    losses = trainer.fit(feeds, epochs=100)
    assert sorted(trainer.weights()) == ["shared.bias", "shared.weight"]
    assert max(losses[-2:]) < 0.6 * min(losses[:2])
    assert [value.name for value in trainer.export().graph.outputs] == ["state", "means"]


@pytest.mark.parametrize("name", ["conv_bn", "transformer"])
def test_only_the_last_layer_learns(name: str) -> None:
    network = NETWORKS[name]()
    data = network.feed(4)
    options = 'kind=momentum trainable="head.*"'
    loss = "inject-loss{loss=sparse-softmax-cross-entropy}"
    trainer = Trainer(training_graph(network.model, loss, options, {"x": data["x"]}))
    losses = trainer.fit([data], epochs=10)
    assert losses[-1] < losses[0]
    assert_same_but_for_weights(trainer.export(), network.model, trainer.weights())
