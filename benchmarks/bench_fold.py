"""Latency of fake-quantized networks: float, as ONNX Runtime runs the Q/DQ graph, and folded.

For each network the four models take turns in one process, on one thread and as deployed: (a)
float, (b) ONNX Runtime on the Q/DQ graph, (c) folded for ort, (d) folded for standard. Printed are
medians (on one thread: of its processor time) and two ratios: b/c, the gain of the fold, and c over
the better of a and b, which should never be above 1.05. On one thread they are the medians of the
ratios within a turn. With several threads only the time on the clock says anything, which other
load multiplies by chance: there they are the ratios of the fastest turns of many. The rows marked *
are layers of useful size in patterns that ONNX Runtime leaves in float: there b/c should be at
least 3. Last come the seconds that folding takes, by the number of nodes.

A row above 1.05 on one thread is told apart where nothing can be done about it: "kernels alone" is
what the executed nodes take at least, over the better of a and b. That are the products (Conv,
Gemm, MatMul of any kind), each in a model of its own and in the cheaper of two exact forms, as they
are or as the float kernel and a Round of its result; and of all that is between them the calls
alone, as with one element.

``--pairs DIR`` measures NAME.int8.onnx against NAME.float.onnx in DIR as well; ``--real`` fetches
and converts int8 TFLite models for that. ``--json`` prints the figures for machines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.fold_bounds import (
    ONE_THREAD,
    kernels_alone,
    least_ms,
    random_feed,
    smallest_calls,
)
from benchmarks.fold_networks import USEFUL, Net, Network, networks
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, Session, SessionConfig
from onnxfold.runtime.timing import Timing, measure_runs

_CONFIGS = (ONE_THREAD, DEPLOYMENT)
_ROUNDS = 25
_CLOCKED_ROUNDS = 150  # of which the fastest count
_MOST_SECONDS = 4.0
_SAMPLE_SECONDS = 0.004
_WARM_UP = 5
_LIMIT = 1.05
_USEFUL_GAIN = 3.0
_SPEED_NODES = (1_000, 2_000, 5_000, 10_000)


def fold(model: onnx.ModelProto, target: str) -> onnx.ModelProto:
    """The model, folded for ``target``."""
    passes = parse_passes(folding(target))
    return ir.to_proto(Pipeline(passes).run(ir.from_proto(model)).model)


def measure(network: Network) -> dict[str, dict[str, Timing]]:
    """Time a network in its four forms, in each configuration; ratios are to the folded one."""
    models = {
        "ort": fold(network.quantized, "ort"),
        "float": network.real,
        "qdq": network.quantized,
        "standard": fold(network.quantized, "standard"),
    }
    return {config.name: _race(models, config) for config in _CONFIGS}


def _race(models: Mapping[str, onnx.ModelProto], config: SessionConfig) -> dict[str, Timing]:
    runs = {name: _prepared(model, config) for name, model in models.items()}
    repeats: dict[str, int] = {}
    for name, run in runs.items():
        started = time.perf_counter()
        for _ in range(_WARM_UP):
            run()
        seconds = (time.perf_counter() - started) / _WARM_UP
        repeats[name] = max(1, int(_SAMPLE_SECONDS / seconds))
    # The time of one thread does not count what other processes take.
    if config.threads == 1:
        return measure_runs([runs], repeats, _ROUNDS, 0.0, _MOST_SECONDS, time.thread_time)
    return measure_runs([runs], repeats, _CLOCKED_ROUNDS, 0.0, _MOST_SECONDS)


def _prepared(model: onnx.ModelProto, config: SessionConfig) -> Callable[[], object]:
    """A run on random inputs: a float model and its int8 form take different ones."""
    session = Session(model, config)
    return session.prepare(random_feed(session))


def folding_seconds(nodes: int) -> float:
    """Processor seconds to fold a chain of about ``nodes`` nodes for ort."""
    net = Net((1, 8, 8, 8))
    value = net.value
    while len(net.nodes) < nodes:
        value = net.op("Relu", net.op("Conv", value, net.weights((8, 8, 1, 1), 0)))
        value = net.fake(value, 0.5, 100)
    model = ir.from_proto(net.model(value))
    started = time.process_time()
    Pipeline(parse_passes("fold-qdq")).run(model)
    return time.process_time() - started


def ratios(timings: Mapping[str, Timing], config: str) -> tuple[float, float]:
    """b/c, and c over the better of a and b."""
    over_float, over_qdq = (
        timings[form].relative if config == ONE_THREAD.name else timings[form].relative_best
        for form in ("float", "qdq")
    )
    return over_qdq, 1 / min(over_float, over_qdq)


def bound(
    network: Network, row: Mapping[str, Mapping[str, Timing]], calls: Mapping[str, float]
) -> float | None:
    """What "kernels alone" is over the better of a and b; None where c is within the limit."""
    _, worst = ratios(row[ONE_THREAD.name], ONE_THREAD.name)
    if worst <= _LIMIT:
        return None
    better = min(least_ms(network.real), least_ms(network.quantized))
    return kernels_alone(fold(network.quantized, "ort"), calls, network.real) / better


def _print_table(
    results: Mapping[str, Mapping[str, Mapping[str, Timing]]], least: Mapping[str, float | None]
) -> None:
    columns = f"{'a float':>9s} {'b ORT':>9s} {'c ort':>9s} {'d standard':>11s}"
    print(f"{'network (ms)':34s} {'threads':>11s} {columns} {'b/c':>6s} {'c/min(a,b)':>11s}")
    gains: list[float] = []
    for name, row in results.items():
        for config, timings in row.items():
            cells = " ".join(
                f"{timings[form].median_ms:{width}.3f}"
                for form, width in (("float", 9), ("qdq", 9), ("ort", 9), ("standard", 11))
            )
            gain, worst = ratios(timings, config)
            gains.append(gain)
            mark = "  above 1.05" if worst > _LIMIT else ""
            alone = least[name]
            if alone is not None and alone > _LIMIT and config == ONE_THREAD.name:
                mark += f", kernels alone {alone:.2f}"
            mark += "  below 3" if name in USEFUL and gain < _USEFUL_GAIN else ""
            title = f"{name} *" if name in USEFUL else name
            print(f"{title:34s} {config:>11s} {cells} {gain:6.2f} {worst:11.2f}{mark}")
    print(f"geometric mean of b/c: {float(np.exp(np.mean(np.log(gains)))):.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every network and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--pairs", type=Path, help="a folder of NAME.int8.onnx, NAME.float.onnx")
    parser.add_argument("--real", action="store_true", help="fetch and convert TFLite models")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these networks alone")
    options = parser.parse_args(arguments)
    calls = smallest_calls()
    results: dict[str, dict[str, dict[str, Timing]]] = {}
    least: dict[str, float | None] = {}
    for network in networks(options.pairs, real=options.real):
        if options.only and network.name not in options.only:
            continue
        results[network.name] = measure(network)
        least[network.name] = bound(network, results[network.name], calls)
    sizes = () if options.only else _SPEED_NODES
    speed = {nodes: folding_seconds(nodes) for nodes in sizes}
    if options.json:
        rows = {
            name: {
                config: {form: timing.to_json() for form, timing in timings.items()}
                for config, timings in row.items()
            }
            for name, row in results.items()
        }
        found = {"latency": rows, "kernels_alone": least, "folding_seconds": speed}
        print(json.dumps(found, indent=2))
        return 0
    _print_table(results, least)
    for nodes, seconds in speed.items():
        print(f"folding {nodes:6d} nodes: {seconds:6.2f} s of processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
