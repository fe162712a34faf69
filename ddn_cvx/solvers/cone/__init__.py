"""Solvers of cone programs, each behind one small adapter, and the ladder over them."""
