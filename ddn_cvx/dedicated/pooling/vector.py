"""Robust pooling of vectors.

    y = argmin_u  sum_i w_i phi(|u - x_i|; alpha),    u, x_i in R^m

with a penalty of :mod:`ddn_cvx.dedicated.pooling.penalties`.

The descent is iteratively reweighted least squares (Weiszfeld 1937; Black and Rangarajan 1996),
then Newton's method, and never raises the objective. The Welsch penalty and the truncated quadratic
are not convex: of several starts, among them graduated nonconvexity (Yang et al. 2020), the lowest
minimum is returned; for the truncated quadratic, exchanges of single inliers improve the minima.
That it is the global minimum is likely and not proved.

Where the minimiser is not unique, the choice is as follows. Of isolated minima with the same
objective, it is that of the first start in the order mean, median, these two graduated, places by
rising objective (the truncated quadratic: of the minima improved by exchanges). Of a continuum
(Huber's penalty with no point within ``alpha``), it is the point to which the descent from the
weighted mean leads. The gradient is then that of least norm (the pseudo-inverse of the Hessian),
and ``solve_vector`` reports it in ``degenerate``. The gradient of the truncated quadratic is that
of the weighted mean of its inliers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import chunks, select
from ddn_cvx.dedicated.common import (
    check_positive,
    flattened,
    isolated,
    matvec,
    nondifferentiable,
    restored,
    weighted_points,
)
from ddn_cvx.dedicated.pooling.penalties import PENALTIES, Penalty
from ddn_cvx.dedicated.pooling.vector_adjoint import Inverse, attach, invert
from ddn_cvx.dedicated.pooling.vector_descent import Descent, descend
from ddn_cvx.dedicated.pooling.vector_starts import (
    EXCHANGES,
    exchange,
    graduated,
    low_points,
    weighted_median,
)

# Numbers in one chunk of residuals, over all starts: 32 MiB of float64 bound the memory.
_MEMORY_NUMBERS = 2**22

# Distance, in alpha and relative to the point, within which two minima are the same.
_SAME_DISTANCE = 1e-5

# Relative difference of objectives that is rounding: the minima tie.
_TIE = 1e-12


class VectorPooling(NamedTuple):
    """The result of :func:`solve_vector`.

    Attributes:
        u: the pooled vector, shape ``(*batch, m)``, differentiable.
        objective: its objective, shape ``(*batch,)``, differentiable.
        gap: by how much the best other minimum that was met is higher, shape ``(*batch,)``;
            infinite where all starts lead to the same point. Constant.
        converged: whether the gradient vanishes to 1e-12 of its terms, or to the rounding of its
            points where that is more, shape ``(*batch,)``.
        degenerate: where the derivative does not exist or is not unique, shape ``(*batch,)``: a
            singular or indefinite Hessian, a residual on the penalty's kink, a tie with another
            minimum, no positive weight, or an input that is not finite.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pooling import VectorPooling, solve_vector
        >>> pooled = solve_vector(torch.tensor([[0.0], [2.0]]), "quadratic", 1.0)
        >>> isinstance(pooled, VectorPooling), pooled.u, pooled.objective
        (True, tensor([1.]), tensor(1.))
    """

    u: Tensor
    objective: Tensor
    gap: Tensor
    converged: Tensor
    degenerate: Tensor


def vector_pool(
    x: Tensor, penalty: str, alpha: Tensor | float, weights: Tensor | None = None, starts: int = 16
) -> Tensor:
    """The robust mean of vectors, twice differentiable in points, ``alpha`` and weights.

    Args:
        x: points, shape ``(*batch, n, m)``.
        penalty: a name in :data:`~ddn_cvx.dedicated.pooling.penalties.PENALTIES`.
        alpha: positive, broadcasts with ``(*batch,)``.
        weights: nonnegative or a mask, broadcasts with ``(*batch, n)``; ones if not given. A point
            of weight 0 counts as removed, whatever it contains.
        starts: number of starts of a nonconvex penalty's descent, data points and means of
            neighbours of low objective, besides four others.

    Returns:
        Shape ``(*batch, m)``, of the dtype of ``x``; computed in float64. A row with an input that
        is not finite, an ``alpha`` that is not positive, a negative weight, or none that is
        positive, is NaN and has gradient zero.

    Raises:
        ValueError: for an unknown penalty, a shape that does not fit, or an ``alpha`` that is a
            number and not positive.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pooling import vector_pool
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [90.0, 0.0]])
        >>> vector_pool(x, "truncated_quadratic", 2.0)
        tensor([0.5000, 0.5000])
    """
    return solve_vector(x, penalty, alpha, weights, starts).u


@isolated
def solve_vector(
    x: Tensor, penalty: str, alpha: Tensor | float, weights: Tensor | None = None, starts: int = 16
) -> VectorPooling:
    """As :func:`vector_pool`, with the objective and measures of the solution's quality.

    Arguments and errors as for :func:`vector_pool`.

    Example:
        Two points too far apart to be inliers together: a tie.

        >>> import torch
        >>> from ddn_cvx.dedicated.pooling import solve_vector
        >>> pooled = solve_vector(torch.tensor([[0.0], [9.0]]), "truncated_quadratic", 1.0)
        >>> pooled.u.item() in (0.0, 9.0), pooled.objective.item(), pooled.gap.item()
        (True, 0.5, 0.0)
        >>> pooled.converged.item(), pooled.degenerate.item()
        (True, True)
    """
    if penalty not in PENALTIES:
        raise ValueError(f"penalty is {penalty!r}, not one of {', '.join(PENALTIES)}")
    if starts < 0:
        raise ValueError(f"starts is {starts}, which is negative")
    phi = PENALTIES[penalty]
    batch, points, scale, mass, valid = _checked(x, alpha, weights)
    unit = scale.detach()

    def solve(points: Tensor, unit: Tensor, mass: Tensor) -> tuple[Tensor, ...]:
        return _solution(points, unit, mass, phi, starts)

    heaviest, centre, full, lowest, gap, converged, inside, outside, regular, *basis = (
        nondifferentiable(solve, points, unit, mass, chunked=False)
    )
    inverse = Inverse(inside, basis[0] if basis else None, outside, regular)
    factor = unit.unsqueeze(-1)
    moved = (points - centre.unsqueeze(1)) / factor.unsqueeze(-1)
    u = attach(moved, scale / unit, mass / heaviest, phi, full, inverse)
    u = centre + factor * u
    s = (u.unsqueeze(1) - points).square().sum(-1)
    objective = (mass * phi.of_square(s, scale.unsqueeze(-1))).sum(-1)
    with torch.no_grad():
        tie = gap <= _TIE * lowest  # in the units of the descent
        per_unit = heaviest.squeeze(1) * (1.0 if penalty == "welsch" else unit**2)
        gap = gap * per_unit
        degenerate = ~valid | ~inverse.regular | tie
    return VectorPooling(
        restored(u, batch, x.dtype, valid),
        restored(objective, batch, x.dtype, valid),
        restored(gap, batch, x.dtype, valid),
        (converged & valid).reshape(batch),
        degenerate.reshape(batch),
    )


def _solution(
    at: Tensor, unit: Tensor, share: Tensor, phi: Penalty, starts: int
) -> tuple[Tensor, ...]:
    """The solution without derivatives, of points ``at`` and weights ``share``.

    The unit of weights, the centre, the minimiser relative to it, its objective, gap and
    convergence, the parts of the inverse Hessian, and the basis of the points' span if it is used.
    """
    heaviest = share.amax(1, keepdim=True) if share.shape[1] else share.new_ones(len(share), 1)
    share = share / heaviest
    centre = (share.unsqueeze(1) @ at).squeeze(1) / share.sum(1, keepdim=True)
    y = (at - centre.unsqueeze(1)) / unit[:, None, None]
    # Distances depend on the coordinates in the points' span alone, of at most n dimensions.
    basis = torch.linalg.qr(y.mT).Q if y.shape[1] < y.shape[2] else None
    coordinates = y if basis is None else y @ basis
    u, lowest, gap, converged = _minimise(coordinates, share, phi, y, basis, starts)
    inverse = invert(coordinates, share, phi, u, basis)
    full = u if basis is None else matvec(basis, u)
    parts = (inverse.inside, inverse.outside, inverse.regular)
    known = (heaviest, centre, full, lowest, gap, converged, *parts)
    return known if basis is None else (*known, basis)


def _checked(
    x: Tensor, alpha: Tensor | float, weights: Tensor | None
) -> tuple[torch.Size, Tensor, Tensor, Tensor, Tensor]:
    """Batch shape; points, ``alpha`` and weights in float64 with one batch axis; valid elements.

    Invalid elements, and points of weight 0 that are not finite, get harmless numbers.
    """
    if x.dim() < 2 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, not (*batch, n, m) with m > 0")
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}, which is not a real floating-point type")
    n = x.shape[-2]
    check_positive("alpha", alpha)
    w = x.new_ones(n) if weights is None else weights
    if w.dim() == 0 or w.shape[-1] not in (1, n):
        raise ValueError(f"weights have shape {tuple(w.shape)}; the last axis must have size {n}")
    (points, scale, w), batch = flattened(
        ("x", x, 2), ("alpha", alpha, 0), ("weights", w.expand(*w.shape[:-1], n), 1)
    )
    finite = points.detach().isfinite().all(-1)
    valid, _ = weighted_points(finite, w.detach())
    valid = valid & scale.detach().isfinite() & (scale.detach() > 0)
    usable = (finite & valid.unsqueeze(1)).unsqueeze(-1)
    points = torch.where(usable, points, 0.0)
    w = torch.where(usable.squeeze(-1) & (w > 0), w, 0.0)
    w = torch.where(valid.unsqueeze(1), w, 1.0)
    return batch, points, torch.where(valid, scale, 1.0), w, valid


def _minimise(
    y: Tensor, w: Tensor, penalty: Penalty, full: Tensor, basis: Tensor | None, starts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimiser ``(B, k)``, its objective, gap and convergence, all at ``alpha = 1``.

    Args:
        y: centred points in the coordinates of ``basis``.
        full: centred points in the standard basis.
    """
    points = 1 if penalty.convex else max(4 + starts, EXCHANGES if penalty.kinked else 0)
    if y.numel() * points <= _MEMORY_NUMBERS:
        return _lowest(_minima(y, w, full, basis, penalty, starts))
    best = [
        _lowest(_minima(*select((y, w, full, basis), part), penalty, starts))
        for part in chunks(len(y), y.shape[1] * y.shape[2] * points, _MEMORY_NUMBERS)
    ]
    u, lowest, gap, converged = (torch.cat(column) for column in zip(*best, strict=True))
    return u, lowest, gap, converged


def _minima(
    y: Tensor, w: Tensor, full: Tensor, basis: Tensor | None, penalty: Penalty, starts: int
) -> Descent:
    """The minima to which all starts lead."""
    mean = torch.zeros_like(y[:, 0]) if y.shape[1] else y.new_zeros(len(y), y.shape[2])
    if penalty.convex or not y.shape[1]:
        return descend(y, w, penalty, mean.unsqueeze(1))
    median = weighted_median(full, w)
    if basis is not None:
        median = matvec(basis.mT, median)
    paths = [graduated(y, w, penalty, u) for u in (mean, median)]
    given = torch.stack([mean, median, *paths], 1)
    minima = descend(y, w, penalty, torch.cat([given, low_points(y, w, penalty, starts)], 1))
    return exchange(y, w, penalty, minima) if penalty.kinked else minima


def _lowest(ends: Descent) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first lowest of ``K`` minima, its objective, gap to other points, and convergence."""
    u, value, converged = ends
    lowest = value.amin(1, keepdim=True)
    first = (value <= lowest * (1 + _TIE)).to(torch.int8).argmax(1, keepdim=True)
    best = u.gather(1, first.unsqueeze(-1).expand(-1, 1, u.shape[-1]))
    size = best.square().sum(-1).sqrt()
    apart = (u - best).square().sum(-1).sqrt() > _SAME_DISTANCE * (1 + size)
    gap = torch.where(apart, value - lowest, torch.inf).amin(1)
    return best.squeeze(1), lowest.squeeze(1), gap, converged.gather(1, first).squeeze(1)
