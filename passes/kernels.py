"""Operators computed in numpy, bit for bit as ONNX Runtime computes them.

Only what is exact is here: data movement, integer arithmetic, and float operations that IEEE 754
rounds in one way. Transcendental functions, float reductions and 16-bit float arithmetic are not.
A kernel reserves the size of its result before it makes it, and raises where it will not compute.
"""

from __future__ import annotations

from onnxfold.passes.arithmetic_kernels import ARITHMETIC
from onnxfold.passes.kernel_call import Kernel
from onnxfold.passes.movement_kernels import MOVEMENT

KERNELS: dict[str, Kernel] = {**ARITHMETIC, **MOVEMENT}
"""Operators of ai.onnx with an exact numpy form."""
