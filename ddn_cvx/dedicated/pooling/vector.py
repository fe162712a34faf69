"""Robust pooling of vectors, a deep declarative node written by hand.

    y = argmin_u  sum_i w_i phi(|u - x_i|; alpha),    u, x_i in R^m

with one of five penalties of ``z = |u - x_i|``:

    quadratic            z^2 / 2
    pseudo_huber         alpha^2 (sqrt(1 + (z / alpha)^2) - 1)
    huber                z^2 / 2 if z <= alpha, else alpha (z - alpha / 2)
    welsch               1 - exp(-z^2 / (2 alpha^2))
    truncated_quadratic  z^2 / 2 if z <= alpha, else alpha^2 / 2

Gould, Hartley and Campbell, "Deep declarative networks" (2021), section 5, pool numbers so. The
descent is iteratively reweighted least squares (Weiszfeld 1937; Black and Rangarajan 1996) and then
Newton's method, never uphill. The last two penalties are not convex: several starts, among them
graduated nonconvexity (Yang et al. 2020), for the truncated quadratic also exchanges of single
inliers, and the lowest end is returned; that it is the global minimum is likely and not proved.

Where the minimiser is not unique, the one returned is: of several isolated ones with the same
objective, that of the first start in the order mean, median, these two graduated, places by
rising objective (the truncated quadratic: that of the lowest ends improved by exchanges); of a
continuum (Huber's penalty with no point within ``alpha``), that which the descent from the
weighted mean reaches. Its gradient is then that of least norm (the pseudo-inverse of the Hessian),
and ``solve_vector`` says so in ``degenerate``. The gradient of the truncated quadratic is that of
the weighted mean of its inliers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ddn_cvx.dedicated.constants import constant, eager
from ddn_cvx.dedicated.pooling.vector_adjoint import Inverse, attach, invert
from ddn_cvx.dedicated.pooling.vector_descent import Descent, descend
from ddn_cvx.dedicated.pooling.vector_penalties import PENALTIES, Penalty
from ddn_cvx.dedicated.pooling.vector_starts import (
    EXCHANGES,
    exchange,
    graduated,
    low_points,
    weighted_median,
)

Tensor = torch.Tensor

# Numbers in one block of residuals, over all starts: bounds the memory of the descent.
_BLOCK = 2**22

# Ends within this many alpha of each other are the same point.
_SAME = 1e-5

# Objectives within this of each other, relative to their size, tie.
_TIE = 1e-12


class VectorPooling(NamedTuple):
    """What :func:`solve_vector` finds, per batch element.

    Attributes:
        u: the pooled vector, shape ``(*batch, m)``, differentiable.
        objective: its objective, shape ``(*batch,)``, differentiable.
        gap: how much lower that is than the lowest end of another start at another point, shape
            ``(*batch,)``; infinite where all starts ended at the same point. Constant.
        converged: whether the gradient vanishes to 1e-12 of its terms, or to the rounding of its
            points where that is more, shape ``(*batch,)``.
        degenerate: where the derivative does not exist or is not unique, shape ``(*batch,)``: a
            singular or indefinite Hessian, a residual on the penalty's kink, a tie with another
            point, no positive weight, or an input that is not finite.
    """

    u: Tensor
    objective: Tensor
    gap: Tensor
    converged: Tensor
    degenerate: Tensor


def vector_pool(
    x: Tensor,
    penalty: str,
    alpha: Tensor | float,
    weights: Tensor | None = None,
    starts: int = 16,
) -> Tensor:
    """The vector nearest to all points, differentiable twice for points, ``alpha`` and weights.

    Args:
        x: points, shape ``(*batch, n, m)``.
        penalty: a name in :data:`~ddn_cvx.dedicated.pooling.vector_penalties.PENALTIES`.
        alpha: positive, broadcasts with ``(*batch,)``.
        weights: nonnegative or a mask, broadcasts with ``(*batch, n)``; ones if not given. A point
            of weight 0 counts as removed, whatever it contains.
        starts: places of low objective, data points and means of neighbours, from which a
            nonconvex penalty's descent starts, besides four others.

    Returns:
        Shape ``(*batch, m)``, of the dtype of ``x``; computed in float64. A row with an input that
        is not finite, an ``alpha`` that is not positive, a negative weight, or none that is
        positive, is NaN and has gradient zero.

    Raises:
        ValueError: for an unknown penalty, a shape that does not fit, or an ``alpha`` that is a
            number and not positive.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pooling.vector import vector_pool
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [90.0, 0.0]])
        >>> vector_pool(x, "truncated_quadratic", 2.0)
        tensor([0.5000, 0.5000])
    """
    return solve_vector(x, penalty, alpha, weights, starts).u


@eager
def solve_vector(
    x: Tensor,
    penalty: str,
    alpha: Tensor | float,
    weights: Tensor | None = None,
    starts: int = 16,
) -> VectorPooling:
    """:func:`vector_pool` with its objective and with what is known of its quality.

    Arguments, and what is raised, as there.

    Example:
        Two points, too far apart for one vector to serve both: a tie.

        >>> import torch
        >>> from ddn_cvx.dedicated.pooling.vector import solve_vector
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

    def find(at: Tensor, unit: Tensor, share: Tensor) -> tuple[Tensor, ...]:
        return _found(at, unit, share, phi, starts)

    heaviest, centre, full, lowest, gap, converged, inside, outside, regular, *basis = constant(
        find, points, unit, mass, in_parts=False
    )
    inverse = Inverse(inside, basis[0] if basis else None, outside, regular)
    factor = unit.unsqueeze(-1)
    moved = (points - centre.unsqueeze(1)) / factor.unsqueeze(-1)
    u = attach(moved, scale / unit, mass / heaviest, phi, full, inverse)
    u = centre + factor * u
    s = (u.unsqueeze(1) - points).square().sum(-1)
    objective = (mass * phi.value(s, scale.unsqueeze(-1))).sum(-1)
    with torch.no_grad():
        # at the scale of the descent, whatever the units of the points
        tie = gap <= _TIE * lowest
        per_unit = heaviest.squeeze(1) * (1.0 if penalty == "welsch" else unit**2)
        gap = torch.where(valid, gap * per_unit, torch.nan)
        degenerate = ~valid | ~inverse.regular | tie
        converged = converged & valid
    u = torch.where(valid.unsqueeze(-1), u, torch.nan)
    objective = torch.where(valid, objective, torch.nan)
    return VectorPooling(
        u.reshape(*batch, x.shape[-1]).to(x.dtype),
        objective.reshape(batch).to(x.dtype),
        gap.reshape(batch).to(x.dtype),
        converged.reshape(batch),
        degenerate.reshape(batch),
    )


def _found(
    at: Tensor, unit: Tensor, share: Tensor, phi: Penalty, starts: int
) -> tuple[Tensor, ...]:
    """All that is not differentiated: the unit of weights, centre, minimiser and its quality, the
    parts of the inverse Hessian, and the basis where there is one.
    """
    heaviest = share.amax(1, keepdim=True) if share.shape[1] else share.new_ones(len(share), 1)
    share = share / heaviest
    centre = (share.unsqueeze(1) @ at).squeeze(1) / share.sum(1, keepdim=True)
    y = (at - centre.unsqueeze(1)) / unit[:, None, None]
    # distances are all that counts: n points in more than n dimensions lie in n of them
    basis = torch.linalg.qr(y.mT).Q if y.shape[1] < y.shape[2] else None
    coordinates = y if basis is None else y @ basis
    found, lowest, gap, converged = _minimise(coordinates, share, phi, y, basis, starts)
    inverse = invert(coordinates, share, phi, found, basis)
    full = found if basis is None else (basis @ found.unsqueeze(-1)).squeeze(-1)
    parts = (inverse.inside, inverse.outside, inverse.regular)
    known = (heaviest, centre, full, lowest, gap, converged, *parts)
    return known if basis is None else (*known, basis)


def _checked(
    x: Tensor, alpha: Tensor | float, weights: Tensor | None
) -> tuple[torch.Size, Tensor, Tensor, Tensor, Tensor]:
    """Batch shape, then points, alpha, weights in float64 with one batch axis, and valid rows.

    Invalid rows, and points of weight 0 that are not finite, get values that are, without gradient.
    """
    if x.dim() < 2 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, not (*batch, n, m) with m > 0")
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}, which is not a real floating-point type")
    n, m = x.shape[-2:]
    if not isinstance(alpha, torch.Tensor) and not alpha > 0:
        raise ValueError(f"alpha must be positive; got {alpha!r}.")
    # a Python number in float64 from the start: 0.1 is not the nearest float32 to 0.1
    kind = alpha.dtype if isinstance(alpha, torch.Tensor) else torch.float64
    alpha = torch.as_tensor(alpha, dtype=kind, device=x.device).to(torch.float64)
    w = x.new_ones(n) if weights is None else weights
    w = w.to(torch.float64)
    if w.dim() == 0 or w.shape[-1] not in (1, n):
        raise ValueError(f"weights have shape {tuple(w.shape)}; the last axis must have size {n}")
    try:
        batch = torch.broadcast_shapes(x.shape[:-2], alpha.shape, w.shape[:-1])
    except RuntimeError as error:
        raise ValueError(
            f"x, alpha and weights have shapes {tuple(x.shape)}, {tuple(alpha.shape)} and "
            f"{tuple(w.shape)}, whose batch axes do not broadcast"
        ) from error
    rows = math.prod(batch)
    points = x.to(torch.float64).expand(*batch, n, m).reshape(rows, n, m)
    alpha = alpha.expand(batch).reshape(rows)
    w = w.expand(*batch, n).reshape(rows, n)
    there = w.detach() != 0
    finite = points.detach().isfinite().all(-1)
    valid = (finite | ~there).all(1) & w.detach().isfinite().all(1) & there.any(1)
    valid = valid & (w.detach() >= 0).all(1) & alpha.detach().isfinite() & (alpha.detach() > 0)
    usable = (finite & valid.unsqueeze(1)).unsqueeze(-1)
    points = torch.where(usable, points, 0.0)
    w = torch.where(usable.squeeze(-1) & (w > 0), w, 0.0)
    w = torch.where(valid.unsqueeze(1), w, 1.0)
    alpha = torch.where(valid, alpha, 1.0)
    return batch, points, alpha, w, valid


def _minimise(
    y: Tensor, w: Tensor, penalty: Penalty, full: Tensor, basis: Tensor | None, starts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimiser ``(B, k)``, its objective, gap and convergence, all at ``alpha = 1``.

    Runs in blocks of batch elements. ``y`` are the centred points in ``basis``, ``full`` the same
    in the standard basis.
    """
    at_once = 1 if penalty.convex else max(4 + starts, EXCHANGES if penalty.kinked else 0)
    size = max(1, _BLOCK // max(1, y.shape[1] * y.shape[2] * at_once))
    ends = []
    for first in range(0, max(1, len(y)), size):
        rows = slice(first, first + size)
        mean = torch.zeros_like(y[rows, 0]) if y.shape[1] else y.new_zeros(len(y[rows]), y.shape[2])
        begin = mean.unsqueeze(1)
        if not penalty.convex and y.shape[1]:
            median = weighted_median(full[rows], w[rows])
            if basis is not None:
                median = (median.unsqueeze(1) @ basis[rows]).squeeze(1)
            paths = [graduated(y[rows], w[rows], penalty, u) for u in (mean, median)]
            given = torch.stack([mean, median, *paths], 1)
            begin = torch.cat([given, low_points(y[rows], w[rows], penalty, starts)], 1)
        end = descend(y[rows], w[rows], penalty, begin)
        if not penalty.convex and penalty.kinked and y.shape[1]:
            end = exchange(y[rows], w[rows], penalty, end)
        ends.append(_lowest(end))
    u, lowest, gap, converged = zip(*ends, strict=True)
    return torch.cat(u), torch.cat(lowest), torch.cat(gap), torch.cat(converged)


def _lowest(ends: Descent) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first of the lowest of ``K`` ends, its objective, gap to other points, convergence."""
    u, value, converged = ends
    lowest = value.amin(1, keepdim=True)
    first = (value <= lowest * (1 + _TIE)).to(torch.int8).argmax(1, keepdim=True)
    best = u.gather(1, first.unsqueeze(-1).expand(-1, 1, u.shape[-1]))
    size = best.square().sum(-1).sqrt()
    apart = (u - best).square().sum(-1).sqrt() > _SAME * (1 + size)
    gap = torch.where(apart, value - lowest, torch.inf).amin(1)
    return best.squeeze(1), lowest.squeeze(1), gap, converged.gather(1, first).squeeze(1)
