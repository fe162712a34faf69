"""Adjoints of cone programs: the vector-Jacobian product of the solution map."""
