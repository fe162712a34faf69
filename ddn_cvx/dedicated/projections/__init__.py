"""Euclidean projections: the nearest point of a set."""
