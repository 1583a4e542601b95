"""What ``export`` cleans up: operators that tf2onnx writes, and that are left.

``python -m benchmarks.bench_cleanup --python PYTHON SOURCE...`` converts each source (.tflite or
.h5) with the tf2onnx of PYTHON, without its own optimizer and with it, and prints transposes /
casts / shape operators / nodes of what it wrote and of what the passes of ``export`` leave. Outputs
before and after, optimizations off, have to agree within 1e-5 of the largest value.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import EXPORTED
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.session import Session
from onnxfold.runtime.specs import input_specs

_SHAPES = (
    *("Concat", "ConstantOfShape", "Expand", "Gather", "Range", "Reshape", "Shape", "Size"),
    *("Slice", "Squeeze", "Unsqueeze"),
)
_WORKER = Path(__file__).with_name("tf2onnx_worker.py")


def counts(model: ir.Model) -> str:
    """Transposes, casts, operators that shapes are made of, and all nodes but constants."""
    found = Counter(node.op_type for node in all_nodes(model))
    shapes = sum(found[each] for each in _SHAPES)
    total = found.total() - found["Constant"]
    return f"{found['Transpose']} / {found['Cast']} / {shapes} / {total}"


def check(before: ir.Model, after: ir.Model) -> None:
    """Compare their outputs on made-up inputs.

    Raises:
        AssertionError: They differ.
    """
    for feed in open_feeds(None, input_specs(before), limit=2):
        found = Session(after).run(feed)
        for name, wanted in Session(before).run(feed).items():
            scale = float(np.max(np.abs(wanted.astype(np.float64)), initial=0))
            np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-5 * scale)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True)
    parser.add_argument("sources", nargs="+", type=Path)
    options = parser.parse_args()
    print("| model | tf2onnx, optimizer off | left | tf2onnx | left |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for source in options.sources:
            cells: list[str] = []
            for optimizer in ("without", "with"):
                path = Path(folder) / f"{source.name}-{optimizer}.onnx"
                command = [options.python, str(_WORKER), str(source), str(path), optimizer]
                subprocess.run(command, check=True, capture_output=True)
                model = ir.load(path)
                model.ir_version = min(model.ir_version or 10, 10)
                cleaned = Pipeline(parse_passes(EXPORTED)).run(model.clone()).model
                check(model, cleaned)
                cells += [counts(model), counts(cleaned)]
            print(f"| {source.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
