"""Cone programs: compiled through cvxpylayers, presolved, with their parameters' affine maps."""
