"""Dense matrices of a batch, and its linear systems."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.cones.scaling import ConeProduct, Scaling
from ddn_cvx.kkt.reduced.active import ActiveSet, from_eigenbasis, to_eigenbasis
from ddn_cvx.linalg.products import matvec
from ddn_cvx.linalg.saddle_point import SaddlePoint

# A pivot of a Cholesky factor below this share of the largest belongs to dependent rows.
DEPENDENT = 1e-8
# Entries of a solution below this share of the largest are rounding of zeros, far below epsilon.
_NOTHING = 1e-20
# Refinements of a step where cones that are not symmetric have a scaling of condition 1 / mu^2.
_REFINEMENTS = 4


class Linearised(NamedTuple):
    """``x`` ``(B, n)``, ``y`` ``(B, m)``, relative residual, and whether the solution is unique."""

    x: torch.Tensor
    y: torch.Tensor
    residual: torch.Tensor
    regular: torch.Tensor


class DenseMatrices(NamedTuple):
    """``P`` ``(B, n, n)``, or None for zero, and ``A`` ``(B, m, n)``."""

    P: torch.Tensor | None
    A: torch.Tensor

    def select(self, index: torch.Tensor) -> DenseMatrices:
        """The matrices of some elements."""
        return DenseMatrices(None if self.P is None else self.P[index], self.A[index])

    def float(self) -> DenseMatrices:
        """In single precision."""
        return DenseMatrices(None if self.P is None else self.P.float(), self.A.float())

    def times_P(self, x: torch.Tensor) -> torch.Tensor:
        """``P x``."""
        return torch.zeros_like(x) if self.P is None else matvec(self.P, x)

    def times_A(self, x: torch.Tensor) -> torch.Tensor:
        """``A x``."""
        return matvec(self.A, x)

    def times_At(self, y: torch.Tensor) -> torch.Tensor:
        """``A' y``."""
        return matvec(self.A.mT, y)

    def sizes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Largest entries of columns ``(B, n)``, ``A``'s rows ``(B, m)`` and ``P`` ``(B, 1)``."""
        A = self.A.abs()
        columns, rows = _largest(A, 1), _largest(A, 2)
        if self.P is None:
            return columns, rows, torch.zeros_like(columns[:, :1])
        of_P = _largest(self.P.abs(), 1)
        return torch.maximum(columns, of_P), rows, of_P.amax(1, keepdim=True)

    def scaled(
        self, columns: torch.Tensor | None, rows: torch.Tensor | None, cost: torch.Tensor | None
    ) -> DenseMatrices:
        """``A`` with its columns and rows, and ``P`` with both sides and its cost, multiplied."""
        P, A = self
        if rows is not None:
            A = rows.unsqueeze(2) * A
        if columns is not None:
            A = A * columns.unsqueeze(1)
            P = None if P is None else columns.unsqueeze(2) * P * columns.unsqueeze(1)
        if cost is not None and P is not None:
            P = cost.unsqueeze(2) * P
        return DenseMatrices(P, A)

    def system(self, cones: ConeProduct, W: Scaling | None) -> SaddlePoint:
        """Factors of ``[P, A' W^-1; W'^-1 A, -J]``; ``W`` is the identity where it is None."""
        rows = self.A if W is None else cones.scale_rows(W, self.A)
        refinements = 1 if cones.is_symmetric else _REFINEMENTS
        return SaddlePoint(self.P, rows, cones.equations, refinements=refinements)

    def linearised(
        self, cones: ConeProduct, active_set: ActiveSet, q: torch.Tensor, b: torch.Tensor, size: int
    ) -> Linearised:
        """The system of :mod:`ddn_cvx.kkt.reduced.active`.

        Args:
            cones: of the rows.
            active_set: elements with more equations than columns are not regular.
            q, b: shapes ``(B, n)`` and ``(B, m)``.
            size: the largest number of equations of an element.
        """
        A, b = to_eigenbasis(cones, active_set, self.A), to_eigenbasis(cones, active_set, b)
        active = active_set.equations
        independent = active.sum(1) <= q.shape[1]
        active = active & independent.unsqueeze(1)
        padded = torch.nn.functional.pad(active, (0, 1))
        count = min(size, q.shape[1])
        order, used = places(in_front(padded, count), b.shape[1])
        # Rows beyond an element's own are zero.
        rows = A.gather(1, order.unsqueeze(2).expand(-1, -1, A.shape[2])) * used.unsqueeze(2)
        lengths = rows.norm(dim=2)
        lengths = torch.where(lengths > 0, lengths, 1.0)
        scale, P = torch.ones_like(q[:, :1]), self.P
        if P is not None:
            scale = P.diagonal(dim1=-2, dim2=-1).amax(1, keepdim=True)
            scale = torch.where(scale > 0, scale, 1.0)
            P = P / scale.unsqueeze(2)
        rows, g = rows / lengths.unsqueeze(2), used * b.gather(1, order) / lengths
        root = None
        if active_set.weights is not None:
            root = (active_set.weights[:, cones.linear :] / scale).sqrt()
            rows = torch.cat([rows, root.unsqueeze(2) * A[:, cones.linear :]], 1)
            g = torch.cat([g, root * b[:, cones.linear :]], 1)
        system = SaddlePoint(P, rows, count)
        f, right = (-q / scale).unsqueeze(2), g.unsqueeze(2)
        x, y, residual = system.exact(f, right)
        x, y = without_rounding(x.squeeze(2), b), y.squeeze(2)
        whole = torch.zeros_like(b).scatter_add(1, order, used * scale * y[:, :count] / lengths)
        if root is not None:
            whole[:, cones.linear :] += scale * root * y[:, count:]
        regular = independent & system.is_regular(used, DEPENDENT)
        return Linearised(x, from_eigenbasis(cones, active_set, whole), residual, regular)


def without_rounding(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``x`` without entries that are rounding next to the largest one of ``x`` and ``b``."""
    size = x.abs().amax(1, keepdim=True)
    if b.shape[1]:
        size = torch.maximum(size, b.abs().amax(1, keepdim=True))
    return torch.where(x.abs() < _NOTHING * size, 0.0, x)


def most(active: torch.Tensor) -> torch.Tensor:
    """The largest number of active rows of an element of ``(B, m)``, shape ``()``."""
    return active.sum(1).amax() if len(active) else active.sum()


def in_front(active: torch.Tensor, count: int) -> torch.Tensor:
    """Numbers of the active rows, padded with the number of the last row.

    Args:
        active: shape ``(B, m + 1)``, bool; the last row is padding and never active.
        count: the largest number of active rows of an element, known to the host.

    Returns:
        Shape ``(B, count)``.
    """
    index = torch.arange(active.shape[1], device=active.device)
    return torch.where(active, index, index[-1:]).sort(1).values[:, :count]


def places(numbers: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers that exist also for padding, and which of them are no padding."""
    return numbers.clamp_max(rows - 1), numbers < rows


def _largest(matrix: torch.Tensor, dim: int) -> torch.Tensor:
    if matrix.shape[dim] == 0:
        return matrix.new_zeros(matrix.shape[0], matrix.shape[3 - dim])
    return matrix.amax(dim)
