"""Float models quantized by onnxfold, onnxruntime and NNCF: task metric, speed, noise and size.

All tools get the same feeds to calibrate on, in this run, each in a process of its own: what does
not end in time or ends badly is a row, too. Then float and quantized models take turns in one
process: the task metric of ``fixtures/evaluators``, the speed-up over float (on one thread, by its
processor time, and as deployed, by the clock; medians of the ratios within a turn), the SQNR of the
outputs on other data than the calibration's, and the size of the file.

A row of onnxfold is flagged where it breaks a limit: no valid model; a metric below 99 % of
float's, or an accuracy more than half a point below it; a speed-up below 0.97; less than 3 dB above
the best SQNR of another tool whose model is valid and quantized, or slower than that model.

``onnxfold.compile`` is given the labels of its feeds, where a model's task is to name classes.

The figures are written to a file from model to model: a run that ends early leaves what it has, and
``--resume`` goes on with the rest, at the same commit. A model that cannot be measured is named at
the end. ``--only NAME`` measures one model (may be repeated), ``--tool`` some of the tools,
``--no-nncf`` all but the largest to install, ``--keep DIR`` keeps the models, ``--json`` prints
the figures for machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization_table import (
    FLOAT,
    Row,
    Table,
    checkout,
    flags_of,
    print_head,
    print_rows,
    print_summary,
)
from benchmarks.quantize_worker import TOOLS, write_feeds
from fixtures.environments import environment, last_line
from fixtures.evaluators.protocol import Evaluator, Feed, sqnr_db
from fixtures.evaluators.registry import EVALUATORS, evaluator
from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.timing import is_machine_busy, measure_interleaved

NNCF_PINS = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0")
WORKER = Path(__file__).with_name("quantize_worker.py")
MOST_SECONDS = 600
"""Of the processor, for each model and tool; four times that on the clock."""
MINUTES = 45.0
"""After so many on the clock no other model is begun."""
FILE = Path(".onnxfold", "bench_quantization.json")

_ROUNDS, _LEAST_SECONDS, _MOST_SECONDS, _TIMED_FEEDS = 21, 2.0, 8.0, 4
_ONE_THREAD = dataclasses.replace(DEPLOYMENT, name="one thread", threads=1)


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
            min_seconds=_LEAST_SECONDS,
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
    write_feeds(data, judge.calibration(), judge.labels() if judge.labels else ())
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all models and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--only", action="append", choices=list(EVALUATORS), help="one model")
    parser.add_argument("--tool", action="append", choices=list(TOOLS), help="one tool")
    parser.add_argument("--no-nncf", action="store_true", help="all tools but NNCF")
    parser.add_argument("--keep", type=Path, help="a folder for the models made")
    parser.add_argument("--file", type=Path, default=FILE, help="of figures (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="measure what the file lacks")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="begin no model after (default: %(default)s)"
    )
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        name, *told = options.measure
        models = {tool: Path(path) for tool, _, path in (each.partition("=") for each in told)}
        print(json.dumps(measure(name, models)))
        return 0
    left_out = ("nncf",) if options.no_nncf else ()
    tools = [tool for tool in options.tool or TOOLS if tool not in left_out]
    table = Table(checkout(), tuple(tools), options.file)
    if options.resume:
        table.resume()
    if not options.json:
        print_head(table.commit)
    missing = _fill(table, options.only or list(EVALUATORS), options)
    if options.json:
        print(json.dumps(table.to_json(), indent=1))
    else:
        print_summary(table.rows)
    for name, reason in missing.items():
        print(f"{name} NOT MEASURED: {reason}", file=sys.stderr, flush=True)
    return 0


def _fill(table: Table, names: Sequence[str], options: argparse.Namespace) -> dict[str, str]:
    """Measure what the table lacks; return which models could not be, and why."""
    missing: dict[str, str] = {}
    end = time.monotonic() + 60 * options.minutes
    for name in names:
        if name not in table.rows:
            if time.monotonic() > end:
                missing[name] = "the time is up; --resume goes on"
                continue
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as made:
                folder = (options.keep or Path(made)).resolve()
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    table.add(name, rows_of(name, table.tools, folder))
                except Exception as error:  # noqa: BLE001 - the other models are to be measured
                    missing[name] = " ".join(f"{type(error).__name__}: {error}".split())
                    continue
        if not options.json:
            print_rows(name, table.rows[name])
    return missing


if __name__ == "__main__":
    raise SystemExit(main())
