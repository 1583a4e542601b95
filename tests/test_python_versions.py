"""Every supported Python can read this code: the oldest decides, whichever runs the tests."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST = (3, 10)
FOLDERS = ("src", "passes", "runtime", "tests", "benchmarks", "examples", "fixtures", "docs")
FILES = sorted({path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")})
YOUNGER: dict[str, frozenset[str]] = {
    "typing": frozenset(
        {
            *("assert_never", "assert_type", "clear_overloads", "dataclass_transform"),
            *("get_overloads", "get_protocol_members", "is_protocol", "LiteralString"),
            *("Never", "NoDefault", "NotRequired", "override", "ReadOnly", "Required"),
            *("reveal_type", "Self", "TypeAliasType", "TypeIs", "TypeVarTuple", "Unpack"),
        }
    ),
    "asyncio": frozenset({"TaskGroup", "timeout", "Runner"}),
    "collections.abc": frozenset({"Buffer"}),
    "contextlib": frozenset({"chdir"}),
    "copy": frozenset({"replace"}),
    "datetime": frozenset({"UTC"}),
    "enum": frozenset({"StrEnum", "ReprEnum", "EnumCheck", "verify", "member", "nonmember"}),
    "hashlib": frozenset({"file_digest"}),
    "inspect": frozenset({"getmembers_static"}),
    "itertools": frozenset({"batched"}),
    "math": frozenset({"cbrt", "exp2", "fma", "sumprod"}),
    "operator": frozenset({"call"}),
    "tomllib": frozenset(),
    "warnings": frozenset({"deprecated"}),
}
"""Modules younger than 3.10 (no names), and names younger than 3.10 in older ones."""
ALL_YOUNGER = frozenset[str]().union(*YOUNGER.values())
ONE_ARGUMENT = frozenset({"Generator", "AsyncGenerator"})
"""Before 3.13 these take all their arguments where they are evaluated."""


def younger_names(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """What a file takes from the standard library that the oldest Python lacks."""
    modules: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            modules.update({each.asname or each.name: each.name for each in node.names})
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if YOUNGER.get(each.name) == frozenset())
        elif isinstance(node, ast.ImportFrom) and node.module in YOUNGER:
            names = YOUNGER[node.module]
            yield from (
                f"{node.module}.{each.name}"
                for each in node.names
                if not names or each.name in names
            )
        elif isinstance(node, ast.Attribute) and node.attr in ALL_YOUNGER:
            module = modules.get(ast.unparse(node.value), "")
            if node.attr in YOUNGER.get(module, frozenset()):
                yield f"{module}.{node.attr}"


def annotations_of(nodes: Sequence[ast.AST]) -> list[ast.AST]:
    found = [getattr(node, field, None) for node in nodes for field in ("annotation", "returns")]
    return [each for each in found if each is not None]


def short_generics(nodes: Sequence[ast.AST], annotations: Sequence[ast.AST]) -> Iterator[str]:
    """Generators of one argument outside annotations, which alone are never evaluated."""
    unevaluated = {each for annotation in annotations for each in ast.walk(annotation)}
    for node in nodes:
        if (
            isinstance(node, ast.Subscript)
            and not isinstance(node.slice, ast.Tuple)
            and node not in unevaluated
            and ast.unparse(node.value).rpartition(".")[2] in ONE_ARGUMENT
        ):
            yield ast.unparse(node)


def problems(source: str) -> list[str]:
    nodes = list(ast.walk(ast.parse(source, feature_version=OLDEST)))
    annotations = annotations_of(nodes)
    found = [*younger_names(nodes), *short_generics(nodes, annotations)]
    if annotations and "from __future__ import annotations" not in source:
        found.append("annotations are evaluated")
    return found


def test_the_oldest_python_reads_all_files() -> None:
    found = {str(path.relative_to(ROOT)): problems(path.read_text("utf-8")) for path in FILES}
    assert {name: each for name, each in found.items() if each} == {}
    assert len(found) > 500


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from typing import Self", "typing.Self"),
        ("import typing as t\ndef f() -> t.Never: ...", "typing.Never"),
        ("import tomllib", "tomllib"),
        ("from tomllib import loads", "tomllib.loads"),
        ("import enum\nclass A(enum.StrEnum): ...", "enum.StrEnum"),
        ("from collections.abc import Generator\nX = Generator[int]", "Generator[int]"),
    ],
)
def test_younger_names_are_found(line: str, name: str) -> None:
    assert problems(f"from __future__ import annotations\n{line}") == [name]


@pytest.mark.parametrize("line", ["try: ...\nexcept* OSError: ...", "def f[T](x: T) -> T: ..."])
def test_younger_syntax_is_found(line: str) -> None:
    with pytest.raises(SyntaxError):
        problems(line)


def test_annotations_of_a_file_are_not_evaluated() -> None:
    assert problems("def f(x: int) -> int: ...") == ["annotations are evaluated"]


def test_the_metadata_names_the_versions_that_are_run() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = ".".join(map(str, OLDEST))
    assert f'requires-python = ">={oldest}"' in text
    assert f'pythonVersion = "{oldest}"' in text
    classified = re.findall(r"Python :: 3\.(\d+)", text)
    assert classified[0] == str(OLDEST[1])
    assert str(sys.version_info.minor) in classified
