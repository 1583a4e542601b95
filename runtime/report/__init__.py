"""Evidence for people and machines: report.json (versioned schema), report.html, report.md."""
