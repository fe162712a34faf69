"""A batched primal-dual interior-point method with a filter line search.

For ``min f(u)  s.t.  h(u) = 0,  g(u) + s = 0,  s in K`` with symmetric cones ``K`` it solves a
sequence of barrier problems ``min f(u) - mu log det(s)``. After Wächter and Biegler, "On the
implementation of an interior-point filter line-search algorithm for large-scale nonlinear
programming" (2006), whose equation numbers stand in the comments: gradient-based scaling (3.8),
monotone barrier updates (eq. 7), inertia correction (section 3.1), the filter and its switching
condition (eq. 18 to 20), second-order corrections (2.4), and a feasibility restoration phase, which
here is a Levenberg-Marquardt minimisation of the squared infeasibility (3.3). Cones other than the
nonnegative one enter through Nesterov-Todd scaling (:mod:`~ddn_cvx.cones.scaling`). Without
constraints it is Newton's method with inertia correction and a line search.

The parts: :mod:`~ddn_cvx.solvers.nonlinear.barrier_problem` (functions, state, Newton step),
:mod:`~ddn_cvx.solvers.nonlinear.filter_line_search` and
:mod:`~ddn_cvx.solvers.nonlinear.restoration`. All elements advance together, each with its own
barrier parameter, filter, step length and regularisation; converged elements are frozen, and
dropped when they are more than half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ddn_cvx.batch.elements import put, select
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.nonlinear.barrier_problem import (
    FILTER_SIZE,
    BarrierProblem,
    Point,
    State,
    scaled_problem,
)
from ddn_cvx.solvers.nonlinear.filter_line_search import advance
from ddn_cvx.status import Status

_RUNNING = -1

# Constants of the method, with the names and values of Wächter and Biegler (2006).
_KAPPA_EPSILON, _KAPPA_MU, _THETA_MU, _S_MAX = 10.0, 0.2, 1.5, 100.0
# An unknown beyond this, or a scaled objective below its negative, has diverged.
_DIVERGED = 1e12
_FALLEN = 1e6
# A first slack has no eigenvalue below this, for constraints scaled to gradients of 100 and less.
_LEAST_SLACK = 1e-2


@dataclass(frozen=True)
class InteriorPoint:
    """The method's settings.

    Attributes:
        max_iterations: each element stops there, whatever it has.
        tolerance: of the scaled optimality error (eq. 5).
        initial_barrier: the first barrier parameter ``mu``.
    """

    max_iterations: int = 300
    tolerance: float = 1e-9
    initial_barrier: float = 0.1

    name: ClassVar[str] = "interior point"
    in_torch: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, program: NonlinearInstance, start: torch.Tensor) -> Answer:
        """Solve from ``start``, shape ``(B, n)``.

        An element whose functions are not finite at its start is BAD_INPUT there.
        """
        whole, first = scaled_problem(program, start)
        problem, state = whole, _start(whole, start, first, self.initial_barrier)
        found: Answer | None = None
        for iteration in range(self.max_iterations + 1):
            at = problem.second(state.u, torch.cat([state.y, state.z], 1))
            error = _error(problem, state, at)
            undefined = Status.BAD_INPUT if iteration == 0 else Status.FAILED
            _finish(problem, state, at, error, self.tolerance, undefined)
            running = state.status == _RUNNING
            count = int(running.sum())
            last = count == 0 or iteration == self.max_iterations
            few = 2 * count <= len(running)
            if last or few:
                part = _answer(problem, state, at)
                found = part if found is None else put(found, state.element, part)
            if last:
                break
            if few:  # sizes are powers of two, so that few shapes are recorded
                size = 1 << (count - 1).bit_length()
                keep = torch.argsort(running.logical_not().to(torch.int8), stable=True)[:size]
                state, at, error, running = select((state, at, error, running), keep)
                problem = whole.select(state.element)
            _update_barrier(problem, state, error, running, self.tolerance / 10)
            advance(problem, state, at, running)
            state.iterations += running
        assert found is not None
        return found


def _start(
    problem: BarrierProblem, u: torch.Tensor, first: tuple[torch.Tensor, ...], barrier: float
) -> State:
    gradient, c, jacobian = first
    batch, s = len(u), problem.slack(c, _LEAST_SLACK)
    mu = u.new_full((batch,), barrier)
    z = mu.unsqueeze(1) * problem.barrier.inverse(s)
    theta = problem.theta(c, s).clamp_min(1.0)
    zero = torch.zeros(batch, dtype=torch.int64, device=u.device)
    unfiltered = u.new_full((batch, FILTER_SIZE), torch.inf)
    return State(
        element=torch.arange(batch, device=u.device),
        status=torch.full_like(zero, _RUNNING),
        iterations=zero,
        u=u.clone(),
        s=s,
        y=_least_squares_multipliers(gradient, jacobian, z),
        z=z,
        mu=mu,
        delta=torch.zeros_like(mu),
        filter_theta=unfiltered,
        filter_phi=unfiltered.clone(),
        filter_count=zero.clone(),
        theta_max=1e4 * theta,
        theta_min=1e-4 * theta,
        restorations=zero.clone(),
        stalls=zero.clone(),
        best_error=torch.full_like(mu, torch.inf),
        since_best=zero.clone(),
    )


def _least_squares_multipliers(
    gradient: torch.Tensor, jacobian: torch.Tensor, z: torch.Tensor
) -> torch.Tensor:
    """``y`` that brings ``grad f + J_h' y + G' z`` nearest to zero (3.6), if not too large."""
    p = jacobian.shape[1] - z.shape[1]
    y = gradient.new_zeros((len(gradient), p))
    if not p:
        return y
    J = torch.nan_to_num(jacobian[:, :p])
    right = gradient + (jacobian[:, p:].mT @ z.unsqueeze(2)).squeeze(2)
    normal = J @ J.mT
    size = torch.diagonal(normal, dim1=1, dim2=2).amax(1).clamp_min(1e-300)
    normal = normal + 1e-8 * size[:, None, None] * torch.eye(p).to(normal)
    factor, info = torch.linalg.cholesky_ex(normal)
    found = torch.cholesky_solve(-(J @ torch.nan_to_num(right).unsqueeze(2)), factor).squeeze(2)
    good = (info == 0) & (found.abs().amax(1) <= 1e3)
    return torch.where(good.unsqueeze(1), torch.nan_to_num(found), y)


def _answer(problem: BarrierProblem, state: State, at: Point) -> Answer:
    dual, evaluation = problem.unscaled(torch.cat([state.y, state.z], 1), at)
    status = torch.where(state.status == _RUNNING, int(Status.INACCURATE), state.status)
    return Answer(state.u, dual, status, state.iterations, evaluation=evaluation)


# -- termination and barrier ----------------------------------------------------------------------


class _Error(NamedTuple):
    """The optimality error but for complementarity, and the divisor of that; shapes ``(W,)``."""

    infeasibility: torch.Tensor
    scale: torch.Tensor

    def with_gap(self, problem: BarrierProblem, state: State, mu: torch.Tensor) -> torch.Tensor:
        """The optimality error ``E_mu`` (eq. 5), shape ``(W,)``."""
        if not problem.barrier.rows:
            return self.infeasibility
        gap = problem.barrier.distance_from_path(state.s, state.z, mu)
        return torch.maximum(self.infeasibility, gap / self.scale)


def _error(problem: BarrierProblem, state: State, at: Point) -> _Error:
    dual, k = torch.cat([state.y, state.z], 1), problem.barrier.rows
    pulled = (at.jacobian.mT @ dual.unsqueeze(2)).squeeze(2)
    stationarity = (at.gradient + pulled).abs().amax(1)
    if not dual.shape[1]:
        return _Error(stationarity, stationarity)
    mean = dual.abs().mean(1)
    stationarity = stationarity / (mean.clamp_min(_S_MAX) / _S_MAX)
    primal = problem.residual(at.c, state.s).abs().amax(1)
    size = state.z.abs().mean(1) if k else mean
    return _Error(torch.maximum(stationarity, primal), size.clamp_min(_S_MAX) / _S_MAX)


def _finish(
    problem: BarrierProblem,
    state: State,
    at: Point,
    parts: _Error,
    tolerance: float,
    undefined: Status,
) -> None:
    """Set the status of the elements that end here; ``undefined`` where values are not finite."""
    running = state.status == _RUNNING
    error = parts.with_gap(problem, state, torch.zeros_like(state.mu)).nan_to_num(nan=torch.inf)
    size = state.u.abs().amax(1)
    diverged = (size > _DIVERGED) | (at.f < -_DIVERGED)
    # Far out along an asymptote the objective tends to a number: that is not unbounded.
    falling = at.f < -_FALLEN
    feasible = problem.theta(at.c, state.s) <= 1e-4 * (1 + size)
    # At the limit of rounding the error no longer falls: stop there.
    better = error < 0.9 * state.best_error
    state.best_error = torch.where(better, error, state.best_error)
    state.since_best = torch.where(better, 0, state.since_best + running)
    near = state.best_error <= 1e3 * tolerance
    verdicts = (
        (~at.finite(), undefined),
        (error <= tolerance, Status.SOLVED),
        (diverged & falling & feasible, Status.UNBOUNDED),
        (diverged, Status.FAILED),
        (near & (state.since_best >= 12), Status.INACCURATE),
        (state.stalls >= 3, Status.INACCURATE),
    )
    status = torch.full_like(state.status, _RUNNING)
    for where, verdict in reversed(verdicts):  # the first one counts
        status = torch.where(where, int(verdict), status)
    state.status = torch.where(running, status, state.status)


def _update_barrier(
    problem: BarrierProblem, state: State, error: _Error, running: torch.Tensor, floor: float
) -> None:
    """Lower ``mu`` where the barrier problem is solved (eq. 7), and empty the filter."""
    if not problem.barrier.rows:
        state.mu = torch.zeros_like(state.mu)
        return
    for _ in range(4):
        solved = error.with_gap(problem, state, state.mu) <= _KAPPA_EPSILON * state.mu
        lower = solved & (state.mu > floor) & running
        new = _KAPPA_MU * state.mu
        if problem.cones.is_polyhedral:
            # Curved cones lose their central path to superlinear decrease.
            new = torch.minimum(new, state.mu**_THETA_MU)
        state.mu = torch.where(lower, new.clamp_min(floor), state.mu)
        state.empty_filter(lower)
        if not bool(lower.any()):
            break
