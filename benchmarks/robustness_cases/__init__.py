"""Drawn problems with known solutions, one module a kind, for ``robustness.py``."""
