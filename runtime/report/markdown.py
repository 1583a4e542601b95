"""Writes a page as Markdown, for people and pull requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnxfold.runtime.report.blocks import Block, Bullets, Heading, Paragraph, Picture, Table


def to_markdown(blocks: Iterable[Block]) -> str:
    """Render a page as a Markdown document; its pictures lie beside it."""
    return "\n".join(line for block in blocks for line in _lines(block)).rstrip() + "\n"


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


def _lines(block: Block) -> list[str]:
    match block:
        case Heading(text, level):
            return [f"{'#' * level} {escape(text)}", ""]
        case Paragraph(text):
            return [escape(text), ""]
        case Bullets(items):
            return [*(f"- {escape(item)}" for item in items), ""]
        case Table(header, rows):
            return table(header, rows)
        case Picture(file, title, _):
            return [f"![{title}]({file})", ""]
