"""Solvers: an instance and a start in, an answer out; never differentiated through."""
