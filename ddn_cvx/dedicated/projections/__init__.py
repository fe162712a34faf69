"""Euclidean projections in torch: batched, exact, differentiable to any order."""
