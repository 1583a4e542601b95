"""Drives a training graph: a step a run, state kept in bound memory from step to step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import ExecutionError, InvalidModelError, UsageError
from onnxfold.passes.loss.record import digest
from onnxfold.passes.loss.strip_loss import StripLoss
from onnxfold.passes.train.manifest import read_manifest
from onnxfold.passes.train.strip_training import StripTraining
from onnxfold.runtime.casts import cast
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.session import DEPLOYMENT, Binding, Session, SessionConfig
from onnxfold.runtime.specs import Feed, ModelLike, TensorSpec, describe_model, load_ir
from onnxfold.runtime.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

Schedule = Callable[[int], float]
"""The learning rate of a step, by the number of steps done before."""


class Trainer:
    """Trains with a graph that add-optimizer made.

    Weights and the optimizer's state lie in two sets of arrays; each step reads one and writes
    the other, in place, and then they change roles.

    Attributes:
        steps: How many steps were done.
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        learning_rate: float | Schedule | None = None,
        config: SessionConfig = DEPLOYMENT,
    ) -> None:
        """Load a training graph, with its weights as the start.

        Args:
            model: The graph.
            learning_rate: For all steps, or a function of the number of steps done before; what
                the graph says if None.
            config: How it runs.

        Raises:
            UsageError: The model is no training graph.
            InvalidModelError: It is damaged, or its loss is not a single number.
            ExecutionError: ONNX Runtime refuses it.
        """
        self._label = describe_model(model)
        self._model = load_ir(model)
        self._manifest = read_manifest(self._model)
        self._graph = digest(self._model)
        self._session = Session(model, config)
        self._learning_rate = learning_rate
        self._rate = _initial(self._model, self._manifest.learning_rate)
        self._loss = _loss_array(self._session, self._manifest.loss)
        names = [state.input for state in self._manifest.all_states]
        first = {name: _initial(self._model, name) for name in names}
        self._states = [first, {name: np.empty_like(array) for name, array in first.items()}]
        self._bindings = [self._bound(now) for now in (0, 1)]
        self._now = 0

    @property
    def steps(self) -> int:
        """How many steps were done."""
        return int(self._state[self._manifest.step.input])

    def step(self, feed: Feed) -> float:
        """Make one step and return the loss before it.

        Args:
            feed: The inputs and labels of a batch of any size; other widths of integers or floats
                are cast.

        Raises:
            UsageError: An input is missing, unknown, or of another kind or shape.
            ExecutionError: The model failed, or the loss is no finite number. State is then what
                it was before the step.
        """
        feed = self._checked(feed)
        binding = self._bindings[self._now]
        for name, array in feed.items():
            contiguous: Array = np.ascontiguousarray(array).reshape(array.shape)
            binding.read(name, contiguous)
        if self._learning_rate is not None:
            self._rate[...] = self._scheduled(self._learning_rate)
        binding.run()
        loss = float(self._loss.reshape(()))
        if not math.isfinite(loss):
            raise ExecutionError(self._why_not_finite(loss))
        self._now = 1 - self._now
        return loss

    def fit(
        self,
        batches: Iterable[Feed],
        *,
        epochs: int = 1,
        steps: int | None = None,
        progress: Progress | None = None,
        on_step: Callable[[int, float], object] | None = None,
    ) -> list[float]:
        """Make a step with each batch.

        Args:
            batches: Feeds; iterated once for each epoch.
            epochs: How often to go through them.
            steps: How many steps to make instead, beginning again as often as needed.
            progress: Told of each step.
            on_step: Called after each step with the number of steps done and the loss before it.

        Returns:
            The loss before each step.

        Raises:
            UsageError: There are no batches, or they can be iterated only once and that is not
                enough; or what ``step`` raises.
            ExecutionError: What ``step`` raises.
        """
        told = Silent() if progress is None else progress
        told.stage("training", _total(batches, epochs, steps))
        losses: list[float] = []
        epoch = 0
        while epoch < epochs if steps is None else len(losses) < steps:
            before = len(losses)
            for feed in batches:
                losses.append(self.step(feed))
                told.advance()
                if on_step is not None:
                    on_step(self.steps, losses[-1])
                if len(losses) == steps:
                    break
            if len(losses) == before:
                again = "; they can be iterated only once: pass a list" if epoch else ""
                raise UsageError(f"no batches to train on{again}")
            epoch += 1
        return losses

    def run(self, feed: Feed) -> dict[str, Any]:
        """All outputs of the graph but the new state, with the weights as they are; no step.

        Raises:
            UsageError: An input is missing, unknown, or of another dtype or shape.
            ExecutionError: The model failed.
        """
        found = self._session.run({**self._checked(feed), **self._state})
        new = {state.output for state in self._manifest.all_states}
        return {name: value for name, value in found.items() if name not in new}

    def weights(self) -> dict[str, Array]:
        """The trained weights as they are now, copied, by their names in the original model."""
        return {
            each.tensor: self._state[each.input].copy()
            for each in self._manifest.states
            if not each.slot
        }

    def export(self) -> ir.Model:
        """The original model with the weights as they are now.

        Optimizer and gradients are taken out, and the loss if inject-loss added it.
        """
        model = self._model.clone()
        for state in self._manifest.all_states:
            value = model.graph.initializers[state.input]
            now = np.array(self._state[state.input])
            value.const_value = ir.tensor(now, name=state.input)
        model = StripTraining().run(model).model
        return StripLoss().run(model).model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: whole, or not at all.

        Raises:
            UsageError: The file cannot be written.
        """
        write_checkpoint(Path(path), Checkpoint(self.steps, self._graph, self._state))

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of the same training graph, bit by bit.

        Raises:
            UsageError: The file is missing or broken, or belongs to another graph.
        """
        found = read_checkpoint(Path(path))
        state = self._state
        same = _shapes(found.states) == _shapes(state)
        if found.graph != self._graph or not same:
            raise UsageError(f"{path}: a checkpoint of another training graph than {self._label}")
        for name, array in found.states.items():
            state[name][...] = array

    @property
    def _state(self) -> dict[str, Array]:
        return self._states[self._now]

    def _bound(self, now: int) -> Binding:
        binding = self._session.bind()
        for state in self._manifest.all_states:
            binding.read(state.input, self._states[now][state.input])
            binding.write(state.output, self._states[1 - now][state.input])
        binding.read(self._manifest.learning_rate, self._rate)
        binding.write(self._manifest.loss, self._loss)
        return binding

    def _checked(self, feed: Feed) -> Feed:
        """``feed``, of the graph's types where that loses nothing but float precision."""
        kept = {self._manifest.learning_rate, *self._state}
        specs = {spec.name: spec for spec in self._session.inputs}
        fitting: dict[str, Any] = {}
        for name, array in feed.items():
            if name in kept:
                raise UsageError(f"{self._label}: the trainer itself feeds '{name}'")
            fitting[name] = self._cast(specs[name], array) if name in specs else array
        self._session.check(fitting)
        return fitting

    def _cast(self, spec: TensorSpec, array: Any) -> Any:
        if not isinstance(spec.dtype, np.dtype) or not hasattr(array, "dtype"):
            return array
        try:
            return cast(np.asarray(array), spec.dtype)
        except ValueError as error:
            got = f"{array.dtype.name}{list(array.shape)}{error}"
            raise UsageError(
                f"{self._label}: input '{spec.name}' wants {spec}, got {got}: cast it yourself "
                f"(astype) where {spec.dtype.name} is meant"
            ) from None

    def _scheduled(self, rate: float | Schedule) -> float:
        found = rate(self.steps) if callable(rate) else rate
        try:
            number = float(found)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            place = f"the learning rate of step {self.steps + 1}"
            raise UsageError(f"{place} is {found!r}: it has to be a number, 0 or more")
        return number

    def _why_not_finite(self, loss: float) -> str:
        largest = max(
            (float(np.abs(array).max()) for array in self.weights().values() if array.size),
            default=0.0,
        )
        return (
            f"{self._label}: the loss is {loss} in step {self.steps + 1}, where the largest weight "
            f"is {largest:.3g} and the learning rate {self._rate:.3g}; lower the rate, clip "
            "gradients (add-optimizer's clip-norm), or look at the batch"
        )


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _initial(model: ir.Model, name: str) -> Array:
    value = model.graph.initializers.get(name)
    if value is None or value.const_value is None:
        raise InvalidModelError(
            f"model '{model.graph.name or ''}': the input '{name}' lost its default; "
            "it is what training starts from"
        )
    # In memory of its own: steps write to it.
    array = value.const_value.numpy()
    return np.array(array, order="C").reshape(array.shape)


def _loss_array(session: Session, name: str) -> Array:
    spec = next((each for each in session.outputs if each.name == name), None)
    if spec is None or not isinstance(spec.dtype, np.dtype):
        raise InvalidModelError(f"{session.label} has no output '{name}' to train on")
    dims = spec.shape or ()
    shape = [dim for dim in dims if isinstance(dim, int)]
    if len(shape) != len(dims) or math.prod(shape) != 1:
        raise InvalidModelError(f"{session.label}: the loss '{name}' is {spec}, wanted one number")
    return np.zeros(shape, spec.dtype)


def _total(batches: Iterable[Feed], epochs: int, steps: int | None) -> int | None:
    if steps is not None:
        return steps
    return epochs * len(batches) if isinstance(batches, Sized) else None
