"""Adjoints other than the implicit one: diffcp's, a solver's own, unrolled iterations."""
