"""The constants of a quantized model as parameters that gradient descent moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.tuned_constants import Place, TunedConstants
from onnxfold.runtime.finetune.activation_scale import ActivationScale
from onnxfold.runtime.finetune.bias import Bias
from onnxfold.runtime.finetune.quantized_weight import QuantizedWeight

_SCALE_STEPS = 10.0
"""Of a weight's scale: a unit moves the largest code's weight by so many codes."""
_ACTIVATION_STEP = 0.02
"""Of an activation's scale: a unit is that share of it."""
_LEAST = 0.2
"""The share of itself that a scale keeps at least."""
_MOMENTUM, _SQUARES, _EPSILON = 0.9, 0.999, 1e-12


class _Moved:
    """An array that moves, with Adam's state; a step of rate 1 moves it by ``unit``."""

    def __init__(self, start: Array, unit: Array, least: Array | None = None) -> None:
        self.array: Array = start.copy()
        self.unit, self.least = unit, least
        self.mean: Array = np.zeros(start.shape, np.float32)
        self.square: Array = np.zeros(start.shape, np.float32)

    def step(self, gradient: Array, rate: float, count: int) -> None:
        """Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015."""
        self.mean += (1 - _MOMENTUM) * (gradient - self.mean)
        self.square += (1 - _SQUARES) * (np.square(gradient) - self.square)
        corrected = math.sqrt(1 - _SQUARES**count) / (1 - _MOMENTUM**count)
        step: Array = self.mean / (np.sqrt(self.square) + _EPSILON)
        moved: Array = self.array - self.unit * (step * (rate * corrected))
        # In place: a computed scalar would be no array any more.
        self.array[...] = moved if self.least is None else np.maximum(moved, self.least)


class Parameters:
    """Codes and scales of weights, biases, and scales of activations of one quantized model.

    Attributes:
        values: The tensors of the model that are fed, and what the inputs are called.
        places: Inputs of nodes that are fed, and what the inputs are called.
    """

    def __init__(
        self,
        quantized: ir.Model,
        wanted: Mapping[ir.Node, Array],
        *,
        scales: bool = True,
        activations: bool = True,
    ) -> None:
        """Find what can be tuned in the main graph.

        Args:
            quantized: The model; not changed.
            wanted: Weights before they were rounded, by their DequantizeLinear.
            scales: Whether scales of weights move.
            activations: Whether scales of activations do.
        """
        graph = quantized.graph
        matches = (QuantizedWeight.match(node) for node in graph if not _is_table(node))
        self._weights = [each for each in matches if each is not None]
        found = (Bias.match(node) for node in graph)
        self._biases = [each for each in found if each is not None]
        self._activations = list(ActivationScale.find(graph)) if activations else []
        self._move_scales = scales
        one = np.ones((), np.float32)
        self._latents = [_Moved(each.latent(wanted.get(each.node)), one) for each in self._weights]
        self._scales = [_scale(each) for each in self._weights]
        self._reals = [_Moved(each.real, self._bias_unit(each)) for each in self._biases]
        self._steps = [
            _Moved(each.scale, _ACTIVATION_STEP * each.scale, _LEAST * each.scale)
            for each in self._activations
        ]
        self._count = 0
        self.values = self._named()
        self.places = {
            (node_name(node), 1): f"tuned_scale_{index}"
            for index, each in enumerate(self._activations)
            for node in each.nodes
        }

    def __len__(self) -> int:
        """How many tensors are fed."""
        return len(self._weights) + len(self._biases) + len(self._activations)

    @property
    def count(self) -> int:
        """How many numbers move."""
        return sum(each.array.size for each in self._moved)

    def fed(self) -> dict[str, Array]:
        """What the model is fed: the parameters, rounded as they will be stored."""
        given: dict[str, Array] = {}
        for index, weight in enumerate(self._weights):
            latent, scale = self._latents[index].array, self._scales[index].array
            given[f"tuned_weight_{index}"] = weight.real(latent, scale)
        for index, each in enumerate(self._reals):
            given[f"tuned_bias_{index}"] = each.array
        for index, each in enumerate(self._steps):
            given[f"tuned_scale_{index}"] = each.array
        return given

    def step(self, gradients: Mapping[str, Array], rate: float) -> None:
        """Move against the gradients of what is fed."""
        self._count += 1
        for index, weight in enumerate(self._weights):
            latent, scale = self._latents[index], self._scales[index]
            of_latent, of_scale = weight.gradients(
                gradients[f"tuned_weight_{index}"], latent.array, scale.array
            )
            latent.step(of_latent, rate, self._count)
            if self._move_scales:
                scale.step(of_scale, rate, self._count)
        for kind, moved in (("bias", self._reals), ("scale", self._steps)):
            for index, each in enumerate(moved):
                each.step(gradients[f"tuned_{kind}_{index}"], rate, self._count)

    def snapshot(self) -> list[Array]:
        """Where all parameters are."""
        return [each.array.copy() for each in self._moved]

    def restore(self, snapshot: Sequence[Array]) -> None:
        """Go back to where all parameters were."""
        for each, array in zip(self._moved, snapshot, strict=True):
            each.array[...] = array

    def constants(self) -> TunedConstants:
        """What has to be stored for it."""
        found: dict[Place, Array] = {}
        scales: dict[ir.Node, Array] = {}
        for weight, latent, scale in zip(self._weights, self._latents, self._scales, strict=True):
            codes = weight.rounded(latent.array)
            narrow = np.uint8 if codes.max(initial=0) > np.iinfo(np.int8).max else np.int8
            found[node_name(weight.node), 0] = codes.astype(narrow)
            found[node_name(weight.node), 1] = scale.array
            scales[weight.node] = scale.array
        for activation, moved in zip(self._activations, self._steps, strict=True):
            for node in activation.nodes:
                found[node_name(node), 1] = moved.array
                scales[node] = moved.array
        for bias, moved in zip(self._biases, self._reals, strict=True):
            found.update(bias.constants(moved.array, scales))
        return TunedConstants(found)

    @property
    def _moved(self) -> list[_Moved]:
        return [*self._latents, *self._scales, *self._reals, *self._steps]

    def _named(self) -> dict[str, str]:
        names = {
            each.node.outputs[0].name or "": f"tuned_weight_{index}"
            for index, each in enumerate(self._weights)
        }
        return names | {
            each.value.name or "": f"tuned_bias_{index}" for index, each in enumerate(self._biases)
        }

    def _bias_unit(self, bias: Bias) -> Array:
        value = bias.node.inputs[1]
        producer = None if value is None else value.producer()
        weight = next((each for each in self._weights if each.node is producer), None)
        return bias.step(*(None, 1.0) if weight is None else (weight.scale, weight.fan_in))


def wanted_weights(pairs: Sequence[tuple[ir.Node, ir.Node]]) -> dict[ir.Node, Array]:
    """Weights before they were rounded, by the DequantizeLinear of what they were rounded to.

    Args:
        pairs: Linear operators of the quantized and of the float model.
    """
    found: dict[ir.Node, Array] = {}
    for new, old in pairs:
        value, array = new.inputs[1], constant_array(old.inputs[1])
        producer = None if value is None else value.producer()
        if producer is not None and array is not None:
            found[producer] = array
    return found


def _is_table(node: ir.Node) -> bool:
    """Whether rows are only looked up: a step would move all for the few that a batch reads."""
    readers = [reader for reader, _ in node.outputs[0].uses()]
    return bool(readers) and all(reader.op_type == "Gather" for reader in readers)


def _scale(weight: QuantizedWeight) -> _Moved:
    largest = max(abs(weight.low), abs(weight.high), 1.0)
    unit = weight.scale * np.float32(_SCALE_STEPS / largest)
    return _Moved(weight.scale, unit, _LEAST * weight.scale)
