"""Matrices alone: products, factorisations and linear systems of a batch; knows no program."""
