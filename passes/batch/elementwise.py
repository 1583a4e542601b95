"""Where samples go in operators that work value by value, or over axes of each sample."""

from __future__ import annotations

from collections.abc import Callable

from onnxfold.passes.batch.site import Axes, Site

Rule = Callable[[Site], Axes]

_ONE_BY_ONE = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Bernoulli", "BitwiseNot", "Cast"),
    *("CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor"),
    *("Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log"),
    *("Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign"),
    *("Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
    *("FastGelu", "QuickGelu"),
)
_BROADCASTING = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu"),
    *("Pow", "Sub", "Sum", "Where", "Xor"),
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
_ALONG_AN_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LpNormalization": -1}
_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_SOFTMAX_BY_AXIS = 13


def one_by_one(site: Site) -> Axes:
    """Every value by itself: samples stay where they are."""
    return site.outputs(site.axis())


def quantize_linear(site: Site) -> Axes:
    """Scales belong to the tensor or to an axis, which may not be that of the samples."""
    axis = site.axis()
    scale = site.shape(1) if site.has(1) else ()
    is_of_tensor = not scale or list(scale) == [1]
    if not is_of_tensor and site.attribute("axis", 1) % site.rank(0) == axis:
        raise site.refuse("has a scale of its own for each sample")
    return site.outputs(axis)


def broadcasting(site: Site) -> Axes:
    """Axes are counted from the last; what is no sample has to fit all of them."""
    ranks = {index: site.rank(index) for index, each in enumerate(site.node.inputs) if each}
    places = {ranks[index] - axis for index, axis in enumerate(site.axes) if axis is not None}
    if len(places) > 1:
        raise site.refuse("combines samples that lie along different axes")
    place = places.pop()
    sizes = {site.shape(index)[ranks[index] - place] for index in site.carriers}
    if len(sizes) > 1:
        raise site.refuse("combines different numbers of samples")
    for index, rank in ranks.items():
        if site.axes[index] is None and rank >= place:
            site.fit_all(index, rank - place)
    return site.outputs(max(ranks.values()) - place)


def reduction(site: Site) -> Axes:
    """Sums and the like over other axes."""
    axis, rank = site.axis(), site.rank(0)
    axes = site.listed("axes", 1, rank)
    if axes is not None and not axes and site.attribute("noop_with_empty_axes", 0):
        return site.outputs(axis)
    if not axes or axis in axes:
        raise site.refuse("computes one value of all samples")
    if site.attribute("keepdims", 1):
        return site.outputs(axis)
    return site.outputs(axis - sum(1 for each in axes if each < axis))


def arg_reduction(site: Site) -> Axes:
    """The place of the largest value along another axis."""
    axis = site.axis()
    reduced = site.attribute("axis", 0) % site.rank(0)
    if reduced == axis:
        raise site.refuse("looks for one value among all samples")
    return site.outputs(axis if site.attribute("keepdims", 1) or reduced > axis else axis - 1)


def along_an_axis(site: Site) -> Axes:
    """Softmax and its kin; before opset 13, over all axes from one on."""
    axis, rank = site.axis(), site.rank(0)
    joins = site.opset < _SOFTMAX_BY_AXIS and site.node.op_type != "LpNormalization"
    default = 1 if joins else _ALONG_AN_AXIS.get(site.node.op_type, 0)
    own = site.attribute("axis", default) % rank
    if own == axis or (joins and own < axis):
        raise site.refuse("normalizes over the samples")
    return site.outputs(axis)


def normalization(site: Site) -> Axes:
    """Over all axes from one on."""
    axis = site.axis()
    if site.attribute("axis", -1) % site.rank(0) <= axis:
        raise site.refuse("normalizes over the samples")
    return site.outputs(axis)


def cumulative(site: Site) -> Axes:
    """Running sums along another axis."""
    axis, constant = site.axis(), site.constant(1)
    if constant is None or int(constant.reshape(())) % site.rank(0) == axis:
        raise site.refuse("sums over the samples")
    return site.outputs(axis)


def top_k(site: Site) -> Axes:
    """The largest values along another axis."""
    axis = site.axis()
    if site.attribute("axis", -1) % site.rank(0) == axis:
        raise site.refuse("looks for values among all samples")
    return site.outputs(axis)


def one_hot(site: Site) -> Axes:
    """Indices become vectors along a new axis."""
    axis, rank = site.axis(), site.rank(0) + 1
    new = site.attribute("axis", -1) % rank
    return site.outputs(axis if new > axis else axis + 1)


def shape_of(site: Site) -> Axes:
    """Sizes are no samples: they follow the batch by themselves."""
    return site.outputs(None)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ONE_BY_ONE, one_by_one),
    **dict.fromkeys(_BROADCASTING, broadcasting),
    **dict.fromkeys(_REDUCTIONS, reduction),
    **dict.fromkeys(_ALONG_AN_AXIS, along_an_axis),
    **dict.fromkeys(_NORMALIZATIONS, normalization),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize_linear),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_reduction),
    "Shape": shape_of,
    "CumSum": cumulative,
    "TopK": top_k,
    "OneHot": one_hot,
}
