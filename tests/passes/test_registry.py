from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

import onnxfold.passes
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.registry import PASSES, parse_passes, pass_class, pass_names
from onnxfold.passes.spec import build_pass, parse_pipeline, print_pass

ROOT = Path(onnxfold.passes.__file__).parent
REGISTERED = list(pass_names())


def required_options(cls: type[Pass]) -> list[str]:
    return [
        each.name
        for each in dataclasses.fields(cls)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]


@pytest.mark.parametrize("name", REGISTERED)
def test_a_registered_pass_is_a_documented_frozen_dataclass(name: str) -> None:
    cls = pass_class(name)
    assert issubclass(cls, Pass)
    assert cls.name == name
    assert isinstance(cls.contract, Contract)
    assert dataclasses.is_dataclass(cls)
    assert getattr(cls, "__dataclass_params__").frozen  # noqa: B009
    assert "__init__" in vars(cls), "the class itself must be a dataclass, not only its base"
    assert inspect.getdoc(cls)
    assert importlib.import_module(cls.__module__).__doc__


@pytest.mark.parametrize("name", REGISTERED)
def test_default_options_round_trip(name: str) -> None:
    cls = pass_class(name)
    if required_options(cls):
        with pytest.raises(UsageError, match="needs the option"):
            parse_passes(name)
        return
    (built,) = parse_passes(name)
    assert print_pass(built) == name
    assert build_pass(cls, parse_pipeline(print_pass(built))[0]) == built


@pytest.mark.parametrize("name", REGISTERED)
def test_every_option_is_described(name: str) -> None:
    cls = pass_class(name)
    documentation = "\n".join(filter(None, (inspect.getdoc(each) for each in cls.__mro__)))
    for field in dataclasses.fields(cls):
        assert f"{field.name}:" in documentation, f"option {field.name} of {name}"


def test_every_pass_is_registered() -> None:
    registered = {f"onnxfold.passes.{place.split(':')[0]}" for place in PASSES.values()}
    assert len(registered) == len(PASSES), "one pass a file"
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "name: ClassVar[str] =" in text:
            module = ".".join(("onnxfold.passes", *path.relative_to(ROOT).with_suffix("").parts))
            assert module in registered


def test_an_unknown_pass_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"no pass 'surgoen'; did you mean 'surgeon'\?"):
        parse_passes("surgoen{script=a.py:f}")
