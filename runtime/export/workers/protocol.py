"""What a front end is asked and what it answers, as files in a folder.

The folder holds ``request.json`` and, if there is data, ``feeds.npz``; the front end writes
``model.onnx``, ``samples.npz`` and ``answer.json``, or an answer that says what is wrong. A front
end runs in an interpreter that may lack everything but its framework, so this module and those
beside it import nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Feed = dict[str, Array]
Fault = Literal["usage", "invalid", "missing", "unsupported", "crash"]
"""Whose fault it is: the user's words, the file, a package that is not there, an operator that has
no counterpart in ONNX, or something that nobody foresaw."""

REQUEST, ANSWER = "request.json", "answer.json"
MODEL, FEEDS, SAMPLES, LAYERS = "model.onnx", "feeds.npz", "samples.npz", "layers.npz"


class FrontEndError(Exception):
    """What is wrong, in one line for the user.

    Attributes:
        fault: Whose fault it is.
    """

    def __init__(self, message: str, fault: Fault = "invalid") -> None:
        super().__init__(message)
        self.fault: Fault = fault


@dataclass(frozen=True)
class Request:
    """What is to be exported.

    Attributes:
        kind: What the source is, as ``sources.Kind`` has it.
        path: The source.
        opset: The version of ai.onnx to write.
        samples: How many samples to run in the framework, where no feeds are given.
        seed: Of the inputs that are made up.
        options: What only some front ends know: the signature of a SavedModel, for example.
        inputs: Names of the inputs in the ONNX model that was exported before. The source is then
            run on the feeds, which have these names, and not exported again.
        outputs: Names of the outputs, likewise.
    """

    kind: str
    path: str
    opset: int
    samples: int = 4
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()

    @property
    def runs_only(self) -> bool:
        """Whether there is a model already, and only samples are wanted."""
        return bool(self.outputs)

    @property
    def tensors(self) -> Sequence[str]:
        """Names of tensors inside of the ONNX model whose values in the framework are wanted."""
        return tuple(self.options.get("tensors", ()))


@dataclass(frozen=True)
class Answer:
    """What was exported.

    Attributes:
        inputs: Names of the inputs in the ONNX model, in the order of the framework's.
        outputs: Names of its outputs, likewise.
        versions: What it was made with: package to version.
        layers: Names of tensors of the ONNX model, to the framework's names of the layers that
            compute them; empty where the exporter does not keep them.
        notes: What the user should know.
        count: Samples that were run.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    versions: Mapping[str, str]
    layers: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()
    count: int = 0


def read_request(folder: Path) -> Request:
    """The request that lies in ``folder``."""
    return Request(**json.loads((folder / REQUEST).read_text(encoding="utf-8")))


def write_request(folder: Path, request: Request, feeds: Sequence[Feed]) -> None:
    """Put a request, and feeds if there are any, into ``folder``."""
    (folder / REQUEST).write_text(json.dumps(asdict(request)), encoding="utf-8")
    if feeds:
        _write_arrays(folder / FEEDS, {"in": feeds})


def read_feeds(folder: Path) -> list[Feed]:
    """The feeds that came with the request, by the names that the user gave; may be none."""
    return _read_arrays(folder / FEEDS).get("in", [])


def write_samples(
    folder: Path, feeds: Sequence[Feed], outputs: Sequence[Feed], others: Sequence[Feed] = ()
) -> None:
    """Write what the framework computed.

    Args:
        folder: Where to.
        feeds: The samples, by the names in ONNX.
        outputs: One dict of outputs a sample, likewise.
        others: The same from other kernels of the framework, which are as right.
    """
    _write_arrays(folder / SAMPLES, {"in": feeds, "out": outputs, "other": others})


def read_samples(folder: Path) -> tuple[list[Feed], list[Feed], list[Feed]]:
    """Feeds, what the framework computed of them, and what other kernels of it computed."""
    arrays = _read_arrays(folder / SAMPLES)
    return arrays.get("in", []), arrays.get("out", []), arrays.get("other", [])


def write_layers(folder: Path, values: Sequence[Feed]) -> None:
    """Write what the framework computed inside of each sample, by names of tensors in ONNX."""
    _write_arrays(folder / LAYERS, {"layer": values})


def read_layers(folder: Path) -> list[Feed]:
    """What the framework computed inside; nothing where it was not asked or cannot tell."""
    return _read_arrays(folder / LAYERS).get("layer", [])


def serve(export: Callable[[Request, Path], Answer]) -> None:
    """Answer the request in the folder that the command line names.

    Everything that the framework prints goes to standard error, and whatever it raises becomes an
    answer of one line.
    """
    # Frameworks print to both streams, from C++ too: standard output is nobody's to read.
    os.dup2(2, 1)
    respond(export, Path(sys.argv[1]))


def respond(export: Callable[[Request, Path], Answer], folder: Path) -> None:
    """Answer the request in ``folder``; whatever ``export`` raises becomes an answer too."""
    try:
        answer = export(read_request(folder), folder)
        document: dict[str, Any] = {"answer": asdict(answer)}
    except FrontEndError as error:
        document = {"fault": error.fault, "message": _one_line(str(error))}
    except ImportError as error:
        document = {"fault": "missing", "message": _one_line(str(error))}
    except Exception as error:  # noqa: BLE001 - whatever it is, the user has to hear of it
        traceback.print_exc()
        words = f"{type(error).__name__}: {_one_line(str(error))}"
        document = {"fault": "crash", "message": words}
    temporary = folder / f"{ANSWER}.part"
    temporary.write_text(json.dumps(document), encoding="utf-8")
    temporary.replace(folder / ANSWER)


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 500 else f"{words[:500]} ..."


def _write_arrays(path: Path, parts: Mapping[str, Sequence[Feed]]) -> None:
    arrays: dict[str, Any] = {
        f"{part}/{index}/{name}": _plain(array)
        for part, feeds in parts.items()
        for index, feed in enumerate(feeds)
        for name, array in feed.items()
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _read_arrays(path: Path) -> dict[str, list[Feed]]:
    if not path.is_file():
        return {}
    found: dict[str, list[Feed]] = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            part, index, name = key.split("/", 2)
            feeds = found.setdefault(part, [])
            feeds += [{} for _ in range(int(index) + 1 - len(feeds))]
            array: Array = archive[key]
            feeds[int(index)][name] = array.astype(object) if array.dtype.kind == "U" else array
    return found


def _plain(array: Array) -> Array:
    """Text in a form that is stored without pickling; frameworks give it as bytes in UTF-8."""
    if array.dtype != object:
        return array
    words = [
        each.decode(errors="replace") if isinstance(each, bytes) else str(each)
        for each in array.reshape(-1)
    ]
    return np.array(words, dtype=str).reshape(array.shape)
