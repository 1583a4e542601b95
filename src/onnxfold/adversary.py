"""Attacks a pair of models with the input on which they differ most, and keeps that input."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.places import check_folder
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.adversarial import WorstInput, find_worst_input
from onnxfold.runtime.verify.compare import compare_models
from onnxfold.runtime.verify.gates import Verdict

DEFAULT_STEPS = 40
"""Steps from each start, unless told otherwise."""


@dataclass(frozen=True)
class Attack:
    """What a search found, and whether the contract holds there too.

    Attributes:
        worst: The input and how far apart the models are on it.
        verdict: What the gate of the contract says of that input alone; a budget, which is about
            averages, has nothing to say.
        kept: Where the input was written.
    """

    worst: WorstInput
    verdict: Verdict
    kept: Path | None

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        kept = None if self.kept is None else str(self.kept)
        return {**self.worst.to_json(), "verdict": self.verdict.to_json(), "kept": kept}


def attack(
    reference: ir.Model,
    candidate: ir.Model,
    feeds: Iterable[Feed],
    contract: Contract,
    *,
    steps: int = DEFAULT_STEPS,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Attack:
    """Search for the input on which ``candidate`` is furthest from ``reference``.

    Args:
        reference: The original.
        candidate: The rewritten model.
        feeds: Where the search begins, and what its ranges are.
        contract: What the candidate promises.
        steps: Steps from each start.
        keep: A folder to write the input into, one file an input: as data of the next comparison.
        progress: Told how far it is.

    Raises:
        UsageError: There is no real input or output, or ``steps`` is not positive.
    """
    if steps < 1:
        raise UsageError(f"a search of {steps} steps finds nothing: give 1 or more")
    if keep is not None:
        check_folder(Path(keep))
    worst = find_worst_input(reference, candidate, feeds, steps=steps, progress=progress)
    verdict = Verdict(True, ())
    if contract is not Contract.APPROXIMATE:
        found = compare_models(reference, candidate, [worst.feed], contract).verdict
        reasons = tuple(f"on the worst input: {each}" for each in found.reasons)
        verdict = Verdict(found.passed, reasons, found.inconclusive)
    return Attack(worst, verdict, None if keep is None else _keep(worst.feed, Path(keep)))


def _keep(feed: Feed, folder: Path) -> Path:
    """Write ``feed`` under a name that follows from what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name in sorted(feed):
        digest.update(name.encode() + np.ascontiguousarray(feed[name]).tobytes())
    path = folder / f"worst-{digest.hexdigest()[:12]}.npz"
    temporary = path.with_suffix(".tmp.npz")
    arrays: dict[str, Any] = dict(feed)
    np.savez(temporary, **arrays)
    temporary.replace(path)
    return path
