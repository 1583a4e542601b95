"""Runs something in a process of its own, with limits: a crash there is only a finding here."""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from onnxfold.passes import errors
from onnxfold.passes.errors import ExecutionError, OnnxfoldError
from onnxfold.runtime.specs import Feed, one_line

T = TypeVar("T")

_MAIN = "from onnxfold.runtime.worker import serve; serve()"
_LAST_WORDS = 200


@dataclass(frozen=True)
class Limits:
    """What a worker may use.

    Attributes:
        seconds: Wall clock; the worker is killed after it.
        cpu_seconds: Processor time of all its threads.
        memory_bytes: Address space. ONNX Runtime alone reserves about one GiB.
    """

    seconds: float = 120.0
    cpu_seconds: int = 240
    memory_bytes: int = 8 << 30


def run_isolated(
    function: Callable[..., T], *arguments: object, limits: Limits = Limits(), what: str = ""
) -> T:
    """Call ``function`` in a fresh process that shares nothing with this one.

    Args:
        function: A function of an importable module; it and its arguments are pickled.
        arguments: Its arguments.
        limits: What it may use.
        what: What messages call it; the function's name if empty.

    Returns:
        What the function returned.

    Raises:
        ExecutionError: It crashed, ran out of time or memory, or raised something unexpected.
        OnnxfoldError: The one that the function raised, of the same class.
    """
    name = what or function.__qualname__
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        task, answer = Path(folder) / "task", Path(folder) / "answer"
        target = (function.__module__, function.__qualname__, arguments)
        task.write_bytes(pickle.dumps(target, protocol=pickle.HIGHEST_PROTOCOL))
        numbers = [limits.cpu_seconds, limits.memory_bytes]
        command = [sys.executable, "-c", _MAIN, str(task), str(answer), *map(str, numbers)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        status, words = _run(command, environment, limits.seconds, name)
        if answer.is_file() and status == 0:
            return cast(T, _unpack(answer, name))
    raise ExecutionError(f"{name}: {_cause_of_death(status)}{words}")


def run_model_isolated(
    model: str | os.PathLike[str] | bytes, feeds: Sequence[Feed], limits: Limits = Limits()
) -> list[dict[str, Any]]:
    """The outputs of a model that is not trusted, one dict per feed, optimizations off.

    Args:
        model: A path, or a serialized model.
        feeds: What to feed; they and all outputs are held in memory.
        limits: What it may use.

    Raises:
        ExecutionError: It crashed ONNX Runtime, was refused, or ran out of time or memory.
        OnnxfoldError: See ``Session``.
    """
    source = model if isinstance(model, bytes) else os.path.abspath(model)
    label = "model (bytes)" if isinstance(model, bytes) else str(model)
    return run_isolated(_run_model, source, list(feeds), limits=limits, what=label)


def serve() -> None:
    """The worker's side: set the limits, run the task, write the answer."""
    task, answer, cpu_seconds, memory_bytes = sys.argv[1:]
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, int(cpu_seconds))
    _limit(resource.RLIMIT_AS, int(memory_bytes))
    module, qualified_name, arguments = pickle.loads(Path(task).read_bytes())
    result: Mapping[str, Any]
    try:
        function: Any = importlib.import_module(module)
        for part in qualified_name.split("."):
            function = getattr(function, part)
        result = {"value": function(*arguments)}
    except MemoryError:
        result = {"error": "ExecutionError", "message": "ran out of memory"}
    except OnnxfoldError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller has to hear of it
        message = f"{type(error).__name__}: {one_line(error)}"
        result = {"error": "ExecutionError", "message": message}
    # Whole or not at all: a half-written answer would look like a crash of the reader.
    partial = Path(f"{answer}.part")
    partial.write_bytes(pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL))
    partial.replace(answer)


def _limit(kind: int, value: int) -> None:
    """Lower a limit, never above what the process was allowed anyway."""
    _, hard = resource.getrlimit(kind)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (allowed, hard))


def _run(
    command: Sequence[str], environment: Mapping[str, str], seconds: float, name: str
) -> tuple[int, str]:
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            _, output = process.communicate(timeout=seconds)
        except BaseException as error:
            # The whole session: a worker's own children must not outlive it.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                message = f"{name}: ran for more than {seconds:g} seconds"
                raise ExecutionError(message) from error
            raise
    words = one_line(output.decode("utf-8", "replace")) if output.strip() else ""
    return process.returncode, f": {words[-_LAST_WORDS:]}" if words else ""


def _cause_of_death(status: int) -> str:
    if status >= 0:
        return f"the worker ended with status {status}"
    if -status == signal.SIGXCPU:
        return "used more processor time than allowed"
    return f"crashed with {signal.Signals(-status).name}"


def _unpack(answer: Path, name: str) -> object:
    result = pickle.loads(answer.read_bytes())
    if "value" in result:
        return result["value"]
    kind: type[OnnxfoldError] = getattr(errors, result["error"], ExecutionError)
    message = str(result["message"])
    raise kind(message if name in message else f"{name}: {message}")


def _run_model(model: str | bytes, feeds: Sequence[Feed]) -> list[dict[str, Any]]:
    # In the worker only: this process need not load ONNX Runtime.
    from onnxfold.runtime.session import Session

    session = Session(model)
    return [session.run(feed) for feed in feeds]
