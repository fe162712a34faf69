"""Symmetric matrices as vectors: the scaled lower triangle."""

from __future__ import annotations

import numpy as np
import torch


def from_upper_triangle(matrix: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix ``(..., n, n)`` with the given one's upper triangle."""
    return matrix.triu() + matrix.triu(1).mT


def scaled_triangle(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Position of each entry of a symmetric matrix (row-major) in its vector, and its scale.

    The vector is the lower triangle, column by column, entries off the diagonal times ``sqrt(2)``,
    so that the inner product of two vectors is that of the matrices. An entry of the matrix is its
    scale times the vector's entry; an entry of the vector is the sum of the entries of the matrix
    that have its position, each times its scale.
    """
    columns, rows = np.triu_indices(side)
    index = np.zeros((side, side), dtype=np.int64)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    scale = np.full((side, side), np.sqrt(0.5))
    np.fill_diagonal(scale, 1.0)
    return index.reshape(-1), scale.reshape(-1)
