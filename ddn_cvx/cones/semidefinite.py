"""Semidefinite cones: congruences that make slack and multiplier the same diagonal matrix.

Formulas: Vandenberghe, "The CVXOPT linear and quadratic cone program solvers" (2010), section 4.3;
the derivative of the projection from Malick and Sendov (2006), theorem 2.7.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ddn_cvx.batch.device import OnDevice
from ddn_cvx.cones.base import STIFF, TINY, Part, SymmetricGroup, Tensors
from ddn_cvx.cones.product import triangle


class Semidefinite(SymmetricGroup):
    """Matrices as scaled lower triangles, column by column; see :class:`Group`.

    ``W z`` is ``R' Z R``, and the scaling is ``R`` and its inverse ``(B, k, s, s)``: ``R' Z R`` and
    ``R^-1 S R'^-1`` are both the diagonal matrix of ``lambda``.
    """

    def __init__(self, start: int, number: int, side: int) -> None:
        super().__init__(start, number, triangle(side))
        self.degree, self._side = number * side, side
        columns, rows = np.triu_indices(side)
        places = np.empty((side, side), dtype=np.int64)
        places[rows, columns] = places[columns, rows] = np.arange(self.size)
        diagonal = rows == columns
        self._places = OnDevice(
            places.reshape(-1),
            rows * side + columns,
            np.flatnonzero(diagonal),
            np.where(np.eye(side, dtype=bool), 1.0, math.sqrt(0.5)).reshape(-1),
            np.where(diagonal, 1.0, math.sqrt(2)),
        )

    def _matrix(self, v: torch.Tensor) -> torch.Tensor:
        """``(..., d)`` as ``(..., s, s)``."""
        places, _, _, scale, _ = self._places(v.device)
        entries = v.index_select(-1, places) * scale.to(v.dtype)
        X: torch.Tensor = entries.unflatten(-1, (self._side, self._side))
        return X

    def _vector(self, X: torch.Tensor) -> torch.Tensor:
        """``(..., s, s)``, symmetric, as ``(..., d)``."""
        _, entries, _, _, scale = self._places(X.device)
        return X.flatten(-2).index_select(-1, entries) * scale.to(X.dtype)

    def _diagonal(self, v: torch.Tensor) -> torch.Tensor:
        """``(..., s)`` of ``(..., d)``."""
        return v.index_select(-1, self._places(v.device)[2])

    def set_identity(self, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[..., self._places(out.device)[2]] = 1.0

    def margin(self, v: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        return _eigenvalues(self._matrix(v)).flatten(1).amin(1)

    def projected(self, v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        values, vectors = _eigen(self._matrix(v))
        return self._vector((vectors * values.clamp_min(0.0).unsqueeze(-2)) @ vectors.mT)

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        factor, info = torch.linalg.cholesky_ex(self._matrix(s))
        # Near the central path S Z is a multiple of the identity, and squares lose no digits.
        squares, vectors = _eigen(factor.mT @ self._matrix(z) @ factor)
        usable = (info == 0).unsqueeze(-1) & (squares > 0)
        values = torch.where(usable, squares.clamp_min(TINY).sqrt(), torch.nan)
        root = values.sqrt()
        R = factor @ vectors / root.unsqueeze(-2)
        identity = torch.eye(self._side, dtype=s.dtype, device=s.device).expand_as(R)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        inverse = root.unsqueeze(-1) * (vectors.mT @ inverse)
        return (R, inverse), self._vector(torch.diag_embed(values))

    def times(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[:] = self._congruent(W[0], v)

    def over(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[:] = self._congruent(W[1], v)

    def multiplier(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[:] = self._congruent(W[1].mT, v)

    def rows_over(self, W: Tensors, rows: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[:] = self._congruent(W[1].unsqueeze(2), rows.mT).mT

    def _congruent(self, R: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """``R V R'``."""
        return self._vector(R @ self._matrix(v) @ R.mT)

    def product(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        whole = self._matrix(u) @ self._matrix(v)
        return self._vector((whole + whole.mT) / 2)

    def quotient(self, point: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        values = self._diagonal(point)
        means = (values.unsqueeze(-1) + values.unsqueeze(-2)) / 2
        return v / means.flatten(-2).index_select(-1, self._places(v.device)[1])

    def shrinking(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor]
    ) -> list[torch.Tensor]:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        root = self._diagonal(point).sqrt()
        size = root.unsqueeze(-1) * root.unsqueeze(-2)
        return [-_eigenvalues(self._matrix(d) / size).flatten(1).amin(1) for d in directions]

    def part(self, z: torch.Tensor, s: torch.Tensor) -> Part:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        values, vectors = _eigen(self._matrix(z - s))
        positive = values > 0
        above, below = (
            values.clamp_min(0.0).unsqueeze(-1),
            values.clamp_max(0.0).neg().unsqueeze(-2),
        )
        # Between a positive and a negative eigenvalue; zero elsewhere.
        ratio = torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)
        weight = torch.maximum(ratio, ratio.mT)
        stiff = weight > STIFF
        both = positive.unsqueeze(-1) & positive.unsqueeze(-2)
        _, entries, *_ = self._places(z.device)
        equations = (both | stiff).flatten(-2).index_select(-1, entries)
        weights = torch.where(stiff, 0.0, weight).flatten(-2).index_select(-1, entries)
        curved = positive.any(-1, keepdim=True) & ~positive.all(-1, keepdim=True)
        return Part(equations, weights, vectors, curved)

    def turned(self, part: Part, rows: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        back = part.axes.mT
        if rows.ndim == 4:
            out[:] = self._congruent(back.unsqueeze(2), rows.mT).mT
        else:
            out[:] = self._congruent(back, rows)

    def turned_back(self, part: Part, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[:] = self._congruent(part.axes, v)


def _eigen(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues and eigenvectors; values of NaN where ``X`` is not finite, which is an error."""
    finite = X.isfinite().flatten(-2).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, X, 0.0))
    return torch.where(finite.squeeze(-1), values, torch.nan), vectors


def _eigenvalues(X: torch.Tensor) -> torch.Tensor:
    finite = X.isfinite().flatten(-2).all(-1)[..., None, None]
    values = torch.linalg.eigvalsh(torch.where(finite, X, 0.0))
    return torch.where(finite.squeeze(-1), values, torch.nan)
