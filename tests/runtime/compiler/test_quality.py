from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.runtime.compiler.quality import QualityJudge
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.specs import input_specs
from onnxfold.runtime.verify.budget import Budget


@pytest.mark.parametrize(("samples", "proven"), [(20, False), (300, True)])
def test_decisions_that_few_samples_cannot_prove_are_told_from_wrong_ones(
    samples: int, proven: bool, parse: Callable[..., ir.Model]
) -> None:
    model = parse("""g (float[N,3] x) => (float[N,3] y, bool[N] positive)
        <int64[1] axis = {1}, float zero = {0}>
        { y = Neg(x)  s = ReduceSum <keepdims = 0> (x, axis)  positive = Greater(s, zero) }""")
    data = {"x": np.random.default_rng(0).standard_normal((samples, 3)).astype(np.float32)}
    quality = QualityJudge(model, open_feeds(data, input_specs(model)), Budget())(model)
    assert quality.passed == proven
    assert ("too few samples" in quality.text) != proven
