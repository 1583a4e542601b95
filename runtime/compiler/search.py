"""Chooses what to quantize: what is faster first, then as near as it gets, within the budget.

The search knows nothing of models: it is given functions that build, judge and time a choice, so
that it can be tested without either. What it does:

1. Each starting choice is built and judged; of those that differ in calibration only, the nearest
   goes on.
2. Starting from float, each class of layers is quantized alone and timed. Those that gain are
   quantized together: one more choice, which wins where most classes are slower in integers.
3. What is not faster than float is dropped, before any effort is spent on its accuracy.
4. The accuracy ladder is climbed, the fastest first: compensations, each kept only where it is
   measured to help.
5. A choice that still misses the budget is repaired: the layers that do most damage for the time
   they save go back to float until the budget is met.
6. What meets the budget is timed, interleaved with the original and the optimized float model.
7. From the fastest, one class of layers after another that gained nothing alone is tried in float;
   it stays there where that is faster.
8. Rungs that save time are climbed as long as the budget is met and they add hardly any noise.
9. A little time buys accuracy: the layers that make most noise for the time they save go to float
   as long as that costs a few per cent. Where asked, the whole curve of what accuracy costs is
   measured; where so much speed is asked for, the most accurate point that has it is taken.
10. Nothing is chosen that is slower than the original, nor slower than float by a second
   measurement of another kind.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxfold.runtime.compiler.choice import (
    FASTER,
    FASTER_BY,
    FLOAT,
    ORIGINAL,
    Candidate,
    Choice,
    Latency,
    Log,
    ModelT,
    Selection,
    Subject,
    in_order,
)
from onnxfold.runtime.compiler.frontier import mixtures, most_accurate, spending
from onnxfold.runtime.compiler.ladder import climb
from onnxfold.runtime.compiler.repair import repair

_MOST_REPAIRED = 2
_FEW_LAYERS = 0.25
"""Of all: whoever needs no more in float is hardly beaten by what was slower with none."""
_WORTH_TIME_DB = 0.5
"""Accuracy beyond the budget that gains less is not worth any time; nor is the time saved by what
costs more."""


def search(
    subject: Subject[ModelT], choices: Sequence[Choice], *, keep_slower: bool = False
) -> Selection[ModelT]:
    """Choose among ``choices``, their repairs and refinements, and the float models.

    Args:
        subject: How to build, judge and time.
        choices: Where to start; the widest first.
        keep_slower: Take the first choice that meets the budget, however slow.
    """
    log = Log()
    subject = replace(subject, damage=functools.cache(subject.damage))
    starting = [subject.candidate(choice) for choice in choices]
    nearest = _best_of_each_width(_running(subject, starting, log), log)
    if not nearest:
        return _float(subject, subject.time([]), log)
    if keep_slower:
        return _widest(subject, nearest, log)
    static = [each for each in nearest if each.choice.scheme == nearest[0].choice.scheme]
    mixed, gaining = _mixed(subject, static[-1].choice, log)
    tried, times = _faster(subject, [*nearest, mixed] if mixed is not None else nearest, log)
    accepted = _within_budget(subject, tried, times, log)
    if not accepted:
        return _float(subject, subject.time([]), log)
    latency = subject.time(accepted)
    for each in accepted:
        log.add(each.choice.name, each.quality, latency[each.choice.name], "measured")
    best = in_order(accepted, latency)[0]
    best = _refine(subject, best, gaining, log)
    best = _cheaper(subject, best, log)
    best, latency = _balanced(subject, best, log)
    if not _gains(latency[best.choice.name], latency):
        log.add(best.choice.name, best.quality, latency[best.choice.name], "not faster than float")
        return _float(subject, latency, log)
    if not _is_confirmed(subject, best, log):
        return _float(subject, latency, log)
    return _select(best, latency, log, "chosen")


def _is_confirmed(subject: Subject[ModelT], best: Candidate[ModelT], log: Log) -> bool:
    if subject.confirm is None:
        return True
    name = best.choice.name
    latency = subject.confirm({FLOAT: subject.optimized, name: best.model})
    if latency[name].relative <= 1.0:
        return True
    log.add(name, best.quality, latency[name], "slower than float on one thread")
    return False


def _within_budget(
    subject: Subject[ModelT],
    tried: Sequence[Candidate[ModelT]],
    times: Mapping[str, Latency],
    log: Log,
) -> list[Candidate[ModelT]]:
    """What can be made of ``tried``, the fastest first, until one needs few layers in float for it.

    Compensations cost no time: what is slower need not be looked at after that. Two that do need
    more in float are enough to choose from: repairs take long, and dear compensations longer,
    which only the fastest is worth. What is slower before it is repaired than another after that is
    not repaired at all.
    """
    accepted: list[Candidate[ModelT]] = []
    cheap = replace(subject, ladder=subject.ladder.only_cheap)
    for number, each in enumerate(tried):
        found = repair(subject, climb(cheap if number else subject, each, log), log)
        if found is None:
            continue
        accepted.append(found)
        moved = len(found.choice.in_float) - len(each.choice.in_float)
        if moved <= _FEW_LAYERS * len(subject.layers) or len(accepted) == _MOST_REPAIRED:
            break
        if not _may_be_faster(subject, tried[number + 1 :], found, times):
            break
    return accepted


def _may_be_faster(
    subject: Subject[ModelT],
    others: Sequence[Candidate[ModelT]],
    found: Candidate[ModelT],
    times: Mapping[str, Latency],
) -> bool:
    """Whether any of ``others``, timed before, may be faster than ``found`` when it is repaired."""
    if not others:
        return False
    latency = subject.time([found])[found.choice.name]
    return any(times[each.choice.name].is_faster(latency) for each in others)


def _cheaper(subject: Subject[ModelT], best: Candidate[ModelT], log: Log) -> Candidate[ModelT]:
    """``best`` with every rung that saves time, within the budget and at hardly more noise.

    What they save is less than can be timed here, but known of the kernels.
    """
    for rung in subject.ladder.cheaper if best.choice.scheme == "static" else ():
        choice = best.choice.compensated(rung)
        attempt = None if subject.is_idle(choice) else subject.candidate(choice)
        if attempt is None:
            continue
        gain = attempt.quality.score - best.quality.score
        taken = attempt.quality.passed and gain >= -_WORTH_TIME_DB
        outcome = "saves time" if taken else "not worth the noise"
        log.add(choice.name, attempt.quality, None, outcome, gain_db=gain)
        best = attempt if taken else best
    return best


def _balanced(
    subject: Subject[ModelT], best: Candidate[ModelT], log: Log
) -> tuple[Candidate[ModelT], Mapping[str, Latency]]:
    """``best``, or the mixture of integer and float layers that suits better; and latencies."""
    if not subject.allowance and not subject.mixes and subject.slowest is None:
        return best, subject.time([best])
    spent = [
        each
        for each in spending(subject, best)
        if each.quality.score >= best.quality.score + _WORTH_TIME_DB
    ]
    points = [best, *spent, *(mixtures(subject, best) if subject.mixes else [])]
    points = [each for each in points if each.quality.score > -math.inf]
    latency = subject.time(points)
    slowest = subject.slowest
    if slowest is None:
        passed = [each for each in points if each.quality.passed]
        fastest = min((latency[each.choice.name].relative for each in passed), default=0.0)
        slowest = fastest * (1.0 + subject.allowance)
    chosen = most_accurate(points, latency, slowest) or best
    for each in points:
        outcome = "best trade" if each is chosen else "mixed precision"
        log.add(each.choice.name, each.quality, latency[each.choice.name], outcome)
    return chosen, latency


def _widest(
    subject: Subject[ModelT], candidates: Sequence[Candidate[ModelT]], log: Log
) -> Selection[ModelT]:
    """The first of ``candidates`` that can be brought within the budget, however slow it is."""
    for each in candidates:
        found = repair(subject, climb(subject, each, log), log)
        if found is not None:
            return _select(found, subject.time([found]), log, "chosen: --keep-slower")
    return _float(subject, subject.time([]), log)


def _running(
    subject: Subject[ModelT], candidates: Sequence[Candidate[ModelT] | None], log: Log
) -> list[Candidate[ModelT]]:
    """Those of ``candidates`` that exist and run, each model once."""
    found = [each for each in candidates if each is not None]
    for each in found:
        if each.quality.score == -math.inf:
            log.add(each.choice.name, each.quality, None, "refused")
    distinct: list[Candidate[ModelT]] = []
    for each in found:
        if each.quality.score == -math.inf:
            continue
        twin = next((other for other in distinct if _is_twin(subject, each, other)), None)
        if twin is None:
            distinct.append(each)
        else:
            log.add(each.choice.name, each.quality, None, f"the same as {twin.choice.name}")
    return distinct


def _is_twin(subject: Subject[ModelT], one: Candidate[ModelT], other: Candidate[ModelT]) -> bool:
    """Whether two choices have come to the same model: equal to the last bit of its noise."""
    how = [(each.choice.scheme, each.choice.calibration, each.quality) for each in (one, other)]
    return how[0] == how[1] and subject.alike(one.model, other.model)


def _faster(
    subject: Subject[ModelT], candidates: Sequence[Candidate[ModelT]], log: Log
) -> tuple[list[Candidate[ModelT]], Mapping[str, Latency]]:
    """Those of ``candidates`` that are faster than float, the fastest first (see ``in_order``).

    Latencies come with them. Leaving layers in float can make others faster: where nothing gains,
    the fastest is kept.
    """
    latency = subject.time(candidates)
    kept: list[Candidate[ModelT]] = []
    for each in candidates:
        found = latency[each.choice.name]
        if _gains(found, latency):
            kept.append(each)
        else:
            log.add(each.choice.name, each.quality, found, "not faster than float")
    if not kept:
        return [min(candidates, key=lambda each: latency[each.choice.name].relative)], latency
    return in_order(kept, latency), latency


def _mixed(
    subject: Subject[ModelT], base: Choice, log: Log
) -> tuple[Candidate[ModelT] | None, frozenset[str]]:
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
    gaining = tuple(kind for kind in kinds if _gains(latency.get(f"only {kind}"), latency))
    for name in models:
        found = latency.get(name)
        gains = "gains" if _gains(found, latency) else "no gain over float"
        log.add(name, None, found, gains if found else "does not run")
    if not gaining or len(gaining) == len(models):
        return None, frozenset(gaining)
    return subject.candidate(_only(subject, base, gaining)), frozenset(gaining)


def _gains(found: Latency | None, latency: Mapping[str, Latency]) -> bool:
    """Whether ``found`` is faster than the float model of the same measurement."""
    return found is not None and found.relative < latency[FLOAT].relative * FASTER_BY


def _only(subject: Subject[ModelT], base: Choice, kinds: Sequence[str]) -> Choice:
    others = [node for node, kind in subject.layers.items() if kind not in kinds]
    name = f"only {kinds[0]}" if len(kinds) == 1 else f"only the {len(kinds)} classes that gain"
    return base.without(others, name, FASTER)


def _best_of_each_width(
    candidates: Sequence[Candidate[ModelT]], log: Log
) -> list[Candidate[ModelT]]:
    """Of candidates that differ only in calibration, the nearest to the original."""
    best: dict[tuple[str, tuple[str, ...]], Candidate[ModelT]] = {}
    for each in candidates:
        width = each.choice.scheme, each.choice.op_types
        rival = best.get(width)
        if rival is None or _nearness(each) > _nearness(rival):
            best[width] = each
    for each in candidates:
        if each not in best.values():
            log.add(each.choice.name, each.quality, None, "other calibration is nearer")
    return list(best.values())


def _nearness(candidate: Candidate[ModelT]) -> tuple[bool, float]:
    return candidate.quality.passed, candidate.quality.score


def _refine(
    subject: Subject[ModelT], best: Candidate[ModelT], gaining: frozenset[str], log: Log
) -> Candidate[ModelT]:
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
        attempt = subject.candidate(best.choice.with_more_in_float(nodes, name, FASTER))
        if attempt is None or not attempt.quality.passed:
            continue
        pair = {best.choice.name: best.model, attempt.choice.name: attempt.model}
        latency = subject.clock({ORIGINAL: subject.original, **pair})
        new, old = latency[attempt.choice.name], latency[best.choice.name]
        faster = new.is_faster(old)
        log.add(attempt.choice.name, attempt.quality, new, "kept" if faster else "no gain")
        best = attempt if faster else best
    return best


def _select(
    best: Candidate[ModelT], latency: Mapping[str, Latency], log: Log, outcome: str
) -> Selection[ModelT]:
    log.add(FLOAT, None, latency[FLOAT], "slower than the chosen")
    log.add(best.choice.name, best.quality, latency[best.choice.name], outcome)
    return Selection(best.choice.name, best.choice, best.model, latency, log.rows())


def _float(subject: Subject[ModelT], latency: Mapping[str, Latency], log: Log) -> Selection[ModelT]:
    """The optimized float model, or the original where even that is slower."""
    slower = latency[FLOAT].relative * FASTER_BY > latency[ORIGINAL].relative
    name, model = (ORIGINAL, subject.original) if slower else (FLOAT, subject.optimized)
    log.add(FLOAT, None, latency[FLOAT], "slower than the original" if slower else "chosen")
    return Selection(name, None, model, latency, log.rows())
