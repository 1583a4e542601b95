"""The stock instruments: what can watch a pipeline while it runs."""

from onnxfold.passes.instruments.bisection import (
    Culprit,
    Rewrite,
    RewriteLimit,
    bisect_rewrites,
    first_bad,
)
from onnxfold.passes.instruments.dump import CrashReproducer, DumpIfChanged
from onnxfold.passes.instruments.measure import PassTime, RuleCount, Statistics, Timing
from onnxfold.passes.instruments.tensor_map import TensorMap
from onnxfold.passes.instruments.verify_each import VerifyEach

__all__ = [
    "CrashReproducer",
    "Culprit",
    "DumpIfChanged",
    "PassTime",
    "Rewrite",
    "RewriteLimit",
    "RuleCount",
    "Statistics",
    "TensorMap",
    "Timing",
    "VerifyEach",
    "bisect_rewrites",
    "first_bad",
]
