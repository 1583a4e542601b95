"""Prints reports, verdicts and tables of the commands for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxfold.console import print_line, print_table
from onnxfold.doctoring import Finding, remarks_of
from onnxfold.explaining import print_islands, print_remarks
from onnxfold.loss_printing import print_loss_differences, print_losses
from onnxfold.runtime.report.comparison import worst_input_in_words
from onnxfold.runtime.report.groups import other_remarks
from onnxfold.runtime.report.summary import excuses_in_words, passes_that_changed, summary
from onnxfold.runtime.verify.compare import Comparison


def print_kernel_costs(document: dict[str, Any]) -> None:
    """Print a table of costs."""
    print_table(
        f"microseconds on one thread, {document['machine']}, onnxruntime {document['onnxruntime']}",
        ("kernel", "costs"),
        (
            (family, ", ".join(f"{name} {cost:.3g}" for name, cost in costs.items()))
            for family, costs in document["microseconds"].items()
        ),
    )


def print_findings(findings: Sequence[Finding]) -> None:
    """Print what is installed to export with."""
    print_table(
        f"to export with {findings[0].python} (Python {findings[0].python_version})",
        ("framework", "installed", "works", "exports", "fix"),
        (
            (
                each.framework,
                ", ".join(f"{name} {version}" for name, version in each.installed.items()) or "-",
                "yes" if each.works else "no",
                ", ".join(each.kinds),
                each.fix or "-",
            )
            for each in findings
        ),
    )
    for line in remarks_of(findings):
        print_line(line)


def print_report(report: dict[str, Any]) -> None:
    """Print what was done to a model, and what shows that it still computes the same."""
    _print_passes(report["passes"])
    if report["decisions"]:
        _print_decisions(report["decisions"])
    print_losses(report["loss"])
    print_islands(report["islands"])
    print_remarks(other_remarks(report["remarks"]))
    if report["equivalence"]:
        _print_layers(report["equivalence"].get("layers", ()))
        _print_outputs(report["equivalence"]["deployment"], report["equivalence"]["samples"])
    for line in summary(report):
        print_line(line)


def _print_layers(tensors: Sequence[dict[str, Any]]) -> None:
    """The tensor of each layer that is furthest from the framework's, in the model's order."""
    layers: dict[str, dict[str, Any]] = {}
    for each in tensors:
        known = layers.setdefault(each["layer"], each)
        if float(each["relative_to_max"]) > float(known["relative_to_max"]):
            layers[each["layer"]] = each
    if layers:
        print_table(
            "layer by layer, against the framework",
            ("layer", "max |difference|", "largest value", "within the gate"),
            (
                (
                    name,
                    f"{float(each['max_abs_diff']):.3g}",
                    f"{float(each['max_abs_reference']):.3g}",
                    "yes" if each["passed"] else "no",
                )
                for name, each in layers.items()
            ),
            numbers=(1, 2),
        )


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


def print_comparison(comparison: Comparison) -> None:
    """Print how two models differ, and whether that is within the contract."""
    if comparison.samples:
        _print_outputs(comparison.to_json()["deployment"], comparison.samples)
    print_loss_differences(comparison.losses)
    print_line(f"{comparison.contract.value}: {comparison.verdict.status}")
    for reason in comparison.verdict.reasons:
        print_line(f"  {reason}")
    for line in excuses_in_words(comparison.to_json()):
        print_line(f"  {line}")
    if comparison.worst_input is not None:
        print_line(worst_input_in_words(comparison.worst_input))


def _print_outputs(outputs: list[dict[str, Any]], samples: int) -> None:
    print_table(
        f"against the original, {samples} sample{'' if samples == 1 else 's'}, as deployed",
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
