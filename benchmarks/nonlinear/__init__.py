"""Nonlinear test problems and what other solvers find."""
