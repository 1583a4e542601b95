"""Live models of Keras, saved as files that the front end reads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.runtime.export.sources import Source

PACKAGES = ("keras", "tf_keras")
"""Keras 3, and Keras 2 as it lives on."""


def save_keras(model: Any, name: str, folder: Path) -> Source:
    """Save a model of Keras into ``folder``.

    One of Keras' own layers is saved in Keras' own format. Classes of the caller's program are
    known there alone: such a model is saved as what TensorFlow traces of it.

    Args:
        model: The model, built.
        name: What messages call it.
        folder: Where to.

    Raises:
        UsageError: It has no inputs yet: it was never built.
        InvalidModelError: Keras or TensorFlow cannot save it.
    """
    try:
        inputs = list(model.inputs or ())
    except (AttributeError, ValueError):
        inputs = []
    if not inputs:
        raise UsageError(
            f"{name} has no inputs yet: give it an Input, or build it of layers that have one"
        )
    foreign = _foreign_layers(model)
    path = folder / ("model.keras" if _is_keras_3(model) else "model.h5")
    try:
        if not foreign:
            model.save(path)
            return Source(path, "keras" if path.suffix == ".keras" else "keras-h5")
        return _save_traced(model, inputs, folder / "saved")
    except (ValueError, TypeError, NotImplementedError, OSError, AttributeError) as error:
        words = " ".join(str(error).split())[:300]
        of = f" (its layer '{foreign[0]}')" if foreign else ""
        raise InvalidModelError(f"{name}{of} cannot be saved: {words}") from error


def _is_keras_3(model: Any) -> bool:
    return any(base.__module__.partition(".")[0] == "keras" for base in type(model).__mro__)


def _foreign_layers(model: Any) -> list[str]:
    """Classes of layers that Keras does not have."""
    found: list[type] = [type(layer) for layer in model._flatten_layers()]
    return [each.__name__ for each in found if each.__module__.partition(".")[0] not in PACKAGES]


def _save_traced(model: Any, inputs: list[Any], folder: Path) -> Source:
    tf: Any = importlib.import_module("tensorflow")
    names = [str(each.name).partition(":")[0] for each in inputs]
    outputs = [str(each) for each in getattr(model, "output_names", ())]

    def serve(*arrays: Any) -> dict[str, Any]:
        found = model(arrays[0] if len(arrays) == 1 else list(arrays), training=False)
        if isinstance(found, dict):
            return cast("dict[str, Any]", found)
        several = list(cast("Any", found)) if isinstance(found, list | tuple) else [found]
        if len(several) == 1:
            return {"output": several[0]}
        known = len(outputs) == len(several)
        plain = [f"output_{index}" for index in range(len(several))]
        return dict(zip(outputs if known else plain, several, strict=True))

    specs = [
        tf.TensorSpec(each.shape, each.dtype, name=name)
        for each, name in zip(inputs, names, strict=True)
    ]
    module = tf.Module()
    # What is traced reads the variables of the model, which have to be saved with it.
    module.variables_of_model = list(model.variables)
    traced = tf.function(serve).get_concrete_function(*specs)
    tf.saved_model.save(module, str(folder), signatures=traced)
    return Source(folder, "savedmodel")
