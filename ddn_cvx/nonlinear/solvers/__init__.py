"""Solvers of nonlinear programs: one method, one file."""
