"""Sparse matrices of a batch, and its linear systems."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.cones.scaling import ConeProduct, Scaling
from ddn_cvx.kkt.reduced.active import ActiveSet
from ddn_cvx.kkt.reduced.dense import Linearised
from ddn_cvx.kkt.reduced.sparse_system import Block, ScaledSystem, SparseSystem
from ddn_cvx.kkt.reduced.sparse_values import SparseValues

# Refinements of a solution at most, and the relative residual at which they stop: rounding.
_REFINEMENTS = 6
_EXACT = 1e-15


@dataclass(frozen=True, eq=False)
class SparseMatrices(SparseValues):
    """As :class:`~ddn_cvx.kkt.reduced.dense.DenseMatrices`."""

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
        active_set: ActiveSet,
        q: torch.Tensor,
        b: torch.Tensor,
        size: int,
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
