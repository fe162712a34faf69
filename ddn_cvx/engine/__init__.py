"""Joins one program, one solver and one adjoint; the failure policy."""
