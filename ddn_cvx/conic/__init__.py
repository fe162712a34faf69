"""Cone programs: compiled through cvxpylayers, solved by adapters, differentiated exactly."""
