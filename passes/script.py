"""A function in a user's own file, as the option of a pass: ``my_pass.py:function``."""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfold.passes.errors import OnnxfoldError, UsageError
from onnxfold.passes.suggest import did_you_mean


@dataclass(frozen=True)
class ScriptReference:
    """A function in a Python file.

    Attributes:
        path: The file, relative to the working directory where not absolute.
        function: The function's name.
    """

    path: Path
    function: str

    @classmethod
    def from_text(cls, text: str) -> ScriptReference:
        """Parse ``file.py:function``.

        Raises:
            ValueError: There is no ``:function``.
        """
        path, colon, function = text.rpartition(":")
        if not colon or not path or not function.isidentifier():
            raise ValueError(f"'{text}' is not of the form file.py:function")
        return cls(Path(path), function)

    def to_text(self) -> str:
        """``file.py:function``."""
        return f"{self.path}:{self.function}"

    def call(self, argument: Any) -> Any:
        """Run the file, call its function with ``argument`` and return what it returns.

        Neither ``sys.path`` nor the folder of the file is changed.

        Raises:
            UsageError: The file or the function is missing, or either of them raises; names the
                line of the file.
        """
        with self.running() as function:
            return function(argument)

    @contextmanager
    def running(self) -> Generator[Callable[..., Any]]:
        """Run the file and hand out its function; what it raises in here names the file's line.

        Raises:
            UsageError: The file or the function is missing, or either of them raises.
        """
        source = self._source()
        try:
            with _registered(types.ModuleType(f"_onnxfold_script_{self.path.stem}")) as module:
                module.__file__ = str(self.path)
                exec(compile(source, str(self.path), "exec"), module.__dict__)
                yield self._function(module)
        except OnnxfoldError:
            raise
        except (Exception, SystemExit) as error:
            place = f"{self.to_text()} failed{self._line(error)}"
            message = " ".join(str(error).split())
            raise UsageError(f"{place}: {type(error).__name__}: {message}") from error

    def _source(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UsageError(f"{self.path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.path}: cannot be read: {error}") from None

    def _function(self, module: types.ModuleType) -> Callable[[Any], Any]:
        function = getattr(module, self.function, None)
        if not callable(function):
            known = [name for name, value in vars(module).items() if callable(value)]
            hint = did_you_mean(self.function, known)
            raise UsageError(f"{self.path} has no function '{self.function}'{hint}")
        return function

    def _line(self, error: BaseException) -> str:
        if isinstance(error, SyntaxError):
            return f" in line {error.lineno}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if frame.filename == str(self.path)]
        return f" in line {own[-1]}" if own else ""


@contextmanager
def _registered(module: types.ModuleType) -> Generator[types.ModuleType]:
    """Dataclasses and pickles look their module up in ``sys.modules``."""
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        sys.modules.pop(module.__name__, None)
