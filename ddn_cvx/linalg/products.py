"""Products of batched matrices with one or few vectors, and outer products at a sparsity pattern.

The obvious calls are the slow ones: on CPUs ``torch.bmm`` with one column takes three to four times
as long as with one row, and ``torch.cholesky_solve`` up to twice as long as two triangular solves.
"""

from __future__ import annotations

import numpy as np
import torch

from ddn_cvx.batch.columns import picked
from ddn_cvx.batch.device import OnDevice
from ddn_cvx.batch.elements import per_program
from ddn_cvx.linalg.pattern import Pattern

# Share of a column's entries that are stored, from which on the whole column is multiplied out.
_FILLED_SHARE = 0.3


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


def outer_at(pattern: Pattern, *pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The stored entries of the sum of ``u v'``, shape ``(B, stored)``: gradients of ``u' M v``.

    Args:
        pattern: of a matrix of shape ``(m, n)``.
        *pairs: vectors ``u`` ``(B, m)`` and ``v`` ``(B, n)``.
    """
    return _outer_products(pattern)(pairs)


class _OuterProducts:
    """Outer products at one pattern: filled columns by one matrix product, other entries singly."""

    def __init__(self, pattern: Pattern) -> None:
        m = pattern.shape[0]
        counts = np.bincount(pattern.columns, minlength=pattern.shape[1])
        whole = (counts > _FILLED_SHARE * m).nonzero()[0]
        column_of = np.full(pattern.shape[1], -1)
        column_of[whole] = np.arange(len(whole))
        filled = column_of[pattern.columns] >= 0
        single = (~filled).nonzero()[0]
        # Place of each stored entry among the computed ones: filled columns, then single entries.
        order = np.empty(pattern.stored, dtype=np.int64)
        order[filled] = column_of[pattern.columns[filled]] * m + pattern.rows[filled]
        order[single] = len(whole) * m + np.arange(len(single))
        self._in_order = np.array_equal(order, np.arange(len(whole) * m + len(single)))
        self._places = OnDevice(whole, pattern.rows[single], pattern.columns[single], order)
        self._has_single = len(single) > 0

    def __call__(self, pairs: tuple[tuple[torch.Tensor, torch.Tensor], ...]) -> torch.Tensor:
        whole, rows, columns, order = self._places(pairs[0][0].device)
        parts = []
        if len(whole):
            u = torch.stack([u for u, _ in pairs], 1)  # (B, pairs, m)
            v = torch.stack([picked(v, whole) for _, v in pairs], 2)  # (B, columns, pairs)
            parts.append((v @ u).flatten(1))
        if self._has_single or not parts:
            first, *others = (picked(u, rows) * picked(v, columns) for u, v in pairs)
            parts.append(sum(others, start=first))
        entries = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return entries if self._in_order else picked(entries, order)


_outer_products = per_program(_OuterProducts)
