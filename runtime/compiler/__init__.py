"""From passes to a model with evidence: verified runs, measured choices, plans."""
