"""Textual pipelines: ``fold-batch-norm,insert-qdq{activations=u8 skip=a,b},fold-qdq{target=ort}``.

A pass's options are its dataclass fields: parsing and printing follow their type hints. Option
names are kebab-case in text. A bare name sets a boolean. A value that holds spaces, commas,
quotes or braces is written in double quotes, with backslash escapes. Supported types: ``bool``,
``int``, ``float``, ``str``, ``Path``, ``Literal`` of strings, ``tuple`` of these, ``X | None``,
and classes with ``from_text(text)`` and ``to_text()``.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, Union, cast, runtime_checkable

from onnxfold.passes.base import Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.suggest import did_you_mean

MadeT = TypeVar("MadeT")


@runtime_checkable
class OptionValue(Protocol):
    """A class that options can have as their type."""

    @classmethod
    def from_text(cls, text: str) -> Any:
        """Parse the option's text."""

    def to_text(self) -> str:
        """Print it so that ``from_text`` gives it back."""
        ...


@dataclass(frozen=True)
class PassSpec:
    """One pass as written: its name, and option names with their unparsed values.

    Attributes:
        name: The pass's kebab-case name.
        options: Each option's values as written; an empty tuple for a bare option.
    """

    name: str
    options: dict[str, tuple[str, ...]]


_TOKEN = re.compile(
    r'(?P<space>\s+)|(?P<mark>[{},=])|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<word>[^\s{},="]+)'
)


def parse_pipeline(text: str) -> tuple[PassSpec, ...]:
    """Split a textual pipeline into its passes.

    Raises:
        UsageError: The text does not follow the grammar; names the position.
    """
    tokens = _Tokens(text)
    specs: list[PassSpec] = []
    while not tokens.done():
        if specs:
            tokens.expect(",")
        name = tokens.word("a pass name")
        specs.append(PassSpec(name, _parse_options(tokens) if tokens.accept("{") else {}))
    return tuple(specs)


def _parse_options(tokens: _Tokens) -> dict[str, tuple[str, ...]]:
    options: dict[str, tuple[str, ...]] = {}
    while not tokens.accept("}"):
        option = tokens.word("an option name or '}'")
        if option in options:
            raise UsageError(f"pipeline: option {option} is given twice")
        values: list[str] = []
        if tokens.accept("="):
            values.append(tokens.word(f"a value for {option}"))
            while tokens.accept(","):
                values.append(tokens.word(f"a value for {option}"))
        options[option] = tuple(values)
    return options


class _Tokens:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise UsageError(f"pipeline: unexpected {text[position]!r} at {self._at(position)}")
            kind = cast(str, match.lastgroup)
            if kind != "space":
                self._tokens.append((kind, match.group(kind), position))
            position = match.end()
        self._next = 0

    def _at(self, position: int) -> str:
        return f"column {position + 1} of {self._text!r}"

    def _position(self) -> str:
        return "the end" if self.done() else self._at(self._tokens[self._next][2])

    def done(self) -> bool:
        return self._next >= len(self._tokens)

    def accept(self, mark: str) -> bool:
        if self.done() or self._tokens[self._next][:2] != ("mark", mark):
            return False
        self._next += 1
        return True

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            raise UsageError(f"pipeline: expected '{mark}' at {self._position()}")

    def word(self, what: str) -> str:
        if self.done() or self._tokens[self._next][0] == "mark":
            raise UsageError(f"pipeline: expected {what} at {self._position()}")
        kind, text, _ = self._tokens[self._next]
        self._next += 1
        return re.sub(r"\\(.)", r"\1", text) if kind == "quoted" else text


def build_pass(pass_class: type[Pass], spec: PassSpec) -> Pass:
    """Make a pass from its class and what was written.

    Raises:
        UsageError: An option is unknown, missing, or its value does not fit its type.
    """
    return build("pass", pass_class, spec)


def build(kind: str, made_class: type[MadeT], spec: PassSpec) -> MadeT:
    """Make an object of any dataclass from what was written; ``kind`` is what messages call it.

    Raises:
        UsageError: An option is unknown, missing, or its value does not fit its type.
    """
    made: Any = made_class
    fields = {each.name: each for each in dataclasses.fields(made)}
    hints = _hints(made_class)
    arguments: dict[str, Any] = {}
    for option, values in spec.options.items():
        field = option.replace("-", "_")
        if field not in fields:
            known = [name.replace("_", "-") for name in fields]
            listing = f" (it has {', '.join(known)})" if known else " (it has none)"
            hint = did_you_mean(option, known) or listing
            raise UsageError(f"{kind} {spec.name} has no option '{option}'{hint}")
        try:
            arguments[field] = _parse_value(hints[field], values)
        except ValueError as error:
            raise UsageError(f"{kind} {spec.name}, option {option}: {error}") from None
    missing = [
        each.name
        for each in fields.values()
        if each.name not in arguments
        and each.default is dataclasses.MISSING
        and each.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{kind} {spec.name} needs the option {missing[0].replace('_', '-')}")
    return made_class(**arguments)


@cache
def _hints(made_class: type) -> dict[str, Any]:
    """The types of its fields; evaluating them takes longer than most passes do."""
    return typing.get_type_hints(made_class)


def _parse_value(hint: Any, values: tuple[str, ...]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _parse_union(arguments, values)
    if origin is tuple:
        return tuple(_parse_value(arguments[0], (value,)) for value in values)
    if hint is bool:
        return _parse_bool(values)
    if len(values) != 1:
        raise ValueError(f"expected one value, got {len(values)}")
    text = values[0]
    if origin is Literal:
        if text not in arguments:
            choices = ", ".join(map(str, arguments))
            raise ValueError(f"'{text}' is not one of {choices}{did_you_mean(text, arguments)}")
        return text
    if hint in (int, float, str, Path):
        return _convert(hint, text)
    if isinstance(hint, type) and issubclass(hint, OptionValue):
        return hint.from_text(text)
    raise ValueError(f"options of type {hint} have no textual form")


def _convert(hint: type, text: str) -> Any:
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"'{text}' is not of type {hint.__name__}") from None


def _parse_union(arguments: tuple[Any, ...], values: tuple[str, ...]) -> Any:
    if values == ("none",) and type(None) in arguments:
        return None
    problems: list[str] = []
    for argument in arguments:
        if argument is type(None):
            continue
        try:
            return _parse_value(argument, values)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; ".join(problems))


def _parse_bool(values: tuple[str, ...]) -> bool:
    known: dict[tuple[str, ...], bool] = {(): True, ("true",): True, ("false",): False}
    if values not in known:
        raise ValueError(f"'{','.join(values)}' is not true or false")
    return known[values]


def option_summary(pass_class: type[Pass]) -> list[str]:
    """Each option of a pass with its default, as ``name=default``; required ones as ``name``."""
    summary: list[str] = []
    for field in dataclasses.fields(pass_class):
        name = field.name.replace("_", "-")
        if field.default is dataclasses.MISSING:
            summary.append(name)
        else:
            default = field.default
            summary.append(f"{name}=false" if default is False else _print_option(name, default))
    return summary


def print_pass(pass_: Pass) -> str:
    """The pass as text, with the options that differ from their defaults."""
    return print_with_options(pass_.name, pass_)


def print_with_options(name: str, made: Any) -> str:
    """``name`` with the fields of the dataclass ``made`` that differ from their defaults."""
    options: list[str] = []
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        has_default = field.default is not dataclasses.MISSING
        if has_default and value == field.default:
            continue
        if field.default_factory is not dataclasses.MISSING and value == field.default_factory():
            continue
        options.append(_print_option(field.name.replace("_", "-"), value))
    return f"{name}{{{' '.join(options)}}}" if options else name


def print_spec(spec: PassSpec) -> str:
    """What was parsed, as text that parses back to it."""
    options = [
        f"{name}={','.join(map(_print_value, values))}" if values else name
        for name, values in spec.options.items()
    ]
    name = _print_value(spec.name)
    return f"{name}{{{' '.join(options)}}}" if options else name


def _print_option(name: str, value: object) -> str:
    if value is True:
        return name
    if isinstance(value, tuple):
        items = cast("tuple[object, ...]", value)
        return f"{name}={','.join(map(_print_value, items))}" if items else name
    return f"{name}={_print_value(value)}"


def _print_value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value.to_text() if isinstance(value, OptionValue) else str(value)
    if text and re.fullmatch(r'[^\s{},="\\]+', text):
        return text
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return f'"{escaped}"'


def describe_pass(pass_: Pass) -> str:
    """As ``print_pass``, for people: values that no text holds are named by what they are."""
    named = {field: _InMemory(value) for field, value in _without_text(pass_).items()}
    return print_with_options(pass_.name, dataclasses.replace(pass_, **named) if named else pass_)


def save_values(pass_: Pass, folder: Path, prefix: str) -> tuple[Pass, tuple[str, ...]]:
    """Write the values that no text holds to ``folder``.

    Args:
        pass_: Any pass.
        folder: An existing folder.
        prefix: What the names of the files begin with.

    Returns:
        The pass as it prints for whoever reads it in that folder; and the names of the files.
    """
    files: dict[str, str] = {}
    saved: dict[str, Any] = {}
    for field, value in _without_text(pass_).items():
        files[field] = f"{prefix}-{field.replace('_', '-')}.npz"
        saved[field] = value.save(folder / files[field])
        saved[field].path = Path(files[field])
    return dataclasses.replace(pass_, **saved) if saved else pass_, tuple(files.values())


def rebased(spec: PassSpec, folder: Path, files: Collection[str]) -> PassSpec:
    """``spec`` with the names of ``files`` as paths in ``folder``."""
    options = {
        name: tuple(str(folder / each) if each in files else each for each in values)
        for name, values in spec.options.items()
    }
    return PassSpec(spec.name, options)


def _without_text(pass_: Pass) -> dict[str, Any]:
    """The options whose value is in memory only, and too large for a text."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(pass_):
        value = getattr(pass_, field.name)
        if not isinstance(value, OptionValue):
            continue
        try:
            value.to_text()
        except UsageError:
            found[field.name] = value
    return found


@dataclass(frozen=True)
class _InMemory:
    """Stands for a value in a text that people read."""

    value: object

    @classmethod
    def from_text(cls, text: str) -> Any:
        raise UsageError(f"'{text}' was never written to a file")

    def to_text(self) -> str:
        return f"({type(self.value).__name__} in memory)"


def print_pipeline(passes: typing.Iterable[Pass]) -> str:
    """The passes as a textual pipeline that parses back to equal passes."""
    return ",".join(map(print_pass, passes))
