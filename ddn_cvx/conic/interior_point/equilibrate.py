"""Scales of rows and columns at which a program's entries are of size one.

Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices" (2001), on the
KKT matrix, as in Stellato et al., "OSQP" (2020), section 5.1, and Goulart and Chen, "Clarabel"
(2024); the rows of a second-order cone share a scale, so that it stays one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.conic.interior_point.scaling import Group

_ROUNDS = 10
# Entries of sizes within this of one are left.
_EVEN = 4.0
_LEAST, _MOST = 1e-4, 1e4


class DenseProgram(NamedTuple):
    """Data of a batch: ``P`` ``(B, n, n)`` or None, ``q``, ``A`` ``(B, m, n)``, ``b``."""

    P: torch.Tensor | None
    q: torch.Tensor
    A: torch.Tensor
    b: torch.Tensor

    def float(self) -> DenseProgram:
        """In single precision."""
        P = None if self.P is None else self.P.float()
        return DenseProgram(P, self.q.float(), self.A.float(), self.b.float())

    def rows(self, index: torch.Tensor) -> DenseProgram:
        """Some elements of the batch."""
        P = None if self.P is None else self.P[index]
        return DenseProgram(P, self.q[index], self.A[index], self.b[index])


class Scales(NamedTuple):
    """``x = columns x^``, ``s = s^ / rows``, ``z = rows z^ / cost``; of a program ``^``.

    Attributes:
        columns: shape ``(B, n)``.
        rows: shape ``(B, m)``.
        cost: shape ``(B, 1)``.
    """

    columns: torch.Tensor
    rows: torch.Tensor
    cost: torch.Tensor

    def select(self, index: torch.Tensor) -> Scales:
        """Those of some elements."""
        return Scales(*(field[index] for field in self))


def equilibrated(data: DenseProgram, groups: list[Group]) -> tuple[DenseProgram, Scales]:
    """The scaled program and its scales.

    Args:
        data: of the program.
        groups: its second-order cones.
    """
    P, q, A, b = data
    columns, rows = torch.ones_like(q), torch.ones_like(b)
    for _ in range(_ROUNDS):
        height = _largest(A, 1)
        if P is not None:
            height = torch.maximum(height, _largest(P, 1))
        width = _largest(A, 2)
        for group in groups:
            part = group.of(width)
            part[:] = part.amax(-1, keepdim=True)
        sizes = torch.cat([height, width], 1)
        if not bool(((sizes > _EVEN) | ((sizes < 1 / _EVEN) & (sizes > 0))).any()):
            break
        left = torch.where(sizes > 0, sizes, 1.0).rsqrt()
        n = q.shape[1]
        column, row = left[:, :n], left[:, n:]
        column = (columns * column).clamp(_LEAST, _MOST) / columns
        row = (rows * row).clamp(_LEAST, _MOST) / rows
        A = row.unsqueeze(2) * A * column.unsqueeze(1)
        if P is not None:
            P = column.unsqueeze(2) * P * column.unsqueeze(1)
        columns, rows = columns * column, rows * row
    q, b = columns * q, rows * b
    size = q.abs().amax(1, keepdim=True)
    if P is not None:
        size = torch.maximum(size, P.abs().amax((1, 2)).unsqueeze(1))
    cost = 1 / torch.where(size > 0, size, 1.0).clamp(_LEAST, _MOST)
    even = (size <= _EVEN) & (size >= 1 / _EVEN)
    if bool(even.all()):
        cost = torch.ones_like(cost)
    else:
        q = cost * q
        P = None if P is None else cost.unsqueeze(2) * P
    return DenseProgram(P, q, A, b), Scales(columns, rows, cost)


def _largest(matrix: torch.Tensor, dim: int) -> torch.Tensor:
    if matrix.shape[dim] == 0:
        return matrix.new_zeros(matrix.shape[0], matrix.shape[3 - dim])
    return matrix.abs().amax(dim)
