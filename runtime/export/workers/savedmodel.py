"""SavedModels: one of their signatures becomes a model."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from onnxfold.runtime.export.workers.protocol import Answer, FrontEndError, Request
from onnxfold.runtime.export.workers.tf_functions import export_function

_DEFAULT = "serving_default"
_TABLES = ("HashTable", "LookupTable")


def export(request: Request, folder: Path) -> Answer:
    """Take a signature out of a SavedModel, convert it, and run it."""
    tf: Any = importlib.import_module("tensorflow")
    # Saved optimizers ask for classes of Keras 2, which registers them when it is imported.
    with suppress(ImportError):
        importlib.import_module("tf_keras")
    try:
        loaded = tf.saved_model.load(request.path)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise FrontEndError(f"TensorFlow cannot load it: {error}") from error
    function = _signature(loaded, request.options.get("signature"))
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    tables = [node.name for node in nodes if node.op.startswith(_TABLES)]
    if tables:
        raise FrontEndError(
            f"it looks words up in a table ('{tables[0]}'), which ONNX has no form for: export a "
            "signature that takes numbers",
            "unsupported",
        )
    specs = function.structured_input_signature[1]
    signature = [
        tf.TensorSpec(each.shape, each.dtype, name=name) for name, each in sorted(specs.items())
    ]
    names = [each.name for each in signature]

    def call(*arrays: Any) -> Any:
        found = function(**dict(zip(names, arrays, strict=True)))
        return {name: found[name] for name in sorted(found)}

    return export_function(call, signature, request, folder)


def _signature(loaded: Any, wanted: str | None) -> Any:
    known = list(loaded.signatures)
    if not known:
        raise FrontEndError(
            "it has no signatures: save it with tf.saved_model.save(..., signatures=...)", "usage"
        )
    if wanted is None:
        name = _DEFAULT if _DEFAULT in known else known[0]
        return loaded.signatures[name]
    if wanted not in known:
        raise FrontEndError(f"no signature '{wanted}'; it has {', '.join(known)}", "usage")
    return loaded.signatures[wanted]
