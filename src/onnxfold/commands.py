"""What each command does: call the API, write files, print for people or machines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxfold import api
from onnxfold.console import ProgressBars, print_json, print_line, print_table
from onnxfold.doctoring import diagnose
from onnxfold.explaining import print_explanation, print_islands, print_remarks
from onnxfold.loss_printing import print_loss_differences, print_losses
from onnxfold.passes.base import Contract
from onnxfold.passes.errors import InconclusiveError, NotEquivalentError, UsageError
from onnxfold.passes.instruments import (
    CrashReproducer,
    DumpIfChanged,
    RewriteLimit,
    bisect_rewrites,
)
from onnxfold.passes.pipeline import Instrument
from onnxfold.passes.registry import parse_passes, pass_class, pass_names
from onnxfold.passes.spec import option_summary
from onnxfold.runtime.compiler.verified import weakest_contract
from onnxfold.runtime.loading import load_model
from onnxfold.runtime.places import check_file, check_folder
from onnxfold.runtime.report.groups import other_remarks
from onnxfold.runtime.report.markdown import comparison_to_markdown, worst_input_in_words
from onnxfold.runtime.report.summary import passes_that_changed, summary
from onnxfold.runtime.report.write import write_text
from onnxfold.runtime.trial import feeds_for
from onnxfold.runtime.verify.compare import Comparison, compare_models


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
        _print_kernel_costs(document)
    return 0


def _print_kernel_costs(document: dict[str, Any]) -> None:
    print_table(
        f"microseconds on one thread, {document['machine']}, onnxruntime {document['onnxruntime']}",
        ("kernel", "costs"),
        (
            (family, ", ".join(f"{name} {cost:.3g}" for name, cost in costs.items()))
            for family, costs in document["microseconds"].items()
        ),
    )


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
        print_table(
            f"to export with {findings[0].python}",
            ("framework", "installed", "works", "exports", "fix"),
            (
                (
                    each.framework,
                    ", ".join(f"{name} {version}" for name, version in each.installed.items())
                    or "-",
                    "yes" if each.works else "no",
                    ", ".join(each.kinds),
                    each.fix or "-",
                )
                for each in findings
            ),
        )
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
        return _list_passes(as_json=options.json)
    if options.model is None or not options.passes:
        raise UsageError('opt needs a MODEL and --passes "..." (--list shows the passes)')
    if options.bisect:
        return _bisect(options)
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
            instruments=_instruments(options),
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
        write_text(options.report / "report.json", json.dumps(document, indent=2) + "\n")
        write_text(options.report / "report.md", comparison_to_markdown(document))
    if options.json or options.format == "json":
        print_json(document)
    elif options.format == "markdown":
        print_line(comparison_to_markdown(document))
    else:
        _print_comparison(comparison)
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
        _print_report(report)
    return 0 if outcome.report.passed else InconclusiveError.exit_code


def _print_report(report: dict[str, Any]) -> None:
    _print_passes(report["passes"])
    if report["decisions"]:
        _print_decisions(report["decisions"])
    print_losses(report["loss"])
    print_islands(report["islands"])
    print_remarks(other_remarks(report["remarks"]))
    if report["equivalence"]:
        _print_outputs(report["equivalence"]["deployment"], report["equivalence"]["samples"])
    for line in summary(report):
        print_line(line)


def _print_passes(passes: list[dict[str, Any]]) -> None:
    rows = passes_that_changed(passes)
    if not rows:
        print_line("no pass changed anything")
        return
    print_table(
        "passes that changed something",
        ("pass", "contract", "rewrites", "seconds", "gate"),
        (
            (row.name, row.contract, row.rewrites, f"{row.seconds:.2f}", row.status or "structure")
            for row in rows
        ),
        numbers=(2, 3),
    )


def _print_decisions(decisions: list[dict[str, Any]]) -> None:
    print_table(
        "what was measured and chosen (ms: median; ratio: to the original's)",
        ("candidate", "ms", "ratio", "quality", "gain dB", "seconds", "outcome"),
        (
            (
                row["candidate"],
                _figure(row["median_ms"], ".3f"),
                _figure(row["relative"], ".3f"),
                row["quality"],
                _figure(row.get("gain_db"), "+.1f"),
                _figure(row.get("seconds"), ".1f"),
                row["outcome"],
            )
            for row in decisions
        ),
        numbers=(1, 2, 4, 5),
    )


def _print_comparison(comparison: Comparison) -> None:
    document = comparison.to_json()
    _print_outputs(document["deployment"], comparison.samples)
    print_loss_differences(comparison.losses)
    print_line(f"{comparison.contract.value}: {comparison.verdict.status}")
    for reason in comparison.verdict.reasons:
        print_line(f"  {reason}")
    if comparison.worst_input is not None:
        print_line(worst_input_in_words(comparison.worst_input))


def _print_outputs(outputs: list[dict[str, Any]], samples: int) -> None:
    print_table(
        f"against the original, {samples} samples, as deployed",
        ("output", "SQNR dB", "cosine", "max |difference|", "changed top-1"),
        (
            (
                row["name"],
                _rounded(row["sqnr_db"], ".1f"),
                _rounded(row["cosine"], ".6f"),
                _rounded(row["max_abs_diff"], ".3g"),
                f"{row['flips']} of {row['rows']}" if row["rows"] else "",
            )
            for row in outputs
        ),
        numbers=(1, 2, 3, 4),
    )


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _rounded(value: float | str, form: str) -> str:
    return value if isinstance(value, str) else format(value, form)


def _instruments(options: argparse.Namespace) -> list[Instrument]:
    instruments: list[Instrument] = []
    if options.dump is not None:
        instruments.append(DumpIfChanged(options.dump))
    if options.reproducer is not None:
        instruments.append(CrashReproducer(options.reproducer))
    if options.max_rewrites is not None:
        instruments.append(RewriteLimit(options.max_rewrites))
    return instruments


def _bisect(options: argparse.Namespace) -> int:
    """Find the first rewrite that breaks the contract of the pipeline."""
    model = load_model(options.model)
    passes = parse_passes(options.passes)
    feeds = feeds_for(model, options.data)
    contract = weakest_contract(passes)
    with ProgressBars(enabled=not options.quiet) as progress:
        progress.stage("bisecting")
        culprit = bisect_rewrites(
            passes, model, lambda each: compare_models(model, each, feeds, contract).verdict.passed
        )
    if culprit is None:
        print_json({"culprit": None}) if options.json else print_line("no rewrite breaks the model")
        return 0
    number, total, rewrite = culprit.number, culprit.total, str(culprit.rewrite)
    if options.json:
        print_json({"culprit": {"number": number, "total": total, "rewrite": rewrite}})
    else:
        print_line(f"rewrite {number} of {total} breaks it: {rewrite}")
    return NotEquivalentError.exit_code


def _list_passes(*, as_json: bool) -> int:
    rows = [
        (name, pass_class(name).__doc__ or "", option_summary(pass_class(name)))
        for name in pass_names()
    ]
    if as_json:
        keys = ("name", "summary", "options")
        print_json([dict(zip(keys, (n, d.split("\n")[0], o), strict=True)) for n, d, o in rows])
        return 0
    print_table(
        "passes",
        ("pass", "what it does", "options"),
        ((name, text.split("\n")[0], ", ".join(options)) for name, text, options in rows),
    )
    return 0


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
    taken = {Path(each).resolve() for each in inputs if each}
    for path in files:
        if path.resolve() in taken:
            raise UsageError(f"{path} is the input: inputs are never overwritten, name another")
        check_file(path)
    for folder in folders:
        if folder is not None:
            check_folder(folder)
