"""Products of batched matrices with one or few vectors.

The obvious calls are the slow ones: on CPUs ``torch.bmm`` with one column takes three to four times
as long as with one row, and ``torch.cholesky_solve`` up to twice as long as two triangular solves.
"""

from __future__ import annotations

import torch


def matvec(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """``M v``, shape ``(B, m)``, for ``(B, m, n)`` and ``(B, n)``.

    Example:
        >>> matvec(torch.eye(2).expand(3, 2, 2), torch.ones(3, 2)).shape
        torch.Size([3, 2])
    """
    return torch.bmm(vector.unsqueeze(1), matrix.mT).squeeze(1)


def matmul_narrow(matrix: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """``M V``, shape ``(B, m, c)``, for ``(B, m, n)`` and few columns ``(B, n, c)``."""
    return torch.bmm(columns.mT, matrix.mT).mT


def cholesky_solve(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``(L L')^-1 R`` for lower factors ``(B, n, n)`` and few columns ``(B, n, c)``."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: torch.Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution
