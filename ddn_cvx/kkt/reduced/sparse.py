"""Sparse matrices of a batch, and its linear systems.

The systems are quasi-definite: their diagonal is raised, and refinement takes out what that
changes. For a system that is singular and has a solution it comes to the one of least norm, as the
proximal point method does.

A second-order cone's block ``H`` of the system ``[P, A'; A, -H]`` would be full. It is a diagonal
and two products, and with an unknown for each of these it is

    [-diag(h)  -u   v]
    [-u'       rho  0]
    [ v'       0   -1]

as in Goulart and Chen, "Clarabel" (2024), section 5.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ddn_cvx.batch.columns import picked
from ddn_cvx.cones.scaling import ConeProduct, Scaling
from ddn_cvx.kkt.reduced.active import ActiveSet
from ddn_cvx.kkt.reduced.dense import Linearised
from ddn_cvx.kkt.reduced.structure import SparseStructure
from ddn_cvx.linalg.saddle_point import Factored

# Quasi-definite: diagonals are raised by this, for data of size one; refinement undoes it.
_RAISED = {torch.float64: 1e-9, torch.float32: 1e-5}
# Refinements of a step: its diagonal is raised by more than that of a dense system.
_ROUNDS = 2
# Refinements of a solution at most, and the relative residual at which they stop: rounding.
_REFINEMENTS = 6
_EXACT = 1e-15


@dataclass(frozen=True, eq=False)
class SparseMatrices:
    """Values of ``P`` and ``A`` as in :class:`~ddn_cvx.programs.cone.program.ConeData`."""

    structure: SparseStructure
    P: torch.Tensor
    A: torch.Tensor

    def select(self, index: torch.Tensor) -> SparseMatrices:
        """The values of some elements."""
        return replace(self, P=self.P[index], A=self.A[index])

    def float(self) -> SparseMatrices:
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
        rows, columns = structure.places(self.A.device)
        values = self.A.abs()
        of_rows, of_columns = values.new_zeros(batch, m), values.new_zeros(batch, n)
        of_rows = of_rows.scatter_reduce(1, rows.expand_as(values), values, "amax")
        of_columns = of_columns.scatter_reduce(1, columns.expand_as(values), values, "amax")
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
        return replace(self, P=P if cost is None else P * cost, A=A)

    def system(self, cones: ConeProduct, W: Scaling | None) -> SparseSystem:
        """As of :class:`~ddn_cvx.kkt.reduced.dense.DenseMatrices`; it never fails."""
        if cones.groups and W is not None:
            return SparseSystem(self, cones, Block.of_scaling(cones, W), W)
        rows = self if W is None else self.scaled(None, 1 / W.diagonal, None)
        J = cones.inner.expand(len(self.A), -1)
        return SparseSystem(rows, cones, Block.diagonal_only(cones, J))

    def linearised(
        self, cones: ConeProduct, active_set: ActiveSet, q: torch.Tensor, b: torch.Tensor, size: int
    ) -> Linearised:
        """As of :class:`~ddn_cvx.kkt.reduced.dense.DenseMatrices`; regular everywhere."""
        used = active_set.equations
        if active_set.weights is not None:
            used = used | (active_set.weights > 0)
            for group, spectrum in zip(cones.groups, active_set.spectra, strict=True):
                group.of(used)[:] |= spectrum.curved
        kept = used.to(q.dtype)
        block = Block.of_active_set(cones, active_set, 1 - kept)
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


class Block(NamedTuple):
    """``H`` as above.

    Attributes:
        diagonal: ``h``, shape ``(B, m)``.
        outer: for each group of second-order cones ``u`` and ``v``, ``(B, k, d)`` each.
        corner: and ``rho``, shape ``(B, k)``.
    """

    diagonal: torch.Tensor
    outer: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    corner: tuple[torch.Tensor, ...]

    @classmethod
    def diagonal_only(cls, cones: ConeProduct, h: torch.Tensor) -> Block:
        """A diagonal ``H``."""
        outer = tuple((torch.zeros_like(group.of(h)),) * 2 for group in cones.groups)
        return cls(h, outer, tuple(torch.ones_like(u[..., 0]) for u, _ in outer))

    @classmethod
    def of_scaling(cls, cones: ConeProduct, W: Scaling) -> Block:
        """``W^2``."""
        h = W.diagonal.square() * cones.inner
        outer, corner = [], []
        for group, (size, w) in zip(cones.groups, W.groups, strict=True):
            head, tail = w[..., :1], w[..., 1:]
            square = 2 * head.square() - 1
            first = 0.5 / square
            u0 = (square - first).sqrt()
            u1 = 2 * head / u0
            v1 = (u1.square() - 2).clamp_min(0.0).sqrt()
            part = group.of(h)
            part[:] = size.square()
            part[..., :1] *= first
            u = size * torch.cat([u0, u1 * tail], -1)
            v = size * torch.cat([torch.zeros_like(u0), v1 * tail], -1)
            outer.append((u, v))
            corner.append(torch.ones_like(head.squeeze(-1)))
        return cls(h, tuple(outer), tuple(corner))

    @classmethod
    def of_active_set(
        cls, cones: ConeProduct, active_set: ActiveSet, unused: torch.Tensor
    ) -> Block:
        """``(1 - l) / l`` for the eigenvalues ``l``, and infinity for zero.

        Args:
            cones: of the rows.
            active_set: the eigenvalues and their vectors.
            unused: one for rows that are left out, shape ``(B, m)``.
        """
        if active_set.weights is None:
            return cls.diagonal_only(cones, unused)
        h = unused.clone()
        outer, corner = [], []
        for group, (_, _, axis, curved) in zip(cones.groups, active_set.spectra, strict=True):
            w = group.of(active_set.weights)[..., 1:2]
            stiffness = torch.where(curved & (w > 0), 1 / torch.where(w > 0, w, 1.0), 0.0)
            part = group.of(h)
            part[:] = torch.where(curved, stiffness, part)
            plus = torch.cat([torch.ones_like(w), axis], -1) / math.sqrt(2)
            minus = torch.cat([torch.ones_like(w), -axis], -1) / math.sqrt(2)
            # One multiplier keeps the solution off the vector with zero.
            outer.append((torch.where(curved, minus, 0.0), stiffness.sqrt() * plus * curved))
            corner.append(torch.where(curved, 0.0, 1.0).squeeze(-1))
        return cls(h, tuple(outer), tuple(corner))

    def times(self, cones: ConeProduct, z: torch.Tensor) -> torch.Tensor:
        """``H z`` with the additional unknowns, shape ``(B, m + more)``."""
        start = self.diagonal.shape[1]
        rows, found = z[:, :start], torch.empty_like(z)
        of_rows = found[:, :start]
        torch.mul(self.diagonal, rows, out=of_rows)
        for group, (u, v), rho in zip(cones.groups, self.outer, self.corner, strict=True):
            r = z[:, start : start + group.number]
            p = z[:, start + group.number : start + 2 * group.number]
            inner = group.of(rows)
            group.of(of_rows).addcmul_(u, r.unsqueeze(2)).addcmul_(v, p.unsqueeze(2), value=-1)
            found[:, start : start + group.number] = (u * inner).sum(-1) - rho * r
            found[:, start + group.number : start + 2 * group.number] = p - (v * inner).sum(-1)
            start += 2 * group.number
        return found


class SparseSystem(Factored):
    """Factors of ``[P, A'; A, -H]``, as :class:`~ddn_cvx.linalg.saddle_point.SaddlePoint`.

    Args:
        matrices: ``P`` and ``A``.
        cones: of the rows.
        block: ``H``.
        W: a scaling, in whose coordinates the system is solved; None for none. ``H`` is ``W^2``.
    """

    def __init__(
        self, matrices: SparseMatrices, cones: ConeProduct, block: Block, W: Scaling | None = None
    ) -> None:
        structure, self._W = matrices.structure, W
        self._matrices, self._cones, self._block = matrices, cones, block
        h = block.diagonal
        raised = _RAISED[h.dtype]
        n, batch = structure.variables, len(h)
        kept, places = structure.lower(h.device)
        first = h.new_zeros(batch, structure.block)
        first[:, :n] = raised
        first.scatter_add_(1, places.expand(batch, -1), picked(matrices.P, kept))
        diagonal, outer = [-(h + raised)], []
        for (u, v), rho in zip(block.outer, block.corner, strict=True):
            diagonal += [rho + raised, torch.full_like(rho, -1.0)]
            outer += [-u.flatten(1), v.flatten(1)]
        self._n, self._more = n, sum(2 * group.number for group in cones.groups)
        values = torch.cat([first, matrices.A, *diagonal, *outer], 1)
        self.failed = torch.zeros(batch, dtype=torch.bool, device=h.device)
        self._factor = structure.elimination.factor(values)

    def solve(
        self, f: torch.Tensor, g: torch.Tensor, refined: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~ddn_cvx.linalg.saddle_point.Factored`."""
        cones, W, m = self._cones, self._W, g.shape[1]
        if W is not None:
            g = torch.stack([cones.unscale_slacks(W, column) for column in g.unbind(2)], 2)
        x, z = self.first(f, g)
        for _ in range(_ROUNDS):
            x, z = self.refined_where(refined, f, g, x, z)
        z = z[:, :m]
        if W is not None:  # W is symmetric for second-order cones.
            z = torch.stack([cones.unscale_slacks(W, column) for column in z.unbind(2)], 2)
        return x, z

    def first(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A solution without refinement; ``z`` with the unknowns more."""
        return self._solve(f, self._padded(g))

    def _padded(self, g: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(g, (0, 0, 0, self._more)) if self._more else g

    def _solve(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._factor.solve(column) for column in torch.cat([f, g], 1).unbind(2)]
        found = torch.stack(parts, 2)
        return found[:, : self._n], found[:, self._n :]

    def _residual(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        matrices, m = self._matrices, g.shape[1]
        first, second = [], []
        for u, v in zip(x.unbind(2), z.unbind(2), strict=True):
            first.append(matrices.times_P(u) + matrices.times_At(v[:, :m]))
            rows = self._block.times(self._cones, v).neg_()
            rows[:, :m] += matrices.times_A(u)
            second.append(rows)
        return f - torch.stack(first, 2), self._padded(g) - torch.stack(second, 2)
