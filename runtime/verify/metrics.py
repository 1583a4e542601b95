"""How far one output of two models is apart, sample after sample, mergeable in any grouping."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.runtime.specs import dtype_name, is_float, is_integer

LSB_CAP = 255
"""Integer differences of this many steps and more are counted together."""


@dataclass(frozen=True)
class Total:
    """A sum that does not depend on the order of its terms, so that shards merge bit for bit."""

    value: Fraction = Fraction(0)
    infinite: bool = False

    @classmethod
    def of(cls, number: float) -> Total:
        """The sum of one term; a term that overflowed float64 is infinite."""
        return cls(Fraction(number)) if math.isfinite(number) else cls(infinite=True)

    def __add__(self, other: Total) -> Total:
        return Total(self.value + other.value, self.infinite or other.infinite)

    def __float__(self) -> float:
        if self.infinite:
            return math.inf
        try:
            return float(self.value)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Worst:
    """Where the two outputs were furthest apart.

    Attributes:
        difference: Infinite where one side is NaN or infinite and the other is not.
        sample: Number of the feed, from 0.
        index: Position in the output.
        reference: The value there, as text.
        candidate: The value there, as text.
    """

    difference: float
    sample: int
    index: tuple[int, ...]
    reference: str
    candidate: str

    def __str__(self) -> str:
        place = f"sample {self.sample}, index {list(self.index)}"
        return f"{place}: reference {self.reference}, candidate {self.candidate}"

    def rank(self) -> tuple[float, int]:
        """Larger is worse; the first sample wins a tie."""
        return (self.difference, -self.sample)


@dataclass(frozen=True)
class OutputMetrics:
    """What was seen of one output.

    Attributes:
        name: The output.
        dtype: Its element type.
        samples: Feeds compared.
        elements: Elements compared, over all samples.
        different: Elements that are not bit-identical (a NaN equals a NaN; -0 is not 0).
        nonfinite_mismatches: Elements with NaN or infinity on one side only, or of other sign.
        max_abs_diff: Largest absolute difference among finite elements.
        max_abs_reference: Largest absolute finite value of the reference.
        signal: Sum of squares of the reference.
        noise: Sum of squares of the differences.
        candidate_power: Sum of squares of the candidate.
        dot: Sum of products.
        abs_diff: Sum of absolute differences.
        rows: Rows that look like class scores.
        flips: Rows whose largest score is elsewhere in the candidate.
        lsb: For integers: how many elements differ by how many steps (``LSB_CAP``: or more).
        worst: Where the difference is largest; None where nothing differs.
    """

    name: str
    dtype: str
    samples: int = 0
    elements: int = 0
    different: int = 0
    nonfinite_mismatches: int = 0
    max_abs_diff: float = 0.0
    max_abs_reference: float = 0.0
    signal: Total = field(default_factory=Total)
    noise: Total = field(default_factory=Total)
    candidate_power: Total = field(default_factory=Total)
    dot: Total = field(default_factory=Total)
    abs_diff: Total = field(default_factory=Total)
    rows: int = 0
    flips: int = 0
    lsb: Counter[int] = field(default_factory=Counter[int])
    worst: Worst | None = None

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio in dB; infinite where nothing differs."""
        if not self.noise.value and not self.noise.infinite:
            return math.inf
        if not self.signal.value and not self.signal.infinite:
            return -math.inf
        if self.noise.infinite or self.signal.infinite:
            return math.nan if self.noise.infinite else math.inf
        ratio = self.signal.value / self.noise.value
        # The logarithms of the parts: the ratio itself may not fit a float.
        return 10 * (math.log10(ratio.numerator) - math.log10(ratio.denominator))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two outputs; 1 where both are zero."""
        if self.signal.infinite or self.candidate_power.infinite or self.dot.infinite:
            return math.nan if self.different else 1.0
        powers = self.signal.value * self.candidate_power.value
        if not powers:
            return 1.0 if self.signal.value == self.candidate_power.value else 0.0
        square = min(1.0, float(self.dot.value**2 / powers))  # the sums were rounded
        return math.copysign(math.sqrt(square), self.dot.value)

    @property
    def mean_abs_diff(self) -> float:
        """Mean absolute difference of the finite elements."""
        return float(self.abs_diff) / self.elements if self.elements else 0.0

    @property
    def relative_to_max(self) -> float:
        """Largest absolute difference over the largest absolute reference value."""
        if not self.max_abs_diff:
            return 0.0
        return self.max_abs_diff / self.max_abs_reference if self.max_abs_reference else math.inf

    @property
    def max_lsb(self) -> int:
        """The largest integer difference in steps, at most ``LSB_CAP``."""
        return max(self.lsb, default=0)

    def lsb_quantile(self, fraction: float) -> int:
        """The smallest number of steps that ``fraction`` of the elements stay within."""
        wanted = math.ceil(fraction * self.lsb.total())
        seen = 0
        for steps in sorted(self.lsb):
            seen += self.lsb[steps]
            if seen >= wanted:
                return steps
        return 0

    def merge(self, other: OutputMetrics) -> OutputMetrics:
        """Both together; grouping and order do not change the result.

        Raises:
            ValueError: They are of different outputs.
        """
        if (self.name, self.dtype) != (other.name, other.dtype):
            raise ValueError(f"metrics of '{self.name}' and of '{other.name}' do not merge")
        merged = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(self)
            if each.name not in _NOT_SUMS
        }
        found = [worst for worst in (self.worst, other.worst) if worst is not None]
        return OutputMetrics(
            name=self.name,
            dtype=self.dtype,
            max_abs_diff=max(self.max_abs_diff, other.max_abs_diff),
            max_abs_reference=max(self.max_abs_reference, other.max_abs_reference),
            worst=max(found, key=Worst.rank, default=None),
            **merged,
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports; numbers JSON does not have are text (``inf``)."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "samples": self.samples,
            "elements": self.elements,
            "different": self.different,
            "nonfinite_mismatches": self.nonfinite_mismatches,
            "max_abs_diff": json_number(self.max_abs_diff),
            "max_abs_reference": json_number(self.max_abs_reference),
            "relative_to_max": json_number(self.relative_to_max),
            "mean_abs_diff": json_number(self.mean_abs_diff),
            "sqnr_db": json_number(self.sqnr_db),
            "cosine": json_number(self.cosine),
            "rows": self.rows,
            "flips": self.flips,
            "lsb": {str(steps): self.lsb[steps] for steps in sorted(self.lsb)},
            "worst": None if self.worst is None else str(self.worst),
        }


_NOT_SUMS = frozenset({"name", "dtype", "max_abs_diff", "max_abs_reference", "worst"})


def json_number(value: float) -> float | str:
    """``value``, or text where JSON has no such number."""
    return value if math.isfinite(value) else str(value)


def measure(name: str, reference: Array, candidate: Array, sample: int = 0) -> OutputMetrics:
    """The metrics of one output of one sample; dtypes and shapes must be equal.

    Args:
        name: The output's name.
        reference: What the original computed.
        candidate: What the rewritten model computed.
        sample: The number of the feed.

    Raises:
        ValueError: The dtypes or the shapes differ.
    """
    if reference.dtype != candidate.dtype or reference.shape != candidate.shape:
        raise ValueError(f"output '{name}': dtype and shape must be checked before measuring")
    if is_float(reference.dtype):
        return _measure_floats(name, reference, candidate, sample)
    if is_integer(reference.dtype):
        return _measure_integers(name, reference, candidate, sample)
    unequal = np.asarray(reference != candidate, dtype=np.bool_)
    return OutputMetrics(
        name=name,
        dtype=dtype_name(reference.dtype),
        samples=1,
        elements=reference.size,
        different=int(np.count_nonzero(unequal)),
        worst=_worst(unequal.astype(np.float64), reference, candidate, sample),
    )


def _measure_floats(name: str, old: Array, new: Array, sample: int) -> OutputMetrics:
    bits = np.dtype(f"u{old.dtype.itemsize}")
    both_nan = np.isnan(old) & np.isnan(new)
    different = (_bits(old, bits) != _bits(new, bits)) & ~both_nan
    x, y = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    # Equal infinities agree; NaN never compares equal and is excused where both have it.
    broken = ~finite & (x != y) & ~both_nan
    x, y = np.where(finite, x, 0.0), np.where(finite, y, 0.0)
    with np.errstate(over="ignore"):
        distance = np.abs(y - x)
    ranking = np.where(broken, np.inf, distance)
    flips, rows = _count_flips(old, new)
    return OutputMetrics(
        name=name,
        dtype=dtype_name(old.dtype),
        samples=1,
        elements=old.size,
        different=int(np.count_nonzero(different)),
        nonfinite_mismatches=int(np.count_nonzero(broken)),
        max_abs_diff=float(np.max(distance, initial=0.0)),
        max_abs_reference=float(np.max(np.abs(x), initial=0.0)),
        rows=rows,
        flips=flips,
        # A sign of zero has no distance; it still needs a place to point at.
        worst=_worst(np.where(different & (ranking == 0), 5e-324, ranking), old, new, sample),
        **_sums(x, y, distance),
    )


def _measure_integers(name: str, old: Array, new: Array, sample: int) -> OutputMetrics:
    wide = np.uint64 if old.dtype == np.uint64 else np.int64
    x, y = old.astype(wide), new.astype(wide)
    # Modulo 2**64 the larger minus the smaller is exact, whatever the signs.
    steps = np.where(
        x >= y, x.view(np.uint64) - y.view(np.uint64), y.view(np.uint64) - x.view(np.uint64)
    )
    distance = steps.astype(np.float64)
    counts = np.bincount(np.minimum(steps, LSB_CAP).astype(np.int64).reshape(-1))
    real = x.astype(np.float64)
    flips, rows = _count_flips(old, new)
    return OutputMetrics(
        name=name,
        dtype=dtype_name(old.dtype),
        samples=1,
        elements=old.size,
        different=int(np.count_nonzero(steps)),
        max_abs_diff=float(np.max(distance, initial=0.0)),
        max_abs_reference=float(np.max(np.abs(real), initial=0.0)),
        rows=rows,
        flips=flips,
        lsb=Counter({step: int(count) for step, count in enumerate(counts) if count}),
        worst=_worst(distance, old, new, sample),
        **_sums(real, y.astype(np.float64), distance),
    )


def _sums(x: Array, y: Array, distance: Array) -> dict[str, Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            "signal": Total.of(float(np.sum(x * x))),
            "noise": Total.of(float(np.sum(distance * distance))),
            "candidate_power": Total.of(float(np.sum(y * y))),
            "dot": Total.of(float(np.sum(x * y))),
            "abs_diff": Total.of(float(np.sum(distance))),
        }


def _bits(array: Array, dtype: np.dtype[Any]) -> Array:
    bits: Array = np.ascontiguousarray(array).reshape(array.shape or (1,)).view(dtype)
    return bits.reshape(array.shape)


def _worst(ranking: Array, old: Array, new: Array, sample: int) -> Worst | None:
    if not ranking.size or not np.max(ranking) > 0:
        return None
    place = np.unravel_index(int(np.argmax(ranking)), ranking.shape)
    index = tuple(int(i) for i in place)
    return Worst(float(ranking[index]), sample, index, _text(old[index]), _text(new[index]))


def _text(value: Any) -> str:
    number: Any = value.item() if hasattr(value, "item") else value
    return f"{number:.9g}" if isinstance(number, float) else repr(number)


def _count_flips(old: Array, new: Array) -> tuple[int, int]:
    """(flips, rows) of an output of class scores: [rows, classes], inner dimensions of 1 allowed.

    A row is a flip where the candidate's winner scores lower than the reference's own: a tie in
    the reference lets either win.
    """
    inner = [size for size in old.shape[1:] if size != 1]
    if old.ndim < 2 or len(inner) != 1 or not old.size:
        return 0, 0
    x = old.reshape(old.shape[0], -1).astype(np.float64)
    y = new.reshape(new.shape[0], -1).astype(np.float64)
    sound = ~(np.isnan(x).any(axis=1) | np.isnan(y).any(axis=1))
    x, y = x[sound], y[sound]
    winner = np.take_along_axis(x, np.argmax(y, axis=1)[:, np.newaxis], axis=1)[:, 0]
    return int(np.count_nonzero(winner < np.max(x, axis=1))), len(x)
