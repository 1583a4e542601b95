"""The gradients of onnxruntime's fused operators are those of the operators that were fused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from fixtures.gradients.case import Array, output_weights
from fixtures.gradients.check import lower, relative_error, weighted_sum
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import REFERENCE, Session

PAIRS = {
    "Gelu": ("x[2,5]", "y = com.microsoft.Gelu(x)", "y = Gelu(x)"),
    "BiasGelu": ("x[2,5] v[5]", "y = com.microsoft.BiasGelu(x, v)", "s = Add(x, v) y = Gelu(s)"),
    "FastGelu": (
        "x[2,5] v[5]",
        "y = com.microsoft.FastGelu(x, v)",
        's = Add(x, v) y = Gelu<approximate = "tanh">(s)',
    ),
    "QuickGelu": (
        "x[2,5]",
        "y = com.microsoft.QuickGelu<alpha = 1.5>(x)",
        "c = Constant<value_float = 1.5>() a = Mul(x, c) s = Sigmoid(a) y = Mul(x, s)",
    ),
    "FusedMatMul": (
        "x[2,3,4] w[2,3,5]",
        "y = com.microsoft.FusedMatMul<alpha = 0.5, transA = 1>(x, w)",
        "t = Transpose<perm = [0,2,1]>(x) p = MatMul(t, w)"
        " c = Constant<value_float = 0.5>() y = Mul(p, c)",
    ),
    "FusedGemm": (
        "x[3,4] w[5,4] v[5]",
        'y = com.microsoft.FusedGemm<transB = 1, activation = "LeakyRelu",'
        " activation_alpha = 0.2>(x, w, v)",
        "p = Gemm<transB = 1>(x, w, v) y = LeakyRelu<alpha = 0.2>(p)",
    ),
    "FusedConv": (
        "x[2,3,4,4] w[2,3,3,3] v[2] z[2,2,4,4]",
        'y = com.microsoft.FusedConv<pads = [1,1,1,1], activation = "Relu">(x, w, v, z)',
        "c = Conv<pads = [1,1,1,1]>(x, w, v) s = Add(c, z) y = Relu(s)",
    ),
    "FusedConv, clipped": (
        "x[2,4,4,4] w[4,2,3,3]",
        "y = com.microsoft.FusedConv<group = 2, strides = [2,2],"
        ' activation = "Clip", activation_params = [-1.0,1.0]>(x, w)',
        "c = Conv<group = 2, strides = [2,2]>(x, w) l = Constant<value_float = -1.0>()"
        " h = Constant<value_float = 1.0>() y = Clip(c, l, h)",
    ),
    "SkipLayerNormalization": (
        "x[2,3,4] w[2,3,4] s[4] v[4] z[4]",
        "y, , , t = com.microsoft.SkipLayerNormalization<epsilon = 0.1>(x, w, s, v, z)",
        "a = Add(x, w) t = Add(a, z) y = LayerNormalization<epsilon = 0.1>(t, s, v)",
    ),
    "SimplifiedLayerNormalization": (
        "x[2,3,4] s[4]",
        "y = SimplifiedLayerNormalization<epsilon = 0.1>(x, s)",
        "y = RMSNormalization<epsilon = 0.1>(x, s)",
    ),
    "SkipSimplifiedLayerNormalization": (
        "x[2,3,4] w[2,3,4] s[4]",
        "y, , , t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.1>(x, w, s)",
        "t = Add(x, w) y = RMSNormalization<epsilon = 0.1>(t, s)",
    ),
}


def gradients(
    inputs: dict[str, tuple[int, ...]], nodes: str, outputs: str = "float[] y"
) -> dict[str, Array]:
    declared = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in inputs.items())
    header = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'
    random = np.random.default_rng(3)
    feeds = {n: random.standard_normal(s).astype(np.float32) for n, s in inputs.items()}
    text = f"{header} g ({declared}) => ({outputs}) {{ {nodes} }}"
    model = onnx.parser.parse_model(text)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    found = Session(model, REFERENCE).run(feeds)
    for output in model.graph.output:
        info = onnx.helper.make_tensor_value_info(output.name, 1, found[output.name].shape)
        output.CopyFrom(info)
    lowered = lower(weighted_sum(model), list(inputs), check=False)
    weights = {
        f"weights_of_{n}": output_weights(a.shape, i) for i, (n, a) in enumerate(found.items())
    }
    results = Session(lowered, REFERENCE).run({**feeds, **weights})
    return {name: np.asarray(results[f"grad_{name}"]) for name in inputs}


@pytest.mark.parametrize("name", PAIRS)
def test_fused_and_apart_agree(name: str) -> None:
    declared, fused, apart = PAIRS[name]
    inputs: dict[str, tuple[int, ...]] = {}
    for each in declared.split(" "):
        key, _, dims = each[:-1].partition("[")
        inputs[key] = tuple(int(dim) for dim in dims.split(","))
    outputs = "float[] y, float[] t" if name.startswith("Skip") else "float[] y"
    expected = gradients(inputs, apart, outputs)
    for key, found in gradients(inputs, fused, outputs).items():
        assert relative_error(found, expected[key]) <= 1e-6, key


def test_an_activation_without_a_rule_is_refused() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[2,3] x, float[3,2] w) => (float[2,2] y) {
        y = com.microsoft.FusedGemm<activation = "Erf">(x, w)
    }"""
    with pytest.raises(UsageError, match="activation Erf"):
        lower(weighted_sum(onnx.parser.parse_model(text)), ["x"])
