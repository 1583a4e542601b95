"""Optimizers inside the graph: what turns a model with gradients into one that trains itself."""
