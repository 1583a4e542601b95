"""What ``onnxfold opt`` does besides running: lists the passes, watches them, bisects."""

from __future__ import annotations

import argparse

from onnxfold.console import ProgressBars, print_json, print_line, print_table
from onnxfold.passes.errors import NotEquivalentError
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
from onnxfold.runtime.trial import feeds_for
from onnxfold.runtime.verify.compare import compare_models


def instruments_for(options: argparse.Namespace) -> list[Instrument]:
    """What is to watch the passes."""
    instruments: list[Instrument] = []
    if options.dump is not None:
        instruments.append(DumpIfChanged(options.dump))
    if options.reproducer is not None:
        instruments.append(CrashReproducer(options.reproducer))
    if options.max_rewrites is not None:
        instruments.append(RewriteLimit(options.max_rewrites))
    return instruments


def bisect_pipeline(options: argparse.Namespace) -> int:
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


def list_passes(*, as_json: bool) -> int:
    """Print the passes and their options."""
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
