"""einsum-to-matmul: products of matrices under any names of their axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq

Parse = Callable[..., ir.Model]
Array = npt.NDArray[Any]

# Equation, shapes of both operands.
EQUATIONS = {
    "matrices": ("ik,kj->ij", (3, 4), (4, 5)),
    "implied output": ("ik,kj", (3, 4), (4, 5)),
    "spaces": (" i k , k j -> i j ", (3, 4), (4, 5)),
    "upper case": ("iK,Kj->ij", (3, 4), (4, 5)),
    "transposed right": ("ik,jk->ij", (3, 4), (5, 4)),
    "transposed left": ("ki,kj->ij", (4, 3), (4, 5)),
    "transposed result": ("ik,kj->ji", (3, 4), (4, 5)),
    "batch": ("bik,bkj->bij", (2, 3, 4), (2, 4, 5)),
    "batch behind": ("ikb,kjb->ijb", (3, 4, 2), (4, 5, 2)),
    "attention scores": ("bqhd,bkhd->bhqk", (2, 3, 4, 5), (2, 6, 4, 5)),
    "attention values": ("bhqk,bkhd->bqhd", (2, 4, 3, 6), (2, 6, 4, 5)),
    "rows": ("abk,kc->abc", (2, 3, 4), (4, 5)),
    "rows turned": ("akb,kc->bca", (2, 4, 3), (4, 5)),
    "rows of a batch": ("nabk,nkc->nabc", (2, 3, 2, 4), (2, 4, 5)),
    "columns": ("bk,kcd->bcd", (2, 4), (4, 5, 3)),
    "columns of rows": ("abk,kcd->abcd", (2, 3, 4), (4, 5, 3)),
    "columns between": ("bk,kcd->cbd", (2, 4), (4, 5, 3)),
    "several summed": ("bkl,klc->bc", (2, 4, 3), (4, 3, 5)),
    "several summed, turned": ("blk,klc->cb", (2, 3, 4), (4, 3, 5)),
    "heads joined": ("bqhd,hdm->bqm", (2, 3, 4, 5), (4, 5, 6)),
    "vectors of a batch": ("bik,bk->bi", (2, 3, 4), (2, 4)),
    "vector left": ("k,kj->j", (4,), (4, 5)),
    "vectors left": ("bk,bkj->bj", (2, 4), (2, 4, 5)),
    "row of each": ("bk,bk->b", (2, 4), (2, 4)),
    "dot": ("k,k->", (4,), (4,)),
    "everything": ("ij,ij->", (3, 4), (3, 4)),
    "ellipsis": ("...ik,...kj->...ij", (2, 2, 3, 4), (2, 2, 4, 5)),
    "ellipsis of one": ("...ik,kj->...ij", (2, 2, 3, 4), (4, 5)),
    "ellipses that broadcast": ("...ik,...kj->...ij", (2, 1, 3, 4), (1, 6, 4, 5)),
    "ellipsis, implied": ("...ik,...kj", (2, 3, 4), (2, 4, 5)),
}


def _model(equation: str, shapes: tuple[Any, Any], parse: Parse, constant: int = -1) -> ir.Model:
    typed = [
        f"float[{','.join(map(str, shape))}] {name}" if shape else f"float {name}"
        for name, shape in zip("xw", shapes, strict=True)
    ]
    initializers = ""
    if constant >= 0:
        numbers = [str(i % 7 - 3) for i in range(int(np.prod(np.asarray(shapes[constant]))))]
        initializers = f"<{typed.pop(constant)} = {{{', '.join(numbers)}}}>"
    model = parse(
        f"""agraph ({", ".join(typed)}) => (float[A] y) {initializers}
        {{ y = Einsum <equation = "{equation}"> (x, w) }}"""
    )
    model.graph.outputs[0].shape = None
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True))


def _feed(shapes: tuple[Any, Any]) -> dict[str, Array]:
    numbers = np.random.default_rng(0)
    return {
        name: numbers.standard_normal(shape).astype(np.float32)
        for name, shape in zip(("x", "w"), shapes, strict=True)
    }


@pytest.mark.parametrize("case", EQUATIONS)
def test_same_numbers(case: str, parse: Parse, rewrite: Callable[..., PassResult]) -> None:
    equation, *shapes = EQUATIONS[case]
    model = _model(equation, (shapes[0], shapes[1]), parse)
    result = rewrite("einsum-to-matmul", model, _feed((shapes[0], shapes[1])))
    assert result.rules == {"einsum-to-matmul": 1}
    census = Counter(node.op_type for node in model.graph)
    assert census["MatMul"] == 1
    assert not census["Einsum"]


def test_unknown_sizes_of_batch_and_rows(parse: Parse, rewrite: Any, assert_text: Any) -> None:
    model = _model("bqhd,bkhd->bhqk", (("B", "Q", 4, 5), ("B", "K", 4, 5)), parse)
    rewrite("einsum-to-matmul", model, _feed(((2, 3, 4, 5), (2, 6, 4, 5))))
    assert_text(
        model,
        """
        agraph (float[B,Q,4,5] x, float[B,K,4,5] w) => (float[B,4,Q,K] y)
        {
          y_transpose = Transpose <perm: ints = [0, 2, 1, 3]> (x)
          y_transpose_1 = Transpose <perm: ints = [0, 2, 3, 1]> (w)
          y = MatMul (y_transpose, y_transpose_1)
        }
        """,
    )


def test_constants_come_second(parse: Parse, rewrite: Any, assert_text: Any) -> None:
    model = _model("oc,bct->bot", ((2, 3), ("B", 3, "T")), parse, constant=0)
    rewrite("einsum-to-matmul", model, {"w": _feed(((2,), (2, 3, 4)))["w"]})
    assert_text(
        model,
        """
        agraph (float[B,3,T] w) => (float[B,2,T] y)
        <float[2,3] x = {-3, -2, -1, 0, 1, 2}>
        {
          y_transpose = Transpose <perm: ints = [0, 2, 1]> (w)
          y_transpose_1 = Transpose <perm: ints = [1, 0]> (x)
          y_matmul = MatMul (y_transpose, y_transpose_1)
          y = Transpose <perm: ints = [0, 2, 1]> (y_matmul)
        }
        """,
    )


def test_heads_are_split_from_rows_of_unknown_number(parse: Parse, rewrite: Any) -> None:
    model = _model("btc,chd->bthd", (("B", "T", 4), (4, 3, 2)), parse)
    result = rewrite("einsum-to-matmul", model, _feed(((2, 5, 4), (4, 3, 2))))
    assert result.rules == {"einsum-to-matmul": 1}


REFUSED = {
    "diagonal": ("ii,ij->j", ((3, 3), (3, 4)), "it takes a diagonal"),
    "sum of one": ("ij,jk->k", ((3, 4), (4, 5)), "it sums over an axis of one operand alone"),
    "vector": ("bik,k->bi", ((2, 3, 4), (4,)), "a vector is slower"),
    "outer product": ("i,j->ij", ((3,), (4,)), "it sums over no axis"),
    "element by element": ("ij,ij->ij", ((3, 4), (3, 4)), "it sums over no axis"),
    "broadcast sum": ("ik,kj->ij", ((3, 1), (4, 5)), "sizes it sums over are not known"),
    "unknown sum": ("ik,kj->ij", ((3, "K"), ("L", 5)), "sizes it sums over are not known"),
    "unknown groups": (
        "nabk,nkc->nabc",
        (("N", "A", "B", 4), ("N", 4, 5)),
        "would have to be merged",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_left_alone_with_a_reason(
    case: str, parse: Parse, apply_pass: Callable[..., PassResult]
) -> None:
    equation, shapes, reason = REFUSED[case]
    inputs = [f"float[{','.join(map(str, shape))}]" for shape in shapes]
    model = parse(
        f"""agraph ({inputs[0]} x, {inputs[1]} w) => (float[A] y)
        {{ t = Einsum <equation = "{equation}"> (x, w) k = Shape (t) y = Reshape (t, k) }}"""
    )
    result = apply_pass("einsum-to-matmul", model)
    assert [node.op_type for node in model.graph] == ["Einsum", "Shape", "Reshape"]
    (remark,) = result.remarks
    assert reason in remark.reason


def test_three_operands_are_left_alone(parse: Parse, apply_pass: Any) -> None:
    model = parse(
        """agraph (float[2,3] x, float[3,4] w, float[4,5] v) => (float[2,5] y)
        { y = Einsum <equation = "ab,bc,cd->ad"> (x, w, v) }"""
    )
    (remark,) = apply_pass("einsum-to-matmul", model).remarks
    assert "two operands" in remark.reason


def test_a_quantized_einsum_folds(
    parse: Parse, apply_pass: Any, evaluate: Callable[..., dict[str, Any]]
) -> None:
    text = """
    agraph (uint8[2,3,4] q) => (uint8[2,3,2,2] y)
    <float s = {0.5}, uint8 z = {100}, float o = {2.0}, int8[4,2,2] w =
      {1, -2, 3, -4, 5, -6, 7, -8, 9, 10, 11, -12, 13, 14, 15, 16}, float sw = {0.25}>
    {
      x = DequantizeLinear (q, s, z)
      d = DequantizeLinear (w, sw)
      c = Einsum <equation = "btc,chd->bthd"> (x, d)
      y = QuantizeLinear (c, o, z)
    }
    """
    before, model = parse(text), parse(text)
    apply_pass("infer-shapes", model)
    apply_pass("einsum-to-matmul", model)
    apply_pass("infer-shapes", model)
    for target in ("ort", "standard", "integer"):
        folded = model.clone()
        result = apply_pass(FoldQdq(target), folded)
        assert result.rules["fold-linear"] == 1
        feed = {"q": np.random.default_rng(1).integers(0, 256, (2, 3, 4)).astype(np.uint8)}
        np.testing.assert_array_equal(evaluate(folded, feed)["y"], evaluate(before, feed)["y"])
