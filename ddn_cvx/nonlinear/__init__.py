"""Nonlinear programs: anything cvxpy or torch can say, solved and differentiated in torch."""
