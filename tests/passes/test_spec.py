from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.script import ScriptReference
from onnxfold.passes.spec import (
    build_pass,
    option_summary,
    parse_pipeline,
    print_pass,
    print_pipeline,
)


@dataclass(frozen=True)
class EveryOption(Pass):
    name: ClassVar[str] = "every-option"
    contract: ClassVar[Contract] = Contract.EXACT
    flag: bool = False
    on_by_default: bool = True
    count: int = 3
    ratio: float = 0.5
    text: str = "x"
    path: Path = Path("a")
    kind: Literal["u8", "s8"] = "u8"
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    limit: int | None = None
    axes: tuple[int, ...] | None = None
    promise: Contract = Contract.EXACT
    script: ScriptReference | None = None

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        pass


@dataclass(frozen=True)
class Needy(Pass):
    name: ClassVar[str] = "needy"
    contract: ClassVar[Contract] = Contract.EXACT
    must: int

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        pass


def build(text: str) -> EveryOption:
    (spec,) = parse_pipeline(text)
    built = build_pass(EveryOption, spec)
    assert isinstance(built, EveryOption)
    return built


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PATHS = st.text('abc/. ,"\\{', min_size=1, max_size=8).map(Path)

PASSES = st.builds(
    EveryOption,
    flag=st.booleans(),
    on_by_default=st.booleans(),
    count=st.integers(),
    ratio=st.floats(allow_nan=False),
    text=TEXTS,
    path=PATHS,
    kind=st.sampled_from(["u8", "s8"]),
    names=st.lists(TEXTS, max_size=4).map(tuple),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    limit=st.none() | st.integers(),
    axes=st.none() | st.lists(st.integers(), max_size=3).map(tuple),
    promise=st.sampled_from(Contract),
    script=st.none() | st.builds(ScriptReference, PATHS, st.sampled_from(["f", "run"])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PASSES, max_size=3))
def test_what_is_printed_parses_back(passes: list[EveryOption]) -> None:
    text = print_pipeline(passes)
    assert [build_pass(EveryOption, spec) for spec in parse_pipeline(text)] == passes


def test_defaults_are_not_printed() -> None:
    assert print_pass(EveryOption()) == "every-option"
    assert print_pass(EveryOption(flag=True, on_by_default=False, sizes=())) == (
        "every-option{flag on-by-default=false sizes}"
    )


def test_required_options_are_printed() -> None:
    assert print_pass(Needy(7)) == "needy{must=7}"
    assert option_summary(Needy) == ["must"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("every-option{}", EveryOption()),
        ("every-option{flag}", EveryOption(flag=True)),
        ("every-option { flag = true count=-4 }", EveryOption(flag=True, count=-4)),
        ("every-option{on-by-default=false}", EveryOption(on_by_default=False)),
        ('every-option{text="a b, \\"c\\" {} \\\\"}', EveryOption(text='a b, "c" {} \\')),
        ("every-option{names=a,b,c}", EveryOption(names=("a", "b", "c"))),
        ("every-option{limit=none}", EveryOption()),
        ("every-option{axes}", EveryOption(axes=())),
        ("every-option{ratio=inf}", EveryOption(ratio=math.inf)),
        ("every-option{promise=additive}", EveryOption(promise=Contract.ADDITIVE)),
    ],
)
def test_parsing(text: str, expected: EveryOption) -> None:
    assert build(text) == expected


def test_a_pipeline_is_a_list() -> None:
    assert [spec.name for spec in parse_pipeline(" a , b{x=1},c ")] == ["a", "b", "c"]
    assert parse_pipeline("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b", "expected ',' at column 3 of 'a b'"),
        ("a,", "expected a pass name at the end"),
        ("a{x=}", "expected a value for x at column 5"),
        ("a{x=1", "expected an option name or '}' at the end"),
        ("{}", "expected a pass name at column 1"),
        ('a{x="1}', "unexpected '\"' at column 5"),
        ("a{x=1 x=2}", "option x is given twice"),
    ],
)
def test_malformed_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pipeline(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("every-option{cuont=1}", "has no option 'cuont'; did you mean 'count'?"),
        ("every-option{zzz=1}", "has no option 'zzz' (it has flag, on-by-default,"),
        ("every-option{count=one}", "option count: 'one' is not of type int"),
        ("every-option{ratio=x}", "option ratio: 'x' is not of type float"),
        ("every-option{count=1,2}", "option count: expected one value, got 2"),
        ("every-option{flag=yes}", "option flag: 'yes' is not true or false"),
        ("every-option{kind=u9}", "option kind: 'u9' is not one of u8, s8; did you mean 'u8'?"),
        ("every-option{limit=x}", "option limit: 'x' is not of type int"),
        ("every-option{sizes=1,b}", "option sizes: 'b' is not of type int"),
        ("every-option{promise=most}", "option promise: 'most' is not one of exact, "),
        ("every-option{script=a.py}", "option script: 'a.py' is not of the form file.py:function"),
    ],
)
def test_bad_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(text)
    assert message in str(caught.value)


def test_a_missing_required_option_is_named() -> None:
    with pytest.raises(UsageError, match="pass needy needs the option must"):
        build_pass(Needy, parse_pipeline("needy")[0])
