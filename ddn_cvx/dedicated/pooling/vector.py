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

The derivatives are those of the implicit function theorem (Gould, Hartley and Campbell, "Deep
declarative networks", 2021, proposition 4.4): of ``g(u, x, alpha, w) = sum_i w_i psi_i (u - x_i)``,
which is zero, with the symmetric Hessian ``H = sum_i w_i (psi_i I + bend_i r_i r_i')``: ``du =
-H^{-1} dg``.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import chunks
from ddn_cvx.dedicated.common import (
    attached,
    check_positive,
    flattened,
    in_chunks,
    isolated,
    nondifferentiable,
    restored,
    weighted_points,
)
from ddn_cvx.dedicated.pooling.penalties import Penalty, penalty_named
from ddn_cvx.dedicated.pooling.vector_descent import descend, hessian
from ddn_cvx.dedicated.pooling.vector_starts import (
    EXCHANGES,
    exchange,
    graduated,
    low_points,
    weighted_median,
)
from ddn_cvx.linalg.products import matvec

# Numbers in one chunk of residuals, over all starts: 32 MiB of float64 bound the memory.
_MEMORY_NUMBERS = 2**22

# Distance, in alpha and relative to the point, within which two minima are the same.
_SAME_DISTANCE = 1e-5

# Relative difference of objectives that is rounding: the minima tie.
_TIE = 1e-12

# Eigenvalue, relative to its bound, the sum of the weights psi, below which it counts as zero: the
# gradient has lost ten digits there.
_SINGULAR = 1e-10

# Distance of a residual's norm from alpha, relative to alpha, within which it lies on the kink.
_KINK_DISTANCE = 1e-9


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
    phi = penalty_named(penalty)
    if starts < 0:
        raise ValueError(f"starts is {starts}, which is negative")
    batch, points, scale, mass, valid = _checked(x, alpha, weights)
    unit = scale.detach()
    solve = functools.partial(_solution, phi, starts)
    heaviest, centre, start, lowest, gap, converged, *parts = nondifferentiable(
        solve, points, unit, mass, chunked=False
    )
    inverse = _Inverse(*parts)
    y = (points - centre.unsqueeze(1)) / unit[:, None, None]
    alphas, share = (scale / unit).unsqueeze(1), mass / heaviest

    def gradient(u: Tensor) -> Tensor:
        residual = u.unsqueeze(1) - y
        psi = phi.weight(residual.square().sum(-1), alphas)
        return matvec(residual.mT, share * psi)

    u = centre + unit.unsqueeze(1) * attached(start, gradient, inverse.times, y, alphas, share)
    s = (u.unsqueeze(1) - points).square().sum(-1)
    objective = (mass * phi.of_square(s, scale.unsqueeze(-1))).sum(-1)
    degenerate = ~valid | ~inverse.regular | (gap <= _TIE * lowest)
    gap = gap * heaviest.squeeze(1) * unit**phi.degree  # in the units of the descent until here
    u, objective, gap = (restored(v, batch, x.dtype, valid) for v in (u, objective, gap))
    return VectorPooling(
        u,
        objective,
        gap,
        (converged & valid).reshape(batch),
        degenerate.reshape(batch),
    )


class _Inverse(NamedTuple):
    """``H^{-1}``, in a basis of the points' span and outside it.

    Outside the span of the points ``H`` is ``sum_i w_i psi_i`` times the identity: with fewer
    points than dimensions this replaces the ``m x m`` inverse by one of ``n x n`` (Woodbury's
    identity).

    Attributes:
        inside: pseudo-inverse in the basis, shape ``(B, k, k)``.
        basis: orthonormal columns, shape ``(B, m, k)``.
        outside: reciprocal of ``sum_i w_i psi_i``, shape ``(B,)``.
        regular: whether ``H`` is positive definite and ``g`` smooth, shape ``(B,)``.
    """

    inside: Tensor
    basis: Tensor
    outside: Tensor
    regular: Tensor

    def times(self, v: Tensor) -> Tensor:
        """``H^{-1} v`` for ``v`` of shape ``(B, m)``."""
        within = matvec(self.basis.mT, v)
        beyond = self.outside.unsqueeze(1) * (v - matvec(self.basis, within))
        return beyond + matvec(self.basis, matvec(self.inside, within))


def _solution(
    phi: Penalty, starts: int, at: Tensor, unit: Tensor, share: Tensor
) -> tuple[Tensor, ...]:
    """The solution without derivatives, of points ``at`` and weights ``share``.

    The unit of weights, the centre, the minimiser relative to it, its objective, gap and
    convergence, and the fields of the inverse Hessian.
    """
    heaviest = share.amax(1, keepdim=True) if share.shape[1] else share.new_ones(len(share), 1)
    share = share / heaviest
    centre = matvec(at.mT, share) / share.sum(1, keepdim=True)
    y = (at - centre.unsqueeze(1)) / unit[:, None, None]
    _, n, m = y.shape
    if n < m:  # distances depend on the coordinates in the points' span alone
        basis = torch.linalg.qr(y.mT).Q
        coordinates = y @ basis
    else:
        basis = torch.eye(m, dtype=y.dtype, device=y.device).expand(len(y), m, m)
        coordinates = y
    # Points that the descent from all starts holds at once.
    held = 1 if phi.convex else max(4 + starts, EXCHANGES if phi.kinked else 0)
    u, lowest, gap, converged = in_chunks(
        functools.partial(_minimum, phi, starts),
        list(chunks(len(y), coordinates[:1].numel() * held, _MEMORY_NUMBERS)),
        coordinates,
        share,
        y,
        basis,
    )
    inverse = _invert(coordinates, share, phi, u, basis)
    return heaviest, centre, matvec(basis, u), lowest, gap, converged, *inverse


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


def _minimum(
    penalty: Penalty, starts: int, y: Tensor, w: Tensor, full: Tensor, basis: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimiser ``(B, k)``, its objective, gap to other minima, and convergence, at ``alpha = 1``.

    Args:
        y: centred points in the coordinates of ``basis``.
        full: centred points in the standard basis.
    """
    mean = y.new_zeros(len(y), y.shape[2])
    if penalty.convex or not y.shape[1]:
        ends = descend(y, w, penalty, mean.unsqueeze(1))
    else:
        median = matvec(basis.mT, weighted_median(full, w))
        paths = [graduated(y, w, penalty, u) for u in (mean, median)]
        given = torch.stack([mean, median, *paths], 1)
        ends = descend(y, w, penalty, torch.cat([given, low_points(y, w, penalty, starts)], 1))
        if penalty.kinked:
            ends = exchange(y, w, penalty, ends)
    u, value, converged = ends
    lowest = value.amin(1, keepdim=True)
    first = (value <= lowest * (1 + _TIE)).to(torch.int8).argmax(1, keepdim=True)
    best = u.gather(1, first.unsqueeze(-1).expand(-1, 1, u.shape[-1]))
    size = best.square().sum(-1).sqrt()
    apart = (u - best).square().sum(-1).sqrt() > _SAME_DISTANCE * (1 + size)
    gap = torch.where(apart, value - lowest, torch.inf).amin(1)
    return best.squeeze(1), lowest.squeeze(1), gap, converged.gather(1, first).squeeze(1)


def _invert(y: Tensor, w: Tensor, penalty: Penalty, u: Tensor, basis: Tensor) -> _Inverse:
    """The inverse Hessian at ``u`` ``(B, k)``; all in coordinates of ``basis``, ``alpha = 1``.

    Where ``H`` is singular, its pseudo-inverse gives the solution and gradient of least norm.
    """
    residual = u.unsqueeze(1) - y
    s = residual.square().sum(-1)
    total = (w * penalty.weight(s)).sum(-1)
    safe = torch.where(total > 0, total, 1.0)
    H = hessian(residual, s, w, penalty) / safe[:, None, None]
    identity = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    regular = (torch.linalg.cholesky_ex(H - _SINGULAR * identity).info == 0) & (total > 0)
    inside = torch.linalg.inv_ex(torch.where(regular[:, None, None], H, identity)).inverse
    singular = (~regular).nonzero().squeeze(1)
    if singular.numel():
        # Of these elements alone: eigenvalues cost far more than Cholesky factors.
        some = H[singular]
        finite = some.isfinite().all(-1).all(-1)[:, None, None]
        some = torch.where(finite, some, 0.0)
        pseudo = torch.linalg.pinv(some, atol=_SINGULAR, rtol=0.0, hermitian=True)
        inside = inside.index_copy(0, singular, pseudo)
    if penalty.kinked:
        on_kink = ((s.sqrt() - 1).abs() <= _KINK_DISTANCE) & (w > 0)
        regular = regular & ~on_kink.any(-1)
    return _Inverse(inside / safe[:, None, None], basis, 1 / safe, regular)
