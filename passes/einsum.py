"""Reading Einsum: its equation, with ellipses spelled out, and the sizes of its letters."""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

_ELLIPSIS = "..."


@dataclass(frozen=True)
class Equation:
    """Which axes an Einsum multiplies and sums up.

    Attributes:
        operands: The letters of each operand, one an axis.
        output: The letters of the result.
    """

    operands: tuple[str, ...]
    output: str

    @classmethod
    def match(cls, node: ir.Node) -> Equation | None:
        """Read an Einsum node; None where a rank that matters is not known."""
        text = node.attributes.get_string("equation", "").replace(" ", "")
        left, arrow, right = text.partition("->")
        terms = left.split(",")
        if len(terms) != len(node.inputs):
            return None
        output = right if arrow else _implied_output(terms)
        ellipses = _ellipses(terms, node, set(string.ascii_letters) - set(text))
        if ellipses is None:
            return None
        longest = max(ellipses, key=len, default="")
        operands = tuple(
            term.replace(_ELLIPSIS, dots) for term, dots in zip(terms, ellipses, strict=True)
        )
        return cls(operands, output.replace(_ELLIPSIS, longest))


def letter_sizes(equation: Equation, node: ir.Node) -> dict[str, int | str | None]:
    """The size of each letter: a number, the name of an unknown one, or None.

    None too where two operands do not give the same size.
    """
    found: dict[str, int | str | None] = {}
    for letters, value in zip(equation.operands, node.inputs, strict=True):
        shape = None if value is None else value.shape
        dims = [None] * len(letters) if shape is None else list(shape)
        for letter, dim in zip(letters, dims, strict=False):
            size = dim.value if isinstance(dim, ir.SymbolicDim) else dim
            found[letter] = size if found.get(letter, size) == size else None
    return found


def _implied_output(terms: list[str]) -> str:
    """The ellipsis, then the letters that occur once, in alphabetical order."""
    counts = Counter("".join(terms).replace(".", ""))
    once = "".join(sorted(letter for letter, count in counts.items() if count == 1))
    return (_ELLIPSIS if any(_ELLIPSIS in term for term in terms) else "") + once


def _ellipses(terms: list[str], node: ir.Node, free: set[str]) -> list[str] | None:
    """Letters for the ellipsis of each operand, aligned at the right."""
    letters = "".join(sorted(free))
    found: list[str] = []
    for term, value in zip(terms, node.inputs, strict=True):
        if _ELLIPSIS not in term:
            found.append("")
            continue
        if value is None or value.shape is None:
            return None
        count = len(value.shape) - (len(term) - len(_ELLIPSIS))
        if count < 0 or count > len(letters):
            return None
        found.append(letters[len(letters) - count :])
    return found
