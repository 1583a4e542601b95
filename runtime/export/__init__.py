"""Front ends: a framework's own model becomes ONNX, proven against the framework."""
