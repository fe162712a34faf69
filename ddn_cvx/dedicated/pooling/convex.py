"""Pooling under a convex penalty: bracketed Newton on the nondecreasing derivative.

``F(u) = sum_i w_i phi'(u - x_i; alpha)`` has its root between the smallest and the largest point.
Newton's step is taken where it stays inside the bracket, otherwise the bracket is bisected. For the
Huber penalty ``F`` is piecewise linear: a step from the root's piece is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddn_cvx.batch.elements import select

Sums = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor | None]]

# Limit on iterations; bisection at every fourth alone reaches rounding within it.
_MAX_STEPS = 200
# Newton steps between bisections: without these, steps from both ends can form a cycle.
_BISECTION_PERIOD = 4
# Relative rounding error of the points and of sums over them: shorter steps are noise.
ROUNDING = 4 * torch.finfo(torch.float64).eps
# Newton step, relative to alpha, that is the last one: its error is its square, below rounding.
LAST_STEP = 1e-8
# Relative distance of a residual from alpha within which it lies on the kink of Huber's penalty.
_KINK_DISTANCE = 1e-12
# Share of the rows below which the unconverged ones are copied out, for later steps to be cheaper.
COPIED_SHARE = 0.7


def convex_minimum(sums: Sums, x: Tensor, alpha: Tensor, weights: Tensor | None) -> Tensor:
    """``argmin_u sum_i w_i phi(u - x_i; alpha)``.

    Args:
        sums: ``F``, ``F'`` and ``F''``, :func:`pseudo_huber_sums` or :func:`huber_sums`; None for
            ``F''`` unless ``F`` is smooth on the scale of ``alpha``.
        x: shape ``(R, n)``, float64, finite; points of weight zero are copies of others.
        alpha: shape ``(R, 1)``, positive.
        weights: shape ``(R, n)``, nonnegative, a positive one in each row; None for ones.

    Returns:
        ``u``, shape ``(R,)``; one of the minimizers where they are an interval.
    """
    low, high = x.amin(1), x.amax(1)  # aminmax takes three times as long
    answer = torch.empty_like(low)
    rows = torch.arange(len(x), device=x.device)
    tolerance = ROUNDING * torch.maximum(torch.maximum(-low, high), alpha.squeeze(1))
    u = x.mean(1) if weights is None else weighted_sum(x, weights) / weights.sum(1)
    u = u.clamp(low, high)
    for count in range(1, _MAX_STEPS + 1):
        slope, curvature, bend = sums(u.unsqueeze(1) - x, alpha, weights)
        high = torch.where(slope >= 0, u, high)
        low = torch.where(slope <= 0, u, low)
        step = slope / curvature
        if bend is not None:  # Halley's correction, if it is moderate
            step = step / (1 - 0.5 * step * bend / curvature).clamp(0.5, 2.0)
        newton = u - step
        usable = (curvature > 0) & (newton > low) & (newton < high)
        if count % _BISECTION_PERIOD == 0:
            usable = usable & (step.abs() < 0.1 * (high - low))
        following = torch.where(usable, newton, 0.5 * (low + high))
        # u is an end of the bracket: a step that does not leave u is below rounding.
        ended = (slope == 0) | ((curvature > 0) & (step.abs() <= tolerance))
        following = torch.where(ended, u, following)
        active = (following - u).abs() > tolerance
        if bend is not None:  # the error of a short Newton step is its square
            active = active & ~(usable & (step.abs() <= LAST_STEP * alpha.squeeze(1)))
        u = following
        answer[rows] = u
        kept = active.nonzero().squeeze(1)
        if len(kept) == 0:
            break
        if len(kept) < COPIED_SHARE * len(rows):
            rows, x, alpha, u, weights = select((rows, x, alpha, u, weights), kept)
            low, high, tolerance = select((low, high, tolerance), kept)
    return answer


def pseudo_huber_sums(
    z: Tensor, alpha: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``F``, ``F'`` and ``F''``, shape ``(R,)``, in few passes over the residuals."""
    t = z / alpha
    # phi' = alpha t r, phi'' = r^3, phi''' = -3 t r^5 / alpha
    r = torch.addcmul(torch.ones_like(alpha), t, t).rsqrt()
    wr = r if weights is None else weights * r
    square = r * r
    cube = square * wr
    scale = alpha.squeeze(1)
    return scale * _dot(t, wr), cube.sum(1), -3 * _dot(t.mul_(square), cube) / scale


def huber_sums(z: Tensor, alpha: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, None]:
    """As :func:`pseudo_huber_sums`."""
    slope = torch.minimum(torch.maximum(z, -alpha), alpha)
    inside = (slope == z).to(z.dtype)
    return weighted_sum(slope, weights), weighted_sum(inside, weights), None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(1) @ b.unsqueeze(2)).reshape(len(a))


def huber_minimum(x: Tensor, alpha: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Minimizers, and where they are an interval, whose midpoint is returned; both ``(R,)``."""
    u = convex_minimum(huber_sums, x, alpha, weights)
    low, high, flat = flat_interval(u, x, alpha, weights)
    return torch.where(flat, 0.5 * (low + high), u), flat


def flat_interval(
    u: Tensor, x: Tensor, alpha: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of the interval of Huber's minimizers around ``u``, and rows with such an interval.

    Without points strictly within ``alpha`` the derivative is constant: the interval goes from
    ``alpha`` above the nearest point below to ``alpha`` below the nearest point above.
    """
    z = u.unsqueeze(1) - x
    edge = alpha * (1 - _KINK_DISTANCE)
    strict = z.abs() < edge
    if weights is not None:
        strict = strict & (weights > 0)
        x = torch.where(weights > 0, x, torch.nan)
    below = torch.where(z >= edge, x, -torch.inf).nan_to_num(nan=-torch.inf).amax(1)
    above = torch.where(z <= -edge, x, torch.inf).nan_to_num(nan=torch.inf).amin(1)
    low, high = below + alpha.squeeze(1), above - alpha.squeeze(1)
    flat = ~strict.any(1) & low.isfinite() & high.isfinite()
    return low, high, flat


def weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """``sum_i w_i v_i``, shape ``(R,)``."""
    return values.sum(1) if weights is None else _dot(weights, values)
