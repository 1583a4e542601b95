"""Target ``integer``: no float op and no float constant between the first Q and the last DQ.

As ``standard``, but products are accumulated by ConvInteger and MatMulInteger and rescaled in
fixed point, for processors that have no float unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.fold.lowering import Linear, Lowering
from onnxfold.passes.fold.targets import products, standard
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.target import Target


def write(lowering: Lowering, build: Builder) -> Sequence[ir.Value]:
    """Write ``lowering`` down; see ``target.Write``."""
    match lowering:
        case Linear():
            return [products.with_integer_kernels(lowering, build)]
        case _:
            return standard.write_integer(lowering, build)


TARGET = Target(
    "integer", True, write, standard.decline, standard.shift, accumulates=True, wide=True
)
