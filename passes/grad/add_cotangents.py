"""add-cotangents: weigh the outputs by new inputs and sum them up, for vector-Jacobian products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean

PREFIX = "cotangent_"


@dataclass(frozen=True)
class AddCotangents(Pass):
    """Add the output ``weighted_sum``: every element of the outputs times one of a new input.

    The gradient of that sum is the vector-Jacobian product with what ``cotangent_<output>`` is fed.

    Attributes:
        outputs: Which outputs; every real one where none is named.
        total: The name of the sum.
    """

    name: ClassVar[str] = "add-cotangents"
    contract: ClassVar[Contract] = Contract.ADDITIVE

    outputs: tuple[str, ...] = ()
    total: str = "weighted_sum"

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Add the products and their sum behind everything else.

        Raises:
            UsageError: A named output does not exist or is not real, or none is real.
        """
        outputs = self._chosen(model.graph)
        with rewriter.step("add-cotangents", outputs[0].producer()):
            anchor = model.graph[-1]
            sums: list[ir.Value] = []
            for output in outputs:
                dtype = output.dtype or ir.DataType.FLOAT
                cotangent = rewriter.add_input(f"{PREFIX}{output.name}", dtype, output.shape)
                name = f"weighted_{output.name}"
                product = rewriter.insert(
                    anchor, "Mul", [output, cotangent], name=name, after=True, dtype=dtype
                )
                anchor = _producer(product)
                part = rewriter.insert(
                    anchor,
                    "ReduceSum",
                    [product],
                    name=f"{name}_sum",
                    attributes={"keepdims": 0},
                    after=True,
                    dtype=dtype,
                    shape=[],
                )
                anchor = _producer(part)
                sums.append(_as_float(part, anchor, rewriter))
                anchor = _producer(sums[-1])
            total = rewriter.insert(
                anchor,
                "Sum",
                sums,
                name="sum_of_products",
                after=True,
                dtype=ir.DataType.FLOAT,
                shape=[],
            )
            rewriter.add_output(total, self.total)

    def _chosen(self, graph: ir.Graph) -> list[ir.Value]:
        real = {value.name or "": value for value in graph.outputs if _is_real(value)}
        for name in self.outputs:
            if name not in real:
                raise UsageError(f"no real output '{name}'{did_you_mean(name, real)}")
        if not real:
            raise UsageError("none of the model's outputs is real: there is nothing to weigh")
        return [real[name] for name in self.outputs] if self.outputs else list(real.values())


def _as_float(value: ir.Value, anchor: ir.Node, rewriter: Rewriter) -> ir.Value:
    if value.dtype == ir.DataType.FLOAT:
        return value
    return rewriter.insert(
        anchor,
        "Cast",
        [value],
        name=f"{value.name}_float",
        attributes={"to": int(ir.DataType.FLOAT)},
        after=True,
        dtype=ir.DataType.FLOAT,
        shape=[],
    )


def _producer(value: ir.Value) -> ir.Node:
    producer = value.producer()
    if producer is None:
        raise ValueError(f"'{value.name}' has no producer")
    return producer


def _is_real(value: ir.Value) -> bool:
    # A model may return an input as it is: that differs from nothing.
    return (
        value.dtype is not None and value.dtype.is_floating_point() and value.producer() is not None
    )
