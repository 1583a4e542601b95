"""The table of costs that the fold chooses by when it is given no other.

Written by ``onnxfold tune`` on the machine it names; one thread.
"""

from __future__ import annotations

from onnxfold.passes.fold.costs import CostTable

DEFAULT_COSTS = CostTable(
    machine="x86-64 server core (Zen 4) with AVX-512 and VNNI",
    onnxruntime="1.32.0",
    microseconds={
        "integer convolution": {
            "constant": 2.352,
            "rows": 0.00281,
            "ragged rows": 0.003973,
            "outputs": 0.0001047,
            "products": 4.212e-06,
        },
        "float convolution": {
            "constant": 1.381,
            "blocked outputs": 3.631e-05,
            "blocked products": 1.766e-05,
        },
        "integer depthwise convolution": {
            "constant": 2.89,
            "taps": 0.0007738,
            "products": 3.205e-05,
            "unaligned products": 0.0001092,
        },
        "float depthwise convolution": {
            "constant": 1.362,
            "blocked outputs": 2.208e-05,
            "blocked products": 2.78e-05,
        },
        "integer max pool": {
            "constant": 0.9768,
            "taps": 0.001934,
            "products": 4.903e-06,
        },
        "float max pool": {
            "constant": 1.154,
            "blocked products": 4.046e-05,
        },
        "codes to float": {
            "constant": 2.255,
            "elements": 0.0001952,
        },
        "float to codes": {
            "constant": 3.383,
            "elements": 0.0002584,
        },
        "rounding": {
            "constant": 2.568,
            "elements": 0.0003726,
        },
        "change of layout": {
            "constant": 0.9794,
            "elements": 5.096e-05,
        },
    },
)
