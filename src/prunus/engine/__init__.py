"""The verbs: score, select, apply, regrow, run a session, prune."""
