"""Demosaic photographs in float and in integers: python -m examples.demosaic.run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from examples.demosaic.picture import draw
from examples.demosaic.schemes import four_bits, integer, one_map, optimized, wide_integer
from fixtures.demosaicnet import (
    BORDER,
    EVALUATION,
    HELD_OUT,
    INPUT,
    OUTPUT,
    calibration_feeds,
    demosaicnet,
    inner,
    mosaic_of,
    photograph,
    psnr,
)
from fixtures.fetch import FetchError
from onnxfold.console import ProgressBars
from onnxfold.passes.errors import OnnxfoldError
from onnxfold.passes.float_ops import float_ops_between
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Picture = NDArray[np.float32]
Decibels = Mapping[str, Mapping[str, float]]
"""PSNR by network and photograph."""

SIDE = 256
CALIBRATION = 16
"""Cuts of photographs that calibrate; others than those that judge."""
FLOAT, NAIVE, COMPENSATED, INTEGER, WIDE, FOUR_BITS = (
    "float",
    "one map for all",
    "the same, compensated",
    "integer graph",
    "integer graph, activations of 16 bits",
    "weights of 4 bits",
)


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes:
        decibels: PSNR by network and photograph.
        held_out: the same for photographs in view of which no scheme was chosen.
        float_operators: operators on floats between the codes of the integer graphs.
    """

    decibels: Decibels
    held_out: Decibels
    float_operators: int


def main(words: Sequence[str] | None = None) -> int:
    """Run the example from the command line and return its exit code."""
    parser = argparse.ArgumentParser(description="Demosaic photographs in float and in integers.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(".onnxfold", "demosaic"),
        metavar="DIR",
        help="where models and the picture go (default: %(default)s)",
    )
    options = parser.parse_args(words)
    try:
        with ProgressBars() as progress:
            outcome = run(options.output, progress)
    except (FetchError, OnnxfoldError, OSError) as error:
        print(f"demosaic: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    if options.json:
        print(json.dumps(asdict(outcome), indent=2))
        return 0
    _print(outcome)
    print(f"{options.output / 'demosaic.png'} and the models beside it written")
    return 0


def run(folder: Path, progress: Progress) -> Outcome:
    """Quantize, restore the photographs, and write the models and the picture into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    progress.stage("fetching demosaicnet and photographs")
    original = optimized(ir.serde.deserialize_model(demosaicnet()))
    images = {name: _cut(photograph(name)) for name in (*EVALUATION, *HELD_OUT)}
    feeds = list(calibration_feeds(CALIBRATION))
    progress.stage("quantizing")
    networks = {
        FLOAT: original,
        NAIVE: one_map(original, feeds, compensated=False),
        COMPENSATED: one_map(original, feeds, compensated=True),
        INTEGER: integer(original, feeds),
        WIDE: wide_integer(original, feeds),
        FOUR_BITS: four_bits(original, feeds),
    }
    for name, stem in ((FLOAT, "float"), (INTEGER, "integer"), (WIDE, "integer16")):
        ir.save(networks[name], folder / f"demosaicnet.{stem}.onnx")
    progress.stage("restoring photographs", len(networks) * len(images))
    found = {name: _restore(model, images, progress) for name, model in networks.items()}
    name, image = next(iter(images.items()))
    shown = {network: found[network][name] for network in (FLOAT, NAIVE, INTEGER)}
    draw(inner(image), inner(mosaic_of(image)), shown, folder / "demosaic.png")
    graphs = (networks[INTEGER], networks[WIDE])
    float_operators = sum(len(float_ops_between(each, strict=True)) for each in graphs)
    seen, unseen = (_decibels(found, images, names) for names in (EVALUATION, HELD_OUT))
    return Outcome(seen, unseen, float_operators)


def _decibels(
    found: Mapping[str, Mapping[str, Picture]], images: Mapping[str, Picture], names: Sequence[str]
) -> Decibels:
    return {
        network: {
            name.removeprefix("photo-"): psnr(inner(images[name]), restored[name]) for name in names
        }
        for network, restored in found.items()
    }


def _restore(
    model: ir.Model, images: Mapping[str, Picture], progress: Progress
) -> dict[str, Picture]:
    is_float = not any(node.op_type == "QuantizeLinear" for node in model.graph)
    # ONNX Runtime's optimizer may change what Q/DQ pairs mean.
    session = Session(model, DEPLOYMENT if is_float else REFERENCE)
    restored: dict[str, Picture] = {}
    for name, image in images.items():
        restored[name] = session.run({INPUT: mosaic_of(image)[None]})[OUTPUT][0]
        progress.advance()
    return restored


def _cut(image: Picture) -> Picture:
    """Return a square of a photograph, above its middle, where the sensor's pattern begins anew."""
    side = SIDE + 2 * BORDER
    room = [max(size - side, 0) for size in image.shape[1:]]
    top, left = room[0] // 8 * 2, room[1] // 4 * 2
    return image[:, top : top + side, left : left + side]


def _print(outcome: Outcome) -> None:
    console = Console(width=None if Console().is_terminal else 110)
    console.print(_table("PSNR in dB", outcome.decibels))
    console.print(_table("PSNR in dB, photographs held out", outcome.held_out))
    console.print(
        f"float operators between the codes of the integer graphs: {outcome.float_operators}"
    )


def _table(title: str, decibels: Decibels) -> Table:
    names = list(decibels[FLOAT])
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("network")
    for name in (*names, "mean", "against float"):
        table.add_column(name, justify="right")
    means = {network: float(np.mean(list(found.values()))) for network, found in decibels.items()}
    for network, found in decibels.items():
        cells = [f"{found[name]:.2f}" for name in names]
        loss = means[network] - means[FLOAT]
        table.add_row(network, *cells, f"{means[network]:.2f}", f"{loss:+.2f}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
