"""Strictly convex quadratic programs by the active set of their dual, changed in blocks.

With ``P = L L'``, ``V = L^-1 A'``, ``G = V' V`` and ``h = A P^-1 q + b`` a solution is a pair of
multipliers and slacks with

    s = G y + h,    y_i, s_i >= 0, y_i s_i = 0 for inequalities,    s_i = 0 for equations.

The primal enters three times only: in ``L``, ``V`` and ``G``. For rows that are guessed to be
active ``y`` is the solution of a system of their number, and all rows for which the guess was wrong
change sides together, as in a primal-dual active set method. Where this makes no progress they do
so one by one, which comes to an end wherever rows are independent: Portugal, Judice and Vicente, "A
comparison of block pivoting and interior-point algorithms for linear least squares problems with
nonnegative variables" (1994).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import torch

from ddn_cvx.batch.device import places_of, read
from ddn_cvx.batch.elements import put, select
from ddn_cvx.cones.scaling import ConeProduct
from ddn_cvx.kkt.newton import ReducedSolution
from ddn_cvx.kkt.point import Factors
from ddn_cvx.kkt.reduced.dense import (
    DEPENDENT,
    DenseMatrices,
    in_front,
    most,
    places,
    without_rounding,
)
from ddn_cvx.kkt.reduced.equilibrate import ReducedData
from ddn_cvx.kkt.reduced.structure import sparse_structure
from ddn_cvx.kkt.reduced.substitution import (
    Permutation,
    Reduction,
    Substitution,
    reduction_of,
)
from ddn_cvx.linalg.products import cholesky_solve, matvec
from ddn_cvx.linalg.saddle_point import SaddlePoint, cholesky
from ddn_cvx.programs.cone.program import ConeProgram
from ddn_cvx.status import Status

# First guess: weight of ``r I`` in units in which ``G`` has a unit diagonal, and its iterations.
_SOFT = 0.1
_GUESSES = 6
# Changes of the active set at most.
_STEPS = 30
# Block changes stop after this many consecutive ones, not counting as many at first, that do not
# reduce the number of violated rows.
_PATIENCE = 3
# Multipliers and slacks may be negative by this share of the largest.
_BELOW = 1e-12
# Converged elements leave the working set once at most this share of it is unfinished.
_COMPACT = 0.7
# With more rows per column than the first most active sets are dependent; with more than the second
# so many are that single changes seldom end. Of programs with random rows all settled up to 1.3,
# nine of ten at 1.5, half of the small and few of the large ones at 1.75.
_ROWS = 2.0
_FEW_ROWS = 1.5


def may_apply(program: ConeProgram) -> bool:
    """Dense, its objective perhaps strictly convex, without cones, and few rows for its columns."""
    if sparse_structure(program) is not None:
        return False
    reduction = reduction_of(program)
    columns, rows, _ = reduction.size
    return (
        reduction.may_curve and program.cones.linear == program.rows and 0 < rows <= _ROWS * columns
    )


class ActiveRows(NamedTuple):
    """The factored system of the active rows, ``(B, k)``, with their places and weights there.

    Attributes:
        system: of the rows divided by their sizes, padded with zeros.
        order: which rows; the last one stands for padding, too.
        weight: one over the size, and zero where an element has no more rows.
    """

    system: SaddlePoint
    order: torch.Tensor
    weight: torch.Tensor

    def solve(
        self, q: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``x``, ``y`` and relative residual of ``P x + q + A' y = 0``, ``a_i' x = b_i``."""
        right = self.weight * b.gather(1, self.order)
        x, some, residual = self.system.exact(-q.unsqueeze(2), right.unsqueeze(2))
        y = torch.zeros_like(b).scatter_add_(1, self.order, self.weight * some.squeeze(2))
        return without_rounding(x.squeeze(2), b), y, residual

    def kept(self, frame: Permutation | Substitution) -> Factors:
        """For derivatives, whose systems are the same.

        Args:
            frame: from a dense program to the one that was solved.
        """
        assert isinstance(frame, Substitution)
        tensors = (*frame[1:], *self.system.parts, self.order, self.weight)
        return Factors(tensors, functools.partial(_adjoint, frame.reduction))


def _adjoint(
    reduction: Reduction,
    tensors: tuple[Any, ...],
    primal_gradient: torch.Tensor,
    dual_gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The program's system has the negative gradients in the places of ``q`` and ``b``."""
    T, across, inner, below, P, A, factor, side, schur, order, weight = tensors
    frame = Substitution(reduction, T, across, inner, below)
    system = SaddlePoint(P, A, A.shape[1], given=(factor, side, schur))
    q, b = frame.vectors(-primal_gradient, dual_gradient)
    a, c, residual = ActiveRows(system, order, weight).solve(q, b)
    return torch.cat(frame.outside(a, c, -primal_gradient, dual_gradient), 1), residual


def solve_by_active_set(
    data: ReducedData, cones: ConeProduct, tolerance: float, start: torch.Tensor | None = None
) -> tuple[ReducedSolution, ActiveRows | None]:
    """Solutions of all digits; INACCURATE with fewer digits, FAILED without a solution.

    Args:
        data: a dense program with a quadratic objective.
        cones: of its rows.
        tolerance: relative residual of a solution.
        start: rows to begin with, shape ``(B, m)``, bool.

    Returns:
        The solutions, and their factors if all elements are solved.
    """
    (P, _), q, b = cast(DenseMatrices, data.matrices), data.q, data.b
    assert P is not None
    status = torch.full((len(q),), int(Status.FAILED), device=q.device)
    z, s = torch.zeros_like(b), torch.zeros_like(b)  # not one tensor: steps write in place
    found = ReducedSolution(torch.zeros_like(q), z, s, status, torch.zeros_like(status))
    factor, failed = torch.linalg.cholesky_ex(P)
    shares = factor.diagonal(dim1=-2, dim2=-1).square() / P.diagonal(dim1=-2, dim2=-1)
    curved = (failed == 0) & (shares > DEPENDENT).all(1)
    (count,) = read(curved.sum())
    if count == 0:
        return found, None
    rows = places_of(curved, count)
    if count < len(q):
        data, factor = data.select(rows), factor[rows]
        start = select(start, rows)
    dual = _dual(data, factor)
    guess = _active_set(dual, cones, start)
    found.iterations[rows] = guess.iterations
    active = guess.active
    count, size = read(guess.settled.sum(), most(active))
    if count == 0:
        return found, None
    if count < len(rows):
        some = places_of(guess.settled, count)
        rows, dual, factor, active = select((rows, dual, factor, active), some)
        data = data.select(some)
    x, z, slack, good, factored = _solution(data, cones, dual, factor, active, size)
    reached = torch.where(good <= tolerance, int(Status.SOLVED), int(Status.INACCURATE))
    solution = ReducedSolution(x, z, slack, reached, found.iterations[rows])
    if len(rows) < len(q):
        return put(found, rows, solution), None
    # Rows with neither multiplier nor slack are not active where derivatives are taken.
    positive = z > slack
    positive[:, : cones.equations] = True
    whole = (reached == int(Status.SOLVED)) & (positive == active[:, :-1]).all(1)
    return solution, factored if whole.all() else None


class _Dual(NamedTuple):
    """``V`` ``(B, n, m)``, ``G`` with a unit diagonal, and ``h``.

    In the units of rows that are divided by ``size`` ``(B, m)``. ``G`` ``(B, m + 1, m + 1)`` and
    ``h`` ``(B, m + 1)`` have one more row, of zeros: what is taken from there is padding.
    """

    V: torch.Tensor
    G: torch.Tensor
    h: torch.Tensor
    size: torch.Tensor


def _dual(data: ReducedData, factor: torch.Tensor) -> _Dual:
    matrices, q, b = data
    right = torch.cat([matrices.A, q.unsqueeze(1)], 1).mT
    whole = torch.linalg.solve_triangular(factor, right, upper=False)
    V = whole[..., :-1]
    size = torch.linalg.vector_norm(V, dim=1)
    size.masked_fill_(size == 0, 1.0)
    V.div_(size.unsqueeze(1))
    G = torch.bmm(whole.mT, whole)
    h = torch.cat([b / size, q[:, :1]], 1).add_(G[:, -1])
    G[:, -1], G[..., -1], h[:, -1] = 0.0, 0.0, 0.0
    return _Dual(V, G, h, size)


class _Guess(NamedTuple):
    """Active rows with padding ``(B, m + 1)``; whether a solution's; iterations; ``(B,)``."""

    active: torch.Tensor
    settled: torch.Tensor
    iterations: torch.Tensor


def _active_set(dual: _Dual, cones: ConeProduct, start: torch.Tensor | None) -> _Guess:
    """Changes the set until no multiplier and no slack is negative."""
    G, h = dual.G, dual.h
    batch, m = h.shape[0], h.shape[1] - 1
    if start is None:
        start = _first_guess(G[:, :m, :m], h[:, :m], cones)
    active = torch.nn.functional.pad(start, (0, 1))
    active[:, : cones.equations] = True
    inequalities = torch.nn.functional.pad(cones.inner > 0, (0, 1))
    index = torch.arange(m + 1, device=h.device)
    rows = torch.arange(batch, device=h.device)
    least, stalled, steps = torch.full_like(rows, m + 1), *torch.zeros_like(rows).repeat(2, 1)
    settled, done = start.new_zeros(batch), None
    ends = m <= _FEW_ROWS * dual.V.shape[1]
    (size,) = read(most(active))
    for number in range(1, _STEPS + 1):
        y = _multipliers(G, h, active, size)
        given = torch.where(active, y, matvec(G, y).add_(h))
        level = torch.linalg.vector_norm(given, torch.inf, 1, keepdim=True)
        wrong = (given < level.mul_(-_BELOW)).logical_and_(inequalities)
        count = wrong.sum(1)
        if number >= _PATIENCE:
            stalled = (stalled + 1).masked_fill_(count < least, 0)
            least = torch.minimum(count, least)
        # For good, whatever the rounding of larger systems.
        settled = settled | (count == 0)
        live = ~settled
        if number > _PATIENCE:
            single = stalled > _PATIENCE
            if not ends:
                live = live & ~single
            else:
                final = torch.where(wrong, index, -1).amax(1, keepdim=True)
                wrong = wrong & ((index == final) | ~single.unsqueeze(1))
        steps = steps + live
        changed = active ^ (wrong & live.unsqueeze(1))
        left, size = read(live.sum(), most(changed))
        last = left == 0 or number == _STEPS
        few = last or left < _COMPACT * len(rows)
        if few:
            guess = _Guess(active, settled, steps)
            done = guess if done is None else put(done, rows, guess)
        if last:
            break
        active = changed
        if few:
            kept = places_of(live, left)
            state = (G, h, rows, active, least, stalled, settled, steps)
            G, h, rows, active, least, stalled, settled, steps = select(state, kept)
    assert done is not None
    return done._replace(iterations=(done.iterations + 1).clamp_max(_STEPS))


def _first_guess(G: torch.Tensor, h: torch.Tensor, cones: ConeProduct) -> torch.Tensor:
    """The rows whose multiplier is positive after a few steps of the modulus method.

    With ``y = |w| + w`` and ``s = r (|w| - w)`` signs and complementarity are given, and what is
    left is the fixed point of ``(G + r I) w = (r I - G) |w| - h``; equations have no ``|w|``. Van
    Bokhoven, "Piecewise-linear modelling and analysis" (1981); Bai, "Modulus-based matrix splitting
    iteration methods for linear complementarity problems" (2010). One factorisation for all steps;
    without them it takes twice as many changes of the set.
    """
    soft = _SOFT * cones.inner
    factor, _ = cholesky(G + torch.diag(soft))
    soft, right = 2 * soft.unsqueeze(1), -h.unsqueeze(2)
    w = cholesky_solve(factor, right)
    for _ in range(_GUESSES):
        size = w.abs()
        w = cholesky_solve(factor, torch.addcmul(right, soft, size)).sub_(size)
    return w.squeeze(2) > 0


def _multipliers(G: torch.Tensor, h: torch.Tensor, active: torch.Tensor, size: int) -> torch.Tensor:
    """``y`` with ``(G y + h)_i = 0`` for active rows and zero for the others.

    On the way active rows may depend on one another; then ``y`` is large, with both signs. ``G`` is
    a matrix of products, so that a factor never fails by more than what its diagonal is raised by.
    """
    order = in_front(active, size)
    right = h.gather(1, order).neg_().unsqueeze(2)
    factor, _ = cholesky(_block(G, order))
    some = cholesky_solve(factor, right).squeeze(2)
    return torch.zeros_like(h).scatter_(1, order, some)


def _block(G: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Rows and columns ``(B, k, k)`` of ``G``; of the identity for padding and rows of zeros."""
    flat = torch.add(order.unsqueeze(1), order.unsqueeze(2), alpha=G.shape[1])
    block = G.flatten(1).gather(1, flat.flatten(1)).view_as(flat)
    diagonal = block.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(diagonal == 0)
    return block


def _solution(
    data: ReducedData,
    cones: ConeProduct,
    dual: _Dual,
    factor: torch.Tensor,
    active: torch.Tensor,
    size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, ActiveRows]:
    """``x, z, s``, their residual relative to its terms, and the factors."""
    matrices, q, b = cast(DenseMatrices, data.matrices), data.q, data.b
    m = b.shape[1]
    padded, active = in_front(active, size), active[:, :m]
    order, used = places(padded, m)
    weight = used / dual.size.gather(1, order)
    rows = matrices.A.gather(1, order.unsqueeze(2).expand(-1, -1, q.shape[1]))
    side = dual.V.gather(2, order.unsqueeze(1).expand(-1, q.shape[1], -1)).mul_(used.unsqueeze(1))
    schur, failed = cholesky(_block(dual.G, padded), exactly=True)
    rows.mul_(weight.unsqueeze(2))
    system = SaddlePoint(matrices.P, rows, order.shape[1], given=(factor, side, schur))
    factored = ActiveRows(system, order, weight)
    x, y, _ = factored.solve(q, b)
    slack = b - matrices.times_A(x)
    # In units of the rows' sizes: slacks of active rows, and entries of the wrong sign.
    given = torch.where(active, y * dual.size, slack / dual.size)
    wrong = torch.where(active, slack.abs() / dual.size, 0.0)
    wrong = torch.maximum(wrong, -given * cones.inner).amax(1)
    held = wrong / torch.maximum(given.abs(), b.abs() / dual.size).amax(1).clamp_min(1e-300)
    z, s = cones.projected(torch.where(active, y, 0.0), slack), torch.where(active, 0.0, slack)
    s = s.clamp_min(0.0) * cones.inner
    Px, Atz = matrices.times_P(x), matrices.times_At(z)
    stationary = (Px + q + Atz).abs().amax(1) / (1 + torch.maximum(Px.abs(), Atz.abs()).amax(1))
    regular = system.is_regular(used, DEPENDENT) & ~failed
    missed = torch.where(regular, torch.maximum(held, stationary), torch.inf)
    return x, z, s, missed, factored
