"""Chooses what to quantize: by quality against a budget first, then by measured latency.

The search knows nothing of models: it is given functions that build, judge and time a choice, so
that it can be tested without either. What it does:

1. Each starting choice is built and judged; of those that differ in calibration only, the nearest
   goes on.
2. Starting from float, each class of layers is quantized alone and timed. Those that gain are
   quantized together: one more choice, which wins where most classes are slower in integers.
3. A choice that misses the budget is repaired: the layers that damage the output most go back to
   float until the budget is met.
4. What meets the budget is timed, interleaved with the original and the optimized float model.
5. From the fastest, one class of layers after another that gained nothing alone is tried in float;
   it stays there where that is faster.
6. Nothing is chosen that is slower than the original.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

ModelT = TypeVar("ModelT")

SENSITIVE = "quantizing it damages the output beyond the budget (measured)"
FASTER = "it is faster in float here (measured)"

ORIGINAL = "original"
FLOAT = "float, optimized"

_FASTER_BY = 0.98
"""A change has to gain 2 % to be made: less is noise on a shared machine."""


@dataclass(frozen=True)
class Choice:
    """What to quantize, and how its ranges are found.

    Attributes:
        name: What reports call it.
        op_types: The operators to quantize.
        in_float: Nodes to leave in float, each with the reason.
        calibration: How activation ranges are found.
    """

    name: str
    op_types: tuple[str, ...]
    in_float: tuple[tuple[str, str], ...] = ()
    calibration: str = "min-max"

    @property
    def skip(self) -> tuple[str, ...]:
        """Names of the nodes to leave in float."""
        return tuple(node for node, _ in self.in_float)

    def without(self, nodes: Sequence[str], name: str, reason: str) -> Choice:
        """The same with more nodes left in float."""
        kept = {**dict.fromkeys(nodes, reason), **dict(self.in_float)}
        return replace(self, name=name, in_float=tuple(sorted(kept.items())))


@dataclass(frozen=True)
class Quality:
    """How near a choice stays to the original.

    Attributes:
        passed: Whether it meets the budget.
        score: Larger is nearer; orders choices.
        text: For people.
    """

    passed: bool
    score: float
    text: str


@dataclass(frozen=True)
class Latency:
    """One model's share of an interleaved measurement.

    Attributes:
        median_ms: Median milliseconds of one run.
        relative: Ratio to the original, of the fastest turns (``Timing.relative_best``).
    """

    median_ms: float
    relative: float


@dataclass(frozen=True)
class Subject(Generic[ModelT]):
    """What the search works on.

    Attributes:
        build: Makes the model of a choice; None where that quantizes nothing.
        judge: Its quality.
        clock: Times models interleaved, the original among them; by name.
        layers: The linear layers that can be quantized: node name -> class of layer.
        damage: How much quantizing one layer alone costs; larger is worse. Asked only on repair,
            once a layer.
        original: The model that came in.
        optimized: The float model that competes with the quantized ones.
    """

    build: Callable[[Choice], ModelT | None]
    judge: Callable[[ModelT], Quality]
    clock: Callable[[Mapping[str, ModelT]], Mapping[str, Latency]]
    layers: Mapping[str, str]
    damage: Callable[[str], float]
    original: ModelT
    optimized: ModelT


@dataclass(frozen=True)
class Selection(Generic[ModelT]):
    """What the search chose.

    Attributes:
        name: ``original``, ``float, optimized`` or the name of the choice.
        choice: What to quantize; None where the model stays in float.
        model: The model.
        latency: The final measurement, by name.
        decisions: Every candidate with its figures and what became of it.
    """

    name: str
    choice: Choice | None
    model: ModelT
    latency: Mapping[str, Latency]
    decisions: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Candidate(Generic[ModelT]):
    choice: Choice
    model: ModelT
    quality: Quality


def search(
    subject: Subject[ModelT], choices: Sequence[Choice], *, keep_slower: bool = False
) -> Selection[ModelT]:
    """Choose among ``choices``, their repairs and refinements, and the float models.

    Args:
        subject: How to build, judge and time.
        choices: Where to start; the widest first.
        keep_slower: Take the first choice that meets the budget, however slow.
    """
    log = _Log()
    subject = replace(subject, damage=functools.cache(subject.damage))
    starting = [_candidate(subject, choice) for choice in choices]
    nearest = _best_of_each_width([each for each in starting if each is not None], log)
    mixed, gaining = (None, frozenset[str]())
    if nearest and not keep_slower:
        mixed, gaining = _mixed(subject, nearest[-1].choice, log)
    tried = [*nearest, mixed] if mixed is not None else nearest
    repaired = [_repaired(subject, each, log) for each in tried]
    accepted = [each for each in repaired if each is not None]
    if not accepted:
        return _float_only(subject, log)
    if keep_slower:
        latency = _time(subject, accepted[:1])
        return _select(accepted[0], latency, log, "chosen: --keep-slower")
    latency = _time(subject, accepted)
    for each in accepted:
        log.add(each.choice.name, each.quality, latency[each.choice.name], "measured")
    best = min(accepted, key=lambda each: latency[each.choice.name].relative)
    best = _refine(subject, best, gaining, log)
    latency = _time(subject, [best])
    if latency[best.choice.name].relative > latency[FLOAT].relative * _FASTER_BY:
        log.add(best.choice.name, best.quality, latency[best.choice.name], "not faster than float")
        return _float(subject, latency, log)
    return _select(best, latency, log, "chosen")


def _mixed(
    subject: Subject[ModelT], base: Choice, log: _Log
) -> tuple[_Candidate[ModelT] | None, frozenset[str]]:
    """The choice of all classes of layers that gain when quantized alone, and those classes.

    The choice is None where no class gains, or all do: then ``base`` has them all.
    """
    kinds = sorted(set(subject.layers.values()))
    if len(kinds) < 2:
        return None, frozenset()
    models: dict[str, ModelT] = {}
    for kind in kinds:
        model = subject.build(_only(subject, base, (kind,)))
        if model is not None:
            models[f"only {kind}"] = model
    latency = subject.clock({ORIGINAL: subject.original, FLOAT: subject.optimized, **models})
    limit = latency[FLOAT].relative * _FASTER_BY
    gaining = tuple(kind for kind in kinds if _gains(latency.get(f"only {kind}"), limit))
    for name in models:
        gains = _gains(latency[name], limit)
        log.add(name, None, latency[name], "gains" if gains else "no gain over float")
    if not gaining or len(gaining) == len(models):
        return None, frozenset(gaining)
    return _candidate(subject, _only(subject, base, gaining)), frozenset(gaining)


def _gains(latency: Latency | None, limit: float) -> bool:
    return latency is not None and latency.relative < limit


def _only(subject: Subject[ModelT], base: Choice, kinds: Sequence[str]) -> Choice:
    others = [node for node, kind in subject.layers.items() if kind not in kinds]
    name = f"only {kinds[0]}" if len(kinds) == 1 else f"only the {len(kinds)} classes that gain"
    return base.without(others, name, FASTER)


def _repaired(
    subject: Subject[ModelT], candidate: _Candidate[ModelT], log: _Log
) -> _Candidate[ModelT] | None:
    """``candidate`` within the budget, if need be with its most damaging layers in float.

    None where no repair meets the budget.
    """
    if candidate.quality.passed:
        return candidate
    choice = candidate.choice
    log.add(choice.name, candidate.quality, None, "misses the budget")
    layers = [name for name in subject.layers if name not in choice.skip]
    ranked = sorted(layers, key=subject.damage, reverse=True) if len(layers) > 1 else layers
    low, high, repaired = 0, len(ranked), None
    # Leaving more of the worst layers in float never hurts: the smallest sufficient number.
    while high - low > 1:
        middle = (low + high) // 2
        count = f"{middle} most sensitive layer{'s' if middle > 1 else ''}"
        worst = choice.without(ranked[:middle], f"{choice.name}, {count} in float", SENSITIVE)
        attempt = _candidate(subject, worst)
        if attempt is None:
            high = middle
            continue
        passed = attempt.quality.passed
        log.add(attempt.choice.name, attempt.quality, None, "repair" if passed else "not enough")
        if passed:
            high, repaired = middle, attempt
        else:
            low = middle
    return repaired


def _best_of_each_width(
    candidates: Sequence[_Candidate[ModelT]], log: _Log
) -> list[_Candidate[ModelT]]:
    """Of candidates that differ only in calibration, the nearest to the original."""
    best: dict[tuple[str, ...], _Candidate[ModelT]] = {}
    for each in candidates:
        rival = best.get(each.choice.op_types)
        if rival is None or _nearness(each) > _nearness(rival):
            best[each.choice.op_types] = each
    for each in candidates:
        if each is not best[each.choice.op_types]:
            log.add(each.choice.name, each.quality, None, "other calibration is nearer")
    return list(best.values())


def _nearness(candidate: _Candidate[ModelT]) -> tuple[bool, float]:
    return candidate.quality.passed, candidate.quality.score


def _refine(
    subject: Subject[ModelT], best: _Candidate[ModelT], gaining: frozenset[str], log: _Log
) -> _Candidate[ModelT]:
    """Put one class of layers after another back into float, where that is faster.

    Classes that are ``gaining`` alone need no second look.
    """
    quantized = {
        node: kind for node, kind in subject.layers.items() if node not in best.choice.skip
    }
    kinds = sorted(set(quantized.values()))
    if len(kinds) < 2:
        return best
    for kind in kinds:
        if kind in gaining:
            continue
        nodes = [node for node, each in quantized.items() if each == kind]
        name = f"{best.choice.name}, {kind} in float"
        attempt = _candidate(subject, best.choice.without(nodes, name, FASTER))
        if attempt is None or not attempt.quality.passed:
            continue
        pair = {best.choice.name: best.model, attempt.choice.name: attempt.model}
        latency = subject.clock({ORIGINAL: subject.original, **pair})
        new, old = latency[attempt.choice.name], latency[best.choice.name]
        faster = new.relative < old.relative * _FASTER_BY
        log.add(attempt.choice.name, attempt.quality, new, "kept" if faster else "no gain")
        best = attempt if faster else best
    return best


def _candidate(subject: Subject[ModelT], choice: Choice) -> _Candidate[ModelT] | None:
    """``choice``, built and judged; None where it quantizes nothing."""
    model = subject.build(choice)
    return None if model is None else _Candidate(choice, model, subject.judge(model))


def _time(
    subject: Subject[ModelT], candidates: Sequence[_Candidate[ModelT]]
) -> Mapping[str, Latency]:
    models = {each.choice.name: each.model for each in candidates}
    return subject.clock({ORIGINAL: subject.original, FLOAT: subject.optimized, **models})


def _select(
    best: _Candidate[ModelT], latency: Mapping[str, Latency], log: _Log, outcome: str
) -> Selection[ModelT]:
    log.add(FLOAT, None, latency[FLOAT], "slower than the chosen")
    log.add(best.choice.name, best.quality, latency[best.choice.name], outcome)
    return Selection(best.choice.name, best.choice, best.model, latency, log.rows())


def _float_only(subject: Subject[ModelT], log: _Log) -> Selection[ModelT]:
    return _float(subject, _time(subject, []), log)


def _float(
    subject: Subject[ModelT], latency: Mapping[str, Latency], log: _Log
) -> Selection[ModelT]:
    """The optimized float model, or the original where even that is slower."""
    slower = latency[FLOAT].relative * _FASTER_BY > latency[ORIGINAL].relative
    name, model = (ORIGINAL, subject.original) if slower else (FLOAT, subject.optimized)
    log.add(FLOAT, None, latency[FLOAT], "slower than the original" if slower else "chosen")
    return Selection(name, None, model, latency, log.rows())


class _Log:
    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(
        self, name: str, quality: Quality | None, latency: Latency | None, outcome: str
    ) -> None:
        self._rows.append(
            {
                "candidate": name,
                "quality": quality.text if quality else "",
                "median_ms": latency.median_ms if latency else None,
                "relative": latency.relative if latency else None,
                "outcome": outcome,
            }
        )

    def rows(self) -> tuple[dict[str, Any], ...]:
        return tuple(self._rows)
