"""Scales of rows and columns at which a program's entries are of size one.

Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices" (2001), on the
KKT matrix, as in Stellato et al., "OSQP" (2020), section 5.1, and Goulart and Chen, "Clarabel"
(2024); the rows of a cone of several share a scale, so that it stays one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.batch.device import perhaps_any
from ddn_cvx.cones.base import Cone
from ddn_cvx.kkt.reduced.dense import DenseMatrices
from ddn_cvx.kkt.reduced.sparse import SparseMatrices

# Ruiz' iterations at most: each takes the square root of the sizes' ratio.
_ROUNDS = 10
# Rows and columns whose largest entry is within this factor of one are left as they are.
_EVEN = 4.0
# The scales' range, as in Clarabel: a row of zeros up to rounding is not blown up.
_LEAST, _MOST = 1e-4, 1e4


class ReducedData(NamedTuple):
    """A batch's matrices ``P`` and ``A``, ``q`` ``(B, n)`` and ``b`` ``(B, m)``."""

    matrices: DenseMatrices | SparseMatrices
    q: torch.Tensor
    b: torch.Tensor

    def float(self) -> ReducedData:
        """In single precision."""
        return ReducedData(self.matrices.float(), self.q.float(), self.b.float())

    def select(self, index: torch.Tensor) -> ReducedData:
        """Some elements of the batch."""
        return ReducedData(self.matrices.select(index), self.q[index], self.b[index])


class Scales(NamedTuple):
    """``x = columns x^``, ``s = s^ / rows``, ``z = rows z^ / cost``; ``^`` is the scaled program.

    Attributes:
        columns: shape ``(B, n)``.
        rows: shape ``(B, m)``.
        cost: shape ``(B, 1)``.
    """

    columns: torch.Tensor
    rows: torch.Tensor
    cost: torch.Tensor

    def inside(
        self, x: torch.Tensor, z: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A point in the scaled program's units."""
        return x / self.columns, z * self.cost / self.rows, s * self.rows

    def outside(
        self, x: torch.Tensor, z: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A point of the scaled program in the unscaled one's units."""
        return x * self.columns, z * self.rows / self.cost, s / self.rows


def equilibrated(data: ReducedData, groups: tuple[Cone, ...]) -> tuple[ReducedData, Scales]:
    """The scaled program and its scales.

    Args:
        data: the program's.
        groups: its cones of several rows.
    """
    matrices, q, b = data
    columns, rows = torch.ones_like(q), torch.ones_like(b)
    n = q.shape[1]
    for number in range(_ROUNDS + 1):
        height, width, size_of_P = matrices.sizes()
        for group in groups:
            part = group.of(width)
            part[:] = part.amax(-1, keepdim=True)
        sizes = torch.cat([height, width], 1)
        uneven = ((sizes > _EVEN) | ((sizes < 1 / _EVEN) & (sizes > 0))).any(1, keepdim=True)
        if number == _ROUNDS or not perhaps_any(uneven):
            break
        left = torch.where((sizes > 0) & uneven, sizes, 1.0).rsqrt()
        column, row = left[:, :n], left[:, n:]
        column = (columns * column).clamp(_LEAST, _MOST) / columns
        row = (rows * row).clamp(_LEAST, _MOST) / rows
        matrices = matrices.scaled(column, row, None)
        columns, rows = columns * column, rows * row
    q, b = columns * q, rows * b
    size = torch.maximum(q.abs().amax(1, keepdim=True), size_of_P)
    uneven = (size > _EVEN) | (size < 1 / _EVEN)
    cost = 1 / torch.where((size > 0) & uneven, size, 1.0).clamp(_LEAST, _MOST)
    if perhaps_any(uneven):
        q, matrices = cost * q, matrices.scaled(None, None, cost)
    return ReducedData(matrices, q, b), Scales(columns, rows, cost)
