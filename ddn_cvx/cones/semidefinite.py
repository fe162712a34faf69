"""Positive semidefinite cones, self-dual; their rows are scaled lower triangles of matrices.

The derivative of the projection: Malick and Sendov, "Clarke generalized Jacobian of the projection
onto the cone of positive semidefinite matrices" (2006), theorem 2.7. The scaling, congruences that
make slack and multiplier the same diagonal matrix: Vandenberghe, "The CVXOPT linear and quadratic
cone program solvers" (2010), section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from ddn_cvx.cones.base import STIFF, TINY, Spectrum, SymmetricCone, Tensors
from ddn_cvx.linalg.matrix_absolute import absolute, sylvester_weights
from ddn_cvx.linalg.triangle import ScaledTriangle, triangle


class Semidefinite(SymmetricCone):
    """See :class:`~ddn_cvx.cones.base.Cone`.

    ``W z`` is ``R' Z R``, and the scaling is ``R`` and its inverse ``(B, k, s, s)``: ``R' Z R`` and
    ``R^-1 S R'^-1`` are both the diagonal matrix of ``lambda``.
    """

    name, field, scs, cvxpy = "semidefinite", "semidefinite", "s", "psd"

    def __init__(self, index: np.ndarray, behind: int = 0) -> None:
        super().__init__(index, behind)
        self._side = (math.isqrt(8 * self.size + 1) - 1) // 2
        self.degree = self.number * self._side
        self._triangle = ScaledTriangle(self._side)
        self._matrix, self._vector = self._triangle.matrix, self._triangle.vector

    @staticmethod
    def lengths(members: Any) -> list[int]:
        """See :class:`~ddn_cvx.cones.base.Cone`; ``members`` are the matrices' sides."""
        return [triangle(side) for side in members]

    # -- membership and projection --------------------------------------------------------------

    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        return self.margin(point).neg().clamp_min(0.0).nan_to_num(nan=torch.inf)

    def project(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        X = self._matrix(point)
        values, vectors = _eigen(X.detach())
        projected = self._vector((vectors * values.clamp_min(0.0).unsqueeze(-2)) @ vectors.mT)
        if not _is_differentiated(X):
            return projected
        moved = (point + self._vector(absolute(X, values, vectors))) / 2
        return projected + (moved - moved.detach())

    def derivative(self, dual: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        X = self._matrix(dual - slack)
        values, vectors = _eigen(X.detach())
        plus, minus = self._signs(values)
        total = plus + minus
        weight = torch.where(total > 0, plus / total, 0.0)
        basis = self._triangle.congruence(vectors)
        found = (basis * weight.unsqueeze(-2)) @ basis.mT
        if not _is_differentiated(X):
            return found
        # With L_X H = X H + H X the derivative is (I + L_|X|^-1 L_X) / 2. The inverse is expanded
        # about its value: derivatives through the eigendecomposition would divide by zero where
        # eigenvalues repeat.
        inverse, present = sylvester_weights(values)
        weight = self._triangle.entries(torch.where(present, inverse, 1.0))
        K = (basis * weight.unsqueeze(-2)) @ basis.mT
        units = self._matrix(torch.eye(self.size, dtype=X.dtype, device=X.device))
        L = self._sylvester(absolute(X, values, vectors), units)
        change = L - L.detach()
        # (L + c)^-1 to second order in the change c
        first = -K @ change @ K
        K = K + first - first @ change @ K
        moved = K @ self._sylvester(X, units) / 2
        return found + (moved - moved.detach())

    def _signs(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each entry's two eigenvalues the larger's positive and the smaller's negative part."""
        one, other = self._triangle.pairs(values)
        high, low = torch.maximum(one, other), torch.minimum(one, other)
        return high.clamp_min(0.0), (-low).clamp_min(0.0)

    def _sylvester(self, X: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """``H -> X H + H X`` for scaled lower triangles, shape ``(..., d, d)``."""
        product = X.unsqueeze(-3) @ units
        return self._vector(product + product.mT)

    def spectrum(self, z: torch.Tensor, s: torch.Tensor) -> Spectrum:
        """See :class:`~ddn_cvx.cones.base.Cone`; ``axes`` are the eigenvectors of ``Z - S``."""
        values, vectors = _eigen(self._matrix(z - s))
        plus, minus = self._signs(values)
        mixed = (plus > 0) & (minus > 0)
        weight = torch.where(mixed, plus / torch.where(mixed, minus, 1.0), 0.0)
        stiff = weight > STIFF
        equations = ((plus > 0) & ~mixed) | stiff
        weights, positive = torch.where(stiff, 0.0, weight), values > 0
        curved = positive.any(-1, keepdim=True) & ~positive.all(-1, keepdim=True)
        return Spectrum(equations, weights, vectors, curved)

    def to_eigenbasis(self, spectrum: Spectrum, rows: torch.Tensor, out: torch.Tensor) -> None:
        back = spectrum.axes.mT
        if rows.ndim == 4:
            out[:] = self._congruent(back.unsqueeze(2), rows.mT).mT
        else:
            out[:] = self._congruent(back, rows)

    def from_eigenbasis(self, spectrum: Spectrum, v: torch.Tensor, out: torch.Tensor) -> None:
        out[:] = self._congruent(spectrum.axes, v)

    # -- Jordan algebra -------------------------------------------------------------------------

    def set_identity(self, out: torch.Tensor) -> None:
        out[..., self._triangle.places(out.device)[-1]] = 1.0

    def margin(self, v: torch.Tensor) -> torch.Tensor:
        return _eigenvalues(self._matrix(v)).amin(-1)

    def largest(self, v: torch.Tensor) -> torch.Tensor:
        """The largest entry of the matrix."""
        return self._matrix(v).abs().amax((-2, -1))

    def log_det(self, s: torch.Tensor) -> torch.Tensor:
        factor, info = torch.linalg.cholesky_ex(self._matrix(s))
        logarithms = factor.diagonal(dim1=-2, dim2=-1).log()
        return torch.where(info == 0, 2 * logarithms.sum(-1), -torch.inf)

    def inverse(self, s: torch.Tensor) -> torch.Tensor:
        values, vectors = _eigen(self._matrix(s))
        return self._vector((vectors / values.unsqueeze(-2)) @ vectors.mT)

    def product(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        whole = self._matrix(u) @ self._matrix(v)
        return self._vector((whole + whole.mT) / 2)

    def quotient(self, point: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        one, other = self._triangle.pairs(self._diagonal(point))
        return v / ((one + other) / 2)

    def _diagonal(self, v: torch.Tensor) -> torch.Tensor:
        """``(..., s)`` of ``(..., d)``."""
        return v.index_select(-1, self._triangle.places(v.device)[-1])

    # -- scaling --------------------------------------------------------------------------------

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
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

    def scale(
        self, W: Tensors, v: torch.Tensor, out: torch.Tensor, *, inverse: bool, transposed: bool
    ) -> None:
        R = W[int(inverse)]
        out[:] = self._congruent(R if transposed else R.mT, v)

    def scale_rows(self, W: Tensors, rows: torch.Tensor, out: torch.Tensor) -> None:
        out[:] = self._congruent(W[1].unsqueeze(2), rows.mT).mT

    def _congruent(self, R: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """``R V R'``."""
        return self._vector(R @ self._matrix(v) @ R.mT)

    def step_rates(
        self, W: Tensors, point: torch.Tensor, directions: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        root = self._diagonal(point).sqrt()
        size = root.unsqueeze(-1) * root.unsqueeze(-2)
        return [-_eigenvalues(self._matrix(d) / size).flatten(1).amin(1) for d in directions]


def _is_differentiated(X: torch.Tensor) -> bool:
    """Derivatives of what is computed from ``X`` may be asked for."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return X.requires_grad or transformed


def _eigen(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues and eigenvectors; values are NaN where ``X`` is not finite, without an error."""
    finite = X.isfinite().flatten(-2).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, X, 0.0))
    return torch.where(finite.squeeze(-1), values, torch.nan), vectors


def _eigenvalues(X: torch.Tensor) -> torch.Tensor:
    finite = X.isfinite().flatten(-2).all(-1)[..., None, None]
    values = torch.linalg.eigvalsh(torch.where(finite, X, 0.0))
    return torch.where(finite.squeeze(-1), values, torch.nan)
