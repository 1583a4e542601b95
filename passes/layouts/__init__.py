"""Where transposes stand: layouts of tensors, how operators carry them, the cheapest choice."""
