"""Training steps in plain ONNX against torch: processor time of one thread, in the same run.

Each network is trained on one batch by ONNX Runtime and, in a process of its own, by torch; they
take turns, and ratios are medians of the ratios within a turn. ``gradients`` is forward and
backward with weights as inputs, as in training; ``step`` is that and Adam's update, driven by the
``Trainer``. A row is flagged where gradients take more than the limit: 1.3 times torch's time for
convolutional networks, 1.0 times for dense ones and the transformer; recurrent ones have none.

torch comes from ``--torch PYTHON``, an interpreter that has it, else from an environment of its
own, made once. ``--only NAME`` measures one network (may be repeated), ``--json`` prints figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fixtures.environments import environment
from fixtures.fetch import DownloadError
from fixtures.training_networks import NETWORKS, TrainingNetwork
from onnxfold.passes.constants import Array
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.serialization import to_proto
from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.training import Trainer

TORCH_PINS = ("torch==2.13.0", "numpy>=2")
WORKER = Path(__file__).with_name("torch_worker.py")
ROUNDS, SAMPLE_SECONDS = 9, 0.1
_ONE_THREAD = dataclasses.replace(DEPLOYMENT, name="one thread", threads=1)
_GRADIENTS, _ADAM = "add-gradient,lower-gradient", "add-optimizer{kind=adam learning-rate=0.000001}"
_CONVOLUTIONAL, _DENSE, _NONE = 1.3, 1.0, math.inf


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        sizes: Arguments of its generator.
        batch: Samples.
        limit: The most that its gradients may take, relative to torch.
    """

    sizes: Mapping[str, int]
    batch: int
    limit: float


SUBJECTS: Mapping[str, Subject] = {
    "mlp": Subject({"width": 256}, 128, _DENSE),
    "vae": Subject({"width": 256, "latents": 16}, 128, _DENSE),
    "transformer": Subject({"width": 64, "tokens": 32}, 32, _DENSE),
    "conv_bn": Subject({"width": 16, "size": 32}, 32, _CONVOLUTIONAL),
    "resnet8": Subject({"width": 16, "size": 32}, 32, _CONVOLUTIONAL),
    "depthwise": Subject({"width": 16, "size": 32}, 32, _CONVOLUTIONAL),
    "unet": Subject({"width": 8, "size": 32}, 16, _CONVOLUTIONAL),
    "lstm": Subject({"width": 64, "steps": 24}, 32, _NONE),
    "gru": Subject({"width": 64, "steps": 24}, 32, _NONE),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What one network took.

    Attributes:
        name: The network.
        torch_ms: Milliseconds of forward and backward in torch.
        onnx_ms: The same in ONNX Runtime.
        gradients: Median ratio of the two.
        step: Median ratio of whole Adam steps.
        limit: The most that ``gradients`` may be.
    """

    name: str
    torch_ms: float
    onnx_ms: float
    gradients: float
    step: float
    limit: float

    @property
    def is_flagged(self) -> bool:
        """Whether the limit is broken."""
        return self.gradients > self.limit


class Torch:
    """The process that trains with torch."""

    def __init__(self, interpreter: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [interpreter, str(WORKER), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, name: str, work: str, count: int) -> float:
        """Processor seconds of ``count`` times ``work``."""
        asked, told = self._process.stdin, self._process.stdout
        if asked is None or told is None:
            raise SystemExit("the worker has no pipes")
        asked.write(f"{name} {work} {count}\n")
        asked.flush()
        answer = told.readline()
        if not answer:
            raise SystemExit(f"torch failed on {name}; see above")
        return float(answer)

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate()


def write_network(network: TrainingNetwork, feed: Mapping[str, Array], folder: Path) -> None:
    """Write what the worker reads."""
    arrays = {f"w/{name}": array for name, array in network.initializers().items()}
    arrays |= {f"t/{name}": np.zeros(0) for name in network.weights()}
    arrays |= {f"f/{name}": array for name, array in feed.items()}
    target = folder / f"{network.name}.npz"
    np.savez(target, allow_pickle=False, **arrays)


def gradient_run(network: TrainingNetwork, feed: Mapping[str, Array]) -> Callable[[], object]:
    """Forward and backward, with weights that could be overridden."""
    model = ir.from_proto(network.with_loss())
    for each in parse_passes(_GRADIENTS):
        each.run(model)
    weights = [model.graph.initializers[name] for name in network.weights()]
    model.graph.inputs.extend(weights)
    return Session(to_proto(model), _ONE_THREAD).prepare(feed)


def step_run(network: TrainingNetwork, feed: dict[str, Array]) -> Callable[[], object]:
    """A whole step."""
    model = ir.from_proto(network.with_loss())
    for each in parse_passes(f"{_GRADIENTS},{_ADAM}"):
        each.run(model)
    trainer = Trainer(model, config=_ONE_THREAD)
    return lambda: trainer.step(feed)


def seconds(run: Callable[[], object], count: int) -> float:
    """Processor seconds of ``count`` runs."""
    started = time.process_time()
    for _ in range(count):
        run()
    return time.process_time() - started


def race(
    ours: Callable[[int], float], theirs: Callable[[int], float]
) -> tuple[float, float, float]:
    """Milliseconds of ours and of theirs, and the median ratio; they take turns."""
    counts = [max(1, round(SAMPLE_SECONDS * 3 / each(3))) for each in (ours, theirs)]
    pairs = [(ours(counts[0]) / counts[0], theirs(counts[1]) / counts[1]) for _ in range(ROUNDS)]
    found, wanted = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    return found, wanted, statistics.median(mine / other for mine, other in pairs)


def measure(name: str, torch: Torch, folder: Path) -> Row:
    """Let ONNX Runtime and torch train one network."""
    subject = SUBJECTS[name]
    network = NETWORKS[name](**subject.sizes)
    feed = network.feed(subject.batch)
    write_network(network, feed, folder)
    found: dict[str, tuple[float, float, float]] = {}
    for work, make in (("gradients", gradient_run), ("adam", step_run)):
        run = make(network, feed)
        found[work] = race(
            lambda count, run=run: seconds(run, count),
            lambda count, work=work: torch.seconds(name, work, count),
        )
    ours, theirs, ratio = found["gradients"]
    return Row(name, theirs, ours, ratio, found["adam"][2], subject.limit)


def print_rows(rows: Sequence[Row]) -> None:
    """The table."""
    print(
        f"  {'training (1 thread)':22s}{'torch ms':>9s} {'ONNX ms':>9s} {'gradients':>10s} "
        f"{'step':>6s} {'limit':>6s}"
    )
    for row in rows:
        limit = "" if math.isinf(row.limit) else f"{row.limit:.1f}"
        mark = "  above" if row.is_flagged else ""
        times = f"{row.torch_ms:9.2f} {row.onnx_ms:9.2f}"
        print(f"  {row.name:22s}{times} {row.gradients:10.2f} {row.step:6.2f} {limit:>6s}{mark}")
    print(f"rows above their limit: {sum(row.is_flagged for row in rows)} of {len(rows)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all networks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--only", action="append", choices=list(SUBJECTS), help="one network")
    parser.add_argument("--torch", help="an interpreter that has torch")
    options = parser.parse_args(arguments)
    try:
        interpreter = options.torch or str(environment("torch", TORCH_PINS))
    except DownloadError as error:
        print(f"training SKIPPED, there is no torch: {error}", file=sys.stderr, flush=True)
        return 0
    with tempfile.TemporaryDirectory() as made:
        torch = Torch(interpreter, Path(made))
        rows = [measure(name, torch, Path(made)) for name in options.only or SUBJECTS]
        torch.close()
    if options.json:
        figures = [dataclasses.asdict(row) for row in rows]
        for figure in figures:
            if math.isinf(figure["limit"]):
                figure["limit"] = None
        print(json.dumps({"benchmark": "training", "rows": figures}, indent=1))
        return 0
    print_rows(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
