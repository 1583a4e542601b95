"""The configuration file of ``compile``: the options of the command line, and exceptions, as TOML.

::

    preset = "best"
    budget = "sqnr=30"
    skip = ["head"]

    [[override]]
    regex = "encoder/.*"
    precision = 16
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli

from onnxfold.passes.errors import UsageError
from onnxfold.passes.suggest import did_you_mean

OVERRIDES = "override"
_KINDS: dict[str, type] = {
    "target": str,
    "mode": str,
    "budget": str,
    "metric": str,
    "preset": str,
    "calibration": str,
    "calibration_cache": str,
    "keep_slower": bool,
    "reduce_range": bool,
    "costs": str,
    "activations": str,
    "weights": str,
    "per_channel": bool,
    "symmetric": bool,
    "op_types": list,
    "skip": list,
    "only": list,
    OVERRIDES: list,
}
_PATHS = ("calibration_cache", "costs", "metric")
_WORDS = {str: "text", bool: "true or false", list: "a list"}


def read_config(path: Path) -> dict[str, Any]:
    """The options that a file sets, by the names that ``onnxfold.compile`` has for them.

    Paths in it are meant from the folder it lies in.

    Raises:
        UsageError: The file is missing or no TOML, or holds an unknown option or one of a wrong
            type.
    """
    try:
        document = tomli.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the configuration: {error}") from None
    except tomli.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    return {
        name: value for key, raw in document.items() for name, value in [_option(path, key, raw)]
    }


def merged(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with what was ``given`` besides, which goes before; None is not given."""
    return {**config, **{name: value for name, value in given.items() if value is not None}}


def _option(path: Path, key: str, value: Any) -> tuple[str, Any]:
    name = key.replace("-", "_")
    kind = _KINDS.get(name)
    if kind is None:
        known = [each.replace("_", "-") for each in _KINDS]
        raise UsageError(f"{path}: no option '{key}'{did_you_mean(key, known)}")
    if name == "budget" and type(value) in (int, float):
        value = str(value)
    if type(value) is not kind:
        raise UsageError(f"{path}: {key} is {value!r}; expected {_WORDS[kind]}")
    if name in _PATHS:
        value = str(path.parent / value)
    if kind is list and name != OVERRIDES:
        items: list[Any] = value
        if not all(isinstance(each, str) for each in items):
            raise UsageError(f"{path}: {key} is {value!r}; expected a list of texts")
        value = tuple(items)
    return name, value
