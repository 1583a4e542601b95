"""Evidence that a rewritten model still computes what the original computed."""
