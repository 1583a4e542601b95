"""The rules for gradients, one module a family of operators."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from onnxfold.passes.grad.vjp import VJPS, VjpFunction


@cache
def load_rules() -> Mapping[str, VjpFunction]:
    """Every rule by operator; the modules of this package are imported at the first call."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return VJPS
