"""Writes into docs/losses.md every loss, with its formula, inputs and options."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import onnx_ir as ir

from onnxfold.passes.loss.build import LossModel, LossTensor, build_loss
from onnxfold.passes.loss.declaration import Loss
from onnxfold.passes.loss.registry import LOSSES, registered_loss
from onnxfold.passes.spec import PassSpec, option_summary

PAGE = Path(__file__).with_name("losses.md")
IMAGES = ("psnr", "ssim")

_GENERATED = re.compile("(?<=<!-- losses -->\n).*(?=<!-- end of losses -->)", re.DOTALL)


def page() -> str:
    """The page with its losses as they are now."""
    found = [registered_loss(name) for name in LOSSES]
    rows = [
        "| loss | takes | new inputs | better | in |",
        "|---|---|---|---|---|",
        *(_row(each) for each in found),
    ]
    text = "\n".join([*rows, "", *map(_section, found)])
    return _GENERATED.sub(lambda _: text, PAGE.read_text(encoding="utf-8"))


def _row(each: Loss) -> str:
    built = _built(each)
    types = {value.name: value.dtype for value in built.model.graph.inputs}
    data = [f"`{name}` {str(types[name]).lower()}" for name in built.data]
    taken = ", ".join(f"`{name}`" for name in each.tensors)
    kind = each.scores_with(each.options())
    scores = "" if kind in ("values", *each.tensors) else f" ({kind})"
    unit = re.search(r"Units?: (.*?)[.;]", " ".join(_text(each).split()))
    cells = [
        f"[{each.name}](#{each.name})",
        f"{taken}{scores}",
        ", ".join(data) or "none",
        each.better,
        unit.group(1) if unit else "",
    ]
    return f"| {' | '.join(cells)} |"


def _section(each: Loss) -> str:
    described, _, arguments = _text(each).partition("Args:")
    meanings = dict(_entries(arguments))
    options = option_summary(each.options)
    lines = [f"### {each.name}\n", described.replace("``", "`").strip() + "\n"]
    lines.extend(f"- `{name}`: {meanings[name]}" for name in each.tensors)
    for option, field in zip(options, dataclasses.fields(each.options), strict=True):
        shown = f"{option}=true" if field.default is True else option
        lines.append(f"- `{shown}`: {meanings[field.name]}")
    return "\n".join([*lines, ""])


def _text(each: Loss) -> str:
    return inspect.cleandoc(each.function.__doc__ or "")


def _entries(arguments: str) -> list[tuple[str, str]]:
    """Names and meanings of a docstring's arguments."""
    joined = re.sub(r"\n {8,}", " ", arguments)
    found = [line.strip().partition(": ") for line in joined.splitlines() if line.strip()]
    return [(name, meaning.replace("``", "`")) for name, _, meaning in found]


def _built(each: Loss) -> LossModel:
    dims = ("N", "C", "H", "W") if each.name in IMAGES else ("N", "D")
    tensors = [LossTensor(name, ir.DataType.FLOAT, dims) for name in each.tensors]
    return build_loss(PassSpec(each.name, {}), tensors)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
