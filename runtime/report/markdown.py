"""The report as Markdown, for people and pull requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnxfold.runtime.report.frontier import points
from onnxfold.runtime.report.groups import (
    extent,
    group_islands,
    group_remarks,
    other_remarks,
)
from onnxfold.runtime.report.losses import loss_lines
from onnxfold.runtime.report.summary import state

FRONTIER = "frontier.svg"
"""The picture beside the report."""

_MAX_ISLANDS = 50
_MAX_PASS = 100


def to_markdown(report: dict[str, Any]) -> str:
    """Render a report (as ``Report.to_json`` gives it) as a Markdown document."""
    verdict = report["verdict"]
    lines = [
        f"# onnxfold {report['command']}: {state(report)}",
        "",
        *(f"- {escape(reason)}" for reason in verdict["reasons"]),
        *_models(report),
        *_options(report.get("options", {})),
        *_latency(report["latency"]),
        *_equivalence(report["equivalence"]),
        *_task(report["task"]),
        *_loss(report.get("loss", {})),
        *_passes(report["passes"]),
        *_decisions(report["decisions"]),
        *_islands(report["islands"]),
        *_remarks(other_remarks(report["remarks"])),
        *_versions(report),
    ]
    return "\n".join(lines).rstrip() + "\n"


def escape(text: object) -> str:
    """``text`` with everything taken out of it that Markdown or HTML would act on."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    for mark in "|`*_[]#":
        escaped = escaped.replace(mark, "\\" + mark)
    return " ".join(escaped.split())


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table, followed by an empty one."""
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(' --- ' for _ in header)}|"]
    lines += [f"| {' | '.join(escape(cell) for cell in row)} |" for row in rows]
    return [*lines, ""]


def _loss(facts: dict[str, Any]) -> list[str]:
    if not facts:
        return []
    rows = [
        (role, each["name"], each["dtype"], _shape(each["shape"]), each.get("holds", ""))
        for role in ("inputs", "outputs")
        for each in facts[role]
    ]
    lines = [f"- {escape(line)}" for line in loss_lines(facts)]
    header = ("added to", "name", "type", "shape", "holds")
    return ["## Losses", "", *lines, "", *table(header, rows)]


def _shape(dims: Sequence[object] | None) -> str:
    known = () if dims is None else ("?" if dim is None else str(dim) for dim in dims)
    return "?" if dims is None else f"[{','.join(known)}]"


def _models(report: dict[str, Any]) -> list[str]:
    rows: list[tuple[object, ...]] = []
    for role in ("source", "result"):
        facts = report[role]
        if facts is None:
            continue
        census = facts["census"]
        integer = f"{census.get('integer_share', 0.0):.1%}"
        nodes = sum(census.get("ops", {}).values())
        rows.append(
            (
                role,
                facts["path"] or "(in memory)",
                f"{facts['bytes']:,}",
                nodes,
                integer,
                facts["sha256"],
            )
        )
    return [
        "## Models",
        "",
        *table(("", "path", "bytes", "nodes", "MACs in integers", "sha256"), rows),
    ]


def _options(options: dict[str, Any]) -> list[str]:
    if not options:
        return []
    rows = [(name.replace("_", "-"), value) for name, value in options.items()]
    return ["## Options", "", *table(("option", "value"), rows)]


def _latency(latency: dict[str, Any]) -> list[str]:
    if not latency:
        return []
    rows = [
        (name, f"{row['median_ms']:.3f}", f"{row['relative']:.3f}")
        for name, row in latency["models"].items()
    ]
    note = "Measured interleaved; the ratio is of paired runs, not of the medians."
    header = ("model", "median ms", "of the original")
    return ["## Latency", "", note, "", *table(header, rows)]


def comparison_to_markdown(comparison: dict[str, Any]) -> str:
    """Render a comparison (as ``Comparison.to_json`` gives it) as a Markdown document."""
    verdict = comparison["verdict"]
    lines = [
        f"# onnxfold verify: {verdict['status']}",
        "",
        f"{escape(comparison['candidate'])} against {escape(comparison['reference'])}, "
        f"contract {comparison['contract']}.",
        "",
        *(f"- {escape(reason)}" for reason in verdict["reasons"]),
        *_equivalence(comparison),
        *_loss_differences(comparison["losses"]),
        *_worst_input(comparison["worst_input"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _loss_differences(losses: list[dict[str, Any]]) -> list[str]:
    if not losses:
        return []
    header = ("loss", "better", "reference", "candidate", "difference", "interval", "verdict")
    rows = [
        (
            each["loss"],
            each["better"],
            f"{each['reference']:.6g}",
            f"{each['candidate']:.6g}",
            f"{each['difference']:+.4g}",
            f"{each['low']:+.4g} to {each['high']:+.4g}",
            each["verdict"]["status"],
        )
        for each in losses
    ]
    first = losses[0]
    note = f"{first['samples']} samples; {first['confidence']:.0%} intervals: {first['method']}."
    return ["## Losses", "", note, "", *table(header, rows)]


def worst_input_in_words(worst: Mapping[str, Any]) -> str:
    """What a search for the worst input found (``Comparison.worst_input``), in words."""
    how = f"{worst['steps']} steps along the gradient"
    if worst["reason"]:
        reason = str(worst["reason"]).partition(";")[0]
        how = f"{worst['steps']} random steps, since there is {reason}"
    kept = f" Kept as {worst['kept']}." if worst["kept"] else ""
    return (
        f"worst input: output '{worst['output']}' is off by {worst['difference']:.3g} of its root "
        f"mean square; on the data by {worst['typical']:.3g}, at most {worst['before']:.3g} "
        f"({how}).{kept}"
    )


def _worst_input(worst: Mapping[str, Any] | None) -> list[str]:
    return [] if worst is None else ["## Worst input", "", escape(worst_input_in_words(worst)), ""]


def _equivalence(equivalence: dict[str, Any]) -> list[str]:
    if not equivalence:
        return []
    rows = [
        (
            output["name"],
            _number(output["sqnr_db"], ".1f"),
            _number(output["cosine"], ".6f"),
            _number(output["max_abs_diff"], ".3g"),
            f"{output['flips']} of {output['rows']}" if output["rows"] else "",
        )
        for output in equivalence["deployment"]
    ]
    header = ("output", "SQNR dB", "cosine", "max difference", "changed top-1")
    note = f"Against the original, on {equivalence['samples']} samples, as deployed."
    return ["## Equivalence", "", note, "", *table(header, rows)]


def _task(task: dict[str, Any]) -> list[str]:
    if not task:
        return []
    if "metric" in task:
        figures = f"{task['original']:.4g} before, {task['result']:.4g} after"
        return [f"{escape(task['metric'])} on {task['rows']} samples: {figures}.", ""]
    before, after = task["original_accuracy"], task["accuracy"]
    return [
        f"Accuracy on {task['rows']} labelled samples: {before:.2%} before, {after:.2%} after.",
        "",
    ]


def _number(value: float | str | None, form: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return format(value, form)


def _passes(passes: list[dict[str, Any]]) -> list[str]:
    if not passes:
        return []
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
    note = [f"Without effect: {escape(', '.join(idle))}.", ""] if idle else []
    lines = table(("pass", "contract", "rewrites", "seconds", "gate"), rows) if rows else []
    return ["## Passes", "", *lines, *note]


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


def _decisions(decisions: list[dict[str, Any]]) -> list[str]:
    if not decisions:
        return []
    rows = [
        (
            row["candidate"],
            _number(row.get("median_ms"), ".3f"),
            _number(row.get("relative"), ".3f"),
            row.get("quality", ""),
            _number(row.get("gain_db"), "+.1f"),
            _number(row.get("seconds"), ".1f"),
            row["outcome"],
        )
        for row in decisions
    ]
    header = (
        *("candidate", "median ms", "of the original", "quality", "gain dB", "seconds"),
        "outcome",
    )
    picture = [f"![What accuracy costs]({FRONTIER})", ""] if len(points(decisions)) > 1 else []
    return ["## What was measured and chosen", "", *picture, *table(header, rows)]


def _islands(islands: list[dict[str, Any]]) -> list[str]:
    groups = group_islands(islands)
    if not groups:
        return []
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
    header = ("run time", "cause", "operators", "at", "reason", "what would change it")
    title = f"## Left in float: {extent(islands)}"
    return [title, "", *table(header, rows), *_more(len(groups) - len(rows))]


def _remarks(remarks: list[dict[str, Any]]) -> list[str]:
    groups = group_remarks(remarks)
    if not groups:
        return []
    rows = [
        (group.op_type, ", ".join(group.shown_nodes()), group.reason, group.advice)
        for group in groups[:_MAX_ISLANDS]
    ]
    header = ("operator", "nodes", "reason", "what would change it")
    title = f"## Remarks of passes: {len(remarks)}"
    return [title, "", *table(header, rows), *_more(len(groups) - len(rows))]


def _more(count: int) -> list[str]:
    return [f"... and {count} more reasons, in report.json.", ""] if count > 0 else []


def _versions(report: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return ["## Made with", "", versions, "", *_data(report["data"])]


def _data(data: dict[str, Any]) -> list[str]:
    if not data:
        return []
    count, sha256 = data.get("count"), data.get("sha256")
    facts = [
        escape(data.get("description", "")),
        *([f"{count} feeds"] if count is not None else []),
        *([f"sha256 {sha256}"] if sha256 else []),
    ]
    return [f"Data: {', '.join(facts)}."]
