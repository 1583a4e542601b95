"""What a report comes down to, for people: repetition taken out, the figures that decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FLOAT_COMMANDS = frozenset({"export", "loss"})
"""Commands that nobody expects integers of."""


@dataclass(frozen=True)
class PassSummary:
    """All runs of one pass together.

    Attributes:
        name: The pass, without its options.
        contract: What it promises.
        rewrites: How many, in all runs.
        seconds: How long it took, in all runs.
        status: What its gate said; empty where only the structure was checked.
    """

    name: str
    contract: str
    rewrites: int
    seconds: float
    status: str


def passes_that_changed(rows: Sequence[dict[str, Any]]) -> tuple[PassSummary, ...]:
    """One row per pass that changed something, in the order of their first runs."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["modified"]:
            runs.setdefault(row["pass"].split("{")[0], []).append(row)
    return tuple(
        PassSummary(
            name,
            each[0]["contract"],
            sum(sum(row["rules"].values()) for row in each),
            sum(row["seconds"] for row in each),
            # A pass that does not pass stops the pipeline or is done without: one word tells.
            next((status for status in map(_status, each) if status != "passed"), "passed"),
        )
        for name, each in runs.items()
    )


def summary(report: dict[str, Any]) -> Iterator[str]:
    """The last lines of a command, as text: latency, accuracy, size, verdict."""
    yield from _latency(report)
    task = report["task"]
    if "metric" in task:
        figures = f"{task['original']:.4g} -> {task['result']:.4g}"
        yield f"{task['metric']}: {figures} on {task['rows']} samples"
    elif task:
        before, after = task["original_accuracy"], task["accuracy"]
        yield f"accuracy: {before:.2%} -> {after:.2%} on {task['rows']} labelled samples"
    source, result = report["source"], report["result"]
    yield f"size: {source['bytes']:,} -> {result['bytes']:,} bytes"
    share = result["census"]["integer_share"]
    if share or report.get("command") not in _FLOAT_COMMANDS:
        yield _integers(result, share)
    yield from _operator_by_operator(report)
    yield from excuses_in_words(report["equivalence"]) if report["equivalence"] else ()
    if report["data"].get("generated"):
        yield "inputs were generated: give --data for evidence on your own"
    if not report["data"].get("held_out", True):
        yield "one feed both calibrated and judged the model: give more for evidence on others"
    verdict = report["verdict"]
    yield f"{state(report)}: {result['path']}"
    yield from (f"  {reason}" for reason in verdict["reasons"])


def excuses_in_words(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Why outputs that differ much may be those of a right fold, where there is such a reason."""
    drift = [each["sqnr_db"] for each in comparison.get("drift", ()) if each["sqnr_db"] != "inf"]
    if comparison.get("contract") == "integer" and drift:
        yield (
            f"the original's own outputs move to {min(drift):.1f} dB where its scales move by one "
            "unit in the last place, or onnxruntime optimizes it"
        )
    regions = comparison.get("regions")
    if regions:
        yield (
            f"operator by operator, each fed with the original's tensors: "
            f"{regions['mismatches']:,} of {regions['elements']:,} numbers differ, "
            f"{regions['ties']:,} more by ties"
        )


def _integers(result: dict[str, Any], share: float) -> str:
    return (
        f"in integer operators: {share_in_words(share)} of the multiply-accumulates"
        f"{_form(result, share)}"
    )


def share_in_words(share: float) -> str:
    """A share of the work as per cent: 100.0% is all of it, and 0.0% none."""
    return f"{share if share in (0.0, 1.0) else min(max(share, 0.001), 0.999):.1%}"


def state(report: dict[str, Any]) -> str:
    """``passed``, ``inconclusive``, or ``not checked`` where no numbers were compared."""
    if not report["verdict"]["passed"]:
        return "inconclusive"
    return "passed" if report["equivalence"] else "numbers not checked"


def _operator_by_operator(report: dict[str, Any]) -> Iterator[str]:
    """What a fold changed before errors add up: it explains the differences of the outputs."""
    held = [row for row in report["passes"] if row["evidence"].get("regions")]
    for row in held:
        found = row["evidence"]["regions"]
        name = f" ({row['pass'].split('{')[0]})" if len(held) > 1 else ""
        yield (
            f"operator by operator{name}: {found['mismatches']:,} of {found['elements']:,} numbers "
            f"differ, {found['ties']:,} more by ties"
        )


def _status(row: dict[str, Any]) -> str:
    return row["evidence"].get("verdict", {}).get("status", "")


def _form(result: dict[str, Any], share: float) -> str:
    quantized = "DequantizeLinear" in result["census"]["ops"]
    return " (in QDQ form: the runtime makes them)" if quantized and not share else ""


def _latency(report: dict[str, Any]) -> Iterator[str]:
    chosen = [row for row in report["decisions"] if row["outcome"].startswith("chosen")]
    models = report["latency"].get("models", {})
    if not models:
        return
    if not chosen:
        fell = any("not hold" in row["outcome"] for row in report["decisions"])
        why = "what was faster does not hold" if fell else "nothing measured was faster"
        yield f"latency: the model stays as it came, {why}"
        return
    before, after = models["original"]["median_ms"], chosen[-1]["median_ms"]
    relative = chosen[-1]["relative"]
    yield f"latency: {before:.3f} -> {after:.3f} ms, {relative:.2f} of the original in paired runs"
