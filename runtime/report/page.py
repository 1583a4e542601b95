"""Writes a page as one HTML file that needs nothing else: style and pictures are inside."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from onnxfold.runtime.report.blocks import Block, Bullets, Heading, Paragraph, Picture, Table

_FIGURE = re.compile(r"[+-]?[\d,]*\.?\d+(e[+-]?\d+)?( ?%)?|[+-]?inf|nan")
"""What stands to the right in its column, so that figures can be compared."""
_STATE = {"passed": "good", "failed": "bad"}
"""Class of the title, by the last word of it; anything else is neither."""

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --ink: #1f2328; --dim: #59636e;
  --paper: #ffffff; --good: #0a7d34; --bad: #b3261e; --unsure: #8a6100; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --soft: #151b23; --ink: #e6edf3;
  --dim: #9198a1; --paper: #0d1117; --good: #3fb950; --bad: #ff7b72; --unsure: #d29922; } }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 72rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 1rem; padding: .6rem 1rem; font-size: 1.5rem; background: var(--soft);
  border-left: .4rem solid var(--unsure); border-radius: .3rem; }
h1.good { border-color: var(--good); } h1.bad { border-color: var(--bad); }
h2 { margin: 2rem 0 .5rem; font-size: 1.15rem; }
p { margin: .4rem 0; } ul { margin: .4rem 0; padding-left: 1.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .9rem; }
th, td { padding: .35rem .7rem; border: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: break-word; min-width: 3.5rem; max-width: 28rem; }
th { background: var(--soft); overflow-wrap: normal; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; border-radius: .3rem; }
figcaption { color: var(--dim); font-size: .9rem; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } }
"""


def to_html(blocks: Iterable[Block]) -> str:
    """Render a page as an HTML document; nothing in a block's text acts as markup."""
    found = list(blocks)
    title = next((each.text for each in found if isinstance(each, Heading)), "onnxfold")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            *map(_element, found),
            "</body>",
            "</html>",
            "",
        ]
    )


def _element(block: Block) -> str:
    match block:
        case Heading(text, 1):
            state = _STATE.get(text.rsplit(" ", 1)[-1], "unsure")
            return f'<h1 class="{state}">{escape(text)}</h1>'
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Table(header, rows):
            return _table(header, rows)
        case Picture(_, title, svg):
            return f"<figure>{svg.strip()}<figcaption>{escape(title)}</figcaption></figure>"


def _table(header: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _cell(text: str) -> str:
    kind = ' class="figure"' if _FIGURE.fullmatch(text) else ""
    return f"<td{kind}>{escape(text)}</td>"
