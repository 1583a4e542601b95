"""What the rules decide: the integer meaning of a node, before any target writes it down."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array


@dataclass(frozen=True, eq=False)
class Refusal:
    """Why a node stays float.

    Attributes:
        reason: The cause, as a clause.
        advice: What the user can change; empty where nothing helps.
    """

    reason: str
    advice: str = ""


@dataclass(frozen=True, eq=False)
class Operand:
    """An operand of an integer op.

    Attributes:
        type: How its codes stand for real numbers.
        value: The value whose codes are computed; None for a constant.
        codes: The codes of a constant.
        real: A real value that is quantized on the spot, where rounding it changes nothing.
    """

    type: AffineType
    value: ir.Value | None = None
    codes: Array | None = None
    real: ir.Value | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Lowering:
    """A node (or several) as integer arithmetic.

    Attributes:
        node: The node it is written in place of; the last one covered.
        reads: Values whose codes it reads.
        plain: Values it reads as they are (shapes, indices, float data).
        covered: All original nodes whose work it does, ``node`` included.
    """

    node: ir.Node
    reads: tuple[ir.Value, ...] = ()
    plain: tuple[ir.Value, ...] = ()
    covered: tuple[ir.Node, ...] = ()

    @property
    def name(self) -> str:
        """The rule's name, for counts and bisection."""
        return f"fold-{type(self).__name__.lower()}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantize(Lowering):
    """A QuantizeLinear; it disappears where its input already has codes of its type.

    Attributes:
        type: The type as written.
        internal: The type its codes are held in.
    """

    type: AffineType
    internal: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Dequantize(Lowering):
    """A DequantizeLinear of codes that are computed: its readers take the codes.

    Attributes:
        type: The type as written.
        internal: The type its codes are held in.
    """

    type: AffineType
    internal: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Alias(Lowering):
    """A node that does not change codes: absorbed Relu, Identity, multiplication by a scalar."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Move(Lowering):
    """An op that only moves or selects elements: it does the same to codes.

    Attributes:
        positions: Which inputs are data.
        constants: Further inputs given as constants, by position (a padding code).
    """

    positions: tuple[int, ...] = (0,)
    constants: dict[int, Array] = field(default_factory=dict[int, Array])


@dataclass(frozen=True, eq=False, kw_only=True)
class Clamp(Lowering):
    """Relu or Clip as limits on the codes.

    Attributes:
        low: Smallest code.
        high: Largest code.
        type: The type of the codes.
    """

    low: int
    high: int
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Binary(Lowering):
    """Add or Mul of two quantized values.

    Attributes:
        operands: The two operands.
        type: Type of the result.
    """

    operands: tuple[Operand, Operand]
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Lowering):
    """Concatenation.

    Attributes:
        operands: The operands in order.
        type: Type of the result.
    """

    operands: tuple[Operand, ...]
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalAverage(Lowering):
    """GlobalAveragePool.

    Attributes:
        operand: The operand.
        type: Type of the result.
    """

    operand: Operand
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Unfused(Lowering):
    """An op that is computed in float between codes, because its integer kernel is slower.

    Attributes:
        operand: The operand.
        type: Type of the result.
    """

    operand: Operand
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Lowering):
    """Conv, Gemm or MatMul with what follows it: y = s_x s_w sum (q_x - z_x)(q_w - z_w) + b.

    Attributes:
        operator: The Conv, Gemm or MatMul node.
        x: The data.
        w: The second operand; constant weights are int8, [K, N] for Gemm and MatMul.
        bias: Real bias (float64), [channels], or None.
        bias_codes: The bias in units of s_x s_w (int32), [channels], or None.
        output: The value that is computed.
        type: Its type; None where it is left as a real number.
        transposed: Whether x is read transposed (Gemm with transA).
    """

    operator: ir.Node
    x: Operand
    w: Operand
    bias: Array | None
    bias_codes: Array | None
    output: ir.Value
    type: AffineType | None
    transposed: bool = False
