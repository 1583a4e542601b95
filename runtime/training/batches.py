"""Cuts arrays into batches, shuffled anew for each epoch, the same way every time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.specs import Feed


class Batches:
    """Batches of samples; each iteration is an epoch and is shuffled in its own way.

    Attributes:
        epoch: How many iterations were begun; set it to go on where another process was.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        size: int,
        *,
        seed: int | None = 0,
        drop_last: bool = False,
    ) -> None:
        """Cut ``arrays``.

        Args:
            arrays: One array per input and label of the model, samples along the first axis.
            size: Samples in a batch.
            seed: Of the shuffling; None keeps the order.
            drop_last: Whether to leave out a last batch that is smaller.

        Raises:
            UsageError: The arrays are not equally long, or too short for one batch.
        """
        self.epoch = 0
        self._arrays = dict(arrays)
        self._size = size
        self._seed = seed
        lengths = {name: len(array) for name, array in self._arrays.items()}
        if len(set(lengths.values())) != 1:
            told = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise UsageError(f"arrays of batches have to be equally long, got {told or 'none'}")
        self._samples = next(iter(lengths.values()))
        if size < 1 or self._samples < (size if drop_last else 1):
            raise UsageError(f"no batch of {size} can be cut from {self._samples} samples")
        self._end = self._samples - self._samples % size if drop_last else self._samples

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return -(-self._end // self._size)

    def __iter__(self) -> Iterator[Feed]:
        """The batches of the next epoch."""
        order = np.arange(self._samples)
        if self._seed is not None:
            order = np.random.default_rng([self._seed, self.epoch]).permutation(self._samples)
        self.epoch += 1
        for start in range(0, self._end, self._size):
            chosen = order[start : min(start + self._size, self._end)]
            yield {name: array[chosen] for name, array in self._arrays.items()}
