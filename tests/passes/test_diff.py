from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes import diff
from onnxfold.passes.diff import diff_text, model_text
from onnxfold.passes.serialization import model_bytes

Parse = Callable[..., ir.Model]

MODEL = """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}>
{ t = Mul(x, w) k = Constant <value = float[2] {3, 4}> () y = Add(t, k) }"""


def test_text_has_one_line_a_node_and_a_constant(parse: Parse) -> None:
    model = parse(MODEL)
    before = model_bytes(model)
    lines = model_text(model).splitlines()
    assert "   t = Mul (x, w)" in lines
    assert lines[-1] == "w = float[2] {1.0, 2.0}"
    assert '   k = Constant <value: string = "float[2] {3.0, 4.0}"> ()' in lines
    assert model_bytes(model) == before


def test_large_tensors_are_elided_but_told_apart(parse: Parse) -> None:
    model = parse(MODEL)
    texts: list[str] = []
    for last in (0, 1):
        array = np.zeros(1000, np.float32)
        array[-1] = last
        model.graph.initializers["w"].const_value = ir.tensor(array)
        texts.append(model_text(model))
    assert "w = float[1000] sha256:" in texts[0]
    assert len(texts[0]) < 500
    assert texts[0] != texts[1]


@pytest.mark.parametrize("limit", [20_000, 0], ids=["exact", "as-sets"])
def test_a_diff_shows_what_changed(
    parse: Parse, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diff, "_LONGEST_EXACT_DIFF", limit)
    before = model_text(parse(MODEL))
    after = model_text(parse(MODEL.replace("Mul", "Sub").replace("{1, 2}", "{1, 5}")))
    text = diff_text(before, after)
    changed = [
        line for line in text.splitlines() if line[0] in "+-" and line[1:3] not in ("--", "++")
    ]
    assert sorted(changed) == [
        "+   t = Sub (x, w)",
        "+w = float[2] {1.0, 5.0}",
        "-   t = Mul (x, w)",
        "-w = float[2] {1.0, 2.0}",
    ]
    assert diff_text(before, before) == ""
