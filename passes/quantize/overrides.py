"""Exceptions from a quantization scheme: by operator type, by node name or by regular expression.

As text, a JSON list, or the path of a file that holds one::

    [{"op_type": "MatMul", "weight_ranges": "mse"},
     {"regex": "encoder/.*", "precision": 16},
     {"name": "head", "precision": "float"}]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.schemes import Activations, Scheme, WeightRanges, Weights
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.walk import all_nodes

Precision: TypeAlias = Literal["float", "16", "8", "4"]
"""``float``: not quantized; ``16``: activations of 16 bits, weights of 8; ``8``: both of 8;
``4``: activations of 8 bits, weights of 4."""

_MATCHES = ("op_type", "name", "regex")
_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "activations": get_args(Activations),
    "weights": get_args(Weights),
    "weight_ranges": get_args(WeightRanges),
}
_WIDE: dict[str, Activations] = {"u8": "u16", "s8": "s16"}
_NARROW: dict[str, Activations] = {"u16": "u8", "s16": "s8"}


@dataclass(frozen=True)
class Override:
    """One exception: which nodes, and what is different for them.

    A node has to meet every condition that is given. What is not set stays as it was.

    Attributes:
        op_type: The operator.
        name: The name of the node (of its first output where it has none).
        regex: A regular expression that matches the whole name.
        precision: A bundle of types; ``activations`` and ``weights`` go before it.
        activations: Codes of activations.
        weights: Codes of weights.
        per_channel: One weight scale per output channel.
        block: Weights along the input channels that share a scale.
        weight_ranges: How weight scales are chosen.
    """

    op_type: str = ""
    name: str = ""
    regex: str = ""
    precision: Precision | None = None
    activations: Activations | None = None
    weights: Weights | None = None
    per_channel: bool | None = None
    block: int | None = None
    weight_ranges: WeightRanges | None = None

    def __post_init__(self) -> None:
        """Check the conditions.

        Raises:
            UsageError: There is no condition, or the regular expression is malformed.
        """
        if not (self.op_type or self.name or self.regex):
            raise UsageError("overrides: an entry needs one of op_type, name and regex")
        try:
            re.compile(self.regex)
        except re.error as error:
            raise UsageError(
                f"overrides: '{self.regex}' is no regular expression: {error}"
            ) from None

    @property
    def names_types(self) -> bool:
        """Whether it says of what type activations are."""
        return self.activations is not None or self.precision is not None

    def matches(self, node: ir.Node) -> bool:
        """Whether ``node`` meets all conditions."""
        if self.op_type and (node.op_type != self.op_type or node.domain):
            return False
        if self.name and node_name(node) != self.name:
            return False
        return not self.regex or re.fullmatch(self.regex, node_name(node)) is not None

    def to_json(self) -> dict[str, str | int | bool]:
        """The fields that are set."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if value not in (None, "")}

    def apply(self, scheme: Scheme) -> Scheme:
        """``scheme`` with what is different."""
        if self.precision is not None:
            scheme = _with_precision(scheme, self.precision)
        changed = {
            each.name: value
            for each in fields(Scheme)
            if (value := getattr(self, each.name)) is not None
        }
        return replace(scheme, **changed)


@dataclass(frozen=True)
class Overrides:
    """Exceptions in order: where several match a node, later ones go before earlier ones.

    Attributes:
        entries: The exceptions.
    """

    entries: tuple[Override, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.entries)

    @classmethod
    def from_entries(cls, entries: Iterable[Mapping[str, Any]]) -> Overrides:
        """From tables as JSON and TOML have them; names may be written with hyphens.

        Raises:
            UsageError: A name or a value is not known, or an entry has no condition.
        """
        return cls(tuple(_entry(each) for each in entries))

    @classmethod
    def from_text(cls, text: str) -> Overrides:
        """Parse a JSON list, or the file that ``text`` names.

        Raises:
            UsageError: The file is missing, or it is no such list.
        """
        source = "overrides"
        if not text.lstrip().startswith("["):
            source, text = text, _read(text)
        try:
            document: Any = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{source}: not JSON: {error}") from None
        listed = cast("list[Any]", document) if isinstance(document, list) else [None]
        if not all(isinstance(each, dict) for each in listed):
            raise UsageError(f"{source}: expected a list of objects")
        return cls.from_entries(cast("list[dict[str, Any]]", listed))

    def to_text(self) -> str:
        """The JSON list."""
        return json.dumps([each.to_json() for each in self.entries], ensure_ascii=False)

    def check(self, model: ir.Model) -> None:
        """Make sure that every entry matches something.

        Raises:
            UsageError: One matches no node; suggests the nearest name.
        """
        nodes = list(all_nodes(model)) if self.entries else []
        for entry in self.entries:
            if any(entry.matches(node) for node in nodes):
                continue
            wanted = entry.name or entry.op_type
            known = {node_name(each) if entry.name else each.op_type for each in nodes}
            hint = did_you_mean(wanted, sorted(known - {wanted})) if wanted else ""
            condition = ", ".join(
                f"{key.replace('_', '-')} '{value}'"
                for key in _MATCHES
                if (value := getattr(entry, key))
            )
            raise UsageError(f"overrides: the model has no node with {condition}{hint}")

    def in_float(self, node: ir.Node) -> bool:
        """Whether ``node`` is not to be quantized: by the last match that has a precision."""
        found = [each.precision for each in self._matching(node) if each.names_types]
        return bool(found) and found[-1] == "float"

    def names_types(self, node: ir.Node) -> bool:
        """Whether they say of what type the activations of ``node`` are."""
        return any(each.names_types for each in self._matching(node))

    def scheme(self, node: ir.Node, default: Scheme) -> Scheme:
        """The scheme of ``node``, which is quantized, where ``default`` is that of the others."""
        for each in self._matching(node):
            default = each.apply(default)
        return default

    def _matching(self, node: ir.Node) -> list[Override]:
        return [each for each in self.entries if each.matches(node)]


NO_OVERRIDES = Overrides()
"""No exceptions."""


def _with_precision(scheme: Scheme, precision: Precision) -> Scheme:
    kind = scheme.activations
    if precision == "16":
        return replace(scheme, activations=_WIDE.get(kind, kind), weights="s8")
    if precision in ("8", "4"):
        weights: Weights = "s8" if precision == "8" else "s4"
        return replace(scheme, activations=_NARROW.get(kind, kind), weights=weights)
    return scheme


def _entry(table: Mapping[str, Any]) -> Override:
    known = [each.name for each in fields(Override)]
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UsageError(f"overrides: no key '{key}'{did_you_mean(name, known)}")
        found[name] = _value(name, value)
    return Override(**found)


def _value(name: str, value: Any) -> Any:
    if name == "precision" and type(value) is int:
        value = str(value)
    wanted: type = {"per_channel": bool, "block": int}.get(name, str)
    if type(value) is not wanted:
        raise UsageError(f"overrides: {name} is {value!r}; expected {wanted.__name__}")
    choices = _CHOICES.get(name, ())
    if choices and value not in choices:
        hint = did_you_mean(value, choices)
        raise UsageError(f"overrides: {name} '{value}' is not one of {', '.join(choices)}{hint}")
    return value


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the overrides: {error}") from None
