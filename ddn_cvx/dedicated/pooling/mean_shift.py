"""Welsch pooling by mean shift: a local minimizer near the middle of the points.

``u <- sum_i w_i k_i x_i / sum_i w_i k_i`` with ``k_i = exp(-(u - x_i)^2 / (2 alpha^2))`` never
raises ``f`` (Comaniciu and Meer, "Mean shift", 2002). Where the objective is convex, Newton's step
is tried in its place, and taken back if ``f`` is higher there.
"""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.pooling.convex import present_range, weighted_sum

_STEPS = 200
# A Newton step below this, relative to alpha, leaves an error of its square.
_SHORT = 1e-8
# Points from which a start is found where there are many more.
_SAMPLE = 64
_ROUNDING = 4 * torch.finfo(torch.float64).eps


def local_minimum(
    x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None, part: int
) -> torch.Tensor:
    """A local minimizer, from the weighted mean or the median, whichever is lower.

    Args:
        x: shape ``(R, n)``, finite.
        alpha: shape ``(R, 1)``, positive.
        weights: shape ``(R, n)``, nonnegative, a positive one in each row; None for ones.
        part: rows that are worked on at a time.

    Returns:
        ``u``, shape ``(R,)``, float64.
    """
    stride = x.shape[1] // _SAMPLE
    some, w = x, weights
    if stride > 1:  # a local minimizer for some of the points is a start for all
        w = None if weights is None else weights[:, ::stride].contiguous()
        some = x[:, ::stride].contiguous()
        if w is not None and not bool((w > 0).any(1).all()):
            some, w = x, weights
    start = _middle(some.double(), alpha, w)
    if some is not x:
        start = ascend(start, some.double(), alpha, w)
    ends = []
    for first in range(0, len(x), part):
        rows = slice(first, first + part)
        w = None if weights is None else weights[rows]
        ends.append(ascend(start[rows], x[rows].double(), alpha[rows], w))
    return torch.cat(ends)


def _middle(x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The weighted mean or the median, whichever is lower, shape ``(R,)``."""
    low, high = present_range(x, weights)
    mass = x.new_full((len(x),), x.shape[1]) if weights is None else weights.sum(1)
    mean = weighted_sum(x, weights) / mass
    median = x.median(1).values.clamp(low, high)
    at_mean, at_median = (
        _kernel(u / alpha.squeeze(1), x / alpha, weights)[0] for u in (mean, median)
    )
    return torch.where(at_mean > at_median, mean, median)


def ascend(
    u: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """The local minimizer that mean shift finds from ``u``, shape ``(R,)``."""
    scale = alpha.squeeze(1)
    return scale * _ascend(u / scale, x / alpha, weights)


def _ascend(u: torch.Tensor, x: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """In units of ``alpha``."""
    low, high = present_range(x, weights)
    answer = u.clone()
    rows = torch.arange(len(x), device=x.device)
    tolerance = _ROUNDING * torch.maximum(low.abs(), high.abs()).clamp_min(1.0)
    before, safe = torch.zeros_like(u), u
    for _ in range(_STEPS):
        g, shift, newton, is_newton = _kernel(u, x, weights)
        worse = g < before * (1 - _ROUNDING)
        following = torch.where(worse, safe, u + newton)
        # After a step that failed, the kernel's mean is the way on from the point before it.
        before, safe = torch.where(worse, 0.0, g), u + shift
        step = following - u
        short = ~worse & is_newton & (step.abs() <= _SHORT)
        moving = ~short & (step.abs() > tolerance)
        answer[rows] = u = following
        kept = moving.nonzero().squeeze(1)
        if len(kept) == 0:
            break
        if len(kept) < 0.7 * len(rows):
            rows, x, u = rows[kept], x[kept], u[kept]
            before, safe, tolerance = before[kept], safe[kept], tolerance[kept]
            weights = None if weights is None else weights[kept]
    return answer


def _kernel(
    u: torch.Tensor, x: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``sum_i w_i k_i``, the mean shift, Halley's step or else the mean shift, and which it is."""
    t = u.unsqueeze(1) - x
    square = t * t
    k = torch.mul(square, -0.5).exp_()
    if weights is not None:
        k *= weights
    g, column = k.sum(1), k.unsqueeze(2)
    slope, bend = (torch.bmm(a.unsqueeze(1), column).flatten() for a in (t, square))
    cube = torch.bmm(t.mul_(square).unsqueeze(1), column).flatten()
    shift = torch.where(g > 0, -slope / g, 0.0)
    # The derivatives of f are slope, g - bend and cube - 3 slope.
    curvature = g - bend
    newton = slope / curvature
    correction = (1 - 0.5 * newton * (cube - 3 * slope) / curvature).clamp(0.5, 2.0)
    step = -newton / correction
    usable = (curvature > 0.1 * g) & (step.abs() <= 1)
    return g, shift, torch.where(usable, step, shift), usable
