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

The Newton step is condensed to the unknown and the equality multipliers:

    [H + G' W^-2 G + delta I   J_h'   ] [du ]     [grad f + J_h' y + G' (mu s^-1 + W^-2 (g + s))]
    [J_h                       -delta_c] [dy ] = - [h                                             ]

All elements advance together, each with its own barrier parameter, filter, step length and
regularisation; finished ones are frozen, and dropped when they are more than half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ddn_cvx.batch.elements import select
from ddn_cvx.cones.scaling import ConeProduct, Scaling
from ddn_cvx.linalg.inertia import SymmetricFactor, symmetric_factor
from ddn_cvx.programs.nonlinear.at_inputs import BoundProgram
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.nonlinear.restoration import reduce_infeasibility
from ddn_cvx.status import Status

_RUNNING = -1

# Constants of the method, with the names and values of Wächter and Biegler (2006).
_KAPPA_EPSILON, _KAPPA_MU, _THETA_MU, _TAU_MIN = 10.0, 0.2, 1.5, 0.99
_GAMMA_THETA, _GAMMA_PHI, _DELTA, _ETA = 1e-5, 1e-8, 1.0, 1e-8
_S_THETA, _S_PHI, _KAPPA_SIGMA, _S_MAX = 1.1, 2.3, 1e10, 100.0
_DELTA_FIRST, _DELTA_MIN, _DELTA_MAX, _DELTA_C = 1e-4, 1e-20, 1e20, 1e-9
_SCALED_GRADIENT = 100.0
# An unknown beyond this, or a scaled objective below its negative, has diverged.
_DIVERGED = 1e12
_FALLEN = 1e6
# A first slack has no eigenvalue below this, for constraints scaled to gradients of 100 and less.
_LEAST_SLACK = 1e-2
_FILTER_SIZE = 48
_BACKTRACKS = 24


@dataclass
class _State:
    """The working set; every tensor's first dimension is its size ``W``."""

    element: torch.Tensor  # position in the batch
    status: torch.Tensor
    iterations: torch.Tensor
    u: torch.Tensor  # (W, n)
    s: torch.Tensor  # (W, k)
    y: torch.Tensor  # (W, p), equality multipliers
    z: torch.Tensor  # (W, k)
    mu: torch.Tensor  # (W,)
    delta: torch.Tensor  # last nonzero regularisation
    filter_theta: torch.Tensor  # (W, F)
    filter_phi: torch.Tensor  # (W, F)
    filter_count: torch.Tensor
    scale_f: torch.Tensor  # (W,)
    scale_c: torch.Tensor  # (W, m)
    theta_max: torch.Tensor
    theta_min: torch.Tensor
    restorations: torch.Tensor
    stalls: torch.Tensor
    best_error: torch.Tensor
    since_best: torch.Tensor


@dataclass(frozen=True)
class _Point:
    """Scaled values and derivatives at the working set's points."""

    f: torch.Tensor  # (W,)
    gradient: torch.Tensor  # (W, n)
    c: torch.Tensor  # (W, m)
    jacobian: torch.Tensor  # (W, m, n)
    hessian: torch.Tensor  # (W, n, n)

    def finite(self) -> torch.Tensor:
        total = self.f + self.gradient.sum(1) + self.c.sum(1)
        return (total + self.jacobian.sum((1, 2)) + self.hessian.sum((1, 2))).isfinite()


class _Error(NamedTuple):
    """The optimality error but for complementarity, and the divisor of that; shapes ``(W,)``."""

    infeasibility: torch.Tensor
    scale: torch.Tensor


class _System(NamedTuple):
    """A Newton step's linear system."""

    matrix: torch.Tensor  # (W, n + p, n + p)
    factor: SymmetricFactor
    scaling: Scaling | None  # of the cones; None without rows of any
    target: torch.Tensor  # mu s^-1


class _Direction(NamedTuple):
    """A Newton step, and for which elements there is none."""

    u: torch.Tensor
    s: torch.Tensor
    y: torch.Tensor
    z: torch.Tensor
    failed: torch.Tensor


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

    name = "interior point"

    def __call__(self, program: BoundProgram, start: torch.Tensor) -> Answer:
        """Solve from ``start``, shape ``(B, n)``.

        An element whose functions are not finite at its start is BAD_INPUT there.
        """
        with torch.no_grad():
            return _Run(self, program, start).solve()


@dataclass(frozen=True, eq=False)
class _Regrouped(BoundProgram):
    """A program with its rows in the order of its groups of cones.

    Attributes:
        orders: that order, and its inverse.
    """

    orders: tuple[torch.Tensor, ...]

    def select(self, elements: torch.Tensor) -> _Regrouped:
        part = super().select(elements)
        return _Regrouped(part.derivatives, part.inputs, part.batch, self.orders)

    def values(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f, c = super().values(u)
        return f, c[:, self.orders[0]]

    def first(self, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        f, gradient, *rows = super().first(u)
        return f, gradient, *(of_rows[:, self.orders[0]] for of_rows in rows)

    def second(self, u: torch.Tensor, dual: torch.Tensor) -> tuple[torch.Tensor, ...]:
        order, back = self.orders
        f, gradient, c, jacobian, hessian = super().second(u, dual[:, back])
        return f, gradient, c[:, order], jacobian[:, order], hessian


class _Run:
    def __init__(self, method: InteriorPoint, program: BoundProgram, start: torch.Tensor) -> None:
        self.method = method
        cones = program.program.cones
        order = cones.regrouping
        if order is not None:
            own = program.derivatives, program.inputs, program.batch
            program = _Regrouped(*own, order(start.device))
        self.whole = program
        self.program = self.whole
        self.cones = cones.in_groups()
        self.p = self.cones.zero
        self.barrier = ConeProduct(self.cones, 0, start)  # of the rows that are no equations
        self.state = self._start(start)
        (batch, n), m = start.shape, self.cones.rows
        self.found = Answer(
            primal=start.clone(),
            dual=start.new_zeros((batch, m)),
            status=torch.full((batch,), int(Status.FAILED), device=start.device),
            iterations=torch.zeros(batch, dtype=torch.int64, device=start.device),
            evaluation=tuple(
                start.new_zeros((batch, *shape)) for shape in ((), (n,), (m,), (m, n), (n, n))
            ),
        )

    # -- the outer loop -------------------------------------------------------------------------

    def solve(self) -> Answer:
        state = self.state
        for iteration in range(self.method.max_iterations + 1):
            point = self._evaluate(state.u, torch.cat([state.y, state.z], 1))
            error = self._error(point)
            self._finish(point, error, iteration)
            running = state.status == _RUNNING
            count = int(running.sum())
            if count == 0 or iteration == self.method.max_iterations:
                self._collect(point)
                break
            if 2 * count <= len(running):
                self._collect(point)
                keep = self._compress(running, count)
                state = self.state
                point, error = select((point, error), keep)
                running = running[keep]
            self._update_barrier(error, running)
            self._step(point, running)
            state.iterations += running
        return self.found

    def _compress(self, running: torch.Tensor, count: int) -> torch.Tensor:
        # Sizes are powers of two, so that few shapes are recorded.
        size = 1 << (count - 1).bit_length()
        keep = torch.argsort(running.logical_not().to(torch.int8), stable=True)[:size]
        self.state = select(self.state, keep)
        self.program = self.whole.select(self.state.element)
        return keep

    def _collect(self, point: _Point) -> None:
        state, found = self.state, self.found
        by_f, by_c = state.scale_f.unsqueeze(1), state.scale_c
        unscaled = (
            point.f / state.scale_f,
            point.gradient / by_f,
            point.c / by_c,
            point.jacobian / by_c.unsqueeze(2),
            point.hessian / by_f.unsqueeze(2),
        )
        dual = torch.cat([state.y, state.z], 1) * (by_c / by_f)
        dual, evaluation = self._in_order(dual, unscaled)
        assert found.evaluation is not None
        for whole, part in zip(found.evaluation, evaluation, strict=True):
            whole[state.element] = part
        found.primal[state.element] = state.u
        found.dual[state.element] = dual
        found.status[state.element] = torch.where(
            state.status == _RUNNING, int(Status.INACCURATE), state.status
        )
        found.iterations[state.element] = state.iterations

    def _in_order(
        self, dual: torch.Tensor, evaluation: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Multipliers and an evaluation with the rows in the program's order."""
        if not isinstance(self.whole, _Regrouped):
            return dual, evaluation
        back, (f, gradient, c, jacobian, hessian) = self.whole.orders[1], evaluation
        return dual[:, back], (f, gradient, c[:, back], jacobian[:, back], hessian)

    # -- start ----------------------------------------------------------------------------------

    def _start(self, start: torch.Tensor) -> _State:
        batch, m = len(start), self.cones.rows
        options: dict[str, Any] = {"dtype": start.dtype, "device": start.device}
        u = start
        _, gradient, c, jacobian = self.program.first(u)
        largest = gradient.abs().amax(1) if gradient.shape[1] else gradient.new_zeros(batch)
        scale_f = (_SCALED_GRADIENT / largest.clamp_min(1e-300)).clamp(1e-8, 1.0)
        scale_c = torch.ones((batch, m), **options)
        if m:
            rows = jacobian.abs().amax(2)
            for group in self.cones.groups:  # one scale for the rows of a cone
                group.of(rows)[:] = group.of(rows).amax(-1, keepdim=True)
            scale_c = (_SCALED_GRADIENT / rows.clamp_min(1e-300)).clamp(1e-8, 1.0)
        scale_f = torch.nan_to_num(scale_f, nan=1.0)
        scale_c = torch.nan_to_num(scale_c, nan=1.0)
        c = c * scale_c
        s = self._slack(c[:, self.p :])
        mu = torch.full((batch,), self.method.initial_barrier, **options)
        z = mu.unsqueeze(1) * self.barrier.inverse(s)
        theta = self._theta(c, s)
        gradient, jacobian = gradient * scale_f.unsqueeze(1), jacobian * scale_c.unsqueeze(2)
        y = self._least_squares_multipliers(gradient, jacobian, z)
        empty = torch.full((batch, _FILTER_SIZE), torch.inf, **options)
        zero = torch.zeros(batch, dtype=torch.int64, device=u.device)
        return _State(
            element=torch.arange(batch, device=u.device),
            status=torch.full((batch,), _RUNNING, device=u.device),
            iterations=zero.clone(),
            u=u.clone(),
            s=s,
            y=y,
            z=z,
            mu=mu,
            delta=torch.zeros(batch, **options),
            filter_theta=empty,
            filter_phi=empty.clone(),
            filter_count=zero.clone(),
            scale_f=scale_f,
            scale_c=scale_c,
            theta_max=1e4 * theta.clamp_min(1.0),
            theta_min=1e-4 * theta.clamp_min(1.0),
            restorations=zero.clone(),
            stalls=zero.clone(),
            best_error=torch.full((batch,), torch.inf, **options),
            since_best=zero.clone(),
        )

    def _slack(self, g: torch.Tensor) -> torch.Tensor:
        """``s = -g`` where that is well inside the cone, else moved inside along ``e``."""
        s = -g
        if not self.barrier.rows:
            return s
        lift = (_LEAST_SLACK - self.barrier.margins(s)).clamp_min(0.0)
        return s + lift * self.barrier.identity

    def _least_squares_multipliers(
        self, gradient: torch.Tensor, jacobian: torch.Tensor, z: torch.Tensor
    ) -> torch.Tensor:
        """``y`` that brings ``grad f + J_h' y + G' z`` nearest to zero (3.6), if not too large."""
        p = self.p
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

    # -- values ---------------------------------------------------------------------------------

    def _evaluate(self, u: torch.Tensor, dual: torch.Tensor) -> _Point:
        state = self.state
        # L scaled = scale_f (f + <y scale_c / scale_f, c>).
        scale = state.scale_c / state.scale_f.unsqueeze(1)
        f, gradient, c, jacobian, hessian = self.program.second(u, dual * scale)
        by_f = state.scale_f
        return _Point(
            f * by_f,
            gradient * by_f.unsqueeze(1),
            c * state.scale_c,
            jacobian * state.scale_c.unsqueeze(2),
            hessian * by_f[:, None, None],
        )

    def _values(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f, c = self.program.values(u)
        return f * self.state.scale_f, c * self.state.scale_c

    def _theta(self, c: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Infeasibility ``|h|_1 + |g + s|_1``, shape ``(W,)``."""
        return c[:, : self.p].abs().sum(1) + (c[:, self.p :] + s).abs().sum(1)

    def _phi(self, f: torch.Tensor, s: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        if not self.barrier.rows:
            return f
        return f - mu * self.barrier.log_det(s)

    def _error(self, point: _Point) -> _Error:
        """The parts of the optimality error (eq. 5)."""
        state, p = self.state, self.p
        dual = torch.cat([state.y, state.z], 1)
        pulled = (point.jacobian.mT @ dual.unsqueeze(2)).squeeze(2)
        stationarity = (point.gradient + pulled).abs().amax(1)
        m, k = dual.shape[1], self.barrier.rows
        if not m:
            return _Error(stationarity, stationarity)
        mean = dual.abs().sum(1) / m
        stationarity = stationarity / (mean.clamp_min(_S_MAX) / _S_MAX)
        primal = torch.cat([point.c[:, :p], point.c[:, p:] + state.s], 1).abs().amax(1)
        size = state.z.abs().sum(1) / k if k else mean
        return _Error(torch.maximum(stationarity, primal), size.clamp_min(_S_MAX) / _S_MAX)

    def _with_gap(self, error: _Error, mu: torch.Tensor) -> torch.Tensor:
        """The optimality error ``E_mu`` (eq. 5), shape ``(W,)``."""
        if not self.barrier.rows:
            return error.infeasibility
        gap = self.barrier.distance_from_path(self.state.s, self.state.z, mu)
        return torch.maximum(error.infeasibility, gap / error.scale)

    # -- termination and barrier ----------------------------------------------------------------

    def _finish(self, point: _Point, parts: _Error, iteration: int) -> None:
        state = self.state
        running = state.status == _RUNNING
        broken = ~point.finite()
        error = self._with_gap(parts, torch.zeros_like(state.mu)).nan_to_num(nan=torch.inf)
        diverged = (state.u.abs().amax(1) > _DIVERGED) | (point.f < -_DIVERGED)
        theta = self._theta(point.c, state.s)
        # Far out along an asymptote the objective tends to a number: that is not unbounded.
        falling = point.f < -_FALLEN
        feasible = theta <= 1e-4 * (1 + state.u.abs().amax(1))
        # At the limit of rounding the error no longer falls: stop there.
        better = error < 0.9 * state.best_error
        state.best_error = torch.where(better, error, state.best_error)
        state.since_best = torch.where(better, 0, state.since_best + running)
        near = state.best_error <= 1e3 * self.method.tolerance
        verdicts = (
            (broken, Status.BAD_INPUT if iteration == 0 else Status.FAILED),
            (error <= self.method.tolerance, Status.SOLVED),
            (diverged & falling & feasible, Status.UNBOUNDED),
            (diverged, Status.FAILED),
            (near & (state.since_best >= 12), Status.INACCURATE),
            (state.stalls >= 3, Status.INACCURATE),
        )
        status = torch.full_like(state.status, _RUNNING)
        for where, verdict in reversed(verdicts):  # the first one counts
            status = torch.where(where, int(verdict), status)
        state.status = torch.where(running, status, state.status)

    def _update_barrier(self, error: _Error, running: torch.Tensor) -> None:
        """Lower ``mu`` where the barrier problem is solved (eq. 7), and empty the filter."""
        state = self.state
        if not self.barrier.rows:
            state.mu = torch.zeros_like(state.mu)
            return
        floor = self.method.tolerance / 10
        for _ in range(4):
            solved = self._with_gap(error, state.mu) <= _KAPPA_EPSILON * state.mu
            lower = solved & (state.mu > floor) & running
            new = _KAPPA_MU * state.mu
            if self.cones.is_polyhedral:
                # Curved cones lose their central path to superlinear decrease.
                new = torch.minimum(new, state.mu**_THETA_MU)
            new = new.clamp_min(floor)
            state.mu = torch.where(lower, new, state.mu)
            self._empty_filter(lower)
            if not bool(lower.any()):
                break

    def _empty_filter(self, where: torch.Tensor) -> None:
        state = self.state
        state.filter_theta = torch.where(where.unsqueeze(1), torch.inf, state.filter_theta)
        state.filter_phi = torch.where(where.unsqueeze(1), torch.inf, state.filter_phi)
        state.filter_count = torch.where(where, 0, state.filter_count)

    # -- direction ------------------------------------------------------------------------------

    def _direction(self, point: _Point, running: torch.Tensor) -> tuple[_System, _Direction]:
        state, p = self.state, self.p
        n = state.u.shape[1]
        G, J = point.jacobian[:, p:], point.jacobian[:, :p]
        hessian = point.hessian
        scaling = None
        target = state.s
        if self.barrier.rows:
            scaling = self.barrier.scaling(state.s, state.z)
            scaled = self.barrier.scale_rows(scaling, G)
            hessian = hessian + scaled.mT @ scaled
            target = state.mu.unsqueeze(1) * self.barrier.inverse(state.s)
        # What is frozen or broken must not disturb the factorisation.
        sound = running & hessian.sum((1, 2)).isfinite()
        identity = torch.eye(n, dtype=hessian.dtype, device=hessian.device)
        hessian = torch.where(sound[:, None, None], hessian, identity)
        J = torch.where(sound[:, None, None], J, 0.0)
        delta_c = torch.full_like(state.mu, _DELTA_C)

        def matrix(index: torch.Tensor | slice, delta: torch.Tensor) -> torch.Tensor:
            top = hessian[index] + delta[:, None, None] * identity
            if not p:
                return top
            corner = -torch.diag_embed(delta_c[index].unsqueeze(1).expand(-1, p))
            upper = torch.cat([top, J[index].mT], 2)
            return torch.cat([upper, torch.cat([J[index], corner], 2)], 1)

        delta = torch.zeros_like(state.delta)
        factor = symmetric_factor(matrix(slice(None), delta))
        wrong = (factor.negative() != p) | factor.singular()
        if bool(wrong.any()):
            # Inertia correction (algorithm IC), for the elements that need it.
            previous = state.delta
            trial = torch.where(
                previous == 0,
                torch.full_like(previous, _DELTA_FIRST),
                (previous / 3).clamp_min(_DELTA_MIN),
            )
            growth = torch.where(previous == 0, 100.0, 8.0)
            for _ in range(40):
                index = wrong.nonzero().squeeze(1)
                delta[index] = trial[index]
                part = symmetric_factor(matrix(index, delta[index]))
                factor = factor.replace(index, part)
                bad = (part.negative() != p) | part.singular()
                wrong = wrong.index_copy(0, index, bad & (delta[index] < _DELTA_MAX))
                if not bool(wrong.any()):
                    break
                trial = trial * growth
        system = _System(matrix(slice(None), delta), factor, scaling, target)
        failed = ~sound | (delta >= _DELTA_MAX)
        residual = self._primal_residual(point.c, state.s)
        u, s, y, z = self._solve(system, point, residual)
        failed = failed | ~(u.sum(1) + y.sum(1)).isfinite()
        state.delta = torch.where(running & (delta > 0), delta, state.delta)
        return system, _Direction(u, s, y, z, failed)

    def _primal_residual(self, c: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.cat([c[:, : self.p], c[:, self.p :] + s], 1)

    def _solve(
        self, system: _System, point: _Point, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The Newton step for a given primal residual ``(W, m)``."""
        state, p = self.state, self.p
        n = state.u.shape[1]
        G, J = point.jacobian[:, p:], point.jacobian[:, :p]
        right = point.gradient + (J.mT @ state.y.unsqueeze(2)).squeeze(2)
        matrix, factor, scaling, target = system
        if scaling is not None:
            pulled = target + self.barrier.over_square(scaling, residual[:, p:])
            right = right + (G.mT @ pulled.unsqueeze(2)).squeeze(2)
        full = -torch.cat([right, residual[:, :p]], 1)
        step = factor.solve(full)
        rest = full - (matrix @ step.unsqueeze(2)).squeeze(2)
        step = step + factor.solve(rest)
        u, y = step[:, :n], step[:, n:]
        if scaling is None:
            empty = u.new_zeros((len(u), 0))
            return u, empty, y, empty
        s = -residual[:, p:] - (G @ u.unsqueeze(2)).squeeze(2)
        z = target - state.z - self.barrier.over_square(scaling, s)
        return u, s, y, z

    # -- line search ----------------------------------------------------------------------------

    def _step(self, point: _Point, running: torch.Tensor) -> None:
        state = self.state
        system, direction = self._direction(point, running)
        tau = torch.maximum(1 - state.mu, torch.full_like(state.mu, _TAU_MIN))
        longest = longest_z = torch.ones_like(state.mu)
        if system.scaling is not None:
            slacks = self.barrier.scale_slacks(system.scaling, direction.s)
            multipliers = self.barrier.scale_multipliers(system.scaling, direction.z)
            longest = self._longest(system.scaling, slacks, tau)
            longest_z = self._longest(system.scaling, multipliers, tau)
        theta = self._theta(point.c, state.s)
        phi = self._phi(point.f, state.s, state.mu)
        slope = (point.gradient * direction.u).sum(1)
        if self.barrier.rows:
            slope = slope - (system.target * direction.s).sum(1)
        search = _Search(theta, phi, slope, state)
        pending = running & ~direction.failed
        tiny = self._is_tiny(direction) & (theta <= 1e-6)
        alpha = longest.clone()
        u, s = state.u.clone(), state.s.clone()
        accepted = torch.zeros_like(pending)
        augment = torch.zeros_like(pending)
        for backtrack in range(_BACKTRACKS):
            if not bool(pending.any()):
                break
            trial_u = state.u + alpha.unsqueeze(1) * direction.u
            trial_s = state.s + alpha.unsqueeze(1) * direction.s
            f, c = self._values(trial_u)
            trial_theta = self._theta(c, trial_s)
            trial_phi = self._phi(f, trial_s, state.mu)
            good, armijo = search.accepts(alpha, trial_theta, trial_phi)
            good = (good | (tiny & trial_phi.isfinite())) & pending
            u = torch.where(good.unsqueeze(1), trial_u, u)
            s = torch.where(good.unsqueeze(1), trial_s, s)
            accepted, pending = accepted | good, pending & ~good
            augment = augment | (good & ~armijo)
            if backtrack == 0 and self.cones.rows:
                correct = pending & (trial_theta >= theta) & trial_theta.isfinite()
                if bool(correct.any()):
                    done = self._correct(system, point, alpha, tau, c, trial_s, search, correct)
                    good, corrected_u, corrected_s, armijo = done
                    u = torch.where(good.unsqueeze(1), corrected_u, u)
                    s = torch.where(good.unsqueeze(1), corrected_s, s)
                    accepted, pending = accepted | good, pending & ~good
                    augment = augment | (good & ~armijo)
            alpha = torch.where(pending, 0.5 * alpha, alpha)
        self._augment_filter(augment, theta, phi)
        self._accept(accepted, u, s, direction, alpha, longest_z)
        state.stalls = torch.where(accepted & tiny, state.stalls + 1, state.stalls)
        rejected = running & ~accepted
        if bool(rejected.any()):
            self._rescue(rejected, theta, phi)

    @staticmethod
    def _is_tiny(direction: _Direction) -> torch.Tensor:
        return (direction.u.abs()).amax(1) <= 1e-14

    def _longest(self, scaling: Scaling, scaled: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """The longest step along a scaled direction that keeps to the boundary (eq. 15)."""
        longest = tau / self.barrier.step_rate(scaling, (scaled,))
        return torch.nan_to_num(longest.clamp_max(1.0), nan=0.0)

    def _correct(
        self,
        system: _System,
        point: _Point,
        alpha: torch.Tensor,
        tau: torch.Tensor,
        c: torch.Tensor,
        s: torch.Tensor,
        search: _Search,
        where: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Second-order corrections (section 2.4): aim at the residual of the trial point too."""
        state = self.state
        residual = self._primal_residual(point.c, state.s)
        accepted = torch.zeros_like(where)
        armijo_accepted = torch.zeros_like(where)
        best_u, best_s = state.u, state.s
        last = search.theta
        pending = where
        step = alpha
        for _ in range(4):
            residual = step.unsqueeze(1) * residual + self._primal_residual(c, s)
            residual = torch.where(pending.unsqueeze(1), residual, 0.0)
            du, ds, _, _ = self._solve(system, point, residual)
            step = torch.ones_like(alpha)
            if system.scaling is not None:
                scaled = self.barrier.scale_slacks(system.scaling, ds)
                step = self._longest(system.scaling, scaled, tau)
            u = state.u + step.unsqueeze(1) * du
            s = state.s + step.unsqueeze(1) * ds
            f, c = self._values(u)
            theta, phi = self._theta(c, s), self._phi(f, s, state.mu)
            good, armijo = search.accepts(alpha, theta, phi)
            good = good & pending
            best_u = torch.where(good.unsqueeze(1), u, best_u)
            best_s = torch.where(good.unsqueeze(1), s, best_s)
            accepted, armijo_accepted = accepted | good, armijo_accepted | (good & armijo)
            pending = pending & ~good & (theta <= 0.99 * last)
            last = theta
            if not bool(pending.any()):
                break
        return accepted, best_u, best_s, armijo_accepted

    def _augment_filter(self, where: torch.Tensor, theta: torch.Tensor, phi: torch.Tensor) -> None:
        state = self.state
        index = where.nonzero().squeeze(1)
        slot = state.filter_count[index] % _FILTER_SIZE
        state.filter_theta[index, slot] = ((1 - _GAMMA_THETA) * theta)[index]
        state.filter_phi[index, slot] = (phi - _GAMMA_PHI * theta)[index]
        state.filter_count[index] += 1

    def _accept(
        self,
        accepted: torch.Tensor,
        u: torch.Tensor,
        s: torch.Tensor,
        direction: _Direction,
        alpha: torch.Tensor,
        alpha_z: torch.Tensor,
    ) -> None:
        state = self.state
        column = accepted.unsqueeze(1)
        state.u = torch.where(column, u, state.u)
        state.s = torch.where(column, s, state.s)
        state.y = torch.where(column, state.y + alpha.unsqueeze(1) * direction.y, state.y)
        z = torch.where(column, state.z + alpha_z.unsqueeze(1) * direction.z, state.z)
        linear = self.barrier.linear
        if linear:
            # Keep the primal-dual Hessian near the primal one (eq. 16).
            central = state.mu.unsqueeze(1) / state.s[:, :linear]
            kept = z[:, :linear].clamp(central / _KAPPA_SIGMA, central * _KAPPA_SIGMA)
            z = torch.cat([kept, z[:, linear:]], 1)
        state.z = z

    # -- restoration ----------------------------------------------------------------------------

    def _rescue(self, rejected: torch.Tensor, theta: torch.Tensor, phi: torch.Tensor) -> None:
        """Elements without an acceptable step: restore feasibility, or stop."""
        state = self.state
        feasible = theta <= 1e-8 * (1 + state.u.abs().amax(1))
        hopeless = rejected & (feasible | (state.restorations >= 8) | ~theta.isfinite())
        # Feasible, and no descent within rounding: one more chance with a fresh filter, then stop.
        state.stalls = torch.where(hopeless, state.stalls + 1, state.stalls)
        self._empty_filter(hopeless)
        state.delta = torch.where(
            hopeless, (10 * state.delta).clamp(_DELTA_FIRST, 1e8), state.delta
        )
        needed = rejected & ~hopeless
        if not bool(needed.any()):
            return
        self._augment_filter(needed, theta, phi)
        index = needed.nonzero().squeeze(1)
        part = self.program.select(index)
        scale = state.scale_c[index]
        restored = reduce_infeasibility(
            part, self.cones, state.u[index], scale, target=0.1 * theta[index]
        )
        _, c = part.values(restored.point)
        c = c * scale
        old = state.s[index]
        s = self._restored_slack(c[:, self.p :], old, state.mu[index])
        now = self._theta(c, s)
        stuck = restored.stationary & (restored.violation > 1e-6)
        state.u[index] = restored.point
        state.s[index] = s
        state.z[index] = state.mu[index].unsqueeze(1) * self.barrier.inverse(s)
        state.y[index] = 0.0
        state.status[index] = torch.where(stuck, int(Status.INFEASIBLE), state.status[index])
        state.restorations[index] += 1
        state.iterations[index] += restored.iterations
        little = now > 0.9 * theta[index]
        state.stalls[index] += little

    def _restored_slack(self, g: torch.Tensor, old: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        """``-g``, kept inside the cone by no more than the barrier parameter asks for."""
        s = -g
        if not self.barrier.rows:
            return s
        floor = (0.1 * mu).clamp(1e-8, 1e-2).unsqueeze(1)
        lift = (floor - self.barrier.margins(s)).clamp_min(0.0)
        return s + lift * self.barrier.identity


class _Search:
    """The acceptance tests of a trial point."""

    def __init__(
        self, theta: torch.Tensor, phi: torch.Tensor, slope: torch.Tensor, state: _State
    ) -> None:
        self.theta, self.phi, self.slope, self.state = theta, phi, slope, state
        # Differences below this are rounding (as in Ipopt's Compare_le).
        self.rounding = 10 * torch.finfo(phi.dtype).eps * phi.abs()

    def accepts(
        self, alpha: torch.Tensor, theta: torch.Tensor, phi: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which trial points are acceptable, and for which the objective decided."""
        state = self.state
        finite = theta.isfinite() & phi.isfinite()
        descent = self.slope < 0
        power = (-self.slope).clamp_min(0.0) ** _S_PHI
        switching = descent & (alpha * power > _DELTA * self.theta**_S_THETA)
        decides = switching & (self.theta <= state.theta_min)
        armijo = phi <= self.phi + _ETA * alpha * self.slope + self.rounding
        less = (theta <= (1 - _GAMMA_THETA) * self.theta) | (
            phi <= self.phi - _GAMMA_PHI * self.theta + self.rounding
        )
        progress = torch.where(decides, armijo, less)
        outside = (theta.unsqueeze(1) < state.filter_theta) | (
            phi.unsqueeze(1) <= state.filter_phi + self.rounding.unsqueeze(1)
        )
        free = outside.all(1) & (theta <= state.theta_max)
        return finite & progress & free, decides & armijo
