"""The demosaicing example: what each scheme is, the picture, and on real photographs its worth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from examples.demosaic import run as example
from examples.demosaic.picture import draw
from examples.demosaic.schemes import integer, one_map, optimized, wide_integer
from fixtures.demosaicnet import HELD_OUT
from fixtures.fetch import DownloadError, FetchError, fetch
from onnxfold.passes.float_ops import float_ops_between
from onnxfold.runtime.session import REFERENCE, Session


def _small() -> ir.Model:
    """Two layers, in the larger of which zero lies in the middle of all weights."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0.2, 1, (4, 3, 3, 3)), rng.normal(0, 0.2, (3, 4, 1, 1))]
    texts = [", ".join(f"{each:.4f}" for each in array.ravel()) for array in weights]
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[N,3,16,16] mosaic) => (float[N,3,14,14] image)
        <float[4,3,3,3] w = {{{texts[0]}}}, float[4] b = {{0.1, 0.2, 0, -0.1}},
         float[3,4,1,1] v = {{{texts[1]}}}, float[3] c = {{0, 0.1, 0}}>
        {{ h = Conv(mosaic, w, b) r = Relu(h) image = Conv(r, v, c) }}"""
    )
    return optimized(model)


def _feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"mosaic": rng.uniform(0, 1, (1, 3, 16, 16)).astype(np.float32)} for _ in range(4)]


def test_each_scheme_is_better_than_the_one_before() -> None:
    model, feeds = _small(), _feeds()
    wanted = [Session(model, REFERENCE).run(feed)["image"] for feed in feeds]
    errors: list[float] = []
    made = [integer(model, feeds), wide_integer(model, feeds)]
    for each in (
        one_map(model, feeds, compensated=False),
        one_map(model, feeds, compensated=True),
        *made,
    ):
        found = [Session(each, REFERENCE).run(feed)["image"] for feed in feeds]
        errors.append(
            float(np.mean([np.square(a - b) for a, b in zip(wanted, found, strict=True)]))
        )
    assert errors[0] > 100 * errors[1]
    assert errors[1] > 2 * errors[2]
    assert errors[2] > 1.2 * errors[3]
    assert not any(float_ops_between(each, strict=True) for each in made)


def test_the_picture_shows_all_panels(tmp_path: Path) -> None:
    original = np.full((3, 20, 30), 0.5, np.float32)
    found = {"same": original, "brighter": original + np.float32(0.05)}
    draw(original, np.full_like(original, 0.25), found, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (3 * 38 + 8, 2 * 44 + 8)
        assert image.getpixel((20, 8 + 16 + 5)) == (64, 64, 64)
        assert image.getpixel((38 + 20, 44 + 8 + 16 + 5)) == (0, 0, 0)
        assert image.getpixel((2 * 38 + 20, 44 + 8 + 16 + 5)) == (128, 128, 128)


def test_without_network_one_line_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def unavailable() -> None:
        raise FetchError("demosaicnet-bayer: cannot download (is there a network?)")

    monkeypatch.setattr(example, "demosaicnet", unavailable)
    assert example.main(["--output", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "demosaic: demosaicnet-bayer: cannot download (is there a network?)\n"


@pytest.mark.network
@pytest.mark.slow
def test_compensation_on_real_photographs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    try:
        for name in ("demosaicnet-bayer", "photo-china", "photo-astronaut", *HELD_OUT):
            fetch(name)
    except DownloadError as error:
        pytest.skip(str(error))
    assert example.main(["--json", "--output", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    mean = {name: np.mean(list(each.values())) for name, each in figures["decibels"].items()}
    assert mean[example.FLOAT] > 38
    assert mean[example.NAIVE] < 10
    assert mean[example.COMPENSATED] > mean[example.NAIVE] + 25
    assert mean[example.INTEGER] > mean[example.FLOAT] - 0.4
    assert mean[example.WIDE] > mean[example.FLOAT] - 0.1
    assert mean[example.FOUR_BITS] > mean[example.FLOAT] - 0.6
    unseen = {name: np.mean(list(each.values())) for name, each in figures["held_out"].items()}
    assert unseen[example.INTEGER] > unseen[example.FLOAT] - 1
    assert unseen[example.WIDE] > unseen[example.FLOAT] - 0.25
    assert unseen[example.FOUR_BITS] > unseen[example.FLOAT] - 1.6
    assert set(figures["held_out"][example.FLOAT]).isdisjoint(figures["decibels"][example.FLOAT])
    assert figures["float_operators"] == 0
    assert (tmp_path / "demosaic.png").is_file()
    assert (tmp_path / "demosaicnet.integer.onnx").is_file()
    assert (tmp_path / "demosaicnet.integer16.onnx").is_file()
