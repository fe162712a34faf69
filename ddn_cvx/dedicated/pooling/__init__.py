"""Robust pooling of scalars and of vectors, differentiable in points, scale and weights."""

from ddn_cvx.dedicated.pooling.scalar import Pooled, robust_pool, solve_pool
from ddn_cvx.dedicated.pooling.vector import VectorPooling, solve_vector, vector_pool

__all__ = ["Pooled", "VectorPooling", "robust_pool", "solve_pool", "solve_vector", "vector_pool"]
