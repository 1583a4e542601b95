"""The vocabulary of the search: choices, how near and how fast they are, and the log of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

ModelT = TypeVar("ModelT")

SENSITIVE = "quantizing it damages the output beyond the budget (measured)"
WIDENED = "its activations take 16 bits: with 8 it damages the output beyond the budget (measured)"
TRADED = "it takes little time, and quantizing it makes much noise (measured)"
FASTER = "it is faster in float here (measured)"

ORIGINAL = "original"
FLOAT = "float, optimized"

FASTER_BY = 0.98
"""A change has to gain 2 % to be made: less is noise on a shared machine."""
_LEAST_SPREAD, _LARGEST_SPREAD = 0.03, 0.06
"""By how much two timings of one model differ even on a quiet machine; and what is taken for noise
at most, where nothing would be faster than anything otherwise."""
_EQUAL_DB = 0.5
"""What compensations that cost no time make of a score."""


Scheme = Literal["static", "dynamic", "weights", "float16"]
"""Activation ranges from calibration; or taken at every run; or only weights, in 4 bits, or stored
as float16."""


@dataclass(frozen=True)
class Choice:
    """What to quantize, how its ranges are found, and what compensates for the rounding.

    Attributes:
        name: What reports call it.
        op_types: The operators to quantize.
        in_float: Nodes to leave in float, each with the reason.
        calibration: How activation ranges are found.
        rungs: Rungs of the accuracy ladder that are climbed, in order.
        scheme: What kind of quantization it is.
        lessons: The nodes in float of the choice from which compensations are taken over that were
            learned from data; None learns anew.
        in_16_bits: Nodes whose activations take 16 bits.
    """

    name: str
    op_types: tuple[str, ...]
    in_float: tuple[tuple[str, str], ...] = ()
    calibration: str = "min-max"
    rungs: tuple[str, ...] = ()
    scheme: Scheme = "static"
    lessons: tuple[str, ...] | None = None
    in_16_bits: tuple[str, ...] = ()

    @property
    def skip(self) -> tuple[str, ...]:
        """Names of the nodes to leave in float."""
        return tuple(node for node, _ in self.in_float)

    def without(self, nodes: Sequence[str], name: str, reason: str) -> Choice:
        """The same with more nodes left in float."""
        kept = {**dict.fromkeys(nodes, reason), **dict(self.in_float)}
        wide = tuple(each for each in self.in_16_bits if each not in kept)
        return replace(self, name=name, in_float=tuple(sorted(kept.items())), in_16_bits=wide)

    def with_more_in_float(self, nodes: Sequence[str], name: str, reason: str) -> Choice:
        """The same with more nodes left in float; what the others learned stays as it is."""
        lessons = self.skip if self.lessons is None else self.lessons
        return replace(self.without(nodes, name, reason), lessons=lessons)

    def with_more_in_16_bits(self, nodes: Sequence[str], name: str) -> Choice:
        """The same with more nodes whose activations take 16 bits; what was learned stays."""
        lessons = self.skip if self.lessons is None else self.lessons
        wide = tuple(sorted({*self.in_16_bits, *nodes}))
        return replace(self, name=name, in_16_bits=wide, lessons=lessons)

    def compensated(self, rung: str) -> Choice:
        """The same with one more rung climbed."""
        return replace(self, name=f"{self.name} + {rung}", rungs=(*self.rungs, rung))


@dataclass(frozen=True)
class Quality:
    """How near a choice stays to the original.

    Attributes:
        passed: Whether it meets the budget.
        score: Larger is nearer, in dB; orders choices.
        text: For people.
        shortfall_db: By how much the score misses the budget's; 0 where it does not.
    """

    passed: bool
    score: float
    text: str
    shortfall_db: float = 0.0


@dataclass(frozen=True)
class Latency:
    """One model's share of an interleaved measurement.

    Attributes:
        median_ms: Median milliseconds of one run.
        relative: Ratio to the original, of the fastest turns (``Timing.relative_best``).
        spread: Half the width of the confidence interval of that ratio, as a share of it.
    """

    median_ms: float
    relative: float
    spread: float = 0.0

    def is_faster(self, other: Latency) -> bool:
        """Whether this is faster by more than the measurement may be off."""
        noise = max(_LEAST_SPREAD, min(_LARGEST_SPREAD, max(self.spread, other.spread)))
        return self.relative < other.relative * (1.0 - noise)


@dataclass(frozen=True)
class Ladder:
    """Compensations for rounding that cost nothing at run time; and what saves time for a little.

    Attributes:
        rungs: In the order in which they are tried.
        always: Those that are tried even where the budget is met without them.
        reach_db: By how much the budget may be missed for dear rungs to be tried.
        cheaper: Rungs that save time, and are taken as long as they cost hardly any accuracy.
    """

    rungs: tuple[str, ...] = ()
    always: frozenset[str] = frozenset()
    reach_db: float = 6.0
    cheaper: tuple[str, ...] = ()

    @property
    def only_cheap(self) -> Ladder:
        """The same without the rungs that are not tried always."""
        return replace(self, rungs=tuple(each for each in self.rungs if each in self.always))


@dataclass(frozen=True)
class Subject(Generic[ModelT]):
    """What the search works on.

    Attributes:
        build: Makes the model of a choice; None where that quantizes nothing.
        judge: Its quality.
        clock: Times models interleaved, the original among them; by name.
        layers: The linear layers that can be quantized: node name -> class of layer.
        damage: How much noise quantizing one layer alone makes, for each unit of time that it
            saves; larger is worse. Asked only on repair, once a layer.
        original: The model that came in.
        optimized: The float model that competes with the quantized ones.
        ladder: What may be climbed.
        alike: Whether two models of equal quality are the same one.
        is_idle: Whether the rung that a choice climbed last changed nothing in its model.
        mixes: Whether mixtures of integer and float layers are measured, for the curve of what
            accuracy costs.
        share: The share of the float run time that a layer takes, 0 to 1.
        allowance: What share of the time may be given for accuracy beyond the budget.
        slowest: The largest ratio to the original's latency that the user will have; of what is
            faster the most accurate is chosen. None chooses the fastest.
        widens: Whether activations of 16 bits are tried for what misses the budget, before float.
        confirm: A second clock, by processor time of one thread, that the chosen model must not be
            slower by: what else the machine does can make any model look fast by the first.
    """

    build: Callable[[Choice], ModelT | None]
    judge: Callable[[ModelT], Quality]
    clock: Callable[[Mapping[str, ModelT]], Mapping[str, Latency]]
    layers: Mapping[str, str]
    damage: Callable[[str], float]
    original: ModelT
    optimized: ModelT
    ladder: Ladder = Ladder()
    alike: Callable[[ModelT, ModelT], bool] = lambda one, other: one == other
    is_idle: Callable[[Choice], bool] = lambda _: False
    mixes: bool = False
    share: Callable[[str], float] = lambda _: 0.0
    allowance: float = 0.0
    slowest: float | None = None
    widens: bool = False
    confirm: Callable[[Mapping[str, ModelT]], Mapping[str, Latency]] | None = None

    def candidate(self, choice: Choice) -> Candidate[ModelT] | None:
        """``choice``, built and judged; None where there is nothing to build."""
        model = self.build(choice)
        return None if model is None else Candidate(choice, model, self.judge(model))

    def time(self, candidates: Sequence[Candidate[ModelT]]) -> Mapping[str, Latency]:
        """Latencies of ``candidates`` and of both float models, by name."""
        models = {each.choice.name: each.model for each in candidates}
        return self.clock({ORIGINAL: self.original, FLOAT: self.optimized, **models})


@dataclass(frozen=True)
class Candidate(Generic[ModelT]):
    """A choice that was built and judged."""

    choice: Choice
    model: ModelT
    quality: Quality


def in_order(
    candidates: Sequence[Candidate[ModelT]], latency: Mapping[str, Latency]
) -> list[Candidate[ModelT]]:
    """``candidates``, the fastest first; of those that are as fast as can be told, the nearest.

    What is equal in both stays in the order given, so that noise of a measurement decides little;
    scores are equal as far as compensations move them.

    Args:
        candidates: With latencies.
        latency: Of each, by name.
    """
    waiting, found = list(candidates), list[Candidate[ModelT]]()
    while waiting:
        times = {each.choice.name: latency[each.choice.name] for each in waiting}
        fastest = min(times.values(), key=lambda each: each.relative)
        equal = [each for each in waiting if not fastest.is_faster(times[each.choice.name])]
        highest = max(each.quality.score for each in equal)
        near = (each for each in equal if each.quality.score >= highest - _EQUAL_DB)
        nearest = next(near, equal[0])
        found.append(nearest)
        waiting.remove(nearest)
    return found


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


class Log:
    """Every candidate with its figures and what became of it, in order."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        quality: Quality | None,
        latency: Latency | None,
        outcome: str,
        *,
        gain_db: float | None = None,
        seconds: float | None = None,
    ) -> None:
        """Write down one candidate.

        Args:
            name: Of the candidate.
            quality: Where it was judged.
            latency: Where it was timed.
            outcome: What became of it.
            gain_db: What a rung of the ladder gained.
            seconds: What finding it out took.
        """
        self._rows.append(
            {
                "candidate": name,
                "quality": quality.text if quality else "",
                "score_db": quality.score if quality else None,
                "passed": quality.passed if quality else None,
                "median_ms": latency.median_ms if latency else None,
                "relative": latency.relative if latency else None,
                "gain_db": gain_db,
                "seconds": seconds,
                "outcome": outcome,
            }
        )

    def rows(self) -> tuple[dict[str, Any], ...]:
        """What was written down."""
        return tuple(self._rows)
