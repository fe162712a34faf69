"""Derivatives of the pooled vector by the implicit function theorem.

The minimiser solves ``g(u, x, alpha, w) = sum_i w_i psi_i (u - x_i) = 0``, so with the symmetric
Hessian ``H = sum_i w_i (psi_i I + bend_i r_i r_i')``

    du = -H^{-1} dg        and, for a cotangent v,   -(dg)' H^{-1} v

(Gould, Hartley and Campbell, "Deep declarative networks", 2021, proposition 4.4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import attached
from ddn_cvx.dedicated.pooling.penalties import Penalty
from ddn_cvx.dedicated.pooling.vector_descent import hessian

# Eigenvalue, relative to its bound, the sum of the weights psi, below which it counts as zero: the
# gradient has lost ten digits there.
_SINGULAR = 1e-10

# Distance of a residual's norm from alpha, relative to alpha, within which it lies on the kink.
_KINK_DISTANCE = 1e-9


class Inverse(NamedTuple):
    """``H^{-1}``, in a basis of the points' span and outside it.

    Outside the span of the points ``H`` is ``sum_i w_i psi_i`` times the identity: with fewer
    points than dimensions this replaces the ``m x m`` inverse by one of ``n x n`` (Woodbury's
    identity).

    Attributes:
        inside: pseudo-inverse in the basis, shape ``(B, k, k)``.
        basis: orthonormal columns, shape ``(B, m, k)``; None for the standard basis.
        outside: reciprocal of ``sum_i w_i psi_i``, shape ``(B,)``.
        regular: whether ``H`` is positive definite and ``g`` smooth, shape ``(B,)``.
    """

    inside: Tensor
    basis: Tensor | None
    outside: Tensor
    regular: Tensor

    def times(self, v: Tensor) -> Tensor:
        """``H^{-1} v`` for ``v`` of shape ``(B, m)``."""
        v = v.unsqueeze(-1)
        if self.basis is None:
            return (self.inside @ v).squeeze(-1)
        within = self.basis.mT @ v
        beyond = self.outside[:, None, None] * (v - self.basis @ within)
        return (beyond + self.basis @ (self.inside @ within)).squeeze(-1)


def invert(y: Tensor, w: Tensor, penalty: Penalty, u: Tensor, basis: Tensor | None) -> Inverse:
    """The inverse Hessian at ``u`` ``(B, k)``; all in coordinates of ``basis``, ``alpha = 1``.

    Where ``H`` is singular, its pseudo-inverse gives the solution and gradient of least norm.
    """
    residual = u.unsqueeze(1) - y
    s = residual.square().sum(-1)
    total = (w * penalty.weight(s, torch.ones_like(s))).sum(-1)
    safe = torch.where(total > 0, total, 1.0)
    H = hessian(residual, s, w, penalty) / safe[:, None, None]
    identity = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    regular = (torch.linalg.cholesky_ex(H - _SINGULAR * identity).info == 0) & (total > 0)
    inside = torch.linalg.inv_ex(torch.where(regular[:, None, None], H, identity)).inverse
    singular = (~regular).nonzero().squeeze(1)
    if singular.numel():
        # of these elements alone: eigenvalues cost far more than Cholesky factors
        inside = inside.index_copy(0, singular, _pseudo_inverse(H[singular]))
    on_kink = ((s.sqrt() - 1).abs() <= _KINK_DISTANCE) & (w > 0)
    if penalty.kinked:
        regular = regular & ~on_kink.any(-1)
    return Inverse(inside / safe[:, None, None], basis, 1 / safe, regular)


def attach(
    y: Tensor, alpha: Tensor, w: Tensor, penalty: Penalty, u: Tensor, inverse: Inverse
) -> Tensor:
    """``u``, with its derivatives in the points, ``alpha`` and the weights."""

    def gradient(u: Tensor) -> Tensor:
        residual = u.unsqueeze(1) - y
        psi = penalty.weight(residual.square().sum(-1), alpha.unsqueeze(-1))
        return ((w * psi).unsqueeze(1) @ residual).squeeze(1)

    return attached(u, gradient, inverse.times, y, alpha, w)


def _pseudo_inverse(H: Tensor) -> Tensor:
    """The pseudo-inverse of symmetric ``(B, k, k)`` of norm about 1; zero where not finite."""
    finite = H.isfinite().all(-1).all(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, H, 0.0))
    kept = values.abs() > _SINGULAR
    scaled = vectors * torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0).unsqueeze(-2)
    pseudo: Tensor = scaled @ vectors.mT
    return pseudo
