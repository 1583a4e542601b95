from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from onnxfold.passes import patterns
from onnxfold.passes.base import Contract
from onnxfold.passes.errors import NonConvergenceError, PassError, UsageError
from onnxfold.passes.patterns import PatternPass, RuleTable, apply_rules, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_nodes

Parse = Callable[..., ir.Model]
AssertText = Callable[[ir.Model, str], None]


@rule("drop-pair", "Neg")
def drop_pair(node: ir.Node, rewriter: Rewriter) -> None:
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is None or producer.op_type != "Neg":
        return
    rewriter.replace_node(node, [producer.inputs[0]])
    if not producer.outputs[0].uses():
        rewriter.erase(producer)


def turn(name: str, before: str, after: str) -> patterns.Rule:
    @rule(name, before)
    def apply(node: ir.Node, rewriter: Rewriter) -> None:
        new = rewriter.insert(node, after, [node.inputs[0]], name=f"{after}_value")
        rewriter.replace_node(node, [new])

    return apply


@dataclass(frozen=True)
class DropPairs(PatternPass):
    """Neg(Neg(x)) is x."""

    name: ClassVar[str] = "drop-pairs"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        return (drop_pair, turn("floor", "Ceil", "Floor"))


def negations(count: int) -> str:
    nodes = " ".join(f"t{i + 1} = Neg(t{i})" for i in range(count))
    return f"g (float[N] t0) => (float[N] y) {{ {nodes} y = Relu(t{count}) }}"


def test_rules_run_to_a_fixpoint(parse: Parse, assert_text: AssertText) -> None:
    model = parse(negations(9))
    result = DropPairs().run(model)
    assert_text(model, "g (float[N] t0) => (float[N] y) { t9 = Neg(t0) y = Relu(t9) }")
    assert result.rules == {"drop-pair": 4}
    assert result.statistics == {"replaced": 4, "erased": 8}
    assert not DropPairs().run(model).modified


def test_bodies_and_functions_are_rewritten(parse: Parse, assert_text: AssertText) -> None:
    template = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (bool c, float[2] x) => (float[2] y) {
        %s
        y = If (c) <then_branch = a () => (float[2] p) { %s p = Relu(%s) },
                    else_branch = b () => (float[2] q) { q = local.f(x) }>
    }
    <domain: "local", opset_import: ["" : 21]>
    f (a) => (r) { %s r = Relu(%s) }"""
    model = parse(template % ("t = Neg(x)", "u = Neg(t)", "u", "m = Neg(a) n = Neg(m)", "n"))
    result = DropPairs().run(model)
    # The captured t is read by nothing any more, and goes with its pair.
    assert_text(model, template % ("", "", "x", "", "a"))
    assert result.rules == {"drop-pair": 2}


@rule("drop-dead")
def drop_dead(node: ir.Node, rewriter: Rewriter) -> None:
    if not any(output.uses() or output.is_graph_output() for output in node.outputs):
        rewriter.erase(node)


@rule("fuse-single", "Relu")
def fuse_single(node: ir.Node, rewriter: Rewriter) -> None:
    source = node.inputs[0]
    assert source is not None
    if len(source.uses()) == 1 and source.producer() is not None:
        rewriter.set_attribute(node, "fused", 1)
        rewriter.set_input(node, 0, node.graph.inputs[0] if node.graph else None)


def test_producers_of_erased_nodes_are_visited_again(parse: Parse) -> None:
    model = parse("g (float[N] x) => (float[N] y) { a = Abs(x) b = Neg(a) c = Exp(b) y = Relu(x) }")
    rewriter = Rewriter(model, "p")
    apply_rules(rewriter, (drop_dead,))
    assert [node.op_type for node in model.graph] == ["Relu"]


def test_the_last_consumer_of_a_value_is_visited_again(parse: Parse) -> None:
    model = parse("g (float[N] x) => (float[N] y) { a = Abs(x) y = Relu(a) c = Exp(a) }")
    rewriter = Rewriter(model, "p")
    apply_rules(rewriter, (fuse_single, drop_dead))
    assert rewriter.rules == {"drop-dead": 1, "fuse-single": 1}


def test_ping_pong_is_reported(parse: Parse) -> None:
    model = parse("g (float[N] x) => (float[N] y) { t = Floor(x) y = Relu(t) }")
    rules = (turn("up", "Floor", "Ceil"), turn("down", "Ceil", "Floor"))
    with pytest.raises(NonConvergenceError, match=r"pass p does not converge: down, up keep"):
        apply_rules(Rewriter(model, "p"), rules)


def test_growth_is_reported(parse: Parse) -> None:
    @rule("grow", "Floor")
    def grow(node: ir.Node, rewriter: Rewriter) -> None:
        rewriter.insert(node, "Floor", [node.inputs[0]], name="more")

    model = parse("g (float[N] x) => (float[N] y) { y = Floor(x) }")
    with pytest.raises(NonConvergenceError, match="grow"):
        apply_rules(Rewriter(model, "p"), (grow,))


def test_the_cap_is_per_node(parse: Parse) -> None:
    count = patterns.MAX_REWRITES_PER_NODE + 20
    nodes = " ".join(f"t{i + 1} = Floor(t{i})" for i in range(count))
    model = parse(f"g (float[N] t0) => (float[N] y) {{ {nodes} y = Relu(t{count}) }}")
    rewriter = Rewriter(model, "p")
    apply_rules(rewriter, (turn("up", "Floor", "Ceil"),))
    assert rewriter.rules == {"up": count}


def test_rules_can_be_switched_off(parse: Parse) -> None:
    model = parse(negations(4))
    assert not DropPairs(disable=("drop-pair",)).run(model).modified


def test_unknown_rules_are_refused_with_a_suggestion(parse: Parse) -> None:
    with pytest.raises(UsageError, match=r"no rule 'drop-pear'; did you mean 'drop-pair'\?"):
        DropPairs(disable=("drop-pear",)).run(parse(negations(1)))


def test_the_first_rule_that_rewrites_wins(parse: Parse) -> None:
    model = parse("g (float[N] x) => (float[N] y) { t = Floor(x) y = Relu(t) }")
    rewriter = Rewriter(model, "p")
    apply_rules(rewriter, (turn("first", "Floor", "Abs"), turn("second", "Floor", "Exp")))
    assert rewriter.rules == {"first": 1}


def test_rules_see_other_domains_by_qualified_name(parse: Parse) -> None:
    seen: list[str] = []

    @rule("look", "com.microsoft::Gelu")
    def look(node: ir.Node, rewriter: Rewriter) -> None:
        seen.append(node.op_type)

    @rule("look-all")
    def look_all(node: ir.Node, rewriter: Rewriter) -> None:
        seen.append(f"any {node.op_type}")

    text = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> '
    model = parse(text + "g (float[N] x) => (float[N] y) { t = com.microsoft.Gelu(x) y = Gelu(t) }")
    apply_rules(Rewriter(model, "p"), (look, look_all))
    assert seen == ["Gelu", "any Gelu", "any Gelu"]


def test_no_rule_sees_the_bodies_of_an_erased_node(parse: Parse) -> None:
    @rule("drop-if", "If")
    def drop_if(node: ir.Node, rewriter: Rewriter) -> None:
        new = rewriter.insert(node, "Identity", [node.inputs[0]], name="n")
        rewriter.replace_node(node, [new])

    @rule("look", "Not")
    def look(node: ir.Node, rewriter: Rewriter) -> None:
        pytest.fail("a node of an erased body was visited")

    model = parse("""g (bool c) => (bool y) {
        y = If (c) <then_branch = a () => (bool p) { p = Not(c) },
                    else_branch = b () => (bool q) { q = Not(c) }> }""")
    apply_rules(Rewriter(model, "p"), (drop_if, look))
    assert [node.op_type for node in all_nodes(model)] == ["Identity"]


def test_a_rule_that_raises_is_named(parse: Parse) -> None:
    @rule("broken", "Relu")
    def broken(node: ir.Node, rewriter: Rewriter) -> None:
        raise KeyError("oops")

    @dataclass(frozen=True)
    class Broken(PatternPass):
        name: ClassVar[str] = "break"
        contract: ClassVar[Contract] = Contract.EXACT

        def rules(self) -> RuleTable:
            return (broken,)

    with pytest.raises(PassError, match=r"pass break failed at broken on Relu 'y': KeyError"):
        Broken().run(parse(negations(0)))


def test_listeners_are_detached_afterwards(parse: Parse) -> None:
    model = parse(negations(2))
    rewriter = Rewriter(model, "p")
    apply_rules(rewriter, (drop_pair,))
    assert rewriter._listeners == []  # pyright: ignore[reportPrivateUsage]
