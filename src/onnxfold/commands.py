"""What each command does: call the API, write files, print for people or machines."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from onnxfold import api
from onnxfold.console import ProgressBars, print_json, print_line
from onnxfold.doctoring import diagnose
from onnxfold.explaining import print_explanation
from onnxfold.passes.base import Contract
from onnxfold.passes.errors import InconclusiveError, UsageError
from onnxfold.pipeline_commands import bisect_pipeline, instruments_for, list_passes
from onnxfold.printing import print_comparison, print_findings, print_kernel_costs, print_report
from onnxfold.runtime.places import check_file, check_folder
from onnxfold.runtime.report.comparison import comparison_blocks
from onnxfold.runtime.report.formats import VERDICT_FORMATS
from onnxfold.runtime.report.write import write_report, write_text


def compile(options: argparse.Namespace) -> int:
    """``onnxfold compile``."""
    _check_places(options)
    with ProgressBars(enabled=not options.quiet) as progress:
        outcome = api.compile(
            options.model,
            data=options.data,
            config=options.config,
            target=options.target,
            mode=options.mode,
            budget=options.budget,
            metric=options.metric,
            loss=options.loss,
            on=options.on,
            labels=options.labels,
            preset=options.preset,
            calibration=options.calibration,
            calibration_cache=options.calibration_cache,
            keep_slower=options.keep_slower,
            reduce_range=options.reduce_range,
            costs=options.costs,
            activations=options.activations,
            weights=options.weights,
            skip=options.skip,
            op_types=options.op_types,
            plan=options.plan,
            trust_pickle=options.trust_pickle,
            python=options.python,
            progress=progress,
        )
    if options.save_plan is not None and outcome.plan is not None:
        outcome.plan.save(options.save_plan)
    return _finish(options, outcome)


def fold(options: argparse.Namespace) -> int:
    """``onnxfold fold``."""
    _check_places(options)
    with ProgressBars(enabled=not options.quiet) as progress:
        outcome = api.fold(
            options.model,
            target=options.target,
            costs=options.costs,
            measure=options.measure,
            relax=options.relax,
            reduce_range=options.reduce_range,
            float_biases=options.float_biases,
            budget=options.budget,
            plan=options.plan,
            reference=options.reference,
            data=options.data,
            progress=progress,
        )
    if options.save_plan is not None and outcome.plan is not None:
        outcome.plan.save(options.save_plan)
    return _finish(options, outcome)


def finetune(options: argparse.Namespace) -> int:
    """``onnxfold finetune``."""
    _check_places(options)
    with ProgressBars(enabled=not options.quiet) as progress:
        outcome = api.finetune(
            options.model,
            reference=options.reference,
            loss=options.loss,
            data=options.data,
            budget=options.budget,
            steps=options.steps,
            rate=options.rate,
            activations=options.activations,
            seed=options.seed,
            progress=progress,
        )
    return _finish(options, outcome)


def tune(options: argparse.Namespace) -> int:
    """``onnxfold tune``."""
    _check_places(options)
    with ProgressBars(enabled=not options.quiet) as progress:
        document = api.tune(progress=progress).to_json()
    write_text(options.output, json.dumps(document, indent=2) + "\n")
    if options.json:
        print_json(document)
    else:
        print_kernel_costs(document)
    return 0


def export(options: argparse.Namespace) -> int:
    """``onnxfold export``."""
    _check_places(options)
    with ProgressBars(enabled=not options.quiet) as progress:
        outcome = api.export(
            options.model,
            kind=options.kind,
            data=options.data,
            opset=options.opset,
            signature=options.signature,
            inputs=_shapes(options.inputs or ()),
            dynamic_batch=options.dynamic_batch,
            keep_unused_inputs=options.keep_unused_inputs,
            layers=options.layers,
            trust_pickle=options.trust_pickle,
            python=options.python,
            progress=progress,
        )
    return _finish(options, outcome)


def _shapes(words: Sequence[str]) -> dict[str, str]:
    """``NAME=SHAPE`` of every ``--input``."""
    pairs = [word.partition("=") for word in words]
    for name, equals, shape in pairs:
        if not (name and equals and shape):
            raise UsageError(f"--input {name}: write NAME=SHAPE, as in x=1x3x224x224")
    return {name: shape for name, _, shape in pairs}


def doctor(options: argparse.Namespace) -> int:
    """``onnxfold doctor``."""
    findings = diagnose(options.frameworks, options.python)
    if options.json:
        print_json([each.to_json() for each in findings])
    else:
        print_findings(findings)
    missing = bool(options.frameworks) and not all(each.works for each in findings)
    return UsageError.exit_code if missing else 0


def optimize(options: argparse.Namespace) -> int:
    """``onnxfold optimize``."""
    _check_places(options)
    with ProgressBars(enabled=not options.quiet) as progress:
        outcome = api.optimize(options.model, data=options.data, progress=progress)
    return _finish(options, outcome)


def loss(options: argparse.Namespace) -> int:
    """``onnxfold loss``."""
    _check_places(options)
    with ProgressBars(enabled=not options.quiet) as progress:
        outcome = api.inject_loss(
            options.model,
            options.loss,
            on=options.on,
            labels=options.labels,
            weight=options.weight,
            # --grad alone means the weights.
            grad=False if options.grad is None else options.grad or True,
            train=options.train,
            trainable=options.trainable,
            data=options.data,
            progress=progress,
        )
    return _finish(options, outcome)


def opt(options: argparse.Namespace) -> int:
    """``onnxfold opt``."""
    if options.list:
        return list_passes(as_json=options.json)
    if options.model is None or not options.passes:
        raise UsageError('opt needs a MODEL and --passes "..." (--list shows the passes)')
    if options.bisect:
        return bisect_pipeline(options)
    if options.output is None:
        raise UsageError("opt needs -o OUT")
    if options.max_rewrites is not None and options.max_rewrites < 0:
        raise UsageError(f"--max-rewrites is {options.max_rewrites}; it must be at least 0")
    _check_places(options)
    with ProgressBars(enabled=not options.quiet) as progress:
        outcome = api.run_passes(
            options.model,
            options.passes,
            data=options.data,
            gates=not options.no_verify,
            instruments=instruments_for(options),
            progress=progress,
        )
    return _finish(options, outcome)


def verify(options: argparse.Namespace) -> int:
    """``onnxfold verify``."""
    _check_places(options)
    if options.adversarial is not None and options.adversarial < 1:
        raise UsageError(f"a search of {options.adversarial} steps finds nothing: give 1 or more")
    with ProgressBars(enabled=not options.quiet) as progress:
        comparison = api.verify(
            options.reference,
            options.candidate,
            data=options.data,
            contract=options.contract,
            budget=options.budget,
            adversarial=options.adversarial or 0,
            keep=options.keep,
            loss=options.loss,
            on=options.on,
            labels=options.labels,
            progress=progress,
        )
    document = comparison.to_json()
    if options.report is not None:
        write_report(document, comparison_blocks(document), options.report)
    if options.json or options.format == "json":
        print_json(document)
    elif options.format != "text":
        print_line(VERDICT_FORMATS[options.format](document).rstrip())
    else:
        print_comparison(comparison)
        if comparison.contract is Contract.INTEGER and options.contract is None:
            print_line("  (by the integer contract: the candidate is a fold of the reference)")
    api.require_conclusive(comparison)
    return 0


def explain(options: argparse.Namespace) -> int:
    """``onnxfold explain``."""
    with ProgressBars(enabled=not options.quiet) as progress:
        explanation = api.explain(
            options.model, target=options.target, data=options.data, progress=progress
        )
    if options.json:
        print_json(explanation.to_json())
        return 0
    print_explanation(explanation)
    return 0


def _finish(options: argparse.Namespace, outcome: api.Outcome) -> int:
    """Write the model and the report, print, and return the exit code."""
    outcome.save(options.output)
    report = outcome.report.to_json()
    report["result"]["path"] = str(options.output)
    if options.report is not None:
        outcome.save_report(options.report, result_path=options.output)
    if options.json:
        print_json(report)
    else:
        print_report(report)
    return 0 if outcome.report.passed else InconclusiveError.exit_code


def _check_places(options: argparse.Namespace) -> None:
    """Refuse, before the work, to write where it will not do or where an input lies."""
    named = vars(options)
    written = (named.get(each) for each in ("output", "save_plan", "calibration_cache"))
    files = [path for path in written if path is not None]
    folders = [named.get(each) for each in ("report", "dump", "reproducer", "keep")]
    script = str(named.get("data") or "").rpartition(":")[0]
    inputs = [
        named.get("model"),
        named.get("data"),
        named.get("plan"),
        named.get("costs"),
        named.get("config"),
        script,
    ]
    # Of a link to itself, Path.resolve raises, and in a way that depends on Python's version.
    taken = {os.path.realpath(each) for each in inputs if each}
    for path in files:
        if os.path.realpath(path) in taken:
            raise UsageError(f"{path} is the input: inputs are never overwritten, name another")
        check_file(path)
    for folder in folders:
        if folder is not None:
            check_folder(folder)
