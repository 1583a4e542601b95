"""What PyTorch's front end does without PyTorch: names, shapes, operators, batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from onnxfold.runtime.export.workers import pytorch, torch_onnx, torch_scripts
from onnxfold.runtime.export.workers.protocol import FrontEndError, Request
from onnxfold.runtime.export.workers.torch_models import other_sizes, readable, unlike
from onnxfold.runtime.export.workers.torch_programs import (
    forget_ranges_of_expressions,
    is_same_operator,
    layer_of,
)


def _key(**field: object) -> Any:
    return SimpleNamespace(**field)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ((), "output"),
        ((_key(idx=1),), "output_1"),
        ((_key(key="logits"),), "logits"),
        ((_key(key="a.b"), _key(idx=0), _key(name="last")), "a_b_0_last"),
    ],
)
def test_nested_outputs_have_readable_names(path: tuple[Any, ...], name: str) -> None:
    assert readable(path) == name


def test_outputs_give_way_to_inputs() -> None:
    assert unlike(["x", "y"], ["x"]) == ["x_out", "y"]


def test_the_innermost_module_names_the_layer() -> None:
    stack = {"L__self__": ("", "Net"), "L__self__a_b": ("a.b", "Conv2d")}
    assert layer_of(stack) == "a.b"
    assert layer_of(None) == ""
    assert torch_onnx.innermost("['', 'a', 'a.b', 'conv2d']") == "a.b"
    assert torch_onnx.innermost("['', 'relu']") == ""
    assert torch_onnx.innermost("broken") == ""


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("No ONNX function found for <OpOverload(op='my.foo', overload='default')>.", "my.foo"),
        ("Exporting the operator 'aten::linalg_eigh' to ONNX is not", "aten.linalg_eigh"),
        ("something else", ""),
    ],
)
def test_messages_name_the_operator(text: str, operator: str) -> None:
    assert torch_onnx.operator_in(text) == operator


def test_decomposed_operators_are_found_by_name() -> None:
    assert is_same_operator("aten.linalg_eigh.default", "aten._linalg_eigh")
    assert not is_same_operator("aten.linalg_eig.default", "aten._linalg_eigh")
    assert not is_same_operator("mine.linalg_eigh.default", "aten._linalg_eigh")


class _Symbol:
    is_Symbol = True

    def subs(self, values: dict[Any, int]) -> Any:
        return _Number(values[self])


class _Number(int):
    is_Integer = True
    is_Symbol = False


def test_open_dimensions_get_another_size() -> None:
    batch = _Symbol()
    shapes = [((batch, 3), (2, 3)), ((batch,), (2,))]
    assert other_sizes(shapes) == [(3, 3), (3,)]
    assert other_sizes([((2, 3), (2, 3))]) is None


def test_only_symbols_keep_ranges() -> None:
    height, twice = _Symbol(), _Number(2)
    ranges: dict[Any, tuple[int, int]] = {height: (4, 20), twice: (8, 40)}
    size = SimpleNamespace(node=SimpleNamespace(shape_env=SimpleNamespace(var_to_range=ranges)))
    nodes = [
        SimpleNamespace(meta={"val": SimpleNamespace(shape=(1, size))}),
        SimpleNamespace(meta={}),
    ]
    forget_ranges_of_expressions(SimpleNamespace(graph=SimpleNamespace(nodes=nodes)))
    assert ranges == {height: (4, 20)}


@pytest.mark.parametrize(
    ("text", "dtype", "shape"),
    [
        ("1x3x8x8", "float32", (1, 3, 8, 8)),
        ("int64:1x16", "int64", (1, 16)),
        ("float64:", "float64", ()),
    ],
)
def test_inputs_of_torchscript(text: str, dtype: str, shape: tuple[int, ...]) -> None:
    assert torch_scripts.parse_input(text) == (np.dtype(dtype), shape)


@pytest.mark.parametrize("text", ["1xa", "thing:1", "0x3"])
def test_what_is_no_input_is_a_usage_error(text: str) -> None:
    with pytest.raises(FrontEndError) as caught:
        torch_scripts.parse_input(text)
    assert caught.value.fault == "usage"


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FrontEndError, match="of kind pickle"):
        pytorch.export(Request("pickle", "p", 18), tmp_path)


_STATIC = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[2,3,4] x, float[2] bias) => (float[2,12] y, float[2,6,2] z)
<int64[2] flat = {2, 12}, int64[3] other = {2, -1, 2}>
{
    y = Reshape (x, flat)
    z = Reshape (x, other)
}
"""


def test_outputs_that_are_inputs_or_twice_there_get_names_of_their_own() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    g (float[2] x) => (float[2] y, float[2] y, float[2] x) { y = Neg (x) }
    """
    model = parser.parse_model(text)
    torch_onnx.name_outputs(model, ["a", "b", "c"])
    onnx.checker.check_model(model, full_check=True)
    assert [each.name for each in model.graph.output] == ["a", "b", "c"]
    x = np.array([1, 2], np.float32)
    found = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(found, [-x, -x, x])


def test_operators_of_other_domains_are_refused(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 18, "mine" : 1]>
    g (float[2] x) => (float[2] y) { y = mine.Foo (x) }
    """
    with pytest.raises(FrontEndError, match=r"no operator for mine\.Foo"):
        torch_onnx.write(parser.parse_model(text), tmp_path)


def test_layers_leave_the_model() -> None:
    model = parser.parse_model(_STATIC)
    node = model.graph.node[0]
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'body.flat', 'view']")
    classes = "['mine.Net', 'torch.nn.Flatten', 'aten.view']"
    node.metadata_props.add(key="pkg.torch.onnx.class_hierarchy", value=classes)
    assert torch_onnx.layers_of(model) == {"y": "body.flat (Flatten)"}
    assert not node.metadata_props
