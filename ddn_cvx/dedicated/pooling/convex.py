"""Pooling under a convex penalty: bracketed Newton on the nondecreasing derivative.

``F(u) = sum_i w_i phi'(u - x_i; alpha)`` has its root between the smallest and the largest point.
Newton's step is taken where it stays inside of the bracket, else the bracket is halved. For the
Huber penalty ``F`` is piecewise linear, and the step that meets the root's piece is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Sums = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor | None],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
]

_STEPS = 200
# Newton's steps from both ends can lead to one another: at every so many the bracket is halved.
_HALVED = 4
# A step below this, relative to the points, is rounding.
_ROUNDING = 4 * torch.finfo(torch.float64).eps
# A Newton step below this, relative to alpha, leaves an error of its square.
_SHORT = 1e-8
# Points from which a start is found where there are many more.
_SAMPLE = 64
# How near to alpha a residual must be to lie on the kink of the Huber penalty.
_KINK = 1e-12


def convex_minimum(
    sums: Sums,
    x: torch.Tensor,
    alpha: torch.Tensor,
    weights: torch.Tensor | None,
    *,
    smooth: bool,
) -> torch.Tensor:
    """``argmin_u sum_i w_i phi(u - x_i; alpha)``.

    Args:
        sums: ``F``, ``F'`` and ``F''``, or None for the last, :func:`pseudo_huber_sums` or
            :func:`huber_sums`.
        x: shape ``(R, n)``, float64, finite.
        alpha: shape ``(R, 1)``, positive.
        weights: shape ``(R, n)``, nonnegative, a positive one in each row; None for ones.
        smooth: ``F`` is, on the scale of ``alpha``: a short Newton step squares to nothing.

    Returns:
        ``u``, shape ``(R,)``; where the minimizers are many, one of them.
    """
    low, high = present_range(x, weights)
    answer = torch.empty_like(low)
    rows = torch.arange(len(x), device=x.device)
    tolerance = _ROUNDING * torch.maximum(torch.maximum(low.abs(), high.abs()), alpha.squeeze(1))
    u = (x.mean(1) if weights is None else weighted_sum(x, weights) / weights.sum(1)).clamp(
        low, high
    )
    for count in range(1, _STEPS + 1):
        slope, curvature, bend = sums(u.unsqueeze(1) - x, alpha, weights)
        high = torch.where(slope >= 0, u, high)
        low = torch.where(slope <= 0, u, low)
        step = slope / curvature
        if bend is not None:  # Halley's correction, where it is one
            step = step / (1 - 0.5 * step * bend / curvature).clamp(0.5, 2.0)
        newton = u - step
        usable = (curvature > 0) & (newton > low) & (newton < high)
        if count % _HALVED == 0:
            usable = usable & (step.abs() < 0.1 * (high - low))
        following = torch.where(usable, newton, 0.5 * (low + high))
        # One of the bracket's ends is u: a step to it is one that rounding has ended.
        ended = (slope == 0) | ((curvature > 0) & (step.abs() <= tolerance))
        following = torch.where(ended, u, following)
        active = (following - u).abs() > tolerance
        if smooth:
            active = active & ~(usable & (step.abs() <= _SHORT * alpha.squeeze(1)))
        u = following
        answer[rows] = u
        kept = active.nonzero().squeeze(1)
        if len(kept) == 0:
            break
        if len(kept) < 0.7 * len(rows):  # copying the rest pays
            rows, x, alpha, u = rows[kept], x[kept], alpha[kept], u[kept]
            low, high, tolerance = low[kept], high[kept], tolerance[kept]
            weights = None if weights is None else weights[kept]
    return answer


def _start(
    sums: Sums,
    x: torch.Tensor,
    alpha: torch.Tensor,
    weights: torch.Tensor | None,
    smooth: bool,
) -> torch.Tensor:
    """The minimizer for some of the points, where there are many; else the mean."""
    stride = x.shape[1] // _SAMPLE
    if stride > 1:
        some = x[:, ::stride].contiguous()
        w = None if weights is None else weights[:, ::stride].contiguous()
        if w is None or bool((w > 0).any(1).all()):
            return convex_minimum(sums, some, alpha, w, smooth=smooth)
    return x.mean(1) if weights is None else weighted_sum(x, weights) / weights.sum(1)


def pseudo_huber_sums(
    z: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``F``, ``F'`` and ``F''``, shape ``(R,)``, in few passes over the residuals."""
    t = z / alpha
    # phi' = alpha t r, phi'' = r^3, phi''' = -3 t r^5 / alpha
    r = torch.addcmul(torch.ones_like(alpha), t, t).rsqrt()
    wr = r if weights is None else weights * r
    square = r * r
    cube = square * wr
    scale = alpha.squeeze(1)
    return scale * _dot(t, wr), cube.sum(1), -3 * _dot(t.mul_(square), cube) / scale


def huber_sums(
    z: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, None]:
    """As :func:`pseudo_huber_sums`."""
    slope = torch.minimum(torch.maximum(z, -alpha), alpha)
    inside = (slope == z).to(z.dtype)
    return weighted_sum(slope, weights), weighted_sum(inside, weights), None


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.unsqueeze(1) @ b.unsqueeze(2)).reshape(len(a))


def huber_minimum(
    x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`convex_minimum`; the midpoint where the minimizers are an interval, and where."""
    u = convex_minimum(huber_sums, x, alpha, weights, smooth=False)
    low, high, flat = flat_interval(u, x, alpha, weights)
    return torch.where(flat, 0.5 * (low + high), u), flat


def flat_interval(
    u: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ends of the interval of Huber's minimizers around ``u``, and where there is one; ``(R,)``.

    Without points strictly within ``alpha`` the derivative is constant. The interval goes from
    ``alpha`` above the nearest point below to ``alpha`` below the nearest point above.
    """
    z = u.unsqueeze(1) - x
    edge = alpha * (1 - _KINK)
    strict = z.abs() < edge
    if weights is not None:
        strict = strict & (weights > 0)
        x = torch.where(weights > 0, x, torch.nan)
    below = torch.where(z >= edge, x, -torch.inf).nan_to_num(nan=-torch.inf).amax(1)
    above = torch.where(z <= -edge, x, torch.inf).nan_to_num(nan=torch.inf).amin(1)
    low, high = below + alpha.squeeze(1), above - alpha.squeeze(1)
    flat = ~strict.any(1) & low.isfinite() & high.isfinite()
    return low, high, flat


def present_range(
    x: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest point with a positive weight, shape ``(R,)``."""
    if weights is None:
        return x.amin(1), x.amax(1)
    present = weights > 0
    return (
        torch.where(present, x, torch.inf).amin(1),
        torch.where(present, x, -torch.inf).amax(1),
    )


def weighted_sum(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """``sum_i w_i v_i``, shape ``(R,)``."""
    if weights is None:
        return values.sum(1)
    return _dot(weights, values)
