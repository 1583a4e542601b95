"""Keeps Python's garbage collector out of the way while models are built and rewritten."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Generator[None]:
    """Do not look for reference cycles inside the block.

    Each collection walks all live objects; a model has millions, so that time per node would grow
    with the size of the model.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
