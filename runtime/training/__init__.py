"""Runs training graphs: ``Trainer`` steps them, ``Batches`` feeds them."""

from __future__ import annotations

from onnxfold.runtime.training.batches import Batches
from onnxfold.runtime.training.trainer import Trainer

__all__ = ["Batches", "Trainer"]
