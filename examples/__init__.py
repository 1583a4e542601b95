"""onnxfold at work on real models and real data."""
