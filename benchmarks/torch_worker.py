"""Runs in a process of its own: trains networks with torch on one thread, as often as it is told.

    python torch_worker.py FOLDER

Reads lines "NAME WORK COUNT" and answers each with the processor seconds that COUNT times WORK
took: ``gradients`` is forward and backward, ``adam`` a whole step. FOLDER holds NAME.npz, with each
weight as w/NAME, those to train as well as t/NAME, and inputs and labels as f/NAME.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


class Network:
    """One network with its weights and one batch."""

    def __init__(self, torch: Any, path: Path) -> None:
        twin: Any = importlib.import_module("fixtures.torch_networks")
        with np.load(path) as arrays:
            groups: dict[str, dict[str, Any]] = {"w": {}, "t": {}, "f": {}}
            for key in arrays.files:
                group, _, name = key.partition("/")
                groups[group][name] = torch.tensor(arrays[key])
        self._weights, self._feed = groups["w"], groups["f"]
        self._trained = [self._weights[name].requires_grad_() for name in groups["t"]]
        self._optimizer = torch.optim.Adam(self._trained, lr=1e-6)
        self._loss: Callable[[], Any] = lambda: twin.loss(path.stem, self._weights, self._feed)

    def gradients(self) -> None:
        """Compute the loss and all gradients."""
        self._optimizer.zero_grad()
        self._loss().backward()

    def adam(self) -> None:
        """Make one step."""
        self.gradients()
        self._optimizer.step()


def main() -> int:
    """Answer lines until there are none."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    networks: dict[str, Network] = {}
    for line in sys.stdin:
        name, work, count = line.split()
        if name not in networks:
            networks[name] = Network(torch, Path(sys.argv[1]) / f"{name}.npz")
        run: Callable[[], None] = getattr(networks[name], work)
        started = time.process_time()
        for _ in range(int(count)):
            run()
        print(time.process_time() - started, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
