"""Runs in a process of its own: quantizes a model with one tool, on feeds from a file.

    python quantize_worker.py TOOL MODEL.onnx FEEDS.npz TARGET.onnx

FEEDS.npz holds each array as NUMBER/INPUT, and for onnxfold the class as NUMBER/labels. Prints one
line of JSON: what the tool has to say. Runs in other environments, too: imports nothing but numpy,
onnx and the tool.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Feed = dict[str, Any]

LABELS = "labels"


def read_feeds(path: Path) -> list[Feed]:
    """Return the feeds in their order."""
    feeds: dict[int, Feed] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("/")
            feeds.setdefault(int(number), {})[name] = arrays[key]
    return [feeds[number] for number in sorted(feeds)]


def write_feeds(path: Path, feeds: Sequence[Feed], labels: Sequence[int] = ()) -> None:
    """Write feeds, and the class of each where there are any, as ``read_feeds`` reads them."""
    arrays: Feed = {
        f"{number}/{name}": array
        for number, feed in enumerate(feeds)
        for name, array in feed.items()
    }
    for number, label in enumerate(labels):
        arrays[f"{number}/{LABELS}"] = np.array([label])
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def with_onnxfold(model: Path, feeds: list[Feed], target: Path) -> dict[str, Any]:
    """``onnxfold.compile`` as it comes; its report lies beside the model."""
    onnxfold: Any = importlib.import_module("onnxfold")
    outcome = onnxfold.compile(model, data=feeds)
    outcome.save(target)
    outcome.save_report(target.with_suffix(".report"))
    return {"passed": outcome.report.passed, "reasons": list(outcome.report.reasons)}


def with_onnxruntime(model: Path, feeds: list[Feed], target: Path) -> dict[str, Any]:
    """``quantize_static`` behind its own preprocessing: Q/DQ, min-max, int8 weights per channel."""
    tools: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")

    class Reader(tools.CalibrationDataReader):
        """Hands out the feeds."""

        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            """The next feed, None at the end."""
            return next(self._feeds, None)

    note = ""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder, "ready.onnx")
        try:
            shapes.quant_pre_process(str(model), str(ready))
        except Exception as error:  # noqa: BLE001 - what its own advice then is
            note = f"symbolic shapes skipped: {error}"
            shapes.quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
        tools.quantize_static(
            str(ready),
            str(target),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            calibrate_method=tools.CalibrationMethod.MinMax,
        )
    return {"note": note}


def with_nncf(model: Path, feeds: list[Feed], target: Path) -> dict[str, Any]:
    """``nncf.quantize`` as it comes, on all feeds."""
    nncf: Any = importlib.import_module("nncf")
    quantized = nncf.quantize(onnx.load(model), nncf.Dataset(feeds), subset_size=len(feeds))
    onnx.save(quantized, target)
    return {}


TOOLS: dict[str, Callable[[Path, list[Feed], Path], dict[str, Any]]] = {
    "onnxfold": with_onnxfold,
    "onnxruntime": with_onnxruntime,
    "nncf": with_nncf,
}


def main() -> None:
    """Quantize with the tool named."""
    tool, *paths = sys.argv[1:]
    model, data, target = map(Path, paths)
    feeds = read_feeds(data)
    if tool != "onnxfold":
        feeds = [{name: feed[name] for name in feed if name != LABELS} for feed in feeds]
    print(json.dumps(TOOLS[tool](model, feeds, target)))


if __name__ == "__main__":
    main()
