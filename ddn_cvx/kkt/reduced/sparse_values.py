"""Values of a batch's sparse matrices over one pattern, and their products."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from ddn_cvx.batch.columns import picked
from ddn_cvx.kkt.reduced.structure import SparseStructure


@dataclass(frozen=True, eq=False)
class SparseValues:
    """Values of ``P`` and ``A`` as in :class:`~ddn_cvx.programs.cone.program.ConeData`."""

    structure: SparseStructure
    P: torch.Tensor
    A: torch.Tensor

    def select(self, index: torch.Tensor) -> Self:
        """The values of some elements."""
        return replace(self, P=self.P[index], A=self.A[index])

    def float(self) -> Self:
        """In single precision."""
        return replace(self, P=self.P.float(), A=self.A.float())

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
    ) -> Self:
        """As of :class:`~ddn_cvx.kkt.reduced.dense.DenseMatrices`."""
        P, A = self.P, self.A
        if rows is not None:
            A = A * picked(rows, self.structure.places(A.device)[0])
        if columns is not None:
            A = A * picked(columns, self.structure.places(A.device)[1])
            first, second, _ = self.structure.P_pattern.places(A.device)
            P = P * picked(columns, first) * picked(columns, second)
        return replace(self, P=P if cost is None else P * cost, A=A)
