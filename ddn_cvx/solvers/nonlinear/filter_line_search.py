"""The filter line search of Wächter and Biegler (2006), section 2.3, with its corrections (2.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.cones.scaling import ConeProduct, Scaling
from ddn_cvx.solvers.nonlinear.barrier_problem import (
    GAMMA_PHI,
    GAMMA_THETA,
    BarrierProblem,
    Point,
    State,
    System,
    newton_step,
)
from ddn_cvx.solvers.nonlinear.restoration import rescue

# Constants of the method, with the names and values of Wächter and Biegler (2006).
_TAU_MIN, _DELTA, _ETA = 0.99, 1.0, 1e-8
_S_THETA, _S_PHI, _KAPPA_SIGMA = 1.1, 2.3, 1e10
_BACKTRACKS = 24


class _Search(NamedTuple):
    """The acceptance tests of a trial point (eq. 18 to 20).

    Attributes:
        theta, phi, slope: at the start of the line search, shape ``(W,)``.
        rounding: differences of ``phi`` below this are rounding (as in Ipopt's Compare_le).
        state: with the filter.
    """

    theta: torch.Tensor
    phi: torch.Tensor
    slope: torch.Tensor
    rounding: torch.Tensor
    state: State

    def accepts(
        self, problem: BarrierProblem, alpha: torch.Tensor, u: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Which trial points are acceptable, for which the objective decided; ``c, theta, phi``."""
        state = self.state
        f, c = problem.values(u)
        theta, phi = problem.theta(c, s), problem.phi(f, s, state.mu)
        finite = theta.isfinite() & phi.isfinite()
        power = (-self.slope).clamp_min(0.0) ** _S_PHI
        switching = (self.slope < 0) & (alpha * power > _DELTA * self.theta**_S_THETA)
        decides = switching & (self.theta <= state.theta_min)
        armijo = phi <= self.phi + _ETA * alpha * self.slope + self.rounding
        less = (theta <= (1 - GAMMA_THETA) * self.theta) | (
            phi <= self.phi - GAMMA_PHI * self.theta + self.rounding
        )
        progress = torch.where(decides, armijo, less)
        outside = (theta.unsqueeze(1) < state.filter_theta) | (
            phi.unsqueeze(1) <= state.filter_phi + self.rounding.unsqueeze(1)
        )
        free = outside.all(1) & (theta <= state.theta_max)
        return finite & progress & free, decides & armijo, c, theta, phi


def advance(problem: BarrierProblem, state: State, at: Point, running: torch.Tensor) -> None:
    """One iteration: a Newton step, shortened until the filter takes it, or a restoration."""
    system, direction = newton_step(problem, state, at, running)
    barrier, scaling = problem.barrier, system.scaling
    tau = torch.maximum(1 - state.mu, torch.full_like(state.mu, _TAU_MIN))
    theta = problem.theta(at.c, state.s)
    phi = problem.phi(at.f, state.s, state.mu)
    slope = (at.gradient * direction.u).sum(1)
    alpha = alpha_z = torch.ones_like(state.mu)
    if scaling is not None:
        alpha = _longest(barrier, scaling, barrier.scale_slacks(scaling, direction.s), tau)
        alpha_z = _longest(barrier, scaling, barrier.scale_multipliers(scaling, direction.z), tau)
        slope = slope - (system.target * direction.s).sum(1)
    search = _Search(theta, phi, slope, 10 * torch.finfo(phi.dtype).eps * phi.abs(), state)
    pending = running & ~direction.failed
    tiny = (direction.u.abs().amax(1) <= 1e-14) & (theta <= 1e-6)
    u, s = state.u, state.s
    accepted = torch.zeros_like(pending)
    augment = torch.zeros_like(pending)
    for backtrack in range(_BACKTRACKS):
        if not bool(pending.any()):
            break
        trial_u = state.u + alpha.unsqueeze(1) * direction.u
        trial_s = state.s + alpha.unsqueeze(1) * direction.s
        tried = search.accepts(problem, alpha, trial_u, trial_s)
        good, armijo, c, trial_theta, trial_phi = tried
        good = (good | (tiny & trial_phi.isfinite())) & pending
        if backtrack == 0 and problem.cones.rows:
            correct = pending & ~good & (trial_theta >= theta) & trial_theta.isfinite()
            if bool(correct.any()):
                residual = alpha.unsqueeze(1) * problem.residual(at.c, state.s)
                residual = residual + problem.residual(c, trial_s)
                done, moved_u, moved_s, by_objective = _correct(
                    problem, system, at, alpha, tau, residual, search, correct
                )
                trial_u = torch.where(done.unsqueeze(1), moved_u, trial_u)
                trial_s = torch.where(done.unsqueeze(1), moved_s, trial_s)
                good, armijo = good | done, torch.where(done, by_objective, armijo)
        u = torch.where(good.unsqueeze(1), trial_u, u)
        s = torch.where(good.unsqueeze(1), trial_s, s)
        accepted, pending = accepted | good, pending & ~good
        augment = augment | (good & ~armijo)
        alpha = torch.where(pending, 0.5 * alpha, alpha)
    state.augment_filter(augment, theta, phi)
    column = accepted.unsqueeze(1)
    state.u, state.s = u, s
    state.y = torch.where(column, state.y + alpha.unsqueeze(1) * direction.y, state.y)
    z = torch.where(column, state.z + alpha_z.unsqueeze(1) * direction.z, state.z)
    state.z = _near_the_path(z, state, barrier.linear)
    state.stalls = torch.where(accepted & tiny, state.stalls + 1, state.stalls)
    rejected = running & ~accepted
    if bool(rejected.any()):
        rescue(problem, state, rejected, theta, phi)


def _longest(
    barrier: ConeProduct, scaling: Scaling, scaled: torch.Tensor, tau: torch.Tensor
) -> torch.Tensor:
    """The longest step along a scaled direction that keeps to the boundary (eq. 15)."""
    longest = tau / barrier.step_rate(scaling, (scaled,))
    return torch.nan_to_num(longest.clamp_max(1.0), nan=0.0)


def _correct(
    problem: BarrierProblem,
    system: System,
    at: Point,
    alpha: torch.Tensor,
    tau: torch.Tensor,
    residual: torch.Tensor,
    search: _Search,
    pending: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Second-order corrections (section 2.4): aim at the residual of the trial point too.

    Args:
        residual: the aim, shape ``(W, m)``.
        pending: the elements to correct, bool, shape ``(W,)``.

    Returns:
        Which elements were accepted, their ``u`` and ``s``, and for which the objective decided.
    """
    state, last = search.state, search.theta
    accepted = by_objective = torch.zeros_like(pending)
    best_u, best_s, step = state.u, state.s, torch.ones_like(alpha)
    for _ in range(4):
        residual = torch.where(pending.unsqueeze(1), residual, 0.0)
        du, ds, _, _ = system.solve(problem, state, at, residual)
        if system.scaling is not None:
            scaled = problem.barrier.scale_slacks(system.scaling, ds)
            step = _longest(problem.barrier, system.scaling, scaled, tau)
        u, s = state.u + step.unsqueeze(1) * du, state.s + step.unsqueeze(1) * ds
        good, armijo, c, theta, _ = search.accepts(problem, alpha, u, s)
        good = good & pending
        best_u = torch.where(good.unsqueeze(1), u, best_u)
        best_s = torch.where(good.unsqueeze(1), s, best_s)
        accepted, by_objective = accepted | good, by_objective | (good & armijo)
        pending = pending & ~good & (theta <= 0.99 * last)
        if not bool(pending.any()):
            break
        last = theta
        residual = step.unsqueeze(1) * residual + problem.residual(c, s)
    return accepted, best_u, best_s, by_objective


def _near_the_path(z: torch.Tensor, state: State, linear: int) -> torch.Tensor:
    """Multipliers for which the primal-dual Hessian stays near the primal one (eq. 16)."""
    if not linear:
        return z
    central = state.mu.unsqueeze(1) / state.s[:, :linear]
    kept = z[:, :linear].clamp(central / _KAPPA_SIGMA, central * _KAPPA_SIGMA)
    return torch.cat([kept, z[:, linear:]], 1)
