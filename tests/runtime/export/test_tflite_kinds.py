"""Each kind of TensorFlow Lite's quantization is exported with the very numbers of the file."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fixtures.convert_tflite import Job, answer, kinds
from fixtures.fetch import DownloadError
from onnxfold.passes.constants import Array, constant_array
from onnxfold.runtime.export.front_end import Exported, read_exported
from onnxfold.runtime.export.proven import Proof, Wanted, prove_export
from onnxfold.runtime.export.sources import Source
from onnxfold.runtime.export.workers.protocol import Request
from onnxfold.runtime.progress import Silent

pytestmark = [pytest.mark.network, pytest.mark.slow]

KINDS = ("float", "dynamic_range", "float16", "int8", "int8_codes", "uint8_codes", "int16")
"""As ``fixtures.tflite_kinds`` writes them."""
STEPS = {"int8": 1 / 256, "int8_codes": 1.0, "uint8_codes": 1.0, "int16": 1 / 32768}
"""What a code of the output is worth."""


@pytest.fixture(scope="module")
def exported() -> dict[str, Proof]:
    """What the front end made of each kind, from one process."""
    try:
        folder = kinds()
        requests = [Request("tflite", str(folder / f"{kind}.tflite"), 18) for kind in KINDS]
        jobs = [Job(f"kind-{kind}", request) for kind, request in zip(KINDS, requests, strict=True)]
        answers = answer(jobs)
    except DownloadError as error:
        pytest.skip(str(error))
    sources = [Source(Path(each.path), "tflite") for each in requests]
    return {
        kind: Proof(source, request, read_exported(source, place))
        for kind, source, request, place in zip(KINDS, sources, requests, answers, strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_tflite_does(kind: str, exported: dict[str, Proof]) -> None:
    run, document = prove_export(exported[kind], _model(exported[kind]), Wanted(), Silent())
    (output,) = document["outputs"]
    assert output["max_abs_diff"] <= STEPS.get(kind, 1e-6) * 1.001
    onnx.checker.check_model(ir.to_proto(run.model), full_check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_kept_bit_for_bit(kind: str, exported: dict[str, Proof]) -> None:
    proof = exported[kind]
    with np.load(proof.source.path.with_suffix(".npz")) as file:
        known = {key: file[key] for key in file.files}
    constants = [key.rpartition("/")[2] for key in known if key.startswith("codes/")]
    written = [
        tuple(constant_array(value) for value in node.inputs)
        for node in _model(proof).graph
        if node.op_type == "DequantizeLinear" and constant_array(node.inputs[0]) is not None
    ]
    assert (
        len(written)
        == len(constants)
        == {"float": 0, "float16": 0, "dynamic_range": 1}.get(kind, len(constants))
    )
    for index in constants:
        parts = [known[f"{part}/{index}"] for part in ("codes", "scale", "zero_point")]
        assert any(_is_same(*parts, *each) for each in written), index
    activations = {
        (known[f"scale/{index}"].item(), int(known[f"zero_point/{index}"].item()))
        for index in (key.rpartition("/")[2] for key in known if key.startswith("scale/"))
        if index not in constants
    }
    assert _quantizers(proof) == activations


def test_weights_keep_their_types(exported: dict[str, Proof]) -> None:
    found = {kind: _types(exported[kind]) for kind in KINDS}
    assert found["float"] == {"FLOAT"}
    assert found["float16"] == {"FLOAT16"}
    assert found["dynamic_range"] == {"FLOAT", "INT8"}
    assert found["int8"] == found["uint8_codes"] == {"INT8", "INT32"}
    assert found["int16"] == {"INT8", "INT32"}


def test_what_cannot_be_the_same_is_said(exported: dict[str, Proof]) -> None:
    notes = {kind: exported[kind].exported.answer.notes for kind in KINDS}
    assert "8 bits at every run" in notes["dynamic_range"][0]
    assert "opset 21" in notes["int16"][0]
    assert Counter(map(len, notes.values())) == {0: 5, 1: 2}


def _model(proof: Proof) -> ir.Model:
    assert isinstance(proof.exported, Exported)
    assert proof.exported.model is not None
    return proof.exported.model.clone()


def _is_same(
    codes: Array, scale: Array, zero_point: Array, data: Array, by: Array, from_: Array
) -> bool:
    """Whether a DequantizeLinear has these numbers, its weights maybe in another layout."""
    if not np.array_equal(scale, by.reshape(-1)) or not np.array_equal(
        np.broadcast_to(zero_point, scale.shape), from_.reshape(-1)
    ):
        return False
    layouts = itertools.permutations(range(codes.ndim))
    turned: list[Array] = [codes.transpose(each) for each in layouts]
    return codes.size == data.size and any(
        np.array_equal(each.reshape(data.shape), data) for each in turned
    )


def _quantizers(proof: Proof) -> set[tuple[float, int]]:
    """Scale and zero point of all activations but the means of codes, which have their own."""
    found: set[tuple[float, int]] = set()
    for node in _model(proof).graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source, (scale, zero) = node.inputs[0], map(constant_array, node.inputs[1:3])
        pool = source is not None and source.producer()
        after = [use.op_type for use, _ in node.outputs[0].uses()]
        if constant_array(source) is not None or "AveragePool" in after:
            continue
        if pool and pool.op_type == "AveragePool":
            continue
        assert scale is not None
        assert zero is not None
        found.add((scale.item(), int(zero.item())))
    return found


def _types(proof: Proof) -> set[str]:
    """What weights are stored in: constants of more than one number that are not zero points."""
    values = _model(proof).graph.initializers.values()
    read = [
        value
        for value in values
        if any(
            (use.op_type == "Cast" or use.op_type == "DequantizeLinear" or use.op_type == "Conv")
            and (index == 0 or use.op_type == "Conv")
            for use, index in value.uses()
        )
    ]
    return {value.dtype.name for value in read if value.dtype is not None}
