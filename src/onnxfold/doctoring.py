"""``doctor``: what is installed to export with, what works, and the fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxfold.passes.errors import UsageError
from onnxfold.passes.suggest import did_you_mean
from onnxfold.runtime.export.front_end import EXTRAS
from onnxfold.runtime.export.sources import FRAMEWORKS, Framework

_SECONDS = 120.0
_PYTHONS = "3.10-3.13"


@dataclass(frozen=True)
class _Needs:
    required: tuple[str, ...]
    optional: Mapping[str, str]
    together: str


_NEEDS: dict[Framework, _Needs] = {
    "tensorflow": _Needs(
        ("tensorflow", "tf2onnx", "onnx"),
        {"tf_keras": "layers models of TensorFlow.js, and some .h5"},
        "'tensorflow==2.21.0' 'tf_keras==2.21.0' 'tf2onnx==1.17.0' 'onnx==1.23.2'",
    ),
    "torch": _Needs(
        ("torch", "onnxscript", "onnx"),
        {},
        "'torch>=2.13.0,<=2.14.1' 'onnxscript==0.7.2' 'onnx==1.23.2'",
    ),
    "sklearn": _Needs(
        ("sklearn", "skl2onnx", "onnx"),
        {
            "onnxmltools": "models of LightGBM and XGBoost",
            "lightgbm": "models of LightGBM",
            "xgboost": "models of XGBoost",
        },
        "'scikit-learn>=1.7.2,<=1.9.1' 'skl2onnx==1.20.0' 'onnxmltools==1.16.0' 'onnx==1.23.2'",
    ),
}
"""What each framework's front end imports, what only some models need, and versions that were run
together."""

_PROBE = """
import importlib, importlib.metadata, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
found, broken = {}, {}
for name in sys.argv[1:]:
    try:
        found[name] = str(importlib.import_module(name).__version__)
    except ModuleNotFoundError as error:
        if error.name in sys.argv and error.name != name:
            found[name] = str(importlib.metadata.version(name))
        elif error.name != name:
            broken[name] = str(error)
    except Exception as error:
        broken[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps({"version": sys.version.split()[0], "found": found, "broken": broken}))
"""


@dataclass(frozen=True)
class Finding:
    """What an interpreter has to export one framework's models with.

    Attributes:
        framework: The framework.
        python: The interpreter.
        python_version: Its version.
        installed: Packages to versions.
        broken: Packages that are there and cannot be imported, with the reason.
        works: Whether all that is needed can be imported.
        kinds: The kinds of models that it exports.
        together: Versions that are known to work together, as arguments of pip.
        fix: What to run; empty if it works.
        without: Packages that are not there, with what only they are needed for.
    """

    framework: str
    python: str
    python_version: str
    installed: Mapping[str, str]
    broken: Mapping[str, str]
    works: bool
    kinds: tuple[str, ...]
    together: str
    fix: str
    without: Mapping[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def diagnose(
    frameworks: Sequence[str] = (), python: str | os.PathLike[str] | None = None
) -> list[Finding]:
    """Look into an interpreter, which imports the frameworks in a process of its own.

    Args:
        frameworks: Which; all if empty.
        python: The interpreter; if None, ``ONNXFOLD_PYTHON``'s, or else the one that runs this.

    Raises:
        UsageError: No such framework or interpreter.
    """
    for each in frameworks:
        if each not in _NEEDS:
            raise UsageError(f"no framework '{each}'{did_you_mean(each, _NEEDS)}")
    wanted: list[Framework] = [each for each in _NEEDS if not frameworks or each in frameworks]
    interpreter = os.fspath(python or os.environ.get("ONNXFOLD_PYTHON") or sys.executable)
    return [_finding(each, interpreter) for each in wanted]


def remarks_of(findings: Sequence[Finding]) -> Iterator[str]:
    """What else there is to say, in lines: what cannot be imported, and what only some need."""
    for each in findings:
        for name, reason in each.broken.items():
            yield f"{each.framework}: {name} cannot be imported: {reason}"
        for name, what in each.without.items():
            if each.works:
                yield f"{each.framework}: {name} is not installed; only {what} need it"


def _finding(framework: Framework, python: str) -> Finding:
    needs = _NEEDS[framework]
    seen = _probe(python, (*needs.required, *needs.optional))
    missing = [name for name in needs.required if name not in seen["found"]]
    version: str = seen["version"]
    fix = ""
    if missing and not (3, 10) <= _version(version) <= (3, 13):
        fix = f"Python {version} is not known to work: take {_PYTHONS}"
    elif missing and python == sys.executable and not seen["broken"]:
        fix = f"pip install 'onnxfold[{EXTRAS[framework]}]'"
    elif missing:
        fix = f"{python} -m pip install {needs.together}"
    return Finding(
        framework,
        python,
        version,
        seen["found"],
        seen["broken"],
        not missing,
        tuple(kind for kind, owner in FRAMEWORKS.items() if owner == framework),
        needs.together,
        fix,
        {
            name: what
            for name, what in needs.optional.items()
            if name not in seen["found"] and name not in seen["broken"]
        },
    )


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _probe(python: str, names: Sequence[str]) -> dict[str, Any]:
    command = [python, "-c", _PROBE, *names]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{python} did not answer within {_SECONDS:.0f} s") from error
    except OSError as error:
        raise UsageError(f"cannot run {python}: {error.strerror or error}") from error
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        words = " ".join(done.stderr.decode(errors="replace").split())[-200:]
        raise UsageError(f"{python} is no Python that works: {words or 'no word'}") from error
