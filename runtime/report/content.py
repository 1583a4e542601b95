"""What a report says to people, in order; how it is written down is the renderers' business."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from onnxfold.runtime.report.bars import Pair, draw_pairs
from onnxfold.runtime.report.blocks import Block, Bullets, Heading, Paragraph, Picture, Table
from onnxfold.runtime.report.frontier import draw, points
from onnxfold.runtime.report.groups import (
    extent,
    group_islands,
    group_remarks,
    other_remarks,
)
from onnxfold.runtime.report.losses import loss_lines
from onnxfold.runtime.report.summary import share_in_words, state

FRONTIER = "frontier.svg"
CHANGES = "changes.svg"

_MAX_ISLANDS = 50
_MAX_PASS = 100


def report_blocks(report: dict[str, Any]) -> list[Block]:
    """The page of a report (as ``Report.to_json`` gives it)."""
    reasons = tuple(report["verdict"]["reasons"])
    return [
        Heading(f"onnxfold {report['command']}: {state(report)}", 1),
        *([Bullets(reasons)] if reasons else []),
        *_changes(report),
        *_models(report),
        *_options(report.get("options", {})),
        *_latency(report["latency"]),
        *equivalence_blocks(report["equivalence"]),
        *_task(report["task"]),
        *_loss(report.get("loss", {})),
        *_passes(report["passes"]),
        *_decisions(report["decisions"]),
        *_islands(report["islands"]),
        *_remarks(other_remarks(report["remarks"])),
        *_versions(report),
    ]


def equivalence_blocks(equivalence: dict[str, Any]) -> Iterator[Block]:
    """The metrics of each output, end to end."""
    if not equivalence:
        return
    rows = [
        (
            output["name"],
            number(output["sqnr_db"], ".1f"),
            number(output["cosine"], ".6f"),
            number(output["max_abs_diff"], ".3g"),
            f"{output['flips']} of {output['rows']}" if output["rows"] else "",
        )
        for output in equivalence["deployment"]
    ]
    yield Heading("Equivalence")
    yield Paragraph(f"Against the original, on {equivalence['samples']} samples, as deployed.")
    yield Table.of(("output", "SQNR dB", "cosine", "max difference", "changed top-1"), rows)


def number(value: float | str | None, form: str) -> str:
    """A figure as text; empty where there is none."""
    if value is None or isinstance(value, str):
        return value or ""
    return format(value, form)


def _changes(report: dict[str, Any]) -> Iterator[Block]:
    """Latency and size, before and after, where both were measured."""
    result = report["result"]
    models = report["latency"].get("models", {})
    chosen = [row for row in report["decisions"] if row["outcome"].startswith("chosen")]
    if result is None or "original" not in models or not chosen:
        return
    original = models["original"]["median_ms"]
    pairs = [
        Pair("latency, ms", original, original * chosen[-1]["relative"], ".3f"),
        Pair("size, bytes", report["source"]["bytes"], result["bytes"], ",.0f"),
    ]
    yield Picture(
        CHANGES,
        "What came in and what goes out; latency by the ratio of paired runs",
        draw_pairs(pairs),
    )


def _models(report: dict[str, Any]) -> Iterator[Block]:
    rows: list[tuple[object, ...]] = []
    for role in ("source", "result"):
        facts = report[role]
        if facts is None:
            continue
        census = facts["census"]
        integer = share_in_words(census.get("integer_share", 0.0))
        nodes = sum(census.get("ops", {}).values())
        path = facts["path"] or "(in memory)"
        rows.append((role, path, f"{facts['bytes']:,}", nodes, integer, facts["sha256"]))
    yield Heading("Models")
    yield Table.of(("", "path", "bytes", "nodes", "MACs in integers", "sha256"), rows)


def _options(options: dict[str, Any]) -> Iterator[Block]:
    if options:
        yield Heading("Options")
        rows = [(name.replace("_", "-"), _option(value)) for name, value in options.items()]
        yield Table.of(("option", "value"), rows)


def _option(value: Any) -> str:
    """An option as text, in the words of the command line where it has parts."""
    if isinstance(value, dict):
        parts = cast("dict[str, Any]", value).items()
        return ", ".join(f"{name.replace('_', '-')}={part}" for name, part in parts)
    return str(value)


def _latency(latency: dict[str, Any]) -> Iterator[Block]:
    if not latency:
        return
    rows = [
        (name, f"{row['median_ms']:.3f}", f"{row['relative']:.3f}")
        for name, row in latency["models"].items()
    ]
    yield Heading("Latency")
    yield Paragraph("Measured interleaved; the ratio is of paired runs, not of the medians.")
    yield Table.of(("model", "median ms", "of the original"), rows)


def _task(task: dict[str, Any]) -> Iterator[Block]:
    if "metric" in task:
        figures = f"{task['original']:.4g} before, {task['result']:.4g} after"
        yield Paragraph(f"{task['metric']} on {task['rows']} samples: {figures}.")
    elif task:
        figures = f"{task['original_accuracy']:.2%} before, {task['accuracy']:.2%} after"
        yield Paragraph(f"Accuracy on {task['rows']} labelled samples: {figures}.")


def _loss(facts: dict[str, Any]) -> Iterator[Block]:
    if not facts:
        return
    rows = [
        (role, each["name"], each["dtype"], _shape(each["shape"]), each.get("holds", ""))
        for role in ("inputs", "outputs")
        for each in facts[role]
    ]
    yield Heading("Losses")
    yield Bullets(tuple(loss_lines(facts)))
    yield Table.of(("added to", "name", "type", "shape", "holds"), rows)


def _shape(dims: Sequence[object] | None) -> str:
    known = () if dims is None else ("?" if dim is None else str(dim) for dim in dims)
    return "?" if dims is None else f"[{','.join(known)}]"


def _passes(passes: list[dict[str, Any]]) -> Iterator[Block]:
    if not passes:
        return
    changed = [row for row in passes if row["modified"]]
    rows = [
        (
            _short(row["pass"]),
            row["contract"],
            ", ".join(f"{rule} x{count}" for rule, count in row["rules"].items()),
            f"{row['seconds']:.3f}",
            _evidence(row["evidence"]),
        )
        for row in changed
    ]
    idle = sorted({_name(row) for row in passes} - {_name(row) for row in changed})
    yield Heading("Passes")
    if rows:
        yield Table.of(("pass", "contract", "rewrites", "seconds", "gate"), rows)
    if idle:
        yield Paragraph(f"Without effect: {', '.join(idle)}.")


def _name(row: dict[str, Any]) -> str:
    return row["pass"].split("{")[0]


def _short(text: str) -> str:
    """A pass with its options, unless these are a page of calibration ranges."""
    return text if len(text) <= _MAX_PASS else f"{text.split('{')[0]}{{...}}"


def _evidence(evidence: dict[str, Any]) -> str:
    if not evidence:
        return ""
    status, regions = evidence["verdict"]["status"], evidence.get("regions")
    if not regions:
        return status
    seen = f"{regions['checked']} of {regions['regions']} regions, {regions['elements']:,} numbers"
    return f"{status}; {seen}: {regions['mismatches']} differ, {regions['ties']} more by ties"


def _decisions(decisions: list[dict[str, Any]]) -> Iterator[Block]:
    if not decisions:
        return
    rows = [
        (
            row["candidate"],
            number(row.get("median_ms"), ".3f"),
            number(row.get("relative"), ".3f"),
            row.get("quality", ""),
            number(row.get("gain_db"), "+.1f"),
            number(row.get("seconds"), ".1f"),
            row["outcome"],
        )
        for row in decisions
    ]
    yield Heading("What was measured and chosen")
    candidates = points(decisions)
    if len(candidates) > 1:
        yield Picture(FRONTIER, "What accuracy costs", draw(candidates))
    header = ("candidate", "median ms", "of the original", "quality", "gain dB", "seconds")
    yield Table.of((*header, "outcome"), rows)


def _islands(islands: list[dict[str, Any]]) -> Iterator[Block]:
    groups = group_islands(islands)
    if not groups:
        return
    rows = [
        (
            group.share,
            group.cause,
            group.contents,
            ", ".join(group.shown_places()),
            "; ".join(reason for reason, _ in group.shown_reasons()),
            "; ".join(dict.fromkeys(advice for _, advice in group.shown_reasons() if advice)),
        )
        for group in groups[:_MAX_ISLANDS]
    ]
    yield Heading(f"Left in float: {extent(islands)}")
    header = ("run time", "cause", "operators", "at", "reason", "what would change it")
    yield Table.of(header, rows)
    yield from _more(len(groups) - len(rows))


def _remarks(remarks: list[dict[str, Any]]) -> Iterator[Block]:
    groups = group_remarks(remarks)
    if not groups:
        return
    rows = [
        (group.op_type, ", ".join(group.shown_nodes()), group.reason, group.advice)
        for group in groups[:_MAX_ISLANDS]
    ]
    yield Heading(f"Remarks of passes: {len(remarks)}")
    yield Table.of(("operator", "nodes", "reason", "what would change it"), rows)
    yield from _more(len(groups) - len(rows))


def _more(count: int) -> Iterator[Block]:
    if count > 0:
        yield Paragraph(f"... and {count} more reasons, in report.json.")


def _versions(report: dict[str, Any]) -> Iterator[Block]:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield Heading("Made with")
    yield Paragraph(versions)
    data = report["data"]
    if not data:
        return
    count, sha256 = data.get("count"), data.get("sha256")
    facts = [
        data.get("description", ""),
        *([f"{count} feeds"] if count is not None else []),
        *([f"sha256 {sha256}"] if sha256 else []),
    ]
    yield Paragraph(f"Data: {', '.join(facts)}.")
