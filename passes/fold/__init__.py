"""Fake-quantized graphs into integer arithmetic."""
