"""Float models quantized by onnxfold, onnxruntime and NNCF: task metric, speed, noise and size.

All tools get the same feeds to calibrate on, in this run, each in a process of its own: what does
not end in time or ends badly is a row, too. Then float and quantized models take turns in one
process: the task metric of ``fixtures/evaluators``, the speed-up over float (on one thread, by its
processor time, and as deployed, by the clock; medians of the ratios within a turn), the SQNR of the
outputs on other data than the calibration's, and the size of the file.

A row of onnxfold is flagged where it breaks a limit: no valid model; a metric below 99 % of
float's, or an accuracy more than half a point below it; a speed-up below 0.97; less than 3 dB above
the best SQNR of another tool whose model is valid and quantized, or slower than that model.

``--only NAME`` measures one model (may be repeated), ``--tool`` some of the tools, ``--keep DIR``
keeps the models, ``--json`` prints the figures for machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantize_worker import TOOLS, write_feeds
from fixtures.environments import environment, last_line
from fixtures.evaluators.protocol import Evaluator, Feed, sqnr_db
from fixtures.evaluators.registry import EVALUATORS, evaluator
from fixtures.fetch import DownloadError, FetchError
from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.timing import is_machine_busy, measure_interleaved

OURS, FLOAT = "onnxfold", "float"
NNCF_PINS = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0")
WORKER = Path(__file__).with_name("quantize_worker.py")
MOST_SECONDS = 600
"""Of the processor, for each model and tool; four times that on the clock."""

LEAST_SPEED = 0.97
LEAST_GAIN_DB = 3.0
UNTOUCHED_DB = 100.0
"""From here on a model was left in float."""

_ROUNDS, _MOST_SECONDS, _TIMED_FEEDS = 21, 8.0, 4
_ONE_THREAD = dataclasses.replace(DEPLOYMENT, name="one thread", threads=1)


@dataclass(frozen=True)
class Row:
    """One model of one tool; NaN where there is no figure.

    Attributes:
        tool: what made it; "float" for the original.
        problem: why there is no valid model; empty if there is one.
        seconds: what making it took, of the processor's time in all threads.
        metric: the task metric.
        kept: whether the metric is within the limits.
        speed: speed-up over float on one thread.
        deployed: speed-up over float as deployed; NaN where other work keeps the machine busy.
        sqnr: dB, of the worst output.
        size: bytes.
        note: what else the tool said.
        flags: the limits broken; of onnxfold's rows only.
    """

    tool: str
    problem: str = ""
    seconds: float = math.nan
    metric: float = math.nan
    kept: bool = False
    speed: float = math.nan
    deployed: float = math.nan
    sqnr: float = math.nan
    size: int = 0
    note: str = ""
    flags: tuple[str, ...] = ()


def quantize(tool: str, model: Path, data: Path, target: Path) -> Row:
    """Have a tool make ``target`` in a process of its own."""
    interpreter = sys.executable
    if tool == "nncf":
        interpreter = str(environment("nncf", NNCF_PINS))
    command = [interpreter, str(WORKER), tool, str(model), str(data), str(target)]
    started = _children_seconds()
    done = _run(command, target.parent)
    seconds = _children_seconds() - started
    if isinstance(done, str):
        return Row(tool, problem=done, seconds=seconds)
    return Row(tool, seconds=seconds, note=_note(json.loads(last_line(done.stdout))))


def measure(name: str, models: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """The figures of a model's versions, the float one first, in a process of its own.

    A version that does not run, or whose outputs are not what float's are, has none.
    """
    judge = evaluator(name)
    feeds = judge.evaluation()
    reference = [Session(models[FLOAT], DEPLOYMENT).run(feed) for feed in feeds]
    figures: dict[str, dict[str, float]] = {}
    for tool, path in models.items():
        try:
            figures[tool] = _judge(judge, path, feeds, reference)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it is not valid
            print(f"{tool}: {' '.join(str(error).split())}", file=sys.stderr)
    ways = [(_ONE_THREAD, "speed", time.thread_time)]
    if not is_machine_busy():
        ways.append((DEPLOYMENT, "deployed", time.perf_counter))
    for config, key, clock in ways:
        sessions = {tool: Session(models[tool], config) for tool in figures}
        timings = measure_interleaved(
            sessions,
            feeds[:: max(1, len(feeds) // _TIMED_FEEDS)][:_TIMED_FEEDS],
            rounds=_ROUNDS,
            max_seconds=_MOST_SECONDS,
            clock=clock,
        )
        for tool, timing in timings.items():
            figures[tool][key] = 1 / timing.relative
    return figures


def _judge(
    judge: Evaluator, path: Path, feeds: Sequence[Feed], reference: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    session = Session(path, DEPLOYMENT)
    found = [session.run(feed) for feed in feeds]
    for expected, outputs in zip(reference, found, strict=True):
        for output, values in expected.items():
            got = outputs[output]
            if (got.shape, got.dtype) != (values.shape, values.dtype):
                raise ValueError(f"output {output} is {got.dtype}{list(got.shape)}")
    return {"metric": judge.score(session.run), "sqnr": sqnr_db(reference, found)}


def rows_of(name: str, tools: Sequence[str], folder: Path) -> list[Row]:
    """All rows of one model, float's first."""
    judge = evaluator(name)
    data = folder / "feeds.npz"
    write_feeds(data, judge.calibration())
    made = [Row(FLOAT, note=judge.metric)]
    models = {FLOAT: judge.model}
    for tool in tools:
        target = folder / f"{name}.{tool}.onnx"
        row = quantize(tool, judge.model, data, target)
        made.append(row)
        if not row.problem:
            models[tool] = target
    told = [f"{tool}={path}" for tool, path in models.items()]
    command = [sys.executable, str(Path(__file__)), "--measure", name, *told]
    done = _run(command, folder)
    if isinstance(done, str):
        return [dataclasses.replace(row, problem=row.problem or done) for row in made]
    figures: dict[str, dict[str, Any]] = json.loads(last_line(done.stdout))
    wrong: dict[str, str] = {}
    for line in done.stderr.splitlines():
        tool, _, reason = line.partition(": ")
        wrong[tool] = reason
    full = [_filled(row, figures, models, wrong) for row in made]
    kept = [dataclasses.replace(row, kept=judge.keeps(full[0].metric, row.metric)) for row in full]
    return [dataclasses.replace(row, flags=flags_of(row, kept)) for row in kept]


def _filled(
    row: Row,
    figures: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Path],
    wrong: Mapping[str, str],
) -> Row:
    if row.problem:
        return row
    if row.tool not in figures:
        return dataclasses.replace(row, problem=f"invalid: {wrong.get(row.tool, 'does not run')}")
    return dataclasses.replace(row, size=models[row.tool].stat().st_size, **figures[row.tool])


def flags_of(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """The limits that a row breaks, given all rows of its model."""
    if row.tool != OURS:
        return ()
    if row.problem:
        return ("no valid model",)
    flags: list[str] = []
    if not row.kept:
        flags.append("metric")
    if row.speed < LEAST_SPEED or row.deployed < LEAST_SPEED:
        flags.append("slower than float")
    others = [each for each in rows if each.tool not in (OURS, FLOAT) and not each.problem]
    best = max(
        (each for each in others if each.sqnr < UNTOUCHED_DB),
        key=lambda each: each.sqnr,
        default=None,
    )
    if best is not None and row.sqnr < best.sqnr + LEAST_GAIN_DB:
        flags.append(f"SQNR: {best.tool} {best.sqnr:.1f}")
    if best is not None and best.kept and row.speed < LEAST_SPEED * best.speed:
        flags.append(f"speed: {best.tool} {best.speed:.2f}")
    return tuple(flags)


def _note(said: Mapping[str, Any]) -> str:
    if said.get("passed") is False:
        return "; ".join(["not passed", *said.get("reasons", ())])
    return str(said.get("note", ""))


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str] | str:
    """What a process did, or in a few words why it did not."""
    late = f"not done in {MOST_SECONDS} s"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=4 * MOST_SECONDS,
            check=False,
            cwd=folder,
            env={**os.environ, "TQDM_DISABLE": "1"},
            preexec_fn=_limit,
        )
    except subprocess.TimeoutExpired:
        return late
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return late
    if done.returncode < 0:
        return f"crashes (signal {-done.returncode})"
    if done.returncode:
        return f"crashes: {last_line(done.stderr)}"
    return done


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 10))


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def print_rows(name: str, rows: Sequence[Row]) -> None:
    """One model's part of the table."""
    print(f"{name}: {rows[0].note}")
    for row in rows:
        head = f"  {row.tool:12s}{_figure(row.seconds, '7.1f')}"
        if row.problem:
            print(f"{head}  {row.problem[:110]}")
            continue
        flags = "  ".join(f"[{each}]" for each in row.flags)
        note = "" if row.tool == FLOAT else row.note[:100]
        speeds = f"{row.speed:7.2f} {_figure(row.deployed, '9.2f')}"
        figures = f"{row.metric:9.4f} {speeds} {row.sqnr:7.1f} {row.size / 1e6:8.2f}"
        print(f"{head} {figures}  {flags}  {note}".rstrip())
    sys.stdout.flush()


def _figure(value: float, form: str) -> str:
    return " " * int(form.partition(".")[0]) if math.isnan(value) else format(value, form)


def print_summary(table: Mapping[str, Sequence[Row]]) -> None:
    """What holds over all models."""
    tools = dict.fromkeys(row.tool for rows in table.values() for row in rows)
    for tool in tools:
        mine = [row for rows in table.values() for row in rows if row.tool == tool]
        valid = [row for row in mine if not row.problem]
        good = [row for row in valid if row.kept and row.speed >= LEAST_SPEED]
        speed = float(np.exp(np.mean(np.log([row.speed for row in valid])))) if valid else math.nan
        print(
            f"{tool:12s} valid {len(valid)}/{len(mine)}, metric kept and not slower "
            f"{len(good)}/{len(mine)}, geometric mean of the speed-ups {speed:.2f}"
        )
    flagged = sum(1 for rows in table.values() for row in rows if row.flags)
    print(f"rows of {OURS} with a flag: {flagged}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--only", action="append", choices=list(EVALUATORS), help="one model")
    parser.add_argument("--tool", action="append", choices=list(TOOLS), help="one tool")
    parser.add_argument("--keep", type=Path, help="a folder for the models made")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        name, *told = options.measure
        models = {tool: Path(path) for tool, _, path in (each.partition("=") for each in told)}
        print(json.dumps(measure(name, models)))
        return 0
    if not options.json:
        print(
            f"  {'tool':12s}{'CPU s':>7s} {'metric':>7s} {'speed':>7s} {'deployed':>9s} "
            f"{'SQNR dB':>7s} {'MB':>8s}"
        )
    table: dict[str, list[Row]] = {}
    for name in options.only or EVALUATORS:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as made:
            folder = (options.keep or Path(made)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            try:
                table[name] = rows_of(name, options.tool or list(TOOLS), folder)
            except DownloadError as error:
                print(f"{name} SKIPPED: {error}", file=sys.stderr, flush=True)
                continue
            except FetchError as error:
                raise SystemExit(str(error)) from error
        if not options.json:
            print_rows(name, table[name])
    if options.json:
        rows = {name: [asdict(row) for row in rows] for name, rows in table.items()}
        print(json.dumps({"benchmark": "quantization", "rows": rows}, indent=1))
        return 0
    print_summary(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
