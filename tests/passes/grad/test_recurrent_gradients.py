"""RNN, GRU and LSTM in all their forms against central differences of step-by-step numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import parser

from fixtures.gradients import recurrent
from fixtures.gradients.check import check_gradient, lower, weighted_sum
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import REFERENCE, Session

Array = npt.NDArray[Any]

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PLACES = ("x", "w", "r", "b", "lens", "h0", "c0", "p")
_INPUTS, _HIDDEN, _BATCH = 3, 2, 2


def _feeds(op_type: str, given: str, directions: int, steps: int = 3) -> dict[str, Array]:
    gates = _GATES[op_type]
    shapes = {
        "x": (steps, _BATCH, _INPUTS),
        "w": (directions, gates * _HIDDEN, _INPUTS),
        "r": (directions, gates * _HIDDEN, _HIDDEN),
        "b": (directions, 2 * gates * _HIDDEN),
        "h0": (directions, _BATCH, _HIDDEN),
        "c0": (directions, _BATCH, _HIDDEN),
        "p": (directions, 3 * _HIDDEN),
    }
    random = np.random.default_rng(11)
    feeds: dict[str, Array] = {
        name: (random.standard_normal(shapes[name]) / 2).astype(np.float32)
        for name in ["x", "w", "r", *given.split()]
        if name != "lens"
    }
    if "lens" in given:
        feeds["lens"] = np.array([steps, 1], np.int32)
    return feeds


def _text(op_type: str, feeds: Mapping[str, Array], outputs: str, attributes: str) -> str:
    declared = ", ".join(
        f"{'int32' if name == 'lens' else 'float'}[{', '.join(map(str, array.shape))}] {name}"
        for name, array in feeds.items()
    )
    names = [name if name in feeds else "" for name in _PLACES]
    while not names[-1]:
        names.pop()
    wanted = [name if name in outputs.split() else "" for name in ("y", "yh", "yc")]
    while not wanted[-1]:
        wanted.pop()
    results = ", ".join(f"float[] {name}" for name in wanted if name)
    call = f"{op_type} <hidden_size = {_HIDDEN}{attributes}> ({', '.join(names)})"
    return f"g ({declared}) => ({results}) {{ {', '.join(wanted)} = {call} }}"


def _check(
    op_type: str,
    given: str,
    outputs: str,
    reference: Callable[..., Sequence[Array]],
    *,
    direction: str = "forward",
    attributes: str = "",
    steps: int = 3,
    **options: Any,
) -> None:
    feeds = _feeds(op_type, given, 2 if direction == "bidirectional" else 1, steps)
    attributes += f', direction = "{direction}"'
    names = ("y", "yh", "yc")

    def forward(values: Mapping[str, Array]) -> Sequence[Array]:
        found = reference(values, direction=direction, **options)
        return [each for name, each in zip(names, found, strict=False) if name in outputs.split()]

    text = _text(op_type, feeds, outputs, attributes)
    check_gradient(text, feeds, double=False, forward=forward)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("given", ["b h0 c0", "b lens h0 c0 p"])
def test_lstm(direction: str, given: str) -> None:
    _check("LSTM", given, "y yh yc", recurrent.lstm, direction=direction)


@pytest.mark.parametrize("outputs", ["y", "yh", "yc"])
def test_lstm_with_little_given(outputs: str) -> None:
    _check("LSTM", "", outputs, recurrent.lstm)


@pytest.mark.parametrize("given", ["b h0 c0", "b p"])
def test_lstm_with_coupled_gates(given: str) -> None:
    attributes = ", input_forget = 1"
    _check("LSTM", given, "y yc", recurrent.lstm, attributes=attributes, coupled=True)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("given", ["b h0", "lens b h0"])
@pytest.mark.parametrize("after", [False, True])
def test_gru(direction: str, given: str, after: bool) -> None:
    attributes = f", linear_before_reset = {int(after)}"
    _check("GRU", given, "y yh", recurrent.gru, direction=direction, attributes=attributes,
           reset_after=after)  # fmt: skip


@pytest.mark.parametrize("after", [False, True])
def test_gru_with_little_given(after: bool) -> None:
    attributes = f", linear_before_reset = {int(after)}"
    _check("GRU", "", "yh", recurrent.gru, attributes=attributes, reset_after=after, steps=1)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("given", ["", "b lens h0"])
def test_rnn(direction: str, given: str) -> None:
    _check("RNN", given, "y yh", recurrent.rnn, direction=direction)


def _softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


_ACTIVATIONS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "Softplus": ("", _softplus),
    "ScaledTanh": ("0.7 1.3", lambda x: 0.7 * np.tanh(1.3 * x)),
    "Affine": ("0.7 0.1", lambda x: 0.7 * x + 0.1),
    "LeakyRelu": ("0.3", lambda x: np.where(x > 0, x, 0.3 * x)),
    "HardSigmoid": ("0.3 0.4", lambda x: np.clip(0.3 * x + 0.4, 0, 1)),
}


@pytest.mark.parametrize("name", _ACTIVATIONS)
def test_other_activations(name: str) -> None:
    numbers, function = _ACTIVATIONS[name]
    attributes = f', activations = ["{name}"]'
    for key, number in zip(("alpha", "beta"), numbers.split(), strict=False):
        attributes += f", activation_{key} = [{number}]"
    _check("RNN", "b", "y", recurrent.rnn, attributes=attributes, activation=function)


def test_the_outputs_stay_as_they_are_when_the_sequence_was_not_asked_for() -> None:
    feeds = _feeds("LSTM", "b", 1)
    text = _text("LSTM", feeds, "yh", "").replace("float[] yh", "float[1, 2, 2] yh")
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    lowered = lower(weighted_sum(model), ["x"], check=False)
    before = Session(model, REFERENCE).run(feeds)
    weights = {"weights_of_yh": np.ones((1, _BATCH, _HIDDEN), np.float32)}
    after = Session(lowered, REFERENCE).run(feeds | weights)
    np.testing.assert_array_equal(before["yh"], after["yh"])


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [("clip = 1.0", "it clips its gates"), ("layout = 1", "layout 1, which onnxruntime")],
)
def test_what_is_refused(attribute: str, reason: str) -> None:
    text = _text("RNN", _feeds("RNN", "", 1), "y", f", {attribute}")
    text = text.replace("float[] y", "float[] loss")
    text = text.replace("}", "loss = ReduceSum <keepdims = 0> (y) }")
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    with pytest.raises(UsageError, match=f"RNN 'y': {reason}"):
        lower(model, ["x"])


def test_what_is_written_does_not_change() -> None:
    text = _text("LSTM", _feeds("LSTM", "b h0 c0", 2), "y", ', direction = "bidirectional"')
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    weighted = weighted_sum(onnx.shape_inference.infer_shapes(model))
    first, second = (lower(weighted, ["x", "h0"]) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
