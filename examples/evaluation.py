"""Compare a float classifier with its compiled version on labelled samples, in one table.

Both models run as deployed: all of ONNX Runtime's optimizations, all cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.timing import measure_interleaved

Array = NDArray[Any]
BATCH = 32
ROUNDS: Mapping[int, int] = {1: 41, BATCH: 11}
"""How many turns each model gets, by batch size."""


@dataclass(frozen=True)
class Island:
    """Nodes that stay in float for one reason.

    Attributes:
        op_type: their operator.
        count: how many.
        reason: why they were left.
    """

    op_type: str
    count: int
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """What was measured; rates between 0 and 1, latencies in milliseconds, sizes in bytes.

    Attributes:
        samples: evaluation samples.
        float_top1: share of samples the float model classifies correctly.
        compiled_top1: share of samples the compiled model classifies correctly.
        agreement: share of samples on which both choose the same class.
        sqnr_db: signal to quantization noise of the outputs, 10 log10(sum f^2 / sum (f - q)^2).
        float_ms: median latency of the float model by batch size.
        compiled_ms: median latency of the compiled model by batch size.
        float_bytes: size of the float model's file.
        compiled_bytes: size of the compiled model's file.
        islands: what stays in float, and why.
    """

    samples: int
    float_top1: float
    compiled_top1: float
    agreement: float
    sqnr_db: float
    float_ms: Mapping[int, float]
    compiled_ms: Mapping[int, float]
    float_bytes: int
    compiled_bytes: int
    islands: tuple[Island, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON-serialisable values."""
        return asdict(self)


def evaluate(
    original: Path,
    compiled: Path,
    inputs: Array,
    labels: NDArray[np.int64],
    islands: Iterable[tuple[str, str]],
) -> Evaluation:
    """Measure both models on the same samples.

    Args:
        original: the float model; one input, and the class scores as first output.
        compiled: the model made from it.
        inputs: the samples along the first axis.
        labels: int64 [N], the index of each sample's class.
        islands: operator and reason of every node left in float.
    """
    old, new = Session(original, DEPLOYMENT), Session(compiled, DEPLOYMENT)
    wanted, got = _scores(old, inputs), _scores(new, inputs)
    float_ms, compiled_ms = _latency(old, new, inputs)
    return Evaluation(
        samples=len(labels),
        float_top1=_rate(wanted.argmax(axis=1) == labels),
        compiled_top1=_rate(got.argmax(axis=1) == labels),
        agreement=_rate(wanted.argmax(axis=1) == got.argmax(axis=1)),
        sqnr_db=sqnr_db(wanted, got),
        float_ms=float_ms,
        compiled_ms=compiled_ms,
        float_bytes=original.stat().st_size,
        compiled_bytes=compiled.stat().st_size,
        islands=group_islands(islands),
    )


def sqnr_db(reference: Array, candidate: Array) -> float:
    """Return the signal to quantization noise ratio in decibels; infinite if nothing differs."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - candidate).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(signal / noise))


def group_islands(nodes: Iterable[tuple[str, str]]) -> tuple[Island, ...]:
    """Return one island per operator and reason, the most frequent first."""
    counts = Counter(nodes)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Island(op_type, count, reason) for (op_type, reason), count in ordered)


def print_table(title: str, evaluation: Evaluation) -> None:
    """Print the comparison for people, on standard output."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("")
    table.add_column("float", justify="right")
    table.add_column("compiled", justify="right", overflow="fold")
    for row in table_rows(evaluation):
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if Console().is_terminal else 110).print(table)


def table_rows(e: Evaluation) -> list[tuple[str, str, str]]:
    """Return the table's rows: what is measured, the float figure, the compiled one."""
    rows = [
        (f"top-1 ({e.samples} samples)", _percent(e.float_top1), _percent(e.compiled_top1)),
        ("agreement with float", "", _percent(e.agreement)),
        ("SQNR of the output", "", f"{e.sqnr_db:.1f} dB"),
    ]
    for batch, old in e.float_ms.items():
        new = e.compiled_ms[batch]
        rows.append(
            (f"latency, batch {batch}", f"{old:.2f} ms", f"{new:.2f} ms ({old / new:.1f}x)")
        )
    rows.append(("size", f"{e.float_bytes / 1e6:.2f} MB", f"{e.compiled_bytes / 1e6:.2f} MB"))
    if not e.islands:
        return [*rows, ("could be integer, left in float", "", "nothing")]
    for index, island in enumerate(e.islands):
        what = f"{island.count} {island.op_type}: {island.reason}"
        rows.append(("" if index else "could be integer, left in float", "", what))
    return rows


def _scores(session: Session, inputs: Array) -> NDArray[np.float32]:
    name = session.inputs[0].name
    batches = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
    return np.concatenate([_first(session.run({name: batch})) for batch in batches])


def _first(outputs: Mapping[str, Any]) -> NDArray[np.float32]:
    return next(iter(outputs.values()))


def _rate(hits: NDArray[np.bool_]) -> float:
    return float(np.mean(hits))


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def _latency(
    old: Session, new: Session, inputs: Array
) -> tuple[dict[int, float], dict[int, float]]:
    """Return the median milliseconds of both by batch size, timed in turns."""
    medians: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for batch, rounds in ROUNDS.items():
        feed = {old.inputs[0].name: inputs[:batch]}
        timings = measure_interleaved({"float": old, "compiled": new}, [feed], rounds=rounds)
        for by_batch, timing in zip(medians, timings.values(), strict=True):
            by_batch[batch] = timing.median_ms
    return medians
