"""Matrices only: factorisations and linear systems of a batch; knows no program."""
