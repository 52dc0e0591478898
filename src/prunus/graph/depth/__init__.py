"""Whole blocks and residual branches: found by trying, dropped from containers or replaced."""
