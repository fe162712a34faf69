"""A batch's matrices, as values over one pattern."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.batch.columns import picked
from ddn_cvx.cones.scaling import ConeProduct, Scaling
from ddn_cvx.kkt.reduced.active import Pieces
from ddn_cvx.kkt.reduced.dense import Linearised
from ddn_cvx.kkt.reduced.sparse_system import Block, ScaledSystem, SparseSystem
from ddn_cvx.kkt.reduced.structure import SparseStructure

# Refinements of a solution of all digits, at most.
_REFINEMENTS = 6
_EXACT = 1e-15


@dataclass(frozen=True, eq=False)
class SparseMatrices:
    """Values of ``P`` and ``A`` as in :class:`~ddn_cvx.programs.cone.program.ConeData`."""

    structure: SparseStructure
    P: torch.Tensor
    A: torch.Tensor

    def select(self, index: torch.Tensor) -> SparseMatrices:
        """Those of some elements."""
        return SparseMatrices(self.structure, self.P[index], self.A[index])

    def float(self) -> SparseMatrices:
        """In single precision."""
        return SparseMatrices(self.structure, self.P.float(), self.A.float())

    def times_P(self, x: torch.Tensor) -> torch.Tensor:
        """``P x``."""
        rows, columns, _ = self.structure.P_pattern.places(x.device)
        terms = self.P * picked(x, columns)
        return torch.zeros_like(x).scatter_add_(1, rows.expand_as(terms), terms)

    def times_A(self, x: torch.Tensor) -> torch.Tensor:
        """``A x``."""
        rows, columns = self.structure.places(x.device)
        terms = self.A * picked(x, columns)
        found = x.new_zeros(len(x), self.structure.rows)
        return found.scatter_add_(1, rows.expand_as(terms), terms)

    def times_At(self, y: torch.Tensor) -> torch.Tensor:
        """``A' y``."""
        rows, columns = self.structure.places(y.device)
        terms = self.A * picked(y, rows)
        found = y.new_zeros(len(y), self.structure.variables)
        return found.scatter_add_(1, columns.expand_as(terms), terms)

    def sizes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As of :class:`~ddn_cvx.kkt.reduced.dense.DenseMatrices`."""
        structure = self.structure
        n, m, batch = structure.variables, structure.rows, len(self.A)
        rows, columns = self.structure.places(self.A.device)
        values = self.A.abs()
        of_rows = values.new_zeros(batch, m).scatter_reduce(
            1, rows.expand_as(values), values, "amax"
        )
        of_columns = values.new_zeros(batch, n).scatter_reduce(
            1, columns.expand_as(values), values, "amax"
        )
        values = self.P.abs()
        if values.shape[1] == 0:
            return of_columns, of_rows, of_columns.new_zeros(batch, 1)
        _, columns, _ = structure.P_pattern.places(self.A.device)
        of_columns = of_columns.scatter_reduce(1, columns.expand_as(values), values, "amax")
        return of_columns, of_rows, values.amax(1, keepdim=True)

    def scaled(
        self, columns: torch.Tensor | None, rows: torch.Tensor | None, cost: torch.Tensor | None
    ) -> SparseMatrices:
        """As of :class:`~ddn_cvx.kkt.reduced.dense.DenseMatrices`."""
        P, A = self.P, self.A
        if rows is not None:
            A = A * picked(rows, self.structure.places(A.device)[0])
        if columns is not None:
            A = A * picked(columns, self.structure.places(A.device)[1])
            first, second, _ = self.structure.P_pattern.places(A.device)
            P = P * picked(columns, first) * picked(columns, second)
        return SparseMatrices(self.structure, P if cost is None else P * cost, A)

    def system(self, cones: ConeProduct, W: Scaling | None) -> SparseSystem | ScaledSystem:
        """As of :class:`~ddn_cvx.kkt.reduced.dense.DenseMatrices`; it never fails."""
        if cones.groups and W is not None:
            return ScaledSystem(SparseSystem(self, cones, Block.of_scaling(cones, W)), cones, W)
        rows = self if W is None else self.scaled(None, 1 / W.diagonal, None)
        J = cones.inner.expand(len(self.A), -1)
        return SparseSystem(rows, cones, Block.diagonal_only(cones, J))

    def linearised(
        self,
        cones: ConeProduct,
        pieces: Pieces,
        q: torch.Tensor,
        b: torch.Tensor,
        size: int,
    ) -> Linearised:
        """As of :class:`~ddn_cvx.kkt.reduced.dense.DenseMatrices`; regular everywhere."""
        used = pieces.equations
        if pieces.weights is not None:
            used = used | (pieces.weights > 0)
            for group, part in zip(cones.groups, pieces.parts, strict=True):
                group.of(used)[:] |= part.curved
        kept = used.to(q.dtype)
        block = Block.of_pieces(cones, pieces, 1 - kept)
        system = SparseSystem(self.scaled(None, kept, None), cones, block)
        f, g = (-q).unsqueeze(2), (b * kept).unsqueeze(2)
        x, y = system.refined(f, g, *system.first(f, g))
        residual = system.relative_residual(f, g, x, y)
        for _ in range(_REFINEMENTS - 1):
            if bool((residual <= _EXACT).all()):
                break
            more_x, more_y = system.refined(f, g, x, y)
            after = system.relative_residual(f, g, more_x, more_y)
            better = ((after < residual) & (residual > _EXACT))[:, None, None]
            if not bool(better.any()):
                break
            x, y = torch.where(better, more_x, x), torch.where(better, more_y, y)
            residual = torch.minimum(residual, after)
        regular = torch.ones_like(residual, dtype=torch.bool)
        y = y.squeeze(2)[:, : b.shape[1]] * kept
        return Linearised(x.squeeze(2), y, residual, regular)
