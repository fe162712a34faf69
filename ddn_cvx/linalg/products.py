"""Batched matrices times one or few vectors, and factored systems with them on the right.

The obvious calls are the slow ones: on CPUs ``bmm`` with one column takes three to four times as
long as with one row, and ``cholesky_solve`` up to twice as long as its two triangular systems.
"""

from __future__ import annotations

import torch


def times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """``M v``, shape ``(B, m)``, for ``(B, m, n)`` and ``(B, n)``."""
    return torch.bmm(vector.unsqueeze(1), matrix.mT).squeeze(1)


def times_columns(matrix: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """``M V``, shape ``(B, m, c)``, for ``(B, m, n)`` and few columns ``(B, n, c)``."""
    return torch.bmm(columns.mT, matrix.mT).mT


def solved(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``(L L')^-1 R`` for lower factors ``(B, n, n)`` and few columns ``(B, n, c)``."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    found: torch.Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return found
