"""From a framework's own model to a proven int8 model in one command."""
