"""Observing what values the tensors of a model take on real data."""
