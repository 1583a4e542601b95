"""TensorFlow's front ends on models as TensorFlow saves them, and on real ones."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import onnxfold
from fixtures import convert_tflite, tensorflow_sources
from fixtures.export_faults import wrong_constant
from fixtures.fetch import DownloadError, fetch
from fixtures.warm_front_ends import warm_front_ends
from onnxfold.outcome import Outcome
from onnxfold.passes.errors import InvalidModelError, NotEquivalentError
from onnxfold.passes.serialization import model_bytes
from onnxfold.runtime.session import DEPLOYMENT, Session

_LIVE = """
import json, sys
sys.path += sys.argv[1:]
import keras, onnxfold
from keras import layers
from fixtures.warm_front_ends import warm_front_ends

class Doubled(layers.Layer):
    def call(self, x):
        return x * 2

def shapes(model):
    return {v.name: str(v.shape) for v in (*model.graph.inputs, *model.graph.outputs)}

a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
heads = [layers.Dense(3, name="p")(Doubled()(a) + b), layers.Dense(2, name="q")(b)]
net = keras.Sequential([layers.Input((4, 4, 3), name="image"), layers.Flatten(), layers.Dense(2)])
with warm_front_ends():
    found = onnxfold.export(keras.Model([a, b], heads))
    better = onnxfold.optimize(net)
report = {found.report.source.path: shapes(found.model), "optimized": shapes(better.model)}
print("", json.dumps(report), sep="\\n")
"""

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def warm() -> Generator[None]:
    """TensorFlow takes seconds to load: once is enough."""
    with warm_front_ends():
        yield


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return convert_tflite.python()
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sources(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    script = Path(tensorflow_sources.__file__)
    command = [str(python), str(script), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def exported(sources: Path, python: Path) -> Callable[[str], Outcome]:
    """Exports a source by name, each once: TensorFlow takes seconds to start."""

    @cache
    def export(name: str) -> Outcome:
        return onnxfold.export(sources / name, python=python)

    return export


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("image.keras", ["image"], ["output"]),
        ("two_heads.keras", ["tokens"], ["kind", "place"]),
        ("frozen.pb", ["image"], ["Identity"]),
        ("layers", ["input_1"], ["output"]),
        ("graph", ["image"], ["Identity"]),
    ],
)
def test_each_kind_is_exported(
    name: str, inputs: list[str], outputs: list[str], exported: Callable[[str], Outcome]
) -> None:
    found = exported(name)
    session = Session(found.model, DEPLOYMENT)
    assert [each.name for each in session.inputs] == inputs
    assert [each.name for each in session.outputs] == outputs
    shape = session.inputs[0].shape
    assert shape is not None
    assert not isinstance(shape[0], int)
    worst = max(each["max_abs_diff"] for each in found.report.equivalence["outputs"])
    assert worst < 1e-6


def test_graphs_compute_the_same_as_keras(exported: Callable[[str], Outcome]) -> None:
    image = np.random.default_rng(0).normal(size=(2, *tensorflow_sources.IMAGE))
    feed = {"image": image.astype(np.float32)}
    plain, frozen, script = (
        Session(exported(name).model).run(feed) for name in ("image.keras", "frozen.pb", "graph")
    )
    (wanted,) = plain.values()
    for found in (frozen, script):
        np.testing.assert_allclose(found["Identity"], wanted, rtol=0, atol=1e-6)


def test_layers_from_elsewhere_are_named(sources: Path, python: Path) -> None:
    with pytest.raises(InvalidModelError, match="its layer 'Doubled' is defined elsewhere"):
        onnxfold.export(sources / "custom.keras", python=python)


def test_operators_without_a_counterpart_are_named_with_their_layer(
    sources: Path, python: Path
) -> None:
    with pytest.raises(InvalidModelError, match=r"no operator for Betainc \(layer 'net/odds"):
        onnxfold.export(sources / "unsupported", python=python)


@pytest.mark.parametrize(
    ("name", "constant", "layer"),
    [
        ("nested.keras", "neck_1", "neck (Conv2D)"),
        ("nested.keras", "mix_1", "body/mix (Conv2D)"),
        ("two_heads.keras", "R0__", "lstm (LSTM)"),
        ("frozen.pb", "dense", "dense"),
        ("one_image.tflite", "const_fold_opt", "conv2d_1/Relu (CONV_2D, operator 0)"),
    ],
)
def test_the_first_layer_that_differs_is_named(
    name: str, constant: str, layer: str, sources: Path, python: Path
) -> None:
    with wrong_constant(constant), pytest.raises(NotEquivalentError) as caught:
        onnxfold.export(sources / name, python=python)
    _, _, words = str(caught.value).partition("the first layer that differs is ")
    assert layer in words.partition(" (tensor")[0]


def test_what_a_saturated_output_hides_is_found(python: Path) -> None:
    try:
        path = fetch("silabs-image-example1")
    except DownloadError as error:
        pytest.skip(str(error))
    notes = onnxfold.export(path, python=python).report.reasons
    assert "'activation_1' says little: 12 of 12" in notes[0]
    with wrong_constant("conv2d/bias"), pytest.raises(NotEquivalentError) as caught:
        onnxfold.export(path, python=python)
    assert "the outputs agree, but the first layer that differs is" in str(caught.value)
    assert "conv2d/Relu (CONV_2D, operator 1)" in str(caught.value)


def test_layers_give_names_and_errors_the_same_every_time(sources: Path, python: Path) -> None:
    found, again = (
        onnxfold.export(sources / "nested.keras", python=python, layers=True) for _ in range(2)
    )
    names = [value.name for node in found.model.graph for value in node.outputs]
    assert {"neck/BiasAdd", "output"} <= set(names)
    assert "head/weight" in found.model.graph.initializers
    compared = {each["layer"]: each for each in found.report.equivalence["layers"]}
    assert {"body/mix (Conv2D)", "neck (Conv2D)", "head (Dense)"} <= set(compared)
    assert all(each["passed"] and each["relative_to_max"] < 1e-5 for each in compared.values())
    assert model_bytes(found.model) == model_bytes(again.model)


@pytest.mark.parametrize("name", ["one_image.tflite", "nested.keras"])
def test_open_batches_are_proven_row_by_row(name: str, sources: Path, python: Path) -> None:
    found = onnxfold.export(sources / name, python=python, dynamic_batch=True)
    for value in (*found.model.graph.inputs, *found.model.graph.outputs):
        assert value.shape is not None
        assert str(value.shape[0]) == "batch"


def test_live_models_are_saved_as_what_the_program_knows(python: Path) -> None:
    # That environment has TensorFlow, this one has onnxfold: the former looks here for the rest.
    root = Path(tensorflow_sources.__file__).parents[1]
    places = [str(root), *(str(Path(each.__file__ or "").parents[1]) for each in (onnxfold, np))]
    words = [str(python), "-c", _LIVE, *places]
    done = subprocess.run(words, check=True, capture_output=True, timeout=300)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "live Functional": {"a": "[batch,4]", "b": "[batch,4]", "p": "[batch,3]", "q": "[batch,2]"},
        "optimized": {"image": "[batch,4,4,3]", "output": "[batch,2]"},
    }


def test_tables_of_words_are_refused(sources: Path, python: Path) -> None:
    with pytest.raises(InvalidModelError, match="looks words up in a table"):
        onnxfold.export(sources / "table", python=python)


def test_a_missing_shard_is_named(sources: Path, python: Path, tmp_path: Path) -> None:
    shutil.copytree(sources / "layers", tmp_path / "layers")
    (tmp_path / "layers" / "group1-shard2of2.bin").unlink()
    with pytest.raises(InvalidModelError, match=r"group1-shard2of2\.bin"):
        onnxfold.export(tmp_path / "layers", python=python)


def test_basic_pitch_is_the_same_model_three_times(python: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nmp"
    try:
        shipped = fetch("basic-pitch")
        lite = fetch("basic-pitch-tflite")
        for name, place in (
            ("basic-pitch-savedmodel", "saved_model.pb"),
            ("basic-pitch-savedmodel-data", "variables/variables.data-00000-of-00001"),
            ("basic-pitch-savedmodel-index", "variables/variables.index"),
        ):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(fetch(name), folder / place)
    except DownloadError as error:
        pytest.skip(str(error))
    audio = np.sin(np.arange(43844) * 2 * np.pi * 440 / 22050).reshape(1, -1, 1).astype(np.float32)
    wanted = _by_shape(Session(shipped), audio)
    # Four of the framework's own samples, as without data, take a quarter of a minute.
    noise = np.random.default_rng(0).standard_normal(audio.shape).astype(np.float32)
    for source in (folder, lite):
        exported = onnxfold.export(source, data=[{"input_2": noise}], python=python)
        found = _by_shape(Session(exported.model), audio)
        assert len(found) == len(wanted) == 3
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-4)


def _by_shape(session: Session, audio: np.ndarray) -> list[np.ndarray]:
    """The outputs in an order that does not depend on names: by size, then by their mean."""
    found = session.run({session.inputs[0].name: audio}).values()
    return sorted(found, key=lambda each: (each.size, float(each.mean())))
