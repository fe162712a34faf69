"""Feasibility restoration: the nearest thing to a feasible point.

Levenberg-Marquardt on the squared infeasibility ``|h|^2 / 2 + dist(-g, K)^2 / 2``, one run for all
elements that need it. Its gradient is ``J' r`` with ``r = (h, g - Pi(g))``, where ``g - Pi(g)`` is
the part of ``g`` outside ``-K``, and its Gauss-Newton matrix ``J' D J`` with the derivative ``D``
of that part. Damping after Nielsen, "Damping parameter in Marquardt's method" (1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.cones.product import Cones
from ddn_cvx.programs.nonlinear.at_inputs import BoundProgram

_MAX_ITERATIONS = 60


@dataclass(frozen=True, eq=False)
class Restored:
    """Where the restoration stopped; ``violation`` is ``|r|_1``, shape ``(B,)``."""

    point: torch.Tensor
    violation: torch.Tensor
    stationary: torch.Tensor
    iterations: torch.Tensor


def reduce_infeasibility(
    program: BoundProgram,
    cones: Cones,
    start: torch.Tensor,
    scale: torch.Tensor,
    *,
    target: torch.Tensor,
) -> Restored:
    """Lower the violation below ``target``, or to a stationary point.

    Args:
        start: shape ``(B, n)``.
        scale: of each constraint row, shape ``(B, m)``.
        target: shape ``(B,)``.
    """
    u = start.clone()
    batch, n = u.shape
    identity = torch.eye(n, dtype=u.dtype, device=u.device)
    damping = torch.zeros(batch, dtype=u.dtype, device=u.device)
    growth = torch.full_like(damping, 2.0)
    iterations = torch.zeros(batch, dtype=torch.int64, device=u.device)
    stationary = torch.zeros(batch, dtype=torch.bool, device=u.device)
    done = torch.zeros_like(stationary)
    zero = torch.zeros_like(scale)
    size = torch.full_like(damping, torch.inf)

    def outside(c: torch.Tensor) -> torch.Tensor:
        # Pi_{K*}(c) is the part of c that K's complement sees: c - (-Pi_K(-c)).
        return cones.project_dual(c, zero)

    for step in range(_MAX_ITERATIONS):
        _, _, c, jacobian = program.first(u)
        c, jacobian = c * scale, jacobian * scale.unsqueeze(2)
        r = outside(c)
        size = r.abs().sum(1)
        gradient = (jacobian.mT @ r.unsqueeze(2)).squeeze(2)
        normal = jacobian.mT @ cones.derivative(r, r - c).times_matrix(jacobian)
        diagonal = torch.diagonal(normal, dim1=1, dim2=2).amax(1)
        if step == 0:
            damping = 1e-3 * diagonal.clamp_min(1e-8)
        flat = gradient.abs().amax(1) <= 1e-8 * r.norm(dim=1) * diagonal.sqrt().clamp_min(1e-8)
        stationary = stationary | (flat & ~done)
        done = done | flat | (size <= target) | ~size.isfinite()
        if bool(done.all()):
            break
        matrix = normal + damping[:, None, None] * identity
        matrix = torch.where(done[:, None, None], identity, matrix)
        factor, info = torch.linalg.cholesky_ex(matrix)
        change = -torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)
        change = torch.where((info == 0).unsqueeze(1), torch.nan_to_num(change), 0.0)
        trial = u + change
        f, trial_c = program.values(trial)
        trial_r = outside(trial_c * scale)
        before, after = 0.5 * (r * r).sum(1), 0.5 * (trial_r * trial_r).sum(1)
        predicted = 0.5 * (change * (damping.unsqueeze(1) * change - gradient)).sum(1)
        ratio = torch.nan_to_num((before - after) / predicted.clamp_min(1e-300), nan=-1.0)
        good = (ratio > 1e-4) & f.isfinite() & ~done
        u = torch.where(good.unsqueeze(1), trial, u)
        shrink = torch.maximum(1 - (2 * ratio - 1) ** 3, torch.full_like(ratio, 1 / 3))
        damping = torch.where(good, damping * shrink, damping * growth)
        growth = torch.where(good, 2.0, growth * 2)
        iterations += ~done
        small = change.abs().amax(1) <= 1e-12 * (1 + u.abs().amax(1))
        stationary = stationary | (small & ~done)
        done = done | small
    return Restored(u, size, stationary, iterations)
