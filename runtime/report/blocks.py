"""What a page for people is made of, whatever it is written as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A heading; the title of the page has ``level`` 1."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short lines."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells, each as text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
        """A table of anything that has a text."""
        return cls(tuple(header), tuple(tuple(str(cell) for cell in row) for row in rows))


@dataclass(frozen=True)
class Picture:
    """A drawing.

    Attributes:
        file: What it is called where it lies beside the page.
        title: What it shows.
        svg: The drawing, as an SVG document.
    """

    file: str
    title: str
    svg: str


Block = Heading | Paragraph | Bullets | Table | Picture
