"""Experts: what is routed to, found from what the router's output selects, and by trying."""
