"""What is written down in a training graph: which inputs are state, and of what."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from onnxfold.passes.errors import InvalidModelError, UsageError

KEY = "onnxfold.training"
"""Key in the model's metadata: a JSON object."""


@dataclass(frozen=True)
class State:
    """A tensor that each step reads from an input and writes to an output.

    Attributes:
        input: Name of the input; its default is the value before the first step.
        output: Name of the output.
        tensor: Name of the trained tensor in the original model; empty for the step counter.
        slot: What it is of that tensor: empty for its value, else ``momentum`` and the like.
    """

    input: str
    output: str
    tensor: str = ""
    slot: str = ""


@dataclass(frozen=True)
class Manifest:
    """How to run a training graph.

    Attributes:
        kind: The optimizer.
        loss: Name of the scalar output that falls.
        learning_rate: Name of the scalar input that steps are scaled with.
        step: The counter of steps done.
        states: All other state.
        gradients: Names of the outputs that are gradients.
    """

    kind: str
    loss: str
    learning_rate: str
    step: State
    states: tuple[State, ...]
    gradients: tuple[str, ...]

    @property
    def all_states(self) -> tuple[State, ...]:
        """Everything that is carried from step to step, the counter last."""
        return (*self.states, self.step)

    def to_text(self) -> str:
        """What ``read_manifest`` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_manifest(model: ir.Model) -> Manifest:
    """The manifest of a training graph.

    Raises:
        UsageError: The model is none.
        InvalidModelError: The metadata is not what was written.
    """
    text = model.metadata_props.get(KEY)
    if text is None:
        raise UsageError(
            f"model '{model.graph.name or ''}' is no training graph; add-optimizer makes one"
        )
    try:
        found: dict[str, Any] = json.loads(text)
        states = tuple(State(**each) for each in found["states"])
        return Manifest(
            kind=found["kind"],
            loss=found["loss"],
            learning_rate=found["learning_rate"],
            step=State(**found["step"]),
            states=states,
            gradients=tuple(map(str, found["gradients"])),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModelError(
            f"the metadata '{KEY}' of model '{model.graph.name or ''}' was damaged: {error!r}"
        ) from error
