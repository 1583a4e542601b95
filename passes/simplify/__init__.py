"""Float passes that keep every bit: folding, sharing, removing, merging, inferring, upgrading."""
