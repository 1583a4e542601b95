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

    @property
    def exact(self) -> bool:
        """Whether its codes stand for what the node computes on its codes, without rounding."""
        return False


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantize(Lowering):
    """A QuantizeLinear; it disappears where its input already has codes of its type.

    Attributes:
        type: The type as written.
        internal: The type its codes are held in.
    """

    type: AffineType
    internal: AffineType

    @property
    def exact(self) -> bool:
        """Its result is the codes themselves."""
        return True


@dataclass(frozen=True, eq=False, kw_only=True)
class Requantize(Lowering):
    """A QuantizeLinear of what has codes of another type.

    Attributes:
        operand: The codes that there are.
        residual: What is added to the real numbers of an int32 accumulator (float64,
            broadcastable); None for nothing.
        type: The type its codes are held in.
    """

    operand: Operand
    residual: Array | None = None
    type: AffineType

    @property
    def exact(self) -> bool:
        """Its result is the codes themselves."""
        return True


@dataclass(frozen=True, eq=False, kw_only=True)
class Dequantize(Lowering):
    """A DequantizeLinear of codes that are computed: its readers take the codes.

    Attributes:
        type: The type as written.
        internal: The type its codes are held in.
    """

    type: AffineType
    internal: AffineType

    @property
    def exact(self) -> bool:
        """Nothing is rounded."""
        return True


@dataclass(frozen=True, eq=False, kw_only=True)
class Alias(Lowering):
    """A node that does not change codes: absorbed Relu, Identity, multiplication by a scalar."""

    @property
    def exact(self) -> bool:
        """Nothing is rounded."""
        return True


@dataclass(frozen=True, eq=False, kw_only=True)
class Move(Lowering):
    """An op that only moves or selects elements: it does the same to codes.

    Attributes:
        positions: Which inputs are data; all have codes of one type.
        constants: Further inputs given as constants, by position (a padding code, a table).
        rounds: Whether a constant is rounded that in the original is rounded after the op.
    """

    positions: tuple[int, ...] = (0,)
    constants: dict[int, Array] = field(default_factory=dict[int, Array])
    rounds: bool = False

    @property
    def exact(self) -> bool:
        """Nothing is rounded, unless ahead of the op."""
        return not self.rounds


@dataclass(frozen=True, eq=False, kw_only=True)
class Lookup(Lowering):
    """Gather from a constant table, dequantized behind it: its result is real numbers.

    Attributes:
        codes: The table.
        type: Its type; per tensor or per channel.
        axis: The axis that is gathered along, non-negative.
    """

    codes: Array
    type: AffineType
    axis: int

    @property
    def exact(self) -> bool:
        """Nothing is rounded."""
        return True


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

    @property
    def exact(self) -> bool:
        """Nothing is rounded."""
        return True


@dataclass(frozen=True, eq=False, kw_only=True)
class Joined(Lowering):
    """An op that picks each result from one of several operands.

    Attributes:
        operands: The operands in order; those of another type are requantized first, which is
            exact, as picking commutes with rounding.
        type: Type of the result.
    """

    operands: tuple[Operand, ...]
    type: AffineType

    @property
    def exact(self) -> bool:
        """Whether all operands have codes of the result's type."""
        return all(each.type is self.type and each.real is None for each in self.operands)


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Joined):
    """Concatenation."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Extremum(Joined):
    """Max or Min of several values (``node.op_type``): the order of codes is the reals'."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Select(Joined):
    """Where: the condition is plain, both operands are codes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scatter(Joined):
    """ScatterElements or ScatterND of data and updates; the indices are plain."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sum(Lowering):
    """A sum of quantized values and constants, rounded once.

    Attributes:
        operands: The quantized terms.
        coefficients: The factor of each, not 0.
        constant: What is added besides (float64), broadcastable to the result; None for nothing.
        type: Type of the result.
    """

    operands: tuple[Operand, ...]
    coefficients: tuple[float, ...]
    constant: Array | None = None
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Product(Lowering):
    """Product of two quantized values, rounded once.

    Attributes:
        operands: The two factors.
        type: Type of the result.
    """

    operands: tuple[Operand, Operand]
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Function(Lowering):
    """A function of one quantized value, element by element: a table of the result's codes.

    Attributes:
        operand: The argument.
        table: Code of the result for each code of the argument from the smallest up: shape
            [256], or [channels, 256] where it differs from channel to channel.
        numbers: The real results (float32) before rounding, shaped like the table.
        axis: The channel axis (non-negative) of a table of rank 2.
        type: Type of the result.
    """

    operand: Operand
    table: Array
    numbers: Array
    axis: int | None = None
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Slopes(Lowering):
    """A function of an unrounded product: one factor below 0 and another above, within limits.

    Attributes:
        operand: The int32 accumulator.
        residual: What is added to its real numbers (float64, broadcastable); None for nothing.
        below: The factor of negative numbers (float64), broadcastable.
        above: The factor of positive numbers, likewise.
        limits: The smallest and the largest code of the result.
        type: Type of the result.
    """

    operand: Operand
    residual: Array | None
    below: Array
    above: Array
    limits: tuple[int, int]
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve(Lowering):
    """A function of an unrounded product, element by element, as a line between each two knots.

    Attributes:
        operand: The int32 accumulator.
        residual: What is added to its real numbers (float64, broadcastable); None for nothing.
        start: The real number at the first knot; below and above all knots it is constant.
        step: The distance between two knots.
        knots: The results there, in codes of ``type`` without rounding (float64).
        bound: Largest magnitude of the accumulator.
        has_halves: Whether results may lie half-way between two codes, and fixed point holds the
            straight parts exactly.
        type: Type of the result.
    """

    operand: Operand
    residual: Array | None
    start: float
    step: float
    knots: Array
    bound: int
    has_halves: bool
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Reduction(Lowering):
    """Sum or mean over axes: ReduceSum, ReduceMean, GlobalAveragePool.

    Attributes:
        operand: The operand.
        axes: The axes summed over, non-negative, sorted; None where the rank is not known.
        keepdims: Whether they stay, with size 1.
        divisor: What the sum is divided by: their sizes' product for a mean, 1 for a sum; None
            for a mean over sizes that are not known.
        type: Type of the result.
    """

    operand: Operand
    axes: tuple[int, ...] | None
    keepdims: bool
    divisor: int | None
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class RunningSum(Lowering):
    """CumSum, each sum rounded once; the axis is plain.

    Attributes:
        operand: The operand.
        size: How many elements the largest sum has.
        type: Type of the result.
    """

    operand: Operand
    size: int
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(Lowering):
    """AveragePool over windows, rounded once.

    Attributes:
        operand: The operand.
        type: Type of the result.
    """

    operand: Operand
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Softmax(Lowering):
    """Softmax of codes.

    Attributes:
        operand: The operand.
        axis: Axis over which the results sum to 1; negative from the back.
        type: Type of the result.
    """

    operand: Operand
    axis: int
    type: AffineType


@dataclass(frozen=True, eq=False, kw_only=True)
class Interpolation(Lowering):
    """Resize with interpolation between elements, rounded once.

    Attributes:
        operand: The operand.
        matrices: For each axis that changes: (axis, float64 [out, in]), whose rows sum to 1.
        type: Type of the result.
    """

    operand: Operand
    matrices: tuple[tuple[int, Array], ...]
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
        bound: Largest magnitude of the accumulator, bias included.
    """

    operator: ir.Node
    x: Operand
    w: Operand
    bias: Array | None
    bias_codes: Array | None
    output: ir.Value
    type: AffineType | None
    bound: int
    transposed: bool = False

    @property
    def exact(self) -> bool:
        """Whether the result is left unrounded."""
        return self.type is None
