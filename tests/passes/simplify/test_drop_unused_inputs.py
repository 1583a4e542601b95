"""drop-unused-inputs: what nothing reads goes, what anything needs stays."""

from __future__ import annotations

from typing import Any

import numpy as np


def test_only_what_nothing_reads_goes(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    model = parse("""g (float[2] x, float[2] lost, float[2] kept, bool c)
        => (float[2] y, float[2] kept) {
          y = If (c) <
            then_branch = a () => (float[2] r) { r = Neg(x) },
            else_branch = b () => (float[2] q) { q = Abs(x) }>
        }""")
    assert apply_pass("drop-unused-inputs", model).rules == {"drop-input": 1}
    assert [value.name for value in model.graph.inputs] == ["x", "kept", "c"]
    x = np.array([1, 2], np.float32)
    found = evaluate(model, {"x": x, "kept": x, "c": np.array(True)})
    np.testing.assert_array_equal(found["y"], -x)
    assert not apply_pass("drop-unused-inputs", model).modified
