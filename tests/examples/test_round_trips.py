"""The round trips: from each framework's own file to int8 in one command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from examples.round_trips import run
from examples.round_trips.trips import TRIPS, Trip
from fixtures.fetch import DownloadError, fetch


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("trip", TRIPS, ids=lambda trip: trip.name)
def test_each_framework_arrives(
    trip: Trip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A framework takes seconds to start for each: what is float and what is quantized already.
    trip = replace(trip, commands=(trip.commands[0], *trip.commands[2:]))
    monkeypatch.setattr(run, "TRIPS", (trip,))
    try:
        fetch("digits")
        trip.environment()
    except DownloadError as error:
        pytest.skip(str(error))
    # Whatever this machine is faster with: the test is about what integers compute.
    words = [trip.name, "--install", "--keep-slower", "--json", "--output", str(tmp_path)]
    assert run.main(words) == 0
    arrivals = json.loads(capsys.readouterr().out)
    assert len(arrivals) == len(trip.commands)
    for each, command in zip(arrivals, trip.commands, strict=True):
        assert each["exported"] < 1e-4
        assert each["framework_accuracy"] > 0.95
        assert each["accuracy"] > each["framework_accuracy"] - 0.02
        assert each["agreement"] > 0.97
        assert each["integer_share"] > 0.9
        # Four bytes became one.
        assert each["result_bytes"] < 0.5 * each["source_bytes"] or command.verb == "fold"
        onnx.checker.check_model(tmp_path / trip.name / command.result)


def test_a_missing_framework_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "python"
    found = '{"version": "3.11.7", "found": {}, "broken": {}}'
    script.write_text(f"#!/bin/sh\necho '{found}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("ONNXFOLD_PYTHON", str(script))
    assert run.main(["pytorch", "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'onnxfold[torch]'" in line
    assert run.main(["caffe"]) == 2
    assert "no trip 'caffe'" in capsys.readouterr().err
