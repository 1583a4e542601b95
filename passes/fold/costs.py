"""Where integer kernels of ONNX Runtime lose: measured, as data.

Microseconds, medians of 40 interleaved runs, 2 threads, onnxruntime 1.32.0 on x86-64 with
AVX512-VNNI; only ratios of 2 and more decide anything. NCHW 1x64x56x56:

    MaxPool 2x2          float 51    uint8 692    Cast, float, Cast 104
    MaxPool 2x2 between two QLinearConv           uint8 839 in all, with Casts 1023
    AveragePool 3x3      float 47    QLinearAveragePool 354 (866 on a busy machine)
                         Cast, Sub, float AveragePool, QuantizeLinear 134
                         depthwise QLinearConv with weights 1: 118; 2x2 stride 2: 37 against 112
    Softmax              float 129   QLinearSoftmax 345
                         Cast, Sub, Mul, float Softmax, QuantizeLinear: 0.45 of QLinearSoftmax
    ReduceMax, last axis, 512x508    DequantizeLinear, float 124     uint8, DequantizeLinear 32
    GlobalMaxPool 64@28  DequantizeLinear, float 17      uint8 ReduceMax, DequantizeLinear 7
    GlobalAveragePool    float 32    QLinearGlobalAveragePool 18
    Add                  float 37    QLinearAdd 23
    Mul                  float 38    QLinearMul 33
    Conv 3x3, 64 to 64 @28           float 527    QLinearConv 148
    depthwise Conv 3x3, 64 @24       float 27     QLinearConv 27
    Conv 3x3 stride 2, 3 to 64 @224  float 610    QLinearConv 911 (with Q and DQ about it: a draw)
"""

from __future__ import annotations

INTEGER_MAX_POOL_PRODUCERS = frozenset({"QLinearConv"})
"""Behind these ONNX Runtime runs a uint8 MaxPool channels-last, where it is fast."""

LARGEST_INTEGER_SOFTMAX = 1024
"""Elements up to which QLinearSoftmax is faster than five float nodes: 7 us against 10 at 10
elements, 7.4 against 8.8 at 512, 16.5 against 10 at 4096."""

FLOAT_ONLY = frozenset({"SpaceToDepth"})
"""Ops that onnxruntime 1.23, the oldest supported, computes on no 8-bit integers."""

FASTER_IN_FLOAT = "its integer kernel is slower than the float one (measured)"
"""The remark on ops that are computed in float between codes for speed alone."""

NOT_IN_OLDEST = "onnxruntime 1.23 has no integer kernel for it"
"""The remark on ops that are computed in float between codes to run everywhere."""
