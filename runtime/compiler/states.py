"""Outputs that are states: what a deployed model is fed again at its next step.

A candidate's error in a state is no error of its own: it counts by what it does to the other
outputs later. So a model with states is run over the samples in order, its states fed back, and
judged by what else it puts out. Only what is shown to be a state is treated as one: a pair of names
that say so, or a path through recurrent operators, and equal types and shapes on all data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.runtime.specs import Feed, is_float

IN_RUN = " (states fed back)"
"""Behind the name of an output, for what it is in a run."""
LEAST_RUN = 16
"""Fewer show too little of what an error in a state becomes."""

States = Mapping[str, str]
"""From inputs to the outputs that are fed to them at the next step."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_BEFORE = frozenset({"in", "input", "init", "initial", "old", "past", "prev", "previous"})
_AFTER = frozenset({"out", "output", "new", "next", "n", "present", "cur", "current", "updated"})
_STATES = frozenset(
    {
        *("state", "states", "hidden", "cell", "cache", "memory", "mem", "h", "c", "hx", "cx"),
        *("past", "present", "recurrent", "rnn", "lstm", "gru"),
    }
)
_JOINED = {"hn": ("h", "n"), "cn": ("c", "n")}
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_STATE_INPUTS = {1: 5, 2: 6}
"""Of recurrent operators: which input the last hidden and cell states continue."""
_MOVING = frozenset(
    {
        *("Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
        *("Unsqueeze",),
    }
)


def states_of(model: ir.Model) -> dict[str, str]:
    """The state inputs of ``model``, each with the output that continues it.

    Both have one element type, of real numbers, and shapes that can be equal; beside them the model
    has another input and another output. That they belong together their names say (``state`` and
    ``stateN``, ``h0`` and ``hn``, ``past`` and ``present``, ``cache_in`` and ``cache_out``), one
    pair for each name; or that one is the initial state of recurrent operators of which the other
    is the last.
    """
    inputs = [each for each in model.graph.inputs if not each.is_initializer()]
    outputs = list(model.graph.outputs)
    partners = {**_by_operator(inputs, outputs), **_by_name(inputs, outputs)}
    found = {one.name or "": other.name or "" for one, other in partners.items()}
    if len(set(found.values())) < len(found) or len(found) in (len(inputs), len(outputs)):
        return {}
    return found


def hold_on(states: States, feed: Feed, outputs: Mapping[str, Any]) -> bool:
    """Whether each output of ``states`` has the type and the shape of the input it is fed to."""
    pairs = [(np.asarray(feed[name]), outputs[output]) for name, output in states.items()]
    return all(old.dtype == new.dtype and old.shape == new.shape for old, new in pairs)


def follow(
    run: Callable[[Feed], Mapping[str, Any]], feeds: Sequence[Feed], states: States
) -> Iterator[Mapping[str, Any]]:
    """The outputs of a model that is fed its own states, step after step.

    A run starts with the states of the first feed. It starts anew where those of a feed are all
    zero, unless all feeds' are, or have another shape than what came before.
    """
    fresh = [not any(np.any(feed[name]) for name in states) for feed in feeds]
    carried: Feed = {}
    for feed, is_fresh in zip(feeds, fresh, strict=True):
        starts = is_fresh and not all(fresh)
        if starts or any(np.shape(carried[name]) != np.shape(feed[name]) for name in carried):
            carried = {}
        outputs = run({**feed, **carried})
        carried = {name: outputs[output] for name, output in states.items()}
        yield outputs


def in_run(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """``outputs`` of a run, by names that tell them from those of single steps."""
    return {f"{name}{IN_RUN}": value for name, value in outputs.items()}


def _by_name(inputs: Iterable[ir.Value], outputs: Iterable[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Pairs whose names differ in nothing but what says before and after."""
    pairs = [(one, other) for one in inputs for other in outputs if _are_alike(one, other)]
    named = [pair for pair in pairs if _is_pair(pair[0].name or "", pair[1].name or "")]
    first, second = [one for one, _ in named], [other for _, other in named]
    return {
        one: other for one, other in named if first.count(one) == 1 and second.count(other) == 1
    }


def _is_pair(before: str, after: str) -> bool:
    old, new = _words(before), _words(after)
    if not (_STATES & {*old} and _STATES & {*new}):
        return False
    # A number at the end of an input's name counts steps, as in h0.
    ends = (old, old[:-1]) if old[-1] == "0" else (old,)
    stem = [each for each in new if each not in _AFTER]
    return stem != new and any(stem == [w for w in each if w not in _BEFORE] for each in ends)


def _words(name: str) -> list[str]:
    plain = re.sub("(past|present)_key_values", r"\1", name)
    words = [each.lower() for each in _WORDS.findall(plain)]
    return [part for each in words for part in _JOINED.get(each, (each,))]


def _by_operator(
    inputs: Sequence[ir.Value], outputs: Iterable[ir.Value]
) -> dict[ir.Value, ir.Value]:
    """Pairs of the initial and the last state of the same recurrent operators."""
    found: dict[ir.Value, ir.Value] = {}
    for output in outputs:
        last = _origins(output)
        sources: set[ir.Value] = set()
        for value in last:
            sources |= _initial_states(value)
        found |= {
            each: output
            for each in sources
            if len(sources) == 1 and each in inputs and _are_alike(each, output)
        }
    return found


def _initial_states(value: ir.Value) -> set[ir.Value]:
    """Where the initial state comes from of which ``value`` is the last; itself for all else."""
    node = value.producer()
    place = None if node is None or node.op_type not in _RECURRENT else value.index()
    index = _STATE_INPUTS.get(-1 if place is None else place)
    if node is None or index is None or index >= len(node.inputs):
        return {value}
    initial = node.inputs[index]
    return {value} if initial is None else _origins(initial)


def _origins(value: ir.Value) -> set[ir.Value]:
    """What ``value`` holds parts of, moved but not computed with."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in _MOVING:
        return {value}
    parts = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return {origin for part in parts if part is not None for origin in _origins(part)}


def _are_alike(one: ir.Value, other: ir.Value) -> bool:
    if one.dtype is None or one.dtype != other.dtype or not is_float(one.dtype.numpy()):
        return False
    if one.shape is None or other.shape is None:
        return False
    pairs = list(zip(one.shape, other.shape, strict=False))
    sizes = [pair for pair in pairs if all(isinstance(each, int) for each in pair)]
    return len(one.shape) == len(other.shape) and all(a == b for a, b in sizes)
