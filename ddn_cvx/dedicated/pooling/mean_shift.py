"""Welsch pooling by mean shift: a local minimizer near the middle of the points.

``u <- sum_i w_i k_i x_i / sum_i w_i k_i`` with ``k_i = exp(-(u - x_i)^2 / (2 alpha^2))`` never
raises ``f`` (Comaniciu and Meer, "Mean shift", 2002). Where the objective is convex, Newton's step
is tried in its place, and taken back if ``f`` is higher there.
"""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.pooling.convex import present_range, weighted_sum

_STEPS = 200
_ROUNDING = 4 * torch.finfo(torch.float64).eps


def local_minimum(
    x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """A local minimizer, from the weighted mean or the median, whichever is lower.

    Args:
        x: shape ``(R, n)``, float64, finite.
        alpha: shape ``(R, 1)``, positive.
        weights: shape ``(R, n)``, nonnegative, a positive one in each row; None for ones.

    Returns:
        ``u``, shape ``(R,)``.
    """
    low, high = present_range(x, weights)
    mass = x.new_full((len(x),), x.shape[1]) if weights is None else weights.sum(1)
    mean = weighted_sum(x, weights) / mass
    median = x.median(1).values.clamp(low, high)
    at_mean, at_median = (_kernel(u, x, alpha, weights)[0] for u in (mean, median))
    return ascend(torch.where(at_mean > at_median, mean, median), x, alpha, weights)


def ascend(
    u: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """The local minimizer that mean shift finds from ``u``, shape ``(R,)``."""
    low, high = present_range(x, weights)
    answer = u.clone()
    rows = torch.arange(len(x), device=x.device)
    tolerance = _ROUNDING * torch.maximum(torch.maximum(low.abs(), high.abs()), alpha.squeeze(1))
    before, safe = torch.zeros_like(u), u
    for _ in range(_STEPS):
        g, shift, newton = _kernel(u, x, alpha, weights)
        worse = g < before * (1 - _ROUNDING)
        following = torch.where(worse, safe, u + newton)
        # After a step that failed, the kernel's mean is the way on from the point before it.
        before, safe = torch.where(worse, 0.0, g), u + shift
        moving = (following - u).abs() > tolerance
        answer[rows] = u = following
        kept = moving.nonzero().squeeze(1)
        if len(kept) == 0:
            break
        if len(kept) < 0.7 * len(rows):
            rows, x, alpha, u = rows[kept], x[kept], alpha[kept], u[kept]
            before, safe, tolerance = before[kept], safe[kept], tolerance[kept]
            weights = None if weights is None else weights[kept]
    return answer


def _kernel(
    u: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``sum_i w_i k_i``, the mean shift, and Newton's step or, where it is none, the mean shift."""
    t = (u.unsqueeze(1) - x) / alpha
    k = (-t * t / 2).exp()
    k = k if weights is None else weights * k
    tk = t * k
    g, slope, bend = k.sum(1), tk.sum(1), (t * tk).sum(1)
    scale = alpha.squeeze(1)
    shift = torch.where(g > 0, -scale * slope / g, 0.0)
    curvature = g - bend
    newton = -scale * slope / curvature
    usable = (curvature > 0.1 * g) & (newton.abs() <= scale)
    return g, shift, torch.where(usable, newton, shift)
