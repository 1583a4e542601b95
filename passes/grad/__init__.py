"""Gradients inside the graph: ``Gradient`` nodes, and their lowering into ordinary operators."""
