from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from onnxfold.runtime.report.bars import Pair, draw_pairs
from onnxfold.runtime.report.blocks import Block, Bullets, Heading, Paragraph, Picture, Table
from onnxfold.runtime.report.page import to_html

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('1')</script>"


class _Reader(HTMLParser):
    """Elements opened, text seen, and whether each element was closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(*blocks: Block) -> _Reader:
    reader = _Reader()
    reader.feed(to_html(blocks))
    reader.close()
    assert not reader.open
    return reader


def test_nothing_in_a_block_acts_as_markup() -> None:
    page = read(
        Heading(HOSTILE, 1),
        Heading(HOSTILE),
        Paragraph(HOSTILE),
        Bullets((HOSTILE,)),
        Table((HOSTILE,), ((HOSTILE,),)),
    )
    assert "script" not in [tag for tag, _ in page.seen]
    assert page.text.count(HOSTILE) == 7  # the title of the window is the seventh


@pytest.mark.parametrize(
    ("title", "state"),
    [
        ("onnxfold compile: passed", "good"),
        ("onnxfold verify: failed", "bad"),
        ("onnxfold fold: numbers not checked", "unsure"),
    ],
)
def test_the_title_has_the_colour_of_the_verdict(title: str, state: str) -> None:
    assert ("h1", {"class": state}) in read(Heading(title, 1)).seen


def test_figures_stand_to_the_right_and_names_do_not() -> None:
    cells = ("1,234", "-0.5", "97.5%", "1e-05", "inf", "conv_1", "3 of 4", "")
    found = read(Table(("x",) * len(cells), (cells,))).seen
    kinds = [attributes.get("class") for tag, attributes in found if tag == "td"]
    assert kinds == ["figure"] * 5 + [None] * 3


def test_pictures_are_inside_and_nothing_else_is_needed() -> None:
    drawing = draw_pairs([Pair("latency, ms", 2.0, 1.0, ".3f")])
    page = read(Picture("changes.svg", "Before and after", drawing))
    assert "svg" in [tag for tag, _ in page.seen]
    assert not [each for _, each in page.seen if "src" in each or "href" in each]


def test_bars_are_as_long_as_their_values() -> None:
    pairs = [Pair("latency, ms", 2.0, 0.5, ".3f"), Pair("size <bytes>", 10, 20, ",.0f")]
    document = ElementTree.fromstring(draw_pairs(pairs))
    widths = [float(bar.attrib["width"]) for bar in document.iter(f"{SVG}rect")][1:]
    assert widths[1] == pytest.approx(widths[0] / 4, abs=0.1)
    assert widths[2] == pytest.approx(widths[3] / 2, abs=0.1)
    texts = [each.text for each in document.iter(f"{SVG}text")]
    assert texts[0] == "latency, ms"
    assert "0.500 (0.25 of it)" in texts
