"""The barrier problem of a batch of nonlinear programs, and its Newton step.

    min f(u) - mu log det(s)   s.t.   h(u) = 0,   g(u) + s = 0

with objective and rows scaled by their gradients at the start (Wächter and Biegler, 2006, 3.8).
The Newton step is condensed to the unknown and the equality multipliers:

    [H + G' W^-2 G + delta I   J_h'   ] [du ]     [grad f + J_h' y + G' (mu s^-1 + W^-2 (g + s))]
    [J_h                       -delta_c] [dy ] = - [h                                             ]

with the Nesterov-Todd scaling ``W`` of the cones (:mod:`ddn_cvx.cones.scaling`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ddn_cvx.cones.product import Cones
from ddn_cvx.cones.scaling import ConeProduct, Scaling
from ddn_cvx.linalg.inertia import SymmetricFactor, symmetric_factor
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance

# Constants of the method, with the names and values of Wächter and Biegler (2006).
GAMMA_THETA, GAMMA_PHI = 1e-5, 1e-8
DELTA_FIRST, _DELTA_MIN, _DELTA_MAX, _DELTA_C = 1e-4, 1e-20, 1e20, 1e-9
_SCALED_GRADIENT = 100.0
FILTER_SIZE = 48


@dataclass
class State:
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
    theta_max: torch.Tensor
    theta_min: torch.Tensor
    restorations: torch.Tensor
    stalls: torch.Tensor
    best_error: torch.Tensor
    since_best: torch.Tensor

    def empty_filter(self, where: torch.Tensor) -> None:
        """Forget the points of some elements, bool, shape ``(W,)``."""
        column = where.unsqueeze(1)
        self.filter_theta = torch.where(column, torch.inf, self.filter_theta)
        self.filter_phi = torch.where(column, torch.inf, self.filter_phi)
        self.filter_count = torch.where(where, 0, self.filter_count)

    def augment_filter(self, where: torch.Tensor, theta: torch.Tensor, phi: torch.Tensor) -> None:
        """Add the points of some elements (eq. 22); the oldest one makes room."""
        index = where.nonzero().squeeze(1)
        slot = self.filter_count[index] % FILTER_SIZE
        self.filter_theta[index, slot] = ((1 - GAMMA_THETA) * theta)[index]
        self.filter_phi[index, slot] = (phi - GAMMA_PHI * theta)[index]
        self.filter_count[index] += 1


@dataclass(frozen=True)
class Point:
    """Scaled values and derivatives at the working set's points."""

    f: torch.Tensor  # (W,)
    gradient: torch.Tensor  # (W, n)
    c: torch.Tensor  # (W, m)
    jacobian: torch.Tensor  # (W, m, n)
    hessian: torch.Tensor  # (W, n, n)

    def finite(self) -> torch.Tensor:
        """All numbers of an element are finite, shape ``(W,)``."""
        total = self.f + self.gradient.sum(1) + self.c.sum(1)
        return (total + self.jacobian.sum((1, 2)) + self.hessian.sum((1, 2))).isfinite()


@dataclass(frozen=True, eq=False)
class BarrierProblem:
    """The scaled functions of the working set, and its cones.

    Attributes:
        program: the functions.
        cones: of the rows, with those of a kind and size together.
        barrier: of the rows that are no equations.
        p: number of equations.
        orders: the program's row for each row here, and the inverse; None where they are the same.
        scale_f, scale_c: of the objective, shape ``(W,)``, and of each row, ``(W, m)``.
    """

    program: NonlinearInstance
    cones: Cones
    barrier: ConeProduct
    p: int
    orders: tuple[torch.Tensor, ...] | None
    scale_f: torch.Tensor
    scale_c: torch.Tensor

    def select(self, elements: torch.Tensor) -> BarrierProblem:
        """The problem of some elements."""
        program, scale_f = self.program.select(elements), self.scale_f[elements]
        return replace(self, program=program, scale_f=scale_f, scale_c=self.scale_c[elements])

    def values(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``f`` of shape ``(W,)``, ``c`` of shape ``(W, m)``."""
        f, c = self.program.values(u)
        c = c if self.orders is None else c[:, self.orders[0]]
        return f * self.scale_f, c * self.scale_c

    def first(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradient of ``f``, ``c`` and its Jacobian ``(W, m, n)``."""
        _, gradient, c, jacobian = self.program.first(u)
        if self.orders is not None:
            c, jacobian = c[:, self.orders[0]], jacobian[:, self.orders[0]]
        by_f, by_c = self.scale_f.unsqueeze(1), self.scale_c
        return gradient * by_f, c * by_c, jacobian * by_c.unsqueeze(2)

    def second(self, u: torch.Tensor, dual: torch.Tensor) -> Point:
        """All values and derivatives, with the Hessian of ``f + <dual, c>``."""
        # L scaled = scale_f (f + <y scale_c / scale_f, c>).
        by_f, by_c = self.scale_f.unsqueeze(1), self.scale_c
        dual = dual * (by_c / by_f)
        if self.orders is not None:
            dual = dual[:, self.orders[1]]
        f, gradient, c, jacobian, hessian = self.program.second(u, dual)
        if self.orders is not None:
            c, jacobian = c[:, self.orders[0]], jacobian[:, self.orders[0]]
        scaled = c * by_c, jacobian * by_c.unsqueeze(2), hessian * by_f.unsqueeze(2)
        return Point(f * self.scale_f, gradient * by_f, *scaled)

    def unscaled(
        self, dual: torch.Tensor, at: Point
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Multipliers, values and derivatives of the program itself."""
        by_f, by_c = self.scale_f.unsqueeze(1), self.scale_c
        rows = dual * (by_c / by_f), at.c / by_c, at.jacobian / by_c.unsqueeze(2)
        if self.orders is not None:
            dual, c, jacobian = (of_rows[:, self.orders[1]] for of_rows in rows)
        else:
            dual, c, jacobian = rows
        hessian = at.hessian / by_f.unsqueeze(2)
        return dual, (at.f / self.scale_f, at.gradient / by_f, c, jacobian, hessian)

    def residual(self, c: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """``(h, g + s)``, shape ``(W, m)``."""
        return torch.cat([c[:, : self.p], c[:, self.p :] + s], 1)

    def theta(self, c: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Infeasibility ``|h|_1 + |g + s|_1``, shape ``(W,)``."""
        return c[:, : self.p].abs().sum(1) + (c[:, self.p :] + s).abs().sum(1)

    def phi(self, f: torch.Tensor, s: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        """``f - mu log det(s)``, shape ``(W,)``."""
        return f - mu * self.barrier.log_det(s) if self.barrier.rows else f

    def slack(self, c: torch.Tensor, least: torch.Tensor | float) -> torch.Tensor:
        """``s = -g`` where its eigenvalues are at least that, else moved inside along ``e``."""
        s = -c[:, self.p :]
        if not self.barrier.rows:
            return s
        lift = (least - self.barrier.margins(s)).clamp_min(0.0)
        return s + lift * self.barrier.identity


def scaled_problem(
    program: NonlinearInstance, start: torch.Tensor
) -> tuple[BarrierProblem, tuple[torch.Tensor, ...]]:
    """The problem whose gradients at the start are at most 100, and :meth:`first` of it there."""
    cones, batch = program.program.cones, len(start)
    orders = None if cones.regrouping is None else cones.regrouping(start.device)
    ones, rows = start.new_ones(batch), start.new_ones(batch, cones.rows)
    groups, p = cones.in_groups(), cones.zero
    plain = BarrierProblem(program, groups, ConeProduct(groups, 0, start), p, orders, ones, rows)
    gradient, c, jacobian = plain.first(start)
    largest, rows = gradient.abs().amax(1), jacobian.abs().amax(2)
    for group in groups.groups:  # one scale for the rows of a cone
        group.of(rows)[:] = group.of(rows).amax(-1, keepdim=True)
    scale_f, scale_c = (
        torch.nan_to_num((_SCALED_GRADIENT / size.clamp_min(1e-300)).clamp(1e-8, 1.0), nan=1.0)
        for size in (largest, rows)
    )
    scaled = gradient * scale_f.unsqueeze(1), c * scale_c, jacobian * scale_c.unsqueeze(2)
    return replace(plain, scale_f=scale_f, scale_c=scale_c), scaled


class System(NamedTuple):
    """A Newton step's linear system."""

    matrix: torch.Tensor  # (W, n + p, n + p)
    factor: SymmetricFactor
    scaling: Scaling | None  # of the cones; None without rows of any
    target: torch.Tensor  # mu s^-1

    def solve(
        self, problem: BarrierProblem, state: State, at: Point, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The Newton step ``(u, s, y, z)`` for a given primal residual ``(W, m)``."""
        p, n = problem.p, state.u.shape[1]
        G, J = at.jacobian[:, p:], at.jacobian[:, :p]
        right = at.gradient + (J.mT @ state.y.unsqueeze(2)).squeeze(2)
        if self.scaling is not None:
            pulled = self.target + problem.barrier.over_square(self.scaling, residual[:, p:])
            right = right + (G.mT @ pulled.unsqueeze(2)).squeeze(2)
        full = -torch.cat([right, residual[:, :p]], 1)
        step = self.factor.solve(full)
        rest = full - (self.matrix @ step.unsqueeze(2)).squeeze(2)
        step = step + self.factor.solve(rest)
        u, y = step[:, :n], step[:, n:]
        if self.scaling is None:
            empty = u.new_zeros((len(u), 0))
            return u, empty, y, empty
        s = -residual[:, p:] - (G @ u.unsqueeze(2)).squeeze(2)
        z = self.target - state.z - problem.barrier.over_square(self.scaling, s)
        return u, s, y, z


class Direction(NamedTuple):
    """A Newton step, and for which elements there is none."""

    u: torch.Tensor
    s: torch.Tensor
    y: torch.Tensor
    z: torch.Tensor
    failed: torch.Tensor


def newton_step(
    problem: BarrierProblem, state: State, at: Point, running: torch.Tensor
) -> tuple[System, Direction]:
    """The step with ``delta`` raised until the inertia is right (section 3.1)."""
    p, n = problem.p, state.u.shape[1]
    J, hessian, scaling, target = at.jacobian[:, :p], at.hessian, None, state.s
    if problem.barrier.rows:
        scaling = problem.barrier.scaling(state.s, state.z)
        scaled = problem.barrier.scale_rows(scaling, at.jacobian[:, p:])
        hessian = hessian + scaled.mT @ scaled
        target = state.mu.unsqueeze(1) * problem.barrier.inverse(state.s)
    # Frozen and broken elements must not disturb the factorisation.
    sound = running & hessian.sum((1, 2)).isfinite()
    identity = torch.eye(n, dtype=hessian.dtype, device=hessian.device)
    hessian = torch.where(sound[:, None, None], hessian, identity)
    J = torch.where(sound[:, None, None], J, 0.0)

    def matrix(index: torch.Tensor | slice, delta: torch.Tensor) -> torch.Tensor:
        top = hessian[index] + delta[:, None, None] * identity
        if not p:
            return top
        corner = torch.diag_embed(torch.full_like(state.y[index], -_DELTA_C))
        upper = torch.cat([top, J[index].mT], 2)
        return torch.cat([upper, torch.cat([J[index], corner], 2)], 1)

    delta = torch.zeros_like(state.delta)
    factor = symmetric_factor(matrix(slice(None), delta))
    wrong = (factor.negative() != p) | factor.singular()
    if bool(wrong.any()):
        # Inertia correction (algorithm IC), for the elements that need it.
        fresh = state.delta == 0
        trial = torch.where(fresh, DELTA_FIRST, (state.delta / 3).clamp_min(_DELTA_MIN))
        growth = torch.where(fresh, 100.0, 8.0)
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
    system = System(matrix(slice(None), delta), factor, scaling, target)
    u, s, y, z = system.solve(problem, state, at, problem.residual(at.c, state.s))
    failed = ~sound | (delta >= _DELTA_MAX) | ~(u.sum(1) + y.sum(1)).isfinite()
    state.delta = torch.where(running & (delta > 0), delta, state.delta)
    return system, Direction(u, s, y, z, failed)
