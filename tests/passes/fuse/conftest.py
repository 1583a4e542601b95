"""The numeric gate of reassociated passes, at both ends of ONNX Runtime's optimizations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import REFERENCE, Session, SessionConfig

_OPTIMIZED = SessionConfig("optimized", optimize=True, threads=1)


@pytest.fixture
def rewrite() -> Callable[..., PassResult]:
    """``rewrite(passes, model, feed, exact=False)``: applies them and compares before and after.

    ``feed`` is an array or a mapping of arrays. The bounds are 1e-5 of the largest output and an
    SQNR of 90 dB, or equal bits (optimizations off) where ``exact``.
    """
    return _rewrite


def _rewrite(
    passes: str, model: ir.Model, feed: Mapping[str, Any], *, exact: bool = False
) -> PassResult:
    before = ir.to_proto(model)
    onnx.checker.check_model(before, full_check=True)
    result = _apply(parse_passes(passes), model)
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    for config in (REFERENCE, _OPTIMIZED):
        _compare(before, after, feed, config, exact=exact and not config.optimize)
    return result


def _apply(passes: tuple[Pass, ...], model: ir.Model) -> PassResult:
    result = passes[0].run(model)
    for each in passes[1:]:
        following = each.run(result.model)
        following.rules.update(result.rules)
        result = following
    return result


def _compare(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feed: Mapping[str, Any],
    config: SessionConfig,
    *,
    exact: bool,
) -> None:
    expected, actual = Session(before, config).run(feed), Session(after, config).run(feed)
    assert list(expected) == list(actual)
    for name, wanted in expected.items():
        got = actual[name]
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        if exact:
            assert got.tobytes() == wanted.tobytes()
            continue
        wide = wanted.astype(np.float64)
        error = got.astype(np.float64) - wide
        assert np.isfinite(wide).all()
        epsilon = 1e-5 if wanted.dtype != np.float16 else 2e-3
        assert np.max(np.abs(error), initial=0) <= epsilon * np.max(np.abs(wide), initial=0) + 1e-7
        power, noise = np.sum(wide**2), np.sum(error**2)
        assert noise == 0 or 10 * np.log10(power / noise) >= (90 if epsilon < 1e-4 else 50)
