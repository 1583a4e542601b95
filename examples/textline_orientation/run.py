"""Compile PP-OCR's text direction classifier: python -m examples.textline_orientation.run."""

from __future__ import annotations

from examples.demo import Example, Sets, main
from examples.textline_orientation.dataset import build, system_fonts


def _build() -> Sets:
    return build(system_fonts())


EXAMPLE = Example(
    name="textline_orientation",
    title="PP-OCR direction classifier, on rendered lines of text",
    model="ppocr-direction",
    build=_build,
)

if __name__ == "__main__":
    raise SystemExit(main(EXAMPLE))
