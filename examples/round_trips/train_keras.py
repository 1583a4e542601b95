"""Teach a small Keras network to read digits: python train_keras.py FOLDER.

Runs where TensorFlow is, and imports nothing of this repository. Reads FOLDER/digits.npz (``image``
float32 [N, 8, 8, 1], ``labels``) and FOLDER/held_out.npz; writes digits.keras, the same network as
digits.float.tflite and digits.int8.tflite, and what each answers on the held-out digits:
answers.npz, by the file's name, float32 [M, 10].
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np

_EPOCHS, _BATCH, _CALIBRATION = 12, 32, 200


def main(folder: Path) -> None:
    """Train, save, and note down the answers."""
    tf: Any = importlib.import_module("tensorflow")
    keras: Any = importlib.import_module("keras")
    keras.utils.set_random_seed(0)
    with np.load(folder / "digits.npz") as digits, np.load(folder / "held_out.npz") as held_out:
        images, labels, unseen = digits["image"], digits["labels"], held_out["image"]
    network = _network(keras)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(2e-3), loss=loss)
    network.fit(images, labels, batch_size=_BATCH, epochs=_EPOCHS, verbose=0)
    network.save(folder / "digits.keras")
    files = {
        "digits.float.tflite": _tflite(tf, network, None),
        "digits.int8.tflite": _tflite(tf, network, images[:_CALIBRATION]),
    }
    answers: dict[str, Any] = {"digits.keras": network.predict(unseen, verbose=0)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
        answers[name] = _run(tf, content, unseen)
    np.savez(folder / "answers.npz", **answers)


def _network(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(10, name="digit"),
        ]
    )


def _tflite(tf: Any, network: Any, calibration: Any) -> bytes:
    """The network as TensorFlow Lite has it; in full integers if there is data to calibrate on."""
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    if calibration is not None:

        def samples() -> Iterator[list[Any]]:
            for image in calibration:
                yield [image[np.newaxis]]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = samples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def _run(tf: Any, content: bytes, images: Any) -> Any:
    """What TensorFlow Lite answers."""
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    answers: list[Any] = []
    for image in images:
        interpreter.set_tensor(given["index"], image[np.newaxis])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(made["index"])[0])
    return np.stack(answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
