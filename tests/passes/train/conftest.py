"""What these tests train."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from fixtures.linear_regression import linear_regression


@pytest.fixture
def linear() -> ir.Model:
    """Mean square error of x w + b against labels, with outputs loss, grad_w and grad_b."""
    return ir.from_proto(linear_regression())
