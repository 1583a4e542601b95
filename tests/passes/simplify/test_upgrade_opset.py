from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.simplify.upgrade_opset import UpgradeOpset

BODIES = {
    "Squeeze": (11, "u = Unsqueeze <axes = [0, 3]> (x)  y = Squeeze <axes = [0]> (u)"),
    "Squeeze-all": (11, "u = Unsqueeze <axes = [0]> (x)  y = Squeeze(u)"),
    "ReduceSum": (11, "y = ReduceSum <axes = [1], keepdims = 0> (x)"),
    "ReduceMean": (11, "y = ReduceMean <axes = [1]> (x)"),
    "Softmax-1": (12, "y = Softmax(x)"),
    "Softmax-0": (9, "y = LogSoftmax <axis = 0> (x)"),
    "Softmax-last": (11, "y = Softmax <axis = -1> (x)"),
    "Hardmax": (7, "y = Hardmax <axis = 1> (x)"),
    "Clip": (10, "y = Clip <min = -0.5, max = 0.25> (x)"),
    "Clip-one": (7, "y = Clip <max = 0.25> (x)"),
    "Pad": (10, "y = Pad <pads = [0, 1, 0, 0, 0, 2], value = 1.5> (x)"),
    "Pad-reflect": (7, 'y = Pad <pads = [0, 1, 0, 0, 0, 2], mode = "reflect"> (x)'),
    "Slice": (9, "y = Slice <starts = [1, -2], ends = [3, 100], axes = [1, 2]> (x)"),
    "Slice-all": (9, "y = Slice <starts = [0, 1], ends = [1, 3]> (x)"),
    "Split": (11, "y, z = Split <axis = 2, split = [1, 3]> (x)"),
    "Split-even": (11, "y, z = Split <axis = 2> (x)"),
    "Dropout": (7, "y = Dropout <ratio = 0.3> (x)"),
    "TopK": (9, "y, z = TopK <k = 2> (x)"),
    "Upsample-7": (
        7,
        "i = Unsqueeze <axes = [0]> (x) "
        'y = Upsample <scales = [1.0, 1.0, 2.0, 1.5], mode = "nearest"> (i)',
    ),
    "Upsample-linear": (
        9,
        'i = Unsqueeze <axes = [0]> (x)  y = Upsample <mode = "linear"> (i, up)',
    ),
    "Resize-10": (10, "i = Unsqueeze <axes = [0]> (x)  y = Resize(i, up)"),
    "Resize-10-down": (10, "i = Unsqueeze <axes = [0]> (x)  y = Resize(i, down)"),
    "Resize-10-linear": (
        10,
        'i = Unsqueeze <axes = [0]> (x)  y = Resize <mode = "linear"> (i, down)',
    ),
    "BatchNormalization": (7, "y = BatchNormalization(x, s, s, s, s)"),
    "Scatter": (9, "y = Scatter <axis = 1> (x, ones, new)"),
    "ArgMax": (11, "i = ArgMax <axis = 1> (x)  y = Cast <to = 1> (i)"),
    "MaxPool": (7, "y = MaxPool <kernel_shape = [2]> (x)"),
    "Gemm": (7, "f = Flatten <axis = 1> (x)  t = Transpose(f)  y = Gemm(f, t, bias)"),
}


def model_text(body: str) -> str:
    return f"""
        g (float[2, 3, 4] x) => (float y)
        <float[4] up = {{1, 1, 2, 2.5}}, float[4] down = {{1, 1, 0.6, 0.5}},
         float[3] s = {{1, 2, 3}}, int64[1, 1, 2] ones = {{1, 0}}, float[1] bias = {{0.5}},
         float[1, 1, 2] new = {{8, 9}}>
        {{ {body} }}"""


@pytest.mark.parametrize("target", [13, 17, 21])
@pytest.mark.parametrize("name", BODIES)
def test_computes_the_same(
    name: str, target: int, parse: Any, apply_pass: Any, evaluate: Any
) -> None:
    opset, body = BODIES[name]
    rank = {"ReduceSum": "A, B", "Gemm": "A, B"}.get(name, "A, B, C")
    if "Upsample" in name or "Resize" in name:
        rank = "A, B, C, D"
    rank = "A, B, C, D" if name == "Squeeze" else rank
    model = parse(model_text(body).replace("(float y)", f"(float[{rank}] y)"), opset=opset)
    generator = np.random.default_rng(1)
    feed = {"x": generator.standard_normal((2, 3, 4)).astype(np.float32)}
    before = evaluate(model, feed)["y"]
    assert apply_pass(f"upgrade-opset{{to={target}}}", model).modified
    assert model.opset_imports[""] == target
    assert model.ir_version == 10
    after = evaluate(model, feed)["y"]
    assert after.shape == before.shape
    assert after.tobytes() == before.tobytes()
    assert not apply_pass(f"upgrade-opset{{to={target}}}", model).modified


def test_bodies_functions_names_and_metadata(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    model = parse("""
        <ir_version: 8, opset_import: ["" : 11, "local" : 1]>
        g (bool c, float[2] x) => (float[1, 2] y) {
          t = local.f(x)
          y = If (c) <
            then_branch = a () => (float[1, 2] r) { r = Unsqueeze <axes = [0]> (t) },
            else_branch = b () => (float[1, 2] q) { n = Neg(t)  q = Unsqueeze <axes = [0]> (n) }>
        }
        <domain: "local", opset_import: ["" : 11]>
        f (v) => (w) { u = Unsqueeze <axes = [0]> (v)  w = Squeeze <axes = [0]> (u) }""")
    model.metadata_props["author"] = "someone"
    feeds = [{"c": np.array(c), "x": np.array([1, 2], np.float32)} for c in (True, False)]
    before = [evaluate(model, feed)["y"] for feed in feeds]
    apply_pass("upgrade-opset", model)
    assert [function.opset_imports[""] for function in model.functions.values()] == [17]
    assert model.metadata_props["author"] == "someone"
    for feed, wanted in zip(feeds, before, strict=True):
        np.testing.assert_array_equal(evaluate(model, feed)["y"], wanted)


def test_newer_models_are_left_alone(parse: Any, apply_pass: Any) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }", opset=19)
    assert not apply_pass("upgrade-opset", model).modified


REFUSED = {
    "mask": (7, "y, mask = Dropout(x)  z = Neg(mask)"),
    "enlarges along one axis": (10, "i = Unsqueeze <axes = [0]> (x)  y = Resize(i, mixed)"),
    "scales are not constant": (
        10,
        "i = Unsqueeze <axes = [0]> (x)  a = Abs(mixed) y = Resize(i, a)",
    ),
    "element type is not known": (7, "n = Neg(x)  y = Clip <max = 0.25> (n)"),
    "spatial": (7, "y = BatchNormalization <spatial = 0> (x, s, s, s, s)"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_carried_over_is_refused_untouched(
    reason: str, parse: Any, text_of: Any
) -> None:
    opset, body = REFUSED[reason]
    text = model_text(f"first = Hardmax <axis = 0> (x)  {body}")
    text = text.replace("float[1] bias = {0.5}", "float[4] mixed = {1, 1, 0.5, 2}")
    model = parse(text.replace("=> (float y)", "=> (float[A] y)"), opset=opset)
    before = text_of(model)
    (remark,) = UpgradeOpset().run(model).remarks
    assert reason in remark.reason
    with pytest.raises(PassError, match=reason):
        UpgradeOpset(strict=True).run(model)
    assert text_of(model) == before


def test_targets_out_of_range_are_refused(parse: Any) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }", opset=11)
    with pytest.raises(UsageError, match="to=99"):
        UpgradeOpset(to=99).run(model)
