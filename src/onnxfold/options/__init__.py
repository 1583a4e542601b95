"""The options of the command line: one module a command, or a few that belong together."""
