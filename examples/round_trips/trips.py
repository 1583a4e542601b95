"""The round trips: what each framework saves, and the one command that makes int8 of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fixtures import convert_tflite
from fixtures.exporters import sklearn_python, torch_python

DATA, HELD_OUT, ANSWERS = "digits.npz", "held_out.npz", "answers.npz"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Command:
    """One command, as a user types it behind ``onnxfold``.

    Attributes:
        verb: ``compile`` what is float, ``fold`` what is quantized already.
        source: The framework's file.
        more: Further words.
    """

    verb: str
    source: str
    more: tuple[str, ...] = ()

    @property
    def result(self) -> str:
        """The file that it writes."""
        return f"{self.source.removesuffix('.tflite').removesuffix('.int8')}.int8.onnx"

    @property
    def words(self) -> tuple[str, ...]:
        """All of it."""
        return (self.verb, self.source, *self.more, "-o", self.result)


@dataclass(frozen=True)
class Trip:
    """A framework, and what is made of its models.

    Attributes:
        name: What it is called on the command line.
        framework: As ``onnxfold doctor`` knows it.
        extra: What of onnxfold to install for it.
        program: Trains and saves the models; runs where the framework is.
        input: The name of the model's input.
        shape: Of one sample.
        largest: The value of a black pixel.
        commands: What is run on the models.
        environment: Makes an environment with the framework; returns its interpreter.
    """

    name: str
    framework: str
    extra: str
    program: Path
    input: str
    shape: tuple[int, ...]
    largest: int
    commands: tuple[Command, ...]
    environment: Callable[[], Path]


def _compile(source: str, *more: str) -> Command:
    return Command("compile", source, (*more, "--data", DATA))


TRIPS: tuple[Trip, ...] = (
    Trip(
        name="tensorflow",
        framework="tensorflow",
        extra="tf",
        program=_HERE / "train_keras.py",
        input="image",
        shape=(8, 8, 1),
        largest=1,
        commands=(
            _compile("digits.keras"),
            _compile("digits.float.tflite"),
            Command("fold", "digits.int8.tflite", ("--measure",)),
        ),
        environment=convert_tflite.python,
    ),
    Trip(
        name="pytorch",
        framework="torch",
        extra="torch",
        program=_HERE / "train_pytorch.py",
        input="image",
        shape=(1, 8, 8),
        largest=1,
        commands=(_compile("digits.pt2"),),
        environment=torch_python,
    ),
    Trip(
        name="scikit-learn",
        framework="sklearn",
        extra="sklearn",
        program=_HERE / "train_scikit_learn.py",
        input="features",
        shape=(64,),
        largest=16,
        commands=(_compile("digits.pkl", "--trust-pickle"),),
        environment=sklearn_python,
    ),
)
"""In the order in which they are made."""
