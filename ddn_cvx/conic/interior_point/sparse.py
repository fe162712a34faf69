"""A batch's matrices, as values over one pattern, and the linear systems that are made of them.

Without second-order cones. The systems are quasi-definite: their diagonal is raised, and refinement
takes out what that changes. For a system that is singular and has a solution it comes to the one of
least norm, as the proximal point method does.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ddn_cvx.conic.columns import picked
from ddn_cvx.conic.device import OnDevice
from ddn_cvx.conic.interior_point.dense import Linearised
from ddn_cvx.conic.interior_point.pieces import Pieces
from ddn_cvx.conic.interior_point.scaling import Scaling, SymmetricCones
from ddn_cvx.conic.program import ConeProgram
from ddn_cvx.implicit.sparse_factor import Elimination

# Diagonals are raised by this, for data of size one.
_RAISED = {torch.float64: 1e-9, torch.float32: 1e-5}
# Refinements of a solution of all digits, at most.
_REFINEMENTS = 6
_EXACT = 1e-15


@dataclass(frozen=True, eq=False)
class SparseStructure:
    """The pattern of a program's KKT matrix, of the unknowns ``(x, y)``.

    Attributes:
        program: the program.
    """

    program: ConeProgram

    @cached_property
    def lower(self) -> OnDevice:
        """Stored values of ``P`` on or below the diagonal, and their places in the first block."""
        P = self.program.P_pattern
        kept = np.flatnonzero(P.rows >= P.columns)
        return OnDevice(kept, self._place_in_block[kept])

    @cached_property
    def _place_in_block(self) -> np.ndarray:
        """The diagonal comes first, then what is below it."""
        P, n = self.program.P_pattern, self.program.variables
        below = np.flatnonzero(P.rows > P.columns)
        place = np.full(P.stored, -1)
        place[below] = n + np.arange(len(below))
        diagonal = P.rows == P.columns
        place[diagonal] = P.rows[diagonal]
        return place

    @cached_property
    def block(self) -> int:
        """Number of values of the first block."""
        P = self.program.P_pattern
        return self.program.variables + int((P.rows > P.columns).sum())

    @cached_property
    def elimination(self) -> Elimination:
        """Of the whole matrix; its values are those of the block, of ``A`` and the diagonal."""
        P, A, n, m = (
            self.program.P_pattern,
            self.program.A_pattern,
            self.program.variables,
            self.program.rows,
        )
        below = P.rows > P.columns
        diagonal = np.arange(n + m)
        rows = [diagonal[:n], P.rows[below], n + A.rows, diagonal[n:]]
        columns = [diagonal[:n], P.columns[below], A.columns, diagonal[n:]]
        return Elimination(np.concatenate(rows), np.concatenate(columns), n + m)


_STRUCTURES: weakref.WeakKeyDictionary[ConeProgram, SparseStructure] = weakref.WeakKeyDictionary()


def structure_of(program: ConeProgram) -> SparseStructure:
    """The program's, made once."""
    if program not in _STRUCTURES:
        _STRUCTURES[program] = SparseStructure(program)
    return _STRUCTURES[program]


@dataclass(frozen=True, eq=False)
class SparseMatrices:
    """Values of ``P`` and ``A`` as in :class:`~ddn_cvx.conic.program.ConeData`."""

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
        rows, columns, _ = self.structure.program.P_pattern.places(x.device)
        terms = self.P * picked(x, columns)
        return torch.zeros_like(x).scatter_add_(1, rows.expand_as(terms), terms)

    def times_A(self, x: torch.Tensor) -> torch.Tensor:
        """``A x``."""
        rows, columns, _ = self.structure.program.A_pattern.places(x.device)
        terms = self.A * picked(x, columns)
        found = x.new_zeros(len(x), self.structure.program.rows)
        return found.scatter_add_(1, rows.expand_as(terms), terms)

    def times_At(self, y: torch.Tensor) -> torch.Tensor:
        """``A' y``."""
        rows, columns, _ = self.structure.program.A_pattern.places(y.device)
        terms = self.A * picked(y, rows)
        found = y.new_zeros(len(y), self.structure.program.variables)
        return found.scatter_add_(1, columns.expand_as(terms), terms)

    def sizes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As of :class:`~ddn_cvx.conic.interior_point.dense.DenseMatrices`."""
        program = self.structure.program
        n, m, batch = program.variables, program.rows, len(self.A)
        rows, columns, _ = program.A_pattern.places(self.A.device)
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
        _, columns, _ = program.P_pattern.places(self.A.device)
        of_columns = of_columns.scatter_reduce(1, columns.expand_as(values), values, "amax")
        return of_columns, of_rows, values.amax(1, keepdim=True)

    def scaled(
        self, columns: torch.Tensor | None, rows: torch.Tensor | None, cost: torch.Tensor | None
    ) -> SparseMatrices:
        """As of :class:`~ddn_cvx.conic.interior_point.dense.DenseMatrices`."""
        P, A, program = self.P, self.A, self.structure.program
        if rows is not None:
            A = A * picked(rows, program.A_pattern.places(A.device)[0])
        if columns is not None:
            A = A * picked(columns, program.A_pattern.places(A.device)[1])
            first, second, _ = program.P_pattern.places(A.device)
            P = P * picked(columns, first) * picked(columns, second)
        return SparseMatrices(self.structure, P if cost is None else P * cost, A)

    def system(self, cones: SymmetricCones, W: Scaling | None) -> SparseSystem:
        """``[P, A' W^-1; W^-1 A, -J]``; with ``W`` one where it is None."""
        rows = self if W is None else self.scaled(None, 1 / W.linear, None)
        return SparseSystem(rows, cones.inner.expand(len(self.A), -1))

    def linearised(
        self, cones: SymmetricCones, pieces: Pieces, q: torch.Tensor, b: torch.Tensor
    ) -> Linearised:
        """As of :class:`~ddn_cvx.conic.interior_point.dense.DenseMatrices`; regular everywhere."""
        active = pieces.equations.to(q.dtype)
        system = SparseSystem(self.scaled(None, active, None), 1 - active)
        f, g = (-q).unsqueeze(2), (b * active).unsqueeze(2)
        x, y = system.solve(f, g, 1)
        residual = system.relative_residual(f, g, x, y)
        for _ in range(_REFINEMENTS - 1):
            if bool((residual <= _EXACT).all()):
                break
            more_x, more_y = system.refined(f, g, x, y)
            after = system.relative_residual(f, g, more_x, more_y)
            better = (after < residual)[:, None, None]
            if not bool(better.any()):
                break
            x, y = torch.where(better, more_x, x), torch.where(better, more_y, y)
            residual = torch.minimum(residual, after)
        regular = torch.ones_like(residual, dtype=torch.bool)
        return Linearised(x.squeeze(2), y.squeeze(2) * active, residual, regular)


class SparseSystem:
    """Factors of ``[P, A'; A, -J]``, as :class:`~ddn_cvx.conic.interior_point.system.SaddlePoint`.

    Args:
        matrices: ``P`` and ``A``.
        J: the diagonal, not negative, shape ``(B, m)``.
    """

    def __init__(self, matrices: SparseMatrices, J: torch.Tensor) -> None:
        structure = matrices.structure
        self._matrices, self._J = matrices, J
        raised = _RAISED[J.dtype]
        n, batch = structure.program.variables, len(J)
        kept, places = structure.lower(J.device)
        block = J.new_zeros(batch, structure.block)
        block[:, :n] = raised
        block.scatter_add_(1, places.expand(batch, -1), picked(matrices.P, kept))
        values = torch.cat([block, matrices.A, -(J + raised)], 1)
        self._n = n
        self._factor = structure.elimination.factor(values)

    def solve(
        self, f: torch.Tensor, g: torch.Tensor, refinements: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` and ``z`` for right sides ``(B, n, c)`` and ``(B, m, c)``."""
        x, z = self._solve(f, g)
        for _ in range(refinements):
            x, z = self.refined(f, g, x, z)
        return x, z

    def refined(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A solution with what is left of the right sides solved for, too."""
        more = self._solve(*self._residual(f, g, x, z))
        return x + more[0], z + more[1]

    def relative_residual(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> torch.Tensor:
        """How far a solution is from one, relative to the right side, shape ``(B,)``."""
        rest = torch.cat(self._residual(f, g, x, z), 1).flatten(1).norm(dim=1)
        size = torch.cat([f, g], 1).flatten(1).norm(dim=1).clamp_min(1e-35)
        relative: torch.Tensor = rest / size
        return relative.nan_to_num(nan=torch.inf)

    def _solve(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._factor.solve(column) for column in torch.cat([f, g], 1).unbind(2)]
        found = torch.stack(parts, 2)
        return found[:, : self._n], found[:, self._n :]

    def _residual(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        matrices = self._matrices
        pairs = list(zip(x.unbind(2), z.unbind(2), strict=True))
        first = [matrices.times_P(u) + matrices.times_At(v) for u, v in pairs]
        second = [matrices.times_A(u) - self._J * v for u, v in pairs]
        return f - torch.stack(first, 2), g - torch.stack(second, 2)
