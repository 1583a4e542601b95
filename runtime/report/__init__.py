"""Evidence for people and machines: report.json (versioned schema) and report.md."""
