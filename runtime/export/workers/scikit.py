"""scikit-learn's front end: pickled estimators and pipelines, LightGBM and XGBoost too."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import (
    FEEDS,
    MODEL,
    Answer,
    Array,
    Feed,
    FrontEndError,
    Request,
    serve,
    write_layers,
    write_samples,
)
from onnxfold.runtime.export.workers.samples import Port, samples
from onnxfold.runtime.export.workers.scikit_steps import Step, steps_of, values_inside

_INPUT = "features"
_ROWS = 64
_LOOKED_INTO = 2
"""Samples of which all that the steps compute is told."""
_IR_VERSION = 10
_OPSET_ML = 3
"""Of ai.onnx.ml: what every ONNX Runtime that is supported here has kernels for."""
_PACKAGES = ("sklearn", "skl2onnx", "lightgbm", "xgboost", "onnxmltools", "onnx")
_CLASSIFIERS = frozenset(
    {"binary", "multiclass", "multiclassova", "binary:logistic", "multi:softprob"}
)
"""Objectives of LightGBM and XGBoost whose boosters tell classes apart."""
_TRUST = (
    "a pickle runs whatever program it holds as soon as it is read: if you made this one yourself, "
    "say --trust-pickle"
)


def export(request: Request, folder: Path) -> Answer:
    """Load the estimator, convert it, and have it predict."""
    if request.kind != "pickle":
        raise FrontEndError(f"scikit-learn does not read models of kind {request.kind}", "usage")
    if not request.options.get("trust_pickle"):
        raise FrontEndError(_TRUST, "usage")
    importlib.import_module("sklearn")
    estimator = _load(request.path)
    width = _width(estimator)
    feeds = samples(request, folder, [Port(_INPUT, np.dtype(np.float32), (None, width))])
    if not (folder / FEEDS).is_file():
        rng = np.random.default_rng(request.seed)
        feeds = [{_INPUT: rows(rng, width)} for _ in range(request.samples)]
    found = [_run(estimator, np.asarray(feed[_INPUT], np.float32)) for feed in feeds]
    layers: Mapping[str, str] = {}
    if not request.runs_only or request.tensors:
        model, topology = _converted(estimator, width, request)
        _name_outputs(model, list(found[0]))
        steps = [] if topology is None else steps_of(estimator, topology, model)
        layers = {each.tensor: each.name for each in steps}
        write_layers(folder, _inside(estimator, steps, feeds, request.tensors or list(layers)))
        if not request.runs_only:
            _write(model, request, folder)
    write_samples(folder, feeds, found)
    return Answer((_INPUT,), tuple(found[0]), _versions(), layers, count=len(feeds))


def _write(model: Any, request: Request, folder: Path) -> None:
    onnx: Any = importlib.import_module("onnx")
    versions = {"": request.opset}
    versions |= {each.domain: each.version for each in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*each) for each in versions.items())
    model.ir_version = min(model.ir_version, _IR_VERSION)
    onnx.checker.check_model(model)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def _inside(
    estimator: Any, steps: Sequence[Step], feeds: Sequence[Feed], tensors: Sequence[str]
) -> list[Feed]:
    """What the steps compute; nothing where there are none."""
    inputs = [np.asarray(feed[_INPUT], np.float32) for feed in feeds[:_LOOKED_INTO]]
    wanted = frozenset(tensors)
    found = [values_inside(steps, wanted, lambda x=x: _run(estimator, x)) for x in inputs if steps]
    return found if all(found) else []


def rows(rng: np.random.Generator, width: int) -> Array:
    """Made-up samples, float32 [64, width]: of three magnitudes, every other one whole numbers."""
    scales = rng.choice([1.0, 10.0, 100.0], size=(_ROWS, 1))
    found = rng.standard_normal((_ROWS, width)) * scales
    found[::2] = np.rint(found[::2])
    return found.astype(np.float32)


def _load(path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path)
    except ImportError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        advice = (
            "; it holds objects of the program that made it: export the live object there"
            if isinstance(error, AttributeError)
            else ""
        )
        raise FrontEndError(f"it cannot be unpickled: {words}{advice}") from error


def _read(path: str) -> Any:
    with suppress(ImportError):
        # joblib's files hold arrays beside the pickle, which pickle alone cannot read.
        return importlib.import_module("joblib").load(path)
    with open(path, "rb") as file:
        return pickle.load(file)


def _width(estimator: Any) -> int:
    """The number of features.

    Raises:
        FrontEndError: It is no estimator, or was not fitted.
    """
    name = type(estimator).__name__
    if not hasattr(estimator, "predict") and not hasattr(estimator, "transform"):
        raise FrontEndError(f"it holds a {name}, which neither predicts nor transforms")
    if type(estimator).__module__.partition(".")[0] in ("lightgbm", "xgboost"):
        for field in ("n_features_in_", "num_feature", "num_features"):
            found: Any = getattr(estimator, field, None)
            if found is not None:
                number: Any = found() if callable(found) else found
                return int(number)
    if not hasattr(estimator, "n_features_in_"):
        raise FrontEndError(f"{name} was not fitted: it does not know how many features it takes")
    return int(estimator.n_features_in_)


def _run(estimator: Any, x: Array) -> Feed:
    """What it computes in its own arithmetic, mostly float64, by the names of the outputs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if _is_booster(estimator):
                return _run_booster(estimator, x)
            if hasattr(estimator, "predict_proba"):
                return {
                    "label": _labels(estimator.predict(x)),
                    "probabilities": np.asarray(estimator.predict_proba(x), np.float32),
                }
            if not hasattr(estimator, "predict"):
                return {"transformed": np.asarray(estimator.transform(x), np.float32)}
            predicted = np.asarray(estimator.predict(x))
    except (ValueError, TypeError) as error:
        words = " ".join(str(error).split())[:300]
        raise FrontEndError(f"it does not predict the samples: {words}", "usage") from error
    if hasattr(estimator, "classes_"):
        scores = np.asarray(estimator.decision_function(x), np.float32)
        return {"label": _labels(predicted), "scores": scores}
    if hasattr(estimator, "cluster_centers_"):
        distances = np.asarray(estimator.transform(x), np.float32)
        return {"label": _labels(predicted), "scores": distances}
    return {"prediction": np.asarray(predicted, np.float32).reshape(len(x), -1)}


def _is_booster(estimator: Any) -> bool:
    package = type(estimator).__module__.partition(".")[0]
    return package in ("lightgbm", "xgboost") and "Booster" in type(estimator).__name__


def _run_booster(booster: Any, x: Array) -> Feed:
    """What a booster predicts; of a classifier the labels too, which the converters add."""
    if type(booster).__module__.startswith("lightgbm"):
        objective = str(booster.dump_model(num_iteration=1)["objective"]).partition(" ")[0]
        found = np.asarray(booster.predict(x), np.float32)
    else:
        objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
        matrix = importlib.import_module("xgboost").DMatrix(x)
        if objective == "multi:softmax":
            # It predicts labels alone; the converter adds what they are the largest of.
            scores = np.asarray(booster.predict(matrix, output_margin=True), np.float32)
            return {"label": scores.argmax(axis=1), "scores": scores}
        found = np.asarray(booster.predict(matrix), np.float32)
    if objective not in _CLASSIFIERS:
        return {"prediction": found.reshape(len(x), -1)}
    if found.ndim == 1:
        found = np.stack([1 - found, found], axis=1)
    return {"label": found.argmax(axis=1), "probabilities": found}


def _labels(found: Any) -> Array:
    labels = np.asarray(found)
    return labels.astype(np.int64) if labels.dtype.kind in "biu" else labels.astype(np.str_)


def _converted(estimator: Any, width: int, request: Request) -> tuple[Any, Any]:
    """The ONNX model, and skl2onnx's plan of it: None for boosters, which are of one piece."""
    package = type(estimator).__module__.partition(".")[0]
    opset = {"": request.opset, "ai.onnx.ml": _OPSET_ML}
    skl2onnx: Any = importlib.import_module("skl2onnx")
    types: Any = importlib.import_module("skl2onnx.common.data_types")
    inputs = [(_INPUT, types.FloatTensorType([None, width]))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if _is_booster(estimator):
                return _booster(estimator, package, width, request), None
            _register()
            # Written as sklearn computes it: times the reciprocal, values round across thresholds.
            options: dict[Any, Any] = {
                importlib.import_module("sklearn.preprocessing").StandardScaler: {"div": "div"}
            }
            if _has_zipmap(estimator):
                options[id(estimator)] = {"zipmap": False}
            return skl2onnx.convert_sklearn(
                *(estimator, "model", inputs),
                options=options,
                target_opset=opset,
                intermediate=True,
            )
    except ImportError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise FrontEndError(f"skl2onnx cannot convert it: {words}", "unsupported") from error


def _has_zipmap(estimator: Any) -> bool:
    return hasattr(estimator, "classes_")


def _booster(estimator: Any, package: str, width: int, request: Request) -> Any:
    onnxmltools: Any = importlib.import_module("onnxmltools")
    types: Any = importlib.import_module("onnxmltools.convert.common.data_types")
    convert = getattr(onnxmltools, f"convert_{package}")
    more = {"zipmap": False} if package == "lightgbm" else {}
    return convert(
        estimator,
        "model",
        [(_INPUT, types.FloatTensorType([None, width]))],
        target_opset=min(request.opset, 15),
        **more,
    )


def _register() -> None:
    """Tell skl2onnx how LightGBM's and XGBoost's estimators are converted, where they are."""
    skl2onnx: Any = importlib.import_module("skl2onnx")
    shapes: Any = importlib.import_module("skl2onnx.common.shape_calculator")
    classifier = shapes.calculate_linear_classifier_output_shapes
    regressor = shapes.calculate_linear_regressor_output_shapes
    place = "onnxmltools.convert"
    known = (
        ("lightgbm", "LGBMClassifier", classifier, "LightGbm", "convert_lightgbm"),
        ("lightgbm", "LGBMRegressor", regressor, "LightGbm", "convert_lightgbm"),
        ("xgboost", "XGBClassifier", classifier, "XGBoost", "convert_xgboost"),
        ("xgboost", "XGBRegressor", regressor, "XGBoost", "convert_xgboost"),
    )
    for package, name, shape, converter, function in known:
        # Where it was not imported, the estimator cannot be one of it.
        if package in sys.modules:
            kind = getattr(importlib.import_module(package), name)
            where = f"{place}.{package}.operator_converters.{converter}"
            convert = getattr(importlib.import_module(where), function)
            options: Any = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
            if shape is regressor:
                options = {"split": None} if package == "lightgbm" else None
            skl2onnx.update_registered_converter(
                kind, f"Onnxfold{name}", shape, convert, options=options, overwrite=True
            )


def _name_outputs(model: Any, names: Sequence[str]) -> None:
    """Give the outputs their names; those that a converter adds beyond them are left out.

    Raises:
        FrontEndError: The converter kept fewer.
    """
    outputs = list(model.graph.output)
    if len(outputs) < len(names):
        raise FrontEndError(f"skl2onnx wrote {len(outputs)} outputs, wanted {', '.join(names)}")
    del model.graph.output[len(names) :]
    table = {each.name: name for each, name in zip(outputs, names, strict=False)}
    taken = {name for node in model.graph.node for name in node.output} - set(table)
    table |= {name: f"{name}_inner" for name in names if name in taken}
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [table.get(name, name) for name in field]
    for each in (*model.graph.output, *model.graph.value_info):
        each.name = table.get(each.name, each.name)


def _versions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            continue
    return found


if __name__ == "__main__":
    serve(export)
