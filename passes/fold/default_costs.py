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
            "constant": 1.825,
            "pixels": 0.0002763,
            "taps": 0.0008662,
            "blocked outputs": 5.97e-05,
            "blocked products": 4.467e-06,
        },
        "integer ragged convolution": {
            "constant": 2.17,
            "pixels": 0.003351,
            "rows": 0.005061,
            "outputs": 0.0002769,
            "blocked products": 6.166e-06,
        },
        "float convolution": {
            "constant": 1.381,
            "blocked outputs": 3.631e-05,
            "blocked products": 1.766e-05,
        },
        "integer depthwise convolution": {
            "constant": 2.035,
            "taps": 0.0007476,
            "products": 3.307e-05,
        },
        "integer ragged depthwise convolution": {
            "constant": 2.222,
            "taps": 0.0008051,
            "products": 7.012e-05,
            "unaligned products": 4.14e-05,
            "single products": 0.0006446,
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
