from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from onnxfold.runtime.compiler.choice import (
    FLOAT,
    ORIGINAL,
    Choice,
    Ladder,
    Latency,
    Quality,
    Selection,
    Subject,
)
from onnxfold.runtime.compiler.search import search

LAYERS = {"stem": "Conv, 3 input channels", "body": "Conv", "head": "Gemm"}
WIDE = Choice("everything", ("Conv", "Gemm", "Add"))
LINEAR = Choice("linear", ("Conv", "Gemm"))

# A "model" here is the set of layers it quantizes, plus "Add" where elementwise operators are.
Model = frozenset[str]


def build(choice: Choice) -> Model | None:
    layers = {name for name in LAYERS if name not in choice.skip}
    if not layers:
        return None
    return frozenset(layers | ({"Add"} if "Add" in choice.op_types else set()))


def subject(
    milliseconds: Mapping[str, float],
    damage: Mapping[str, float] | None = None,
    *,
    float_ms: float = 10.0,
    original_ms: float = 10.0,
    allowed: float = 1.0,
) -> Subject[Model]:
    """A world in which each quantized part adds its milliseconds to (or takes them from) 10."""
    damages = damage or {}

    def latency_of(name: str, model: Model) -> float:
        if name == ORIGINAL:
            return original_ms
        if name == FLOAT:
            return float_ms
        return float_ms + sum(milliseconds.get(part, 0.0) for part in model)

    def clock(models: Mapping[str, Model]) -> dict[str, Latency]:
        times = {name: latency_of(name, model) for name, model in models.items()}
        return {name: Latency(ms, ms / times[ORIGINAL]) for name, ms in times.items()}

    def judge(model: Model) -> Quality:
        lost = sum(damages.get(part, 0.0) for part in model)
        return Quality(lost <= allowed, -lost, f"lost {lost}")

    return Subject(
        build=build,
        judge=judge,
        clock=clock,
        layers=LAYERS,
        damage=lambda layer: damages.get(layer, 0.0),
        original=frozenset({"original"}),
        optimized=frozenset({"float"}),
    )


def outcomes(selection: Selection[Model]) -> dict[str, str]:
    return {row["candidate"]: row["outcome"] for row in selection.decisions}


def test_takes_the_fastest_width() -> None:
    selection = search(subject({"body": -6.0, "Add": 1.0}), [WIDE, LINEAR])
    assert selection.model == {"stem", "body", "head"}
    assert outcomes(selection)["linear"] == "chosen"


def test_a_class_of_layers_that_is_slower_in_integers_goes_back_to_float() -> None:
    selection = search(subject({"body": -6.0, "stem": 2.0, "head": -1.0}), [LINEAR])
    assert selection.model == {"body", "head"}
    assert selection.choice is not None
    assert selection.choice.skip == ("stem",)
    assert dict(selection.choice.in_float)["stem"].startswith("it is faster in float")


def test_nothing_slower_than_float_is_chosen() -> None:
    selection = search(subject({"body": 3.0, "stem": 2.0, "head": 0.1}), [WIDE, LINEAR])
    assert (selection.name, selection.choice) == (FLOAT, None)
    assert selection.model == {"float"}


def test_not_even_an_optimized_float_model_that_is_slower_than_the_original() -> None:
    selection = search(subject({"body": 3.0}, float_ms=12.0), [LINEAR])
    assert selection.name == ORIGINAL
    assert selection.model == {"original"}


def test_keep_slower_takes_the_widest_choice_within_the_budget() -> None:
    selection = search(subject({"body": 30.0}), [WIDE, LINEAR], keep_slower=True)
    assert selection.model == {"stem", "body", "head", "Add"}


def test_the_most_damaging_layers_go_back_to_float_until_the_budget_is_met() -> None:
    world = subject({"body": -6.0, "head": -1.0, "stem": -1.0}, {"head": 5.0, "stem": 0.2})
    selection = search(world, [LINEAR])
    assert selection.model == {"stem", "body"}
    assert outcomes(selection)["linear"] == "misses the budget"


def test_what_one_layer_alone_spoils_is_given_up_soon() -> None:
    names = [f"layer{number}" for number in range(40)]
    tried: list[int] = []

    def built(choice: Choice) -> Model | None:
        tried.append(len(choice.skip))
        return frozenset(name for name in names if name not in choice.skip)

    world = replace(
        subject({}, dict.fromkeys(names, 2.0)), build=built, layers=dict.fromkeys(names, "Conv")
    )
    selection = search(world, [LINEAR], keep_slower=True)
    assert (selection.choice, tried) == (None, [0, 20, 39])


@pytest.mark.parametrize(
    ("rounding", "in_16_bits", "in_float"),
    [({"head": 5.0}, ("head",), ()), ({"head": 5.0, "stem": 4.0}, ("head", "stem"), ())],
)
def test_where_16_bits_are_no_loss_they_come_before_float(
    rounding: dict[str, float], in_16_bits: tuple[str, ...], in_float: tuple[str, ...]
) -> None:
    world = subject({"body": -6.0}, rounding)
    wide = replace(world, build=built_wide, widens=True)
    selection = search(wide, [LINEAR], keep_slower=True)
    assert selection.choice is not None
    assert selection.choice.in_16_bits == in_16_bits
    assert selection.choice.skip == in_float


def test_what_16_bits_do_not_mend_goes_to_float() -> None:
    world = replace(subject({"body": -6.0}, {"head": 5.0}), widens=True)
    selection = search(world, [LINEAR], keep_slower=True)
    assert selection.choice is not None
    assert (selection.choice.in_16_bits, selection.choice.skip) == ((), ("head",))
    assert outcomes(selection)["linear, all 3 layers in 16 bits"] == "not enough"


def built_wide(choice: Choice) -> Model | None:
    """A world in which no layer is damaged whose activations have 16 bits."""
    model = build(choice)
    return None if model is None else model - set(choice.in_16_bits)


def test_float_where_no_repair_meets_the_budget() -> None:
    world = subject({"body": -6.0}, {"head": 5.0, "stem": 5.0, "body": 5.0})
    assert search(world, [LINEAR]).name == FLOAT


@pytest.mark.parametrize("better", ["min-max", "percentile"])
def test_of_two_calibrations_the_nearer_one_is_timed(better: str) -> None:
    choices = [Choice(name, ("Conv",), calibration=name) for name in ("min-max", "percentile")]
    world = subject({"body": -6.0})
    judged: Callable[[Choice], Model] = lambda choice: (  # noqa: E731
        (build(choice) or Model()) | {choice.calibration}
    )

    def judge(model: Model) -> Quality:
        return Quality(True, 1.0 if better in model else 0.5, "")

    changed = Subject(judged, judge, world.clock, {}, world.damage, world.original, world.optimized)
    assert search(changed, choices).name == better


def test_where_most_classes_lose_those_that_gain_alone_are_quantized_together() -> None:
    """Here even the wide choices with one class taken back are slower than float."""
    times = {"body": -2.0, "head": -1.0, "stem": 9.0, "Add": 9.0}
    selection = search(subject(times), [WIDE, LINEAR])
    assert selection.model == {"body", "head"}
    assert outcomes(selection)["only the 2 classes that gain"] == "chosen"
    assert outcomes(selection)["only Conv"] == "gains"
    assert outcomes(selection)["only Conv, 3 input channels"] == "no gain over float"


def test_a_mix_that_misses_the_budget_is_repaired() -> None:
    world = subject({"body": -6.0, "head": -3.0, "stem": 2.0}, {"head": 5.0})
    assert search(world, [LINEAR]).model == {"body"}


def test_a_choice_that_quantizes_nothing_is_no_candidate() -> None:
    def nothing(choice: Choice) -> Model | None:
        return None

    world = replace(subject({}), build=nothing)
    selection = search(world, [WIDE, LINEAR])
    assert selection.name == FLOAT
    assert [row["candidate"] for row in selection.decisions] == [FLOAT]


def test_only_the_nearest_calibration_is_repaired_and_each_layer_ranked_once() -> None:
    asked: list[str] = []
    world = subject({"body": -6.0, "head": -1.0, "stem": -1.0}, {"head": 5.0})

    def damage(layer: str) -> float:
        asked.append(layer)
        return world.damage(layer)

    choices = [replace(LINEAR, name=name, calibration=name) for name in ("min-max", "percentile")]
    selection = search(replace(world, damage=damage), [WIDE, *choices])
    assert "head" not in selection.model
    assert outcomes(selection)["percentile"] == "other calibration is nearer"
    assert sorted(asked) == sorted(LAYERS)


def test_a_rung_is_kept_only_where_it_brings_the_model_nearer() -> None:
    def built(choice: Choice) -> Model | None:
        return frozenset({*(build(choice) or ()), *choice.rungs})

    world = replace(
        subject({"body": -6.0}, {"body": 0.5}),
        build=built,
        ladder=Ladder(("mends", "harms"), frozenset({"mends", "harms"})),
    )
    scores = {"mends": 2.0, "harms": -3.0}

    def judge(model: Model) -> Quality:
        score = sum(scores.get(part, 0.0) for part in model)
        return Quality(True, score, f"{score} dB")

    selection = search(replace(world, judge=judge), [LINEAR])
    assert selection.choice is not None
    assert selection.choice.rungs == ("mends",)
    rows = {row["candidate"]: row for row in selection.decisions if row["gain_db"] is not None}
    assert rows["linear + mends"]["gain_db"] == 2.0
    assert rows["linear + mends + harms"]["outcome"] == "no gain"
    assert rows["linear + mends"]["seconds"] >= 0.0


def test_dear_rungs_are_climbed_only_until_the_budget_is_met() -> None:
    tried: list[str] = []

    def built(choice: Choice) -> Model | None:
        tried.extend(choice.rungs[-1:])
        return frozenset({*(build(choice) or ()), *choice.rungs})

    def judge(model: Model) -> Quality:
        return Quality("second" in model, float(len(model)), "")

    world = replace(
        subject({"body": -6.0}),
        build=built,
        judge=judge,
        ladder=Ladder(("first", "second", "third")),
    )
    selection = search(world, [LINEAR])
    assert selection.choice is not None
    assert selection.choice.rungs == ("first", "second")
    assert "third" not in tried


def test_a_rung_that_has_nothing_to_do_is_not_judged() -> None:
    judged: list[Model] = []
    world = subject({"body": -6.0})

    def judge(model: Model) -> Quality:
        judged.append(model)
        return world.judge(model)

    def is_idle(choice: Choice) -> bool:
        return choice.rungs == ("idle",)

    idle = replace(
        world,
        judge=judge,
        ladder=Ladder(("idle",), frozenset({"idle"})),
        is_idle=is_idle,
    )
    tried: list[Choice] = []

    def built(choice: Choice) -> Model | None:
        tried.append(choice)
        return build(choice)

    search(replace(idle, build=built, layers={"body": "Conv"}), [LINEAR])
    assert len(judged) == 1
    assert [each.rungs for each in tried] == [()]


def test_accuracy_is_not_worked_on_where_a_width_is_slower_than_float() -> None:
    tried: list[Choice] = []

    def built(choice: Choice) -> Model | None:
        tried.append(choice)
        return build(choice)

    world = replace(
        subject({"body": -6.0, "Add": 20.0}),
        build=built,
        ladder=Ladder(("rung",), frozenset({"rung"})),
    )
    selection = search(world, [WIDE, LINEAR])
    assert {each.op_types for each in tried if each.rungs} == {LINEAR.op_types}
    assert outcomes(selection)["everything"] == "not faster than float"


MIXED = {"body": 0.8, "head": 0.1, "stem": 0.01}


def test_of_what_is_fast_enough_the_most_accurate_is_chosen() -> None:
    world = subject({"body": -2.0, "head": -2.0, "stem": -2.0}, MIXED)
    fastest = search(world, [LINEAR])
    assert fastest.model == {"stem", "body", "head"}
    accurate = search(replace(world, slowest=0.65, mixes=True), [LINEAR])
    assert accurate.model == {"stem", "head"}
    assert outcomes(accurate)["linear, 2 noisiest layers in float"] == "mixed precision"


def test_the_curve_is_measured_where_it_is_asked_for_and_the_fastest_stays() -> None:
    world = replace(subject({"body": -2.0, "head": -2.0, "stem": -2.0}, MIXED), mixes=True)
    selection = search(world, [LINEAR])
    assert selection.model == {"stem", "body", "head"}
    points = [row for row in selection.decisions if row["outcome"] == "mixed precision"]
    assert outcomes(selection)["linear"] == "chosen"
    assert [row["relative"] for row in points] == pytest.approx([0.6, 0.8])
    assert [row["score_db"] for row in points] == pytest.approx([-0.11, -0.01])


def test_what_is_slower_is_not_looked_at_once_the_fastest_is_within_the_budget() -> None:
    tried: list[Choice] = []

    def built(choice: Choice) -> Model | None:
        tried.append(choice)
        return build(choice)

    world = replace(
        subject({"body": -6.0, "Add": 1.0, "head": -1.0, "stem": -1.0}),
        build=built,
        ladder=Ladder(("rung",), frozenset({"rung"})),
    )
    assert search(world, [WIDE, LINEAR]).model == {"stem", "body", "head"}
    assert {each.op_types for each in tried if each.rungs} == {LINEAR.op_types}


@pytest.mark.parametrize(("add_ms", "repaired"), [(3.0, False), (0.5, True)])
def test_what_is_slower_than_another_that_is_repaired_is_not_repaired(
    add_ms: float, repaired: bool
) -> None:
    """Repaired, the linear operators take 3 ms; all operators take 2 ms and the time of Add."""
    tried: list[Choice] = []

    def built(choice: Choice) -> Model | None:
        tried.append(choice)
        return build(choice)

    damages = {"head": 5.0, "stem": 0.2}
    world = subject({"body": -6.0, "head": -1.0, "stem": -1.0, "Add": add_ms}, damages)
    selection = search(replace(world, build=built), [WIDE, LINEAR])
    assert selection.model == {"stem", "body"}
    wide = [each for each in tried if each.op_types == WIDE.op_types and each.skip == ("head",)]
    assert bool(wide) is repaired


def test_a_little_time_buys_accuracy() -> None:
    """The head takes 2.5 % of the time and makes most of the noise that is within the budget."""
    damages = {"body": 0.1, "head": 0.6, "stem": 0.05}
    shares = {"body": 0.9, "head": 0.02, "stem": 0.08}
    world = subject({"body": -1.0, "head": -0.21, "stem": -0.5}, damages)
    frugal = replace(world, share=shares.__getitem__, allowance=0.03)
    assert search(world, [LINEAR]).model == {"stem", "body", "head"}
    selection = search(frugal, [LINEAR])
    assert selection.model == {"stem", "body"}
    assert selection.choice is not None
    assert dict(selection.choice.in_float)["head"].startswith("it takes little time")


def test_what_costs_more_than_the_allowance_is_not_bought() -> None:
    damages = {"body": 0.1, "head": 0.6, "stem": 0.05}
    world = subject({"body": -6.0, "head": -0.5, "stem": -0.5}, damages)
    # Its share of the float time is small, but what it costs among integers is not.
    shares = dict.fromkeys(LAYERS, 0.02)
    frugal = replace(world, share=shares.__getitem__, allowance=0.03)
    selection = search(frugal, [LINEAR])
    assert selection.model == {"stem", "body", "head"}
    assert outcomes(selection)["linear, 1 noisiest layer in float"] == "mixed precision"


def test_a_candidate_that_does_not_run_is_refused_and_the_others_go_on() -> None:
    world = subject({"body": -6.0, "head": -1.0, "stem": -1.0})

    def judge(model: Model) -> Quality:
        if "Add" in model:
            return Quality(False, -math.inf, "does not run: no kernel")
        return world.judge(model)

    def clock(models: Mapping[str, Model]) -> Mapping[str, Latency]:
        running = {name: model for name, model in models.items() if name != "only Gemm"}
        return world.clock(running)

    selection = search(replace(world, judge=judge, clock=clock), [WIDE, LINEAR])
    assert selection.model == {"stem", "body", "head"}
    assert outcomes(selection)["everything"] == "refused"
    assert outcomes(selection)["only Gemm"] == "does not run"


def test_dear_rungs_are_not_climbed_where_the_budget_is_out_of_reach() -> None:
    tried: list[str] = []

    def built(choice: Choice) -> Model | None:
        tried.extend(choice.rungs[-1:])
        return build(choice)

    def judge(model: Model) -> Quality:
        return Quality(False, 10.0, "", shortfall_db=20.0)

    ladder = Ladder(("cheap", "dear"), frozenset({"cheap"}))
    world = replace(subject({"body": -6.0}), build=built, judge=judge, ladder=ladder)
    search(world, [LINEAR])
    assert set(tried) == {"cheap"}


def test_choices_that_come_to_the_same_model_are_worked_on_once() -> None:
    def alike(one: Model, other: Model) -> bool:
        return one == other - {"Add"}

    world = replace(subject({"body": -6.0}), alike=alike)
    found = outcomes(search(world, [WIDE, LINEAR]))
    assert found["linear"] == "the same as everything"
    assert found["everything"] == "chosen"


def test_a_repair_keeps_what_was_learned_and_learns_anew_once() -> None:
    built: list[Choice] = []

    def judge(model: Model) -> Quality:
        return Quality(len(model) <= 2, -float(len(model)), f"{len(model)} layers")

    def noted(choice: Choice) -> Model | None:
        built.append(choice)
        return build(choice)

    world = replace(
        subject({"body": -6.0, "head": -1.0, "stem": -1.0}),
        build=noted,
        judge=judge,
        ladder=Ladder(("mend",), frozenset({"mend"})),
    )
    mended = replace(LINEAR, rungs=("mend",))
    search(world, [mended])
    repairs = {each.name: each.lessons for each in built if "sensitive" in each.name}
    assert list(repairs.values()) == [(), None]
    assert [name.endswith("compensated anew") for name in repairs] == [False, True]


@pytest.mark.parametrize(("damaging", "looked_at"), [(1, False), (3, True)])
def test_few_layers_in_float_end_the_search(damaging: int, looked_at: bool) -> None:
    names = [f"layer {number}" for number in range(8)]

    def build_of(choice: Choice) -> Model | None:
        layers = {name for name in names if name not in choice.skip}
        return frozenset(layers | ({"Add"} if "Add" in choice.op_types else set()))

    damages = dict.fromkeys(names[:damaging], 2.0)
    base = subject({**dict.fromkeys(names, -0.5), "Add": 0.5}, damages)
    world = replace(base, build=build_of, layers=dict.fromkeys(names, "Conv"))
    found = outcomes(search(world, [WIDE, LINEAR]))
    # The narrower choice is the faster one: the wider need not be repaired after it.
    assert any(name.startswith("linear, ") for name in found)
    assert any(name.startswith("everything, ") for name in found) is looked_at


@pytest.mark.parametrize(
    ("relative", "chosen"), [(0.9, {"stem", "body", "head"}), (1.1, {"float"})]
)
def test_the_chosen_must_be_confirmed_on_one_thread(relative: float, chosen: set[str]) -> None:
    def one_thread(models: Mapping[str, Model]) -> dict[str, Latency]:
        assert list(models) == [FLOAT, "linear"]
        return {FLOAT: Latency(10.0, 1.0), "linear": Latency(10.0 * relative, relative)}

    world = replace(subject({"body": -6.0}), confirm=one_thread)
    selection = search(world, [LINEAR])
    assert selection.model == chosen
    assert ("slower than float on one thread" in outcomes(selection).values()) == (relative > 1)


@pytest.mark.parametrize("noise", [-0.02, 0.0, 0.02])
def test_of_what_is_as_fast_as_is_known_the_nearest_is_chosen(noise: float) -> None:
    """Whichever of the two the clock calls faster this time."""
    world = subject({"body": -6.0, "Add": noise * 4.0}, {"Add": 0.8})
    assert search(world, [WIDE, LINEAR]).name == "linear"


@pytest.mark.parametrize("damage", [-0.1, 0.1])
def test_what_is_equal_in_time_and_score_stays_in_order(damage: float) -> None:
    world = subject({"body": -6.0}, {"Add": damage})
    assert search(world, [WIDE, LINEAR]).name == "everything"
    assert search(world, [LINEAR, WIDE]).name == "linear"


@pytest.mark.parametrize(("spread", "chosen"), [(0.0, "everything"), (0.05, "linear")])
def test_what_is_faster_by_no_more_than_timings_spread_does_not_replace_what_is_nearer(
    spread: float, chosen: str
) -> None:
    world = subject({"body": -6.0, "Add": -0.16}, {"Add": 0.8})

    def clock(models: Mapping[str, Model]) -> dict[str, Latency]:
        return {name: replace(each, spread=spread) for name, each in world.clock(models).items()}

    assert search(replace(world, clock=clock), [WIDE, LINEAR]).name == chosen


def test_a_spread_without_limit_does_not_hide_what_is_much_faster() -> None:
    assert Latency(1.0, 0.8, spread=0.5).is_faster(Latency(1.0, 1.0, spread=0.5))


@pytest.mark.parametrize(
    ("score", "passed", "taken"), [(-0.4, True, True), (-0.6, True, False), (-0.4, False, False)]
)
def test_what_saves_time_is_taken_while_it_costs_hardly_any_accuracy(
    score: float, passed: bool, taken: bool
) -> None:
    def built(choice: Choice) -> Model | None:
        return frozenset({*(build(choice) or ()), *choice.rungs})

    def judge(model: Model) -> Quality:
        quick = "quick" in model
        return Quality(passed or not quick, score if quick else 0.0, "")

    world = replace(
        subject({"body": -6.0}), build=built, judge=judge, ladder=Ladder(cheaper=("quick",))
    )
    selection = search(world, [LINEAR])
    assert ("quick" in selection.model) is taken
    assert outcomes(selection)["linear + quick"] == ("chosen" if taken else "not worth the noise")
