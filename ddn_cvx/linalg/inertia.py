"""Symmetric-indefinite factorisation of a batch, with the number of negative eigenvalues."""

from __future__ import annotations

from typing import NamedTuple

import torch


class SymmetricFactor(NamedTuple):
    """``K = L D L'`` with block-diagonal ``D`` (Bunch and Kaufman 1977), for each element.

    Attributes:
        factors, pivots: as ``torch.linalg.ldl_factor`` returns them, ``(B, N, N)`` and ``(B, N)``.
    """

    factors: torch.Tensor
    pivots: torch.Tensor

    def solve(self, right: torch.Tensor) -> torch.Tensor:
        """``K^-1 right`` for a ``right`` of shape ``(B, N)``."""
        solution: torch.Tensor = torch.linalg.ldl_solve(
            self.factors, self.pivots, right.unsqueeze(-1)
        )
        return solution.squeeze(-1)

    def negative(self) -> torch.Tensor:
        """Number of negative eigenvalues of ``K``, shape ``(B,)`` (Sylvester's law of inertia).

        A two-by-two block of the factorisation is always indefinite: one eigenvalue of each sign.
        """
        diagonal = torch.diagonal(self.factors, dim1=1, dim2=2)
        single = self.pivots > 0
        return (single & (diagonal < 0)).sum(1) + (~single).sum(1) // 2

    def singular(self) -> torch.Tensor:
        """A pivot is exactly zero or not finite, bool, shape ``(B,)``."""
        diagonal = torch.diagonal(self.factors, dim1=1, dim2=2)
        return ((self.pivots > 0) & ((diagonal == 0) | ~diagonal.isfinite())).any(1)

    def replace(self, elements: torch.Tensor, other: SymmetricFactor) -> SymmetricFactor:
        """The factorisation with some elements' factors replaced."""
        factors = self.factors.index_copy(0, elements, other.factors)
        return SymmetricFactor(factors, self.pivots.index_copy(0, elements, other.pivots))


def symmetric_factor(matrix: torch.Tensor) -> SymmetricFactor:
    """Factor symmetric matrices of shape ``(B, N, N)``; only the lower triangle is read."""
    factors, pivots, _ = torch.linalg.ldl_factor_ex(matrix)
    return SymmetricFactor(factors, pivots)
