"""onnxfold: ONNX graph rewriting that can be trusted."""

from onnxfold._version import __version__

__all__ = ["__version__"]
