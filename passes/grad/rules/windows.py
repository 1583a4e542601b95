"""Sliding windows: kernels, strides, dilations and pads, and what each tap of a kernel reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call

END = 2**63 - 1
"""Past the last element of whatever is sliced."""


@dataclass(frozen=True)
class Window:
    """What slides over the spatial dimensions; one number a dimension in each tuple.

    Attributes:
        kernel: Its sizes.
        strides: Steps from one output to the next.
        dilations: Steps from one tap to the next.
        before: Padding in front.
        after: Padding behind.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """What the window covers, dilated."""
        return tuple(
            (size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)
        )

    @property
    def pads(self) -> tuple[int, ...]:
        """The attribute of the operators."""
        return self.before + self.after

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes of what it slides over, [N, C, spatial ...]."""
        return tuple(range(2, 2 + len(self.kernel)))


def kernel_of(call: Call, weight: ir.Value | None = None) -> tuple[int, ...]:
    """The sizes of the kernel: the attribute, or the spatial dimensions of the weight.

    Raises:
        UsageError: They are not known.
    """
    declared = call.ints("kernel_shape")
    if declared is not None:
        return declared
    dims = () if weight is None or weight.shape is None else tuple(weight.shape)[2:]
    known = tuple(dim for dim in dims if isinstance(dim, int))
    if not known or len(known) != len(dims):
        raise call.refusal("the size of its kernel is not known")
    return known


def spatial(value: ir.Value) -> tuple[int, ...] | None:
    """The spatial dimensions of ``value`` where all are known numbers."""
    if value.shape is None:
        return None
    known = [dim for dim in value.shape[2:] if isinstance(dim, int)]
    return tuple(known) if len(known) == len(value.shape) - 2 else None


def window_of(call: Call, kernel: tuple[int, ...], x: ir.Value) -> Window:
    """The window that ``call`` slides over ``x``; auto_pad is made explicit.

    Raises:
        UsageError: The pads of auto_pad SAME depend on sizes that are known at run time only.
    """
    ones = (1,) * len(kernel)
    window = Window(
        kernel,
        call.ints("strides") or ones,
        call.ints("dilations") or ones,
        (0,) * len(kernel),
        (0,) * len(kernel),
    )
    auto_pad = call.string("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        return window
    if auto_pad == "NOTSET":
        pads = call.ints("pads") or window.pads
        return replace(window, before=pads[: len(kernel)], after=pads[len(kernel) :])
    return _split(window, _same_totals(call, window, x), auto_pad)


def with_total_pads(window: Window, totals: tuple[int, ...], auto_pad: str) -> Window:
    """``window`` with pads of a given sum, the odd one in front unless auto_pad is SAME_UPPER."""
    return _split(window, totals, auto_pad)


def _same_totals(call: Call, window: Window, x: ir.Value) -> tuple[int, ...]:
    if all(stride == 1 for stride in window.strides):
        return tuple(extent - 1 for extent in window.extents)
    sizes = spatial(x)
    if sizes is None:
        raise call.refusal(
            f"the pads of auto_pad depend on the size of '{x.name}', which is not known; fix it"
        )
    return tuple(
        max((-(-size // stride) - 1) * stride + extent - size, 0)
        for size, stride, extent in zip(sizes, window.strides, window.extents, strict=True)
    )


def _split(window: Window, totals: tuple[int, ...], auto_pad: str) -> Window:
    smaller = tuple(total // 2 for total in totals)
    larger = tuple(total - half for total, half in zip(totals, smaller, strict=True))
    if auto_pad == "SAME_UPPER":
        return replace(window, before=smaller, after=larger)
    return replace(window, before=larger, after=smaller)


def remainders(window: Window, x: ir.Value, y: ir.Value) -> tuple[int, ...] | None:
    """How many elements behind the last window of ``x`` none covers; None where not known.

    Never more than stride - 1, and so 0 where the stride is 1.
    """
    if all(stride == 1 for stride in window.strides):
        return (0,) * len(window.kernel)
    inner, outer = spatial(x), spatial(y)
    if inner is None or outer is None:
        return None
    padded = [sum(sizes) for sizes in zip(inner, window.before, window.after, strict=True)]
    covered = [
        (size - 1) * stride + extent
        for size, stride, extent in zip(outer, window.strides, window.extents, strict=True)
    ]
    return tuple(size - used for size, used in zip(padded, covered, strict=True))


def pad(b: Builder, x: ir.Value, window: Window, fill: float = 0.0) -> ir.Value:
    """``x`` with the pads of the window."""
    if not any(window.pads):
        return x
    pads = b.ints(0, 0, *window.before, 0, 0, *window.after)
    return b.op("Pad", x, pads, None if fill == 0.0 else b.number(fill, x))


def taps(b: Builder, x: ir.Value, window: Window) -> Iterator[ir.Value]:
    """What each tap of the kernel reads of ``x``, row by row: [N, C, output sizes ...].

    Ends are counted from behind, so that sizes need not be known: with H padded elements, (k-1) d
    of which the window covers beyond its first, a d : H - (k-1-a) d : s has as many elements as
    there are windows.
    """
    padded = pad(b, x, window)
    trivial = all(size == 1 for size in (*window.kernel, *window.strides))
    for tap in product(*(range(size) for size in window.kernel)):
        if trivial:
            yield padded
            continue
        starts = [place * step for place, step in zip(tap, window.dilations, strict=True)]
        behind = [
            (size - 1 - place) * step
            for place, size, step in zip(tap, window.kernel, window.dilations, strict=True)
        ]
        ends = [-left if left else END for left in behind]
        steps = b.ints(*window.strides)
        yield b.op("Slice", padded, b.ints(*starts), b.ints(*ends), b.ints(*window.axes), steps)


def spread(
    b: Builder, gradient: ir.Value, weight: ir.Value, x: ir.Value, window: Window, group: int
) -> ir.Value:
    """Convolve backwards: the gradient of ``x``, which ``window`` was slid over with ``weight``."""
    left = remainders(window, x, gradient)
    # Too long by up to stride - 1 where the sizes are not known, and cut at run time.
    padding = left or tuple(stride - 1 for stride in window.strides)
    spread_out = b.op(
        "ConvTranspose",
        gradient,
        weight,
        like=None if left is None else x,
        group=group,
        output_padding=padding,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
    )
    if left is not None:
        return spread_out
    return crop_like(b, spread_out, x)


def crop_like(b: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    """``value``, which is as large in space or larger, cut behind to the sizes of ``like``."""
    count = len(like.shape or ()) - 2
    sizes = spatial(like)
    ends = b.op("Shape", like, start=2) if sizes is None else b.ints(*sizes)
    axes = b.ints(*range(2, 2 + count))
    return b.op("Slice", value, b.ints(*([0] * count)), ends, axes, like=like)
