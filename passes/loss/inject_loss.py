"""inject-loss: losses of a model's outputs as further outputs, in standard operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.build import DEFAULT_OPSET
from onnxfold.passes.loss.inputs import DataInputs
from onnxfold.passes.loss.plan import LABELS, LossRequest, PlannedLoss, plan_losses
from onnxfold.passes.loss.record import KEY, TOTAL, InjectedLoss, LossRecord, read_record
from onnxfold.passes.loss.splice import splice
from onnxfold.passes.rewriter import Rewriter


@dataclass(frozen=True)
class InjectLoss(Pass):
    """Add losses to a model: each is an output, and so is their weighted sum, ``loss``.

    What a loss needs beside the model's outputs, such as labels, becomes an input of the model. A
    loss on logits takes those before a final softmax or sigmoid; what was taken is recorded in
    the model's metadata, by which strip-loss takes all of it out again. What is better higher
    counts negative in the sum; a loss that is not one number counts with its mean.

    Attributes:
        loss: Losses with their options: ``mse,vae-kl{on=mean,log-variance weight=0.1}``. ``on``,
            ``weight`` and ``labels`` of a single loss may stand among its own options.
        on: Outputs, or tensors inside, that the losses are about: the same for all, or one after
            the other what each takes. By default the only output of real numbers.
        labels: Name of the input with the right answers; an input that the model has already
            serves as well.
        weight: The share of each loss in the sum, in order; 1 by default.
    """

    name: ClassVar[str] = "inject-loss"
    contract: ClassVar[Contract] = Contract.ADDITIVE

    loss: str
    on: tuple[str, ...] = ()
    labels: str = LABELS
    weight: tuple[float, ...] = ()

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Find the tensors and build the losses, then splice them in.

        Raises:
            UsageError: A loss, an option or a tensor is unknown or does not fit, or the model has
                a loss already.
        """
        known = read_record(model)
        if known is not None:
            raise UsageError(
                f"the model has a loss already ({', '.join(each.loss for each in known.losses)}): "
                "run strip-loss first, and give all losses at once"
            )
        if not len(model.graph):
            raise UsageError("the model computes nothing: it has no node")
        record = LossRecord.of(model)
        request = LossRequest(self.loss, self.on, self.labels, self.weight)
        planned = plan_losses(model, record.outputs, request)
        inputs = DataInputs(model)
        for each in planned:
            inputs.check(each)
        with rewriter.step("inject-loss"):
            if "" not in record.opsets:
                rewriter.set_opset(DEFAULT_OPSET)
            parts = [_injected(each, inputs, rewriter) for each in planned]
            terms = [
                _term(value, each.share, rewriter)
                for each, (value, _) in zip(planned, parts, strict=True)
            ]
            total = _total(terms, rewriter)
            record = dataclasses.replace(
                record,
                total=total.name or "",
                losses=tuple(injected for _, injected in parts),
                data=inputs.added,
            )
            rewriter.set_metadata(KEY, record.to_text())


def _injected(
    planned: PlannedLoss, inputs: DataInputs, rewriter: Rewriter
) -> tuple[ir.Value, InjectedLoss]:
    """The output that holds the loss, and what is recorded of it."""
    fed = inputs.bind(planned, rewriter)
    taken = {
        name: _taken(each.value, is_log=each.is_log, prefix=planned.output, rewriter=rewriter)
        for name, each in zip(planned.built.tensors, planned.attachments, strict=True)
    }
    (value,) = splice(planned.built.model, fed | taken, planned.output, rewriter)
    value = rewriter.add_output(value, planned.output)
    return value, InjectedLoss(
        loss=planned.built.text,
        on=tuple(each.value.name or "" for each in planned.attachments),
        output=value.name or "",
        weight=planned.weight,
        better=planned.built.better,
        inputs={name: each.name or "" for name, each in fed.items()},
        note="; ".join(each.note for each in planned.attachments if each.note),
    )


def _taken(value: ir.Value, *, is_log: bool, prefix: str, rewriter: Rewriter) -> ir.Value:
    """The tensor itself, or the probabilities whose logarithms it holds."""
    if not is_log:
        return value
    anchor = rewriter.model.graph[-1]
    return rewriter.insert(anchor, "Exp", [value], name=f"{prefix}_exp", after=True)


def _term(part: ir.Value, share: float, rewriter: Rewriter) -> ir.Value:
    """What a loss adds to the total: one number."""
    graph = rewriter.model.graph
    number = part
    if part.shape is None or len(part.shape):
        number = rewriter.insert(
            graph[-1],
            "ReduceMean",
            [part],
            name=f"{part.name}_mean",
            attributes={"keepdims": 0},
            dtype=part.dtype,
            shape=(),
            after=True,
        )
    if share == 1:
        return number
    assert part.dtype is not None
    factor = np.asarray(share, part.dtype.numpy())
    constant = rewriter.add_initializer(graph, factor, name=f"{part.name}_weight")
    return rewriter.insert(
        graph[-1],
        "Mul",
        [number, constant],
        name=f"{part.name}_weighted",
        dtype=part.dtype,
        shape=(),
        after=True,
    )


def _total(terms: Sequence[ir.Value], rewriter: Rewriter) -> ir.Value:
    """The output that sums ``terms`` up, in the type of the first."""
    graph = rewriter.model.graph
    total = terms[0]
    for term in terms[1:]:
        if term.dtype != total.dtype and total.dtype is not None:
            term = rewriter.insert(
                graph[-1],
                "Cast",
                [term],
                name=f"{term.name}_cast",
                attributes={"to": int(total.dtype)},
                dtype=total.dtype,
                shape=(),
                after=True,
            )
        total = rewriter.insert(
            graph[-1],
            "Add",
            [total, term],
            name="loss_sum",
            dtype=total.dtype,
            shape=(),
            after=True,
        )
    return rewriter.add_output(total, TOTAL)
