"""Calibration side by side with onnxruntime's own: time over plain inference, and peak memory.

Every measurement runs in a process of its own. Time is a multiple of plain inference of the same
data, with a session that is there already and ONNX Runtime's own choice of threads, measured in the
same process right before and after each calibration; the median of the rounds is printed. So the
multiple includes all that a calibration costs besides inference, making its session too. CPU time,
over all threads, is given beside the time on the clock: other work on the machine changes it less.
It is a multiple of plain inference on one thread, because threads that wait for each other use CPU
time, too, which would flatter a calibration.
Memory is what the first calibration adds to the peak resident size.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

Feed = dict[str, npt.NDArray[np.float32]]
Times = npt.NDArray[np.float64]

CONVOLUTIONS = 15
CHANNELS = 48
SIDE = 24
SHORT, LONG = 32, 256
ROUNDS = {SHORT: 5, LONG: 2}
OTHERS = ("onnxruntime MinMax", "onnxruntime Percentile")


def build_net() -> onnx.ModelProto:
    """A seeded chain of 3x3 convolutions with Relu."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    current, channels = "x", 3
    for index in range(CONVOLUTIONS):
        scale = (2.0 / (9 * channels)) ** 0.5
        weights = rng.normal(0, scale, (CHANNELS, channels, 3, 3)).astype(np.float32)
        bias = rng.normal(0, 0.1, CHANNELS).astype(np.float32)
        initializers.append(numpy_helper.from_array(weights, f"w{index}"))
        initializers.append(numpy_helper.from_array(bias, f"b{index}"))
        inputs = [current, f"w{index}", f"b{index}"]
        nodes.append(helper.make_node("Conv", inputs, [f"c{index}"], f"conv{index}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
        current, channels = f"r{index}", CHANNELS
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    output = helper.make_tensor_value_info(current, TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])
    graph = helper.make_graph(nodes, "chain", [image], [output], initializers)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def feeds(count: int) -> Iterator[Feed]:
    """Seeded images, made one at a time."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield {"x": rng.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)}


def calibrate_with_onnxfold(proto: onnx.ModelProto, method: str, count: int) -> None:
    """Our calibration, from the tensors to observe to the ranges."""
    from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
    from onnxfold.runtime.calibrate.calibrate import calibrate

    model = ir.from_proto(proto)
    tensors = tensors_to_observe(model, PlacementOptions())
    calibrate(model, tensors, feeds(count), method=method)


def calibrate_with_onnxruntime(proto: onnx.ModelProto, method: str, count: int) -> None:
    """The calibrator of onnxruntime, driven as its ``quantize_static`` does."""
    tools: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(tools.CalibrationDataReader):
        """Hands out the feeds."""

        def __init__(self) -> None:
            self._feeds = feeds(count)

        def get_next(self) -> Feed | None:
            """The next feed, None at the end."""
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, str(path))
        calibrator = tools.calibrate.create_calibrator(
            path,
            ["Conv"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=tools.CalibrationMethod[method],
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()


def measure(tool: str, count: int) -> dict[str, Any]:
    """Measure one tool in this process: seconds and multiples of plain inference, MiB added."""
    from onnxfold.runtime.session import DEPLOYMENT, Session

    proto = build_net()
    session = Session(proto, DEPLOYMENT)
    alone = Session(proto, replace(DEPLOYMENT, threads=1))
    library, method = tool.split()
    run = calibrate_with_onnxfold if library == "onnxfold" else calibrate_with_onnxruntime

    def infer() -> Times:
        clock = _times(lambda: [session.run(feed) and None for feed in feeds(count)])[0]
        cpu = _times(lambda: [alone.run(feed) and None for feed in feeds(count)])[1]
        return np.array([clock, cpu])

    infer()
    run(proto, method, 2)  # imports and first allocations are not calibration
    before = _peak_mib()
    rounds: list[tuple[Times, Times]] = []
    added = 0.0
    plain = infer()
    for _ in range(ROUNDS[count]):
        calibration = _times(lambda: run(proto, method, count))
        added = added or _peak_mib() - before
        after = infer()
        rounds.append((calibration, (plain + after) / 2))
        plain = after
    seconds = np.median([times for times, _ in rounds], axis=0)
    multiples = np.median([times / plain for times, plain in rounds], axis=0)
    return {
        "tool": tool,
        "samples": count,
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        "multiple": multiples[0],
        "cpu_multiple": multiples[1],
        "added_mib": added,
    }


def _times(work: Callable[[], object]) -> Times:
    """Seconds on the clock, and seconds of the processor in all threads."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - clock, time.process_time() - cpu])


def _peak_mib() -> float:
    """Peak resident size of this process (ru_maxrss is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--tool", action="append", help="one line of the table; default: all")
    parser.add_argument("--worker", nargs=2, metavar=("TOOL", "SAMPLES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker[0], int(arguments.worker[1]))))
        return 0
    tools = arguments.tool or _all_tools()
    rows = (_in_process(tool, count) for tool in tools for count in (SHORT, LONG))
    if arguments.json:
        print(json.dumps({"benchmark": "calibration", "rows": list(rows)}, indent=1))
        return 0
    print(f"calibration, {CONVOLUTIONS} convolutions of {CHANNELS} channels at {SIDE}x{SIDE}")
    print(f"{'':28}{'samples':>8}{'x plain inference':>20}{'x its CPU':>12}{'added peak MiB':>16}")
    for row in rows:
        times = f"{row['multiple']:20.2f}{row['cpu_multiple']:12.2f}"
        print(f"{row['tool']:28}{row['samples']:8}{times}{row['added_mib']:16.1f}", flush=True)
    return 0


def _all_tools() -> list[str]:
    from onnxfold.runtime.calibrate.methods import METHODS

    return [*(f"onnxfold {method}" for method in METHODS), *OTHERS]


def _in_process(tool: str, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", tool, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool}, {count} samples: {done.stderr.strip().splitlines()[-1]}")
    return cast("dict[str, Any]", json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    raise SystemExit(main())
