"""Monotone descent of ``sum_i w_i phi(|u - y_i|)`` at ``alpha = 1``, many starts at once.

First reweighted least squares (Weiszfeld's iteration, a majorise-minimise method), then the best of
Newton's step and the reweighted mean, whole and lengthened. A step is taken only if it lowers the
objective; the change is summed from the changes of the terms, which resolves it far below the
rounding of the objective itself. Converged rows are frozen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import select
from ddn_cvx.dedicated.pooling.penalties import Penalty
from ddn_cvx.linalg.products import matvec

# Norm of the gradient, relative to the sum of its terms' norms, below which a point is stationary.
_GRADIENT_TOLERANCE = 1e-12

# The gradient's rounding error per term, relative to the size of the point.
_GRADIENT_ROUNDING = 8 * torch.finfo(torch.float64).eps

# Reweighted steps before Newton's are tried: they identify the inliers.
_REWEIGHTED_STEPS = 4

# Limit on steps; only nearly singular minima need more than about thirty.
_MAX_STEPS = 500

# Step lengths of the reweighted step, which is short where the curvature is far below its bound.
_STEP_LENGTHS = (1.0, 2.0, 6.0)


class Descent(NamedTuple):
    """The last iterates of ``K`` starts.

    Attributes:
        u: points, shape ``(B, K, m)``.
        objective: at ``alpha = 1``, shape ``(B, K)``.
        converged: whether the gradient is at rounding level, shape ``(B, K)``.
    """

    u: Tensor
    objective: Tensor
    converged: Tensor


def objective(y: Tensor, w: Tensor, penalty: Penalty, u: Tensor) -> Tensor:
    """The objective at ``u`` of shape ``(B, K, m)``, for points ``(B, n, m)``; shape ``(B, K)``."""
    s = (u.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)
    return (w.unsqueeze(1) * penalty.of_square(s)).sum(-1)


def descend(
    y: Tensor, w: Tensor, penalty: Penalty, starts: Tensor, steps: int = _MAX_STEPS
) -> Descent:
    """Descend from each of ``starts`` ``(B, K, m)`` on points ``y`` ``(B, n, m)``."""
    u = starts.flatten(0, 1).clone()
    converged = torch.zeros(u.shape[0], dtype=torch.bool, device=u.device)
    row = torch.arange(u.shape[0], device=u.device)
    owner = row // max(starts.shape[1], 1)
    points, weights = y[owner], w[owner]
    sizes = points.norm(dim=-1)
    for iteration in range(steps + 1):
        at = u[row]
        residual = at.unsqueeze(1) - points
        s = residual.square().sum(-1)
        pull = weights * penalty.weight(s)
        total = pull.sum(-1)
        gradient = matvec(residual.mT, pull)
        scale = (pull * (_GRADIENT_TOLERANCE * s.sqrt() + _GRADIENT_ROUNDING * sizes)).sum(-1)
        done = gradient.norm(dim=-1) <= scale
        converged[row] = done
        if iteration == steps:
            break
        mean = -gradient / torch.where(total > 0, total, 1.0).unsqueeze(-1)
        plain = iteration < _REWEIGHTED_STEPS or not penalty.curved
        tried = [mean] if plain else [length * mean for length in _STEP_LENGTHS]
        if not plain:
            H = hessian(residual, s, weights, penalty)
            tried.append(_newton(H, gradient, total > 0, mean))
        move = torch.stack(tried, 1)
        by = 2 * move @ residual.mT + move.square().sum(-1, keepdim=True)
        before = s.unsqueeze(1)
        # rounding of the change must not make the squared norm negative
        by = torch.maximum(by, -before)
        change = (weights.unsqueeze(1) * penalty.change(before.expand_as(by), by)).sum(-1)
        best, which = change.min(1)
        landed = at + move.gather(1, which[:, None, None].expand(-1, 1, move.shape[-1])).squeeze(1)
        better = (best < 0) & ~done & (landed != at).any(-1)
        u[row] = torch.where(better.unsqueeze(-1), landed, at)
        if not better.all():
            keep = better.nonzero().squeeze(1)
            row, points, weights, sizes = select((row, points, weights, sizes), keep)
        if row.numel() == 0:
            break
    u = u.unflatten(0, starts.shape[:2])
    return Descent(u, objective(y, w, penalty, u), converged.unflatten(0, starts.shape[:2]))


def hessian(residual: Tensor, s: Tensor, w: Tensor, penalty: Penalty) -> Tensor:
    """``sum_i w_i (psi_i I + bend_i r_i r_i')`` at ``alpha = 1``, shape ``(B, m, m)``."""
    total = (w * penalty.weight(s)).sum(-1)
    outer = residual.mT @ ((w * penalty.bend(s)).unsqueeze(-1) * residual)
    return outer + torch.diag_embed(total.unsqueeze(-1).expand(-1, residual.shape[-1]))


def _newton(H: Tensor, gradient: Tensor, usable: Tensor, otherwise: Tensor) -> Tensor:
    """Newton's step where ``H`` is ``usable`` and positive definite, ``otherwise`` elsewhere."""
    factor, failed = torch.linalg.cholesky_ex(H)
    usable = usable & (failed == 0)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    factor = torch.where(usable[:, None, None], factor, identity)
    step = -torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
    return torch.where((usable & step.isfinite().all(-1)).unsqueeze(-1), step, otherwise)
