"""Whole networks: every weight's gradient against torch, and along random directions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from fixtures.gradients.check import lower, relative_error, run_in_double, weighted_sum
from fixtures.gradients.double import in_double
from fixtures.training_networks import NETWORKS, TrainingNetwork
from fixtures.vectors.network_gradients import BATCH, PATH, SECOND_ORDER, direction, sample
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Array = npt.NDArray[Any]

_STEP = 1e-5


@functools.cache
def _network(name: str) -> TrainingNetwork:
    return NETWORKS[name]()


@functools.cache
def _lowered(name: str) -> onnx.ModelProto:
    network = _network(name)
    return lower(network.with_loss(), list(network.weights()))


@functools.cache
def _gradients(name: str) -> dict[str, Array]:
    found = Session(_lowered(name), REFERENCE).run(_network(name).feed(BATCH))
    return {weight: np.asarray(found[f"grad_{weight}"]) for weight in _network(name).weights()}


@functools.cache
def _stored() -> dict[str, Array]:
    with np.load(PATH) as arrays:
        return dict(arrays)


def _worst(name: str, found: dict[str, Array]) -> float:
    """The largest error against torch, relative to the largest element of its gradient."""
    stored = {key: array for key, array in _stored().items() if key.rpartition("/")[0] == name}
    assert len(stored) == len(found)
    largest = max(array[-1] for array in stored.values())
    errors: list[float] = []
    for weight, gradient in found.items():
        expected = stored[f"{name}/{weight}"]
        # One that cancels to nothing (a key's bias before Softmax) is held to the others.
        scale = max(expected[-1], 1e-2 * largest)
        errors.append(float(np.abs(sample(weight, gradient) - expected).max() / scale))
    return max(errors)


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_agrees(name: str) -> None:
    """In float32 sums that nearly cancel are off by more than the last bit, as torch's are."""
    assert _worst(name, _gradients(name)) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("lstm", "gru")])
def test_torch_agrees_in_double(name: str) -> None:
    """The reference evaluator has no Scan in reverse, which recurrent layers need."""
    network = _network(name)
    exact = lower(in_double(network.with_loss()), list(network.weights()))
    found = run_in_double(exact, network.feed(BATCH))
    assert _worst(name, {weight: found[f"grad_{weight}"] for weight in network.weights()}) <= 1e-7


@pytest.mark.parametrize("name", NETWORKS)
def test_differences_along_directions_agree(name: str) -> None:
    network = _network(name)
    model = in_double(network.with_loss())
    feed = network.feed(BATCH)
    random = np.random.default_rng(1)
    weights = {t.name: t for t in model.graph.initializer if t.name in network.weights()}
    values = {each: numpy_helper.to_array(tensor) for each, tensor in weights.items()}
    for _ in range(3):
        # Short, so that no Relu changes its side.
        course = {each: random.standard_normal(array.shape) for each, array in values.items()}
        length = np.sqrt(sum(float(np.sum(part**2)) for part in course.values()))
        ends: list[float] = []
        for step in (_STEP, -_STEP):
            for each, tensor in weights.items():
                moved = values[each] + step / length * course[each]
                tensor.CopyFrom(numpy_helper.from_array(moved, each))
            ends.append(float(run_in_double(model, feed)["loss"]))
        expected = (ends[0] - ends[1]) / (2 * _STEP) * length
        along = sum(float(np.sum(g * course[each])) for each, g in _gradients(name).items())
        assert relative_error(np.array(along), np.array(expected)) <= 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_optimized_is_the_same(name: str) -> None:
    network = _network(name)
    session = Session(_lowered(name), DEPLOYMENT)
    found = session.run(network.feed(BATCH))
    largest = max(float(np.abs(gradient).max()) for gradient in _gradients(name).values())
    for weight, gradient in _gradients(name).items():
        error = np.abs(np.asarray(found[f"grad_{weight}"]) - gradient).max()
        assert error <= 1e-5 * largest, f"grad_{weight} is off by {error / largest:.2g}"
    assert session.run(network.feed(BATCH + 3))["loss"] > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_stay_bit_identical(name: str) -> None:
    network = _network(name)
    feed = network.feed(BATCH)
    before = Session(network.with_loss(), REFERENCE).run(feed)
    after = Session(_lowered(name), REFERENCE).run(feed)
    for output, value in before.items():
        np.testing.assert_array_equal(after[output], value)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_the_hessian_times_a_direction(name: str) -> None:
    network = _network(name)
    weights = network.weights()
    twice = lower(weighted_sum(_lowered(name), "along"), list(weights), of="along")
    feed = network.feed(BATCH) | {"weights_of_loss": np.zeros((), np.float32)}
    session = Session(twice, REFERENCE)
    for value in twice.graph.input:
        if value.name.startswith("weights_of_") and value.name not in feed:
            shape = tuple(dim.dim_value or BATCH for dim in value.type.tensor_type.shape.dim)
            feed[value.name] = np.zeros(shape, np.float32)
    for each, array in weights.items():
        feed[f"weights_of_grad_{each}"] = direction(each, array.shape).astype(np.float32)
    found = session.run(feed)
    second = {each: np.asarray(found[f"grad_{each}_1"]) for each in weights}
    assert _worst(f"second {name}", second) <= 5e-6
