"""Feasibility restoration (Wächter and Biegler, 2006, 3.3), and the end where it cannot help.

Levenberg-Marquardt on the squared infeasibility ``|h|^2 / 2 + dist(-g, K)^2 / 2``, one run for all
elements that need it. Its gradient is ``J' r`` with ``r = (h, g - Pi(g))``, where ``g - Pi(g)`` is
the part of ``g`` outside ``-K``, and its Gauss-Newton matrix ``J' D J`` with the derivative ``D``
of that part. Damping after Nielsen, "Damping parameter in Marquardt's method" (1999).
"""

from __future__ import annotations

import torch

from ddn_cvx.solvers.nonlinear.barrier_problem import DELTA_FIRST, BarrierProblem, State
from ddn_cvx.status import Status

_MAX_ITERATIONS = 60


def rescue(
    problem: BarrierProblem,
    state: State,
    rejected: torch.Tensor,
    theta: torch.Tensor,
    phi: torch.Tensor,
) -> None:
    """Restore feasibility of the elements without an acceptable step, or count a stall.

    Args:
        rejected: these elements, bool, shape ``(W,)``.
        theta, phi: where their line search started, shape ``(W,)``.
    """
    feasible = theta <= 1e-8 * (1 + state.u.abs().amax(1))
    hopeless = rejected & (feasible | (state.restorations >= 8) | ~theta.isfinite())
    # Feasible, and no descent within rounding: one more chance with a fresh filter, then stop.
    state.stalls = torch.where(hopeless, state.stalls + 1, state.stalls)
    state.empty_filter(hopeless)
    state.delta = torch.where(hopeless, (10 * state.delta).clamp(DELTA_FIRST, 1e8), state.delta)
    needed = rejected & ~hopeless
    if not bool(needed.any()):
        return
    state.augment_filter(needed, theta, phi)
    index = needed.nonzero().squeeze(1)
    part, mu, before = problem.select(index), state.mu[index], theta[index]
    found = _reduce_infeasibility(part, state.u[index], target=0.1 * before)
    u, violation, stationary, iterations = found
    _, c = part.values(u)
    # Inside the cone by no more than the barrier parameter asks for.
    s = part.slack(c, (0.1 * mu).clamp(1e-8, 1e-2).unsqueeze(1))
    stuck = stationary & (violation > 1e-6)
    state.u[index], state.s[index], state.y[index] = u, s, 0.0
    state.z[index] = mu.unsqueeze(1) * part.barrier.inverse(s)
    state.status[index] = torch.where(stuck, int(Status.INFEASIBLE), state.status[index])
    state.restorations[index] += 1
    state.iterations[index] += iterations
    state.stalls[index] += part.theta(c, s) > 0.9 * before


def _reduce_infeasibility(
    problem: BarrierProblem, start: torch.Tensor, *, target: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Lower the violation below ``target`` ``(B,)``, or to a stationary point, from ``(B, n)``.

    Returns the point, its violation ``|r|_1``, whether it is stationary, and the iterations.
    """
    u = start.clone()
    batch, n = u.shape
    identity = torch.eye(n, dtype=u.dtype, device=u.device)
    damping = torch.zeros(batch, dtype=u.dtype, device=u.device)
    growth = torch.full_like(damping, 2.0)
    iterations = torch.zeros(batch, dtype=torch.int64, device=u.device)
    stationary = torch.zeros(batch, dtype=torch.bool, device=u.device)
    done = torch.zeros_like(stationary)
    cones, zero = problem.cones, torch.zeros_like(problem.scale_c)
    size = torch.full_like(damping, torch.inf)

    def outside(c: torch.Tensor) -> torch.Tensor:
        # Pi_{K*}(c) is the part of c that K's complement sees: c - (-Pi_K(-c)).
        return cones.project_dual(c, zero)

    for step in range(_MAX_ITERATIONS):
        _, c, jacobian = problem.first(u)
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
        f, trial_c = problem.values(trial)
        trial_r = outside(trial_c)
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
    return u, size, stationary, iterations
