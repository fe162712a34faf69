"""Implicit differentiation: the one home of KKT linear algebra."""
