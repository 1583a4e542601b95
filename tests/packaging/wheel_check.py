"""Build the wheel through the sdist, install it in a clean environment, import every module.

Guards what an editable install hides: a wheel without ``onnxfold.passes`` or ``onnxfold.runtime``,
or one that leaks a top-level ``passes`` or ``runtime``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOADED_BY_PYTEST = "onnxfold.pytest_plugin"
"""Imports pytest, which users without tests do not have."""


def expected_modules() -> list[str]:
    """Every module of the product, read from the source tree."""
    modules = ["onnxfold"]
    for folder, prefix in (
        ("src/onnxfold", "onnxfold"),
        ("passes", "onnxfold.passes"),
        ("runtime", "onnxfold.runtime"),
    ):
        base = ROOT / folder
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            if path.name == "__main__.py" or (
                folder.startswith("src") and parts[0] in ("passes", "runtime")
            ):
                continue
            names = parts[:-1] if parts[-1] == "__init__" else parts
            modules.append(".".join((prefix, *names)))
    return sorted(set(modules) - {LOADED_BY_PYTEST})


def run(*command: str | Path) -> None:
    """Run a command in an empty folder, where no file can be taken for a module."""
    with tempfile.TemporaryDirectory() as empty:
        subprocess.run([str(each) for each in command], check=True, cwd=empty)


def main() -> None:
    """Build, check the archive's contents, install, import."""
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        run(sys.executable, "-m", "build", "--outdir", scratch, ROOT)
        (wheel,) = scratch.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        leaked = [name for name in names if name.startswith(("passes/", "runtime/", "tests/"))]
        if leaked or "onnxfold/py.typed" not in names:
            raise SystemExit(
                f"wheel: leaked {leaked}, py.typed in it: {'onnxfold/py.typed' in names}"
            )
        environment = scratch / "venv"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
        modules = expected_modules()
        program = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
        run(python, "-c", program, *modules)
        run(python, "-m", "onnxfold", "--version")
        print(f"wheel: {len(modules)} modules import in a clean environment")


if __name__ == "__main__":
    main()
