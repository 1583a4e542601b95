"""The walls of the house: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PASSES = sorted((ROOT / "passes").rglob("*.py"))
RUNTIME = sorted((ROOT / "runtime").rglob("*.py"))
FRONT = sorted(
    path
    for path in (ROOT / "src" / "onnxfold").rglob("*.py")
    if not {"passes", "runtime"} & set(path.relative_to(ROOT / "src" / "onnxfold").parts)
)
ALL = [*PASSES, *RUNTIME, *FRONT]
HEAVY = ("tensorflow", "torch", "ray", "pyarrow", "tf2onnx", "keras", "sklearn", "pandas")


def module_name(path: Path) -> str:
    base = ROOT / "src" if path.is_relative_to(ROOT / "src") else ROOT
    parts = list(path.relative_to(base).with_suffix("").parts)
    if parts[0] in ("passes", "runtime"):
        parts.insert(0, "onnxfold")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ALL}
FRONT_NAMES = {module_name(path) for path in FRONT} - {"onnxfold"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(called: ast.expr) -> str:
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else ""


@cache
def imports(path: Path, *, top_level: bool = False) -> frozenset[str]:
    """Absolute names imported by a file; ``from a import b`` gives ``a.b`` and ``a``."""
    found: set[str] = set()
    for node in tree_of(path).body if top_level else ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and name_of(node.func) == "import_module":
            found.update(str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))
    return frozenset(found)


@cache
def reached(path: Path) -> frozenset[str]:
    """All that a file imports, and the packages that these lie in."""
    names = (name.split(".") for name in imports(path))
    return frozenset(".".join(parts[:end]) for parts in names for end in range(1, len(parts) + 1))


def identify(path: Path) -> str:
    return module_name(path).removeprefix("onnxfold.")


def crossings(paths: list[Path], forbidden: set[str]) -> dict[str, list[str]]:
    """Which of ``paths`` import what is forbidden."""
    found = {identify(path): sorted(reached(path) & forbidden) for path in paths}
    return {name: names for name, names in found.items() if names}


def test_passes_execute_nothing_and_know_no_runtime() -> None:
    assert crossings(PASSES, {"onnxruntime", "onnxfold.runtime", *FRONT_NAMES}) == {}


def test_the_runtime_knows_no_front_door() -> None:
    # The version is no part of the front door.
    assert crossings(RUNTIME, FRONT_NAMES - {"onnxfold._version"}) == {}


def test_one_module_imports_onnxruntime() -> None:
    assert [identify(path) for path in ALL if "onnxruntime" in reached(path)] == ["runtime.session"]


def test_one_module_imports_graphsurgeon() -> None:
    found = [identify(path) for path in ALL if "onnx_graphsurgeon" in reached(path)]
    assert found == ["passes.surgeon"]


def pass_classes(path: Path) -> list[str]:
    """Classes of a file that have a name and a contract of their own."""
    return [
        node.name
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef)
        and any(
            isinstance(part, ast.AnnAssign)
            and part.value
            and ast.unparse(part.target) == "name"
            and "ClassVar" in ast.unparse(part.annotation)
            for part in node.body
        )
    ]


def test_a_file_holds_one_pass_that_imports_no_other() -> None:
    files = {module_name(path): pass_classes(path) for path in PASSES}
    files = {name: classes for name, classes in files.items() if classes}
    assert {name: classes for name, classes in files.items() if len(classes) > 1} == {}
    for name in files:
        others = {*files} - {name}
        assert crossings([MODULES[name]], others) == {}


def test_no_import_cycles() -> None:
    graph = {
        name: {found for found in imports(path, top_level=True) if found in MODULES} - {name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name in done:
            return
        for each in sorted(graph[name]):
            visit(each, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_every_module_says_what_it_is_for() -> None:
    assert [identify(path) for path in ALL if not ast.get_docstring(tree_of(path))] == []


def test_no_module_is_a_drawer_of_odds_and_ends() -> None:
    drawers = ("utils", "util", "helper", "helpers", "misc")
    assert [identify(path) for path in ALL if path.stem in drawers] == []


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_importing_loads_no_framework(tmp_path: Path) -> None:
    code = f"""import sys, onnxfold
from onnxfold.passes.registry import pass_class, pass_names
[pass_class(name) for name in pass_names()]
print([name for name in {(*HEAVY, "onnxruntime", "onnx_graphsurgeon")!r} if name in sys.modules])
"""
    result = run_python(code, tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


def test_help_waits_for_no_library(tmp_path: Path) -> None:
    code = """import sys
from onnxfold.cli import build_parser
build_parser().format_help()
print([name for name in ("numpy", "onnx", "onnx_ir", "onnxruntime") if name in sys.modules])
"""
    result = run_python(code, tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


def test_everything_imports_without_frameworks(tmp_path: Path) -> None:
    names = [name for name in MODULES if not name.endswith("__main__")]
    code = f"""import sys, importlib
[importlib.import_module(name) for name in {names!r}]
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    result = run_python(code, tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("package", ["passes", "runtime"])
def test_a_second_copy_cannot_be_imported(package: str) -> None:
    result = run_python(f"import {package}", ROOT)
    assert "ImportError" in result.stderr
    assert f"onnxfold.{package}" in result.stderr
