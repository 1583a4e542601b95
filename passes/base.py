"""What a pass is, what it promises, and what it returns."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.errors import OnnxfoldError, PassError
from onnxfold.passes.listener import RewriteListener
from onnxfold.passes.remark import Remark
from onnxfold.passes.rewriter import Rewriter


class Contract(enum.Enum):
    """What a pass may do to the numbers; ``onnxfold.runtime.verify`` has a gate for each."""

    EXACT = "exact"
    """Delete, move, share, fold constants: bit-identical with optimizations off."""
    REASSOCIATED = "reassociated"
    """Reorder real arithmetic: fold BatchNorm, scale, bias."""
    INTEGER = "integer"
    """Replace fake-quantized float by integer arithmetic: at most 1 LSB, rarely."""
    APPROXIMATE = "approximate"
    """Change numbers (quantize, equalize, round), inside a budget."""
    ADDITIVE = "additive"
    """Add outputs; the original outputs stay bit-identical."""

    @classmethod
    def from_text(cls, text: str) -> Contract:
        """The contract called ``text``, as a pass option."""
        try:
            return cls(text)
        except ValueError:
            choices = ", ".join(each.value for each in cls)
            raise ValueError(f"'{text}' is not one of {choices}") from None

    def to_text(self) -> str:
        """Its name, as a pass option."""
        return self.value


@dataclass(frozen=True)
class PassResult:
    """What one application of a pass did.

    Attributes:
        model: The rewritten model (usually the one passed in, mutated in place).
        modified: Whether anything changed.
        statistics: Counts of ``inserted``, ``erased``, ``modified``, ``replaced``, ...
        rules: How often each named rule was applied.
        remarks: What the pass could have done and did not, with reasons.
        refused: Whether a listener refused a step, so that the pass did less than it would.
    """

    model: ir.Model
    modified: bool
    statistics: Counter[str] = field(default_factory=Counter[str])
    rules: Counter[str] = field(default_factory=Counter[str])
    remarks: tuple[Remark, ...] = ()
    refused: bool = False


@dataclass(frozen=True)
class Pass(ABC):
    """A named rewrite of a model. Subclasses are frozen dataclasses; their fields are the options.

    A pass keeps no state between applications and executes no model. The model it is given is
    valid, and the model it leaves must be valid; in between it need not be.
    """

    name: ClassVar[str]
    contract: ClassVar[Contract]

    @property
    def changes_interface(self) -> bool:
        """Whether it may give inputs and outputs other types; see ``passes/io_types.py``."""
        return False

    @property
    def restores_interface(self) -> bool:
        """Whether it takes out inputs and outputs that additive passes appended."""
        return False

    @abstractmethod
    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Rewrite ``model`` in place, through ``rewriter`` only."""

    def run(self, model: ir.Model, listeners: Sequence[RewriteListener] = ()) -> PassResult:
        """Apply the pass to ``model`` in place and say what was done.

        Raises:
            PassError: The pass failed on a node; the message names pass, rule and node.
        """
        rewriter = Rewriter(model, self.name, listeners)
        try:
            self.apply(model, rewriter)
        except OnnxfoldError:
            raise
        except Exception as error:
            where = f" at {rewriter.describe_step()}" if rewriter.describe_step() else ""
            message = f"pass {self.name} failed{where}: {type(error).__name__}: {error}"
            raise PassError(message) from error
        return PassResult(
            model=rewriter.model,
            modified=rewriter.modified,
            statistics=rewriter.statistics,
            rules=rewriter.rules,
            remarks=tuple(rewriter.remarks),
            refused=rewriter.refused,
        )
