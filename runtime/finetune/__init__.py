"""Tuning of quantized models by gradients that flow straight through their rounding."""
