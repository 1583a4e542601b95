"""CPU seconds per 10,000 nodes for import, all float passes and export, at growing sizes.

Two graphs: a chain of operators with removable nodes between them, and a fake-quantized chain in
which every Q/DQ pair shares one scale and one zero point. Linear editing shows as a ratio near 1
between the largest and the smallest size. Times are of the process, the least of some rounds, so
that a busy machine changes little. ``--json`` prints the figures for machines.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.collector import paused_collector
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import OPTIMIZE
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.serialization import model_bytes

_NODES_TO_TIME = 30_000
"""Small graphs are timed in more rounds, up to so many nodes together."""


def chain(nodes: int) -> onnx.ModelProto:
    """Relu, Identity and a pair of cancelling transposes, over and over: ``nodes`` nodes."""
    made: list[onnx.NodeProto] = []
    for i in range(nodes):
        kind = ("Relu", "Identity", "Transpose", "Transpose")[i % 4]
        node = helper.make_node(kind, [f"v{i}"], [f"v{i + 1}"])
        if kind == "Transpose":
            node.attribute.append(helper.make_attribute("perm", [1, 0]))
        made.append(node)
    return _model(made, f"v{nodes}", [])


def fake_quantized_chain(nodes: int) -> onnx.ModelProto:
    """QuantizeLinear, DequantizeLinear, Relu, over and over, all sharing one scale."""
    made: list[onnx.NodeProto] = []
    shared = ["scale", "zero_point"]
    for i in range(nodes // 3):
        made.append(helper.make_node("QuantizeLinear", [f"v{i}", *shared], [f"q{i}"]))
        made.append(helper.make_node("DequantizeLinear", [f"q{i}", *shared], [f"d{i}"]))
        made.append(helper.make_node("Relu", [f"d{i}"], [f"v{i + 1}"]))
    constants = [
        numpy_helper.from_array(np.array(0.05, np.float32), "scale"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero_point"),
    ]
    return _model(made, f"v{nodes // 3}", constants)


def _model(
    nodes: list[onnx.NodeProto], output: str, constants: list[onnx.TensorProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [4, 4])],
        constants,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def seconds(proto: onnx.ModelProto) -> float:
    """Least CPU seconds of import, all float passes and export."""
    rounds = max(2, min(10, _NODES_TO_TIME // len(proto.graph.node)))
    return min(_once(proto) for _ in range(rounds))


def _once(proto: onnx.ModelProto) -> float:
    # What the round before left is not this one's to clean up.
    gc.collect()
    start = time.process_time()
    with paused_collector():
        model = ir.from_proto(proto)
    result = Pipeline(parse_passes(OPTIMIZE)).run(model)
    model_bytes(result.model)
    return time.process_time() - start


def measure(make: Callable[[int], onnx.ModelProto], sizes: tuple[int, ...]) -> dict[str, Any]:
    """CPU seconds per 10,000 nodes at each size, and the ratio of the last to the first."""
    per_10k = {size: seconds(make(size)) / size * 10_000 for size in sizes}
    return {
        "seconds_per_10k_nodes": per_10k,
        "ratio": per_10k[sizes[-1]] / per_10k[sizes[0]],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {
        "chain": measure(chain, (1_000, 10_000, 50_000)),
        "fake-quantized chain, one scale": measure(fake_quantized_chain, (1_000, 10_000, 30_000)),
    }
    if arguments.json:
        json.dump(results, sys.stdout, indent=2)
        return
    print("graph edits: import + all float passes + export, CPU seconds per 10,000 nodes")
    for name, row in results.items():
        cells = "  ".join(f"{n:>6}: {s:.2f}" for n, s in row["seconds_per_10k_nodes"].items())
        print(f"  {name:<34} {cells}   ratio {row['ratio']:.2f}")


if __name__ == "__main__":
    main()
