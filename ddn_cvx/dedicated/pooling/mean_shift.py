"""Welsch pooling by mean shift: a local minimizer near the middle of the points.

``u <- sum_i w_i k_i x_i / sum_i w_i k_i`` with ``k_i = exp(-(u - x_i)^2 / (2 alpha^2))`` never
raises ``f`` (Comaniciu and Meer, "Mean shift", 2002). Where the objective is convex, Halley's step
is tried instead, and undone if it raises ``f``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.batch.elements import select
from ddn_cvx.dedicated.pooling.convex import COPIED_SHARE, LAST_STEP, ROUNDING, weighted_sum

_MAX_STEPS = 200
# Size of the subsample whose local minimizer is the start for rows with at least twice as many.
_SAMPLE_POINTS = 64


def local_minimum(x: Tensor, alpha: Tensor, weights: Tensor | None) -> Tensor:
    """A local minimizer, from the weighted mean or the median, whichever is lower.

    Args:
        x: shape ``(R, n)``, float64, finite; points of weight zero are copies of others.
        alpha: shape ``(R, 1)``, positive.
        weights: shape ``(R, n)``, nonnegative, a positive one in each row; None for ones.

    Returns:
        ``u``, shape ``(R,)``.
    """
    x, scale, stride = x / alpha, alpha.squeeze(1), x.shape[1] // _SAMPLE_POINTS
    if stride <= 1:
        return scale * ascend(_middle(x, weights), x, weights)
    some, w = x[:, ::stride].contiguous(), None
    if weights is not None:
        w = weights[:, ::stride].contiguous()
        # A subsample without a weight: points of weight zero are copies of one with a weight.
        w = torch.where((w > 0).any(1, keepdim=True), w, 1.0)
    start = ascend(_middle(some, w), some, w)
    return scale * ascend(start, x, weights)


def _middle(x: Tensor, weights: Tensor | None) -> Tensor:
    """The weighted mean or the median, whichever is lower, shape ``(R,)``; units of ``alpha``."""
    mass = x.new_full((len(x),), x.shape[1]) if weights is None else weights.sum(1)
    mean = weighted_sum(x, weights) / mass
    median = x.median(1).values
    if weights is not None:
        low = torch.where(weights > 0, x, torch.inf).amin(1)
        median = median.clamp(low, torch.where(weights > 0, x, -torch.inf).amax(1))
    at_mean, at_median = (_kernel(u, x, weights)[0] for u in (mean, median))
    return torch.where(at_mean > at_median, mean, median)


def ascend(u: Tensor, x: Tensor, weights: Tensor | None) -> Tensor:
    """The local minimizer to which mean shift leads from ``u``, ``(R,)``; in units of ``alpha``."""
    low, high = x.amin(1), x.amax(1)
    answer = u.clone()
    rows = torch.arange(len(x), device=x.device)
    tolerance = ROUNDING * torch.maximum(-low, high).clamp_min(1.0)
    before, safe = torch.zeros_like(u), u
    for _ in range(_MAX_STEPS):
        g, shift, newton, is_newton = _kernel(u, x, weights)
        worse = g < before * (1 - ROUNDING)
        following = torch.where(worse, safe, u + newton)
        # A failed step is undone; the next iterate is the kernel's mean at the previous one.
        before, safe = torch.where(worse, 0.0, g), u + shift
        step = following - u
        short = ~worse & is_newton & (step.abs() <= LAST_STEP)
        moving = ~short & (step.abs() > tolerance)
        answer[rows] = u = following
        kept = moving.nonzero().squeeze(1)
        if len(kept) == 0:
            break
        if len(kept) < COPIED_SHARE * len(rows):
            rows, x, u, weights = select((rows, x, u, weights), kept)
            before, safe, tolerance = select((before, safe, tolerance), kept)
    return answer


def _kernel(u: Tensor, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``g = sum_i w_i k_i``, the mean shift, a step, and whether that is Halley's; all ``(R,)``.

    Where Halley's step cannot be trusted, the step is the mean shift.
    """
    g, slope, bend, cube = moments(u.unsqueeze(1) - x, weights, orders=3)
    shift = torch.where(g > 0, -slope / g, 0.0)
    # The derivatives of f are slope, g - bend and cube - 3 slope.
    curvature = g - bend
    newton = slope / curvature
    correction = (1 - 0.5 * newton * (cube - 3 * slope) / curvature).clamp(0.5, 2.0)
    step = -newton / correction
    usable = (curvature > 0.1 * g) & (step.abs() <= 1)
    return g, shift, torch.where(usable, step, shift), usable


def moments(t: Tensor, weights: Tensor | None, orders: int) -> list[Tensor]:
    """``sum_i w_i exp(-t_i^2 / 2) t_i^p``, ``(R,)``, for each ``p`` up to ``orders``, two or three.

    With three, ``t`` is overwritten.
    """
    square = t * t
    k = torch.mul(square, -0.5).exp_()
    if weights is not None:
        k *= weights
    column = k.unsqueeze(2)
    found = [k.sum(1), *(torch.bmm(a.unsqueeze(1), column).flatten() for a in (t, square))]
    if orders == 3:
        found.append(torch.bmm(t.mul_(square).unsqueeze(1), column).flatten())
    return found
