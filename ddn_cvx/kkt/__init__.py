"""Optimality conditions: the KKT matrix, its adjoint and tangent, residuals, certificates."""
