"""Solvers of nonlinear programs."""
