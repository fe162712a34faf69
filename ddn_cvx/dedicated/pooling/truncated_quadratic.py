"""Truncated-quadratic pooling: the global minimizer, exactly, in ``O(n log n)``.

``f(u) = sum_i w_i min((u - x_i)^2, alpha^2) / 2`` is a quadratic between two neighbours of the
``2 n`` breakpoints ``x_i - alpha``, ``x_i + alpha``, where the inliers are a window of the sorted
points. The mean of a window is a candidate; its window's quadratic bounds ``f`` from above there,
so that the least of these bounds is the minimum. Prefix sums of the sorted points give all of them.
To lose no digits to distant points, each point is measured from the edge of its cell of width
``2 alpha``, of which a window meets at most two. The few best candidates are evaluated directly, so
that rounding of the sums decides nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.dedicated.pooling.convex import weighted_sum

# Candidates that are evaluated directly, with the runner-up and without: rounding of the sums can
# swap neighbours in the order, and the runner-up must be another mode's.
_CANDIDATES_FOR_RUNNER_UP = 8
_CANDIDATES = 3
# Range of the points, in alpha, up to which one cell loses few digits: the square of this is about
# 1e3.
_ONE_CELL_RANGE = 32.0
# Mean-shift steps from the best candidate, in case rounding put a point on the wrong side of a
# window; and from every candidate for the runner-up, whose window may be a part of a mode's.
_FINAL_SHIFTS = 2
_CANDIDATE_SHIFTS = 12


def truncated_minimum(
    x: Tensor, alpha: Tensor, weights: Tensor | None, *, runner_up: bool = True
) -> tuple[Tensor, Tensor]:
    """The global minimizer, and the gap to the best of the other candidates, shape ``(R,)``.

    Args:
        x: shape ``(R, n)``, finite.
        alpha: shape ``(R, 1)``, positive.
        weights: shape ``(R, n)``, nonnegative, a positive one in each row; None for ones.
        runner_up: compute the gap; without it, the gap is infinite.
    """
    x, weights = _sorted(x, weights)
    candidates = _best_windows(
        x, alpha, weights, _CANDIDATES_FOR_RUNNER_UP if runner_up else _CANDIDATES
    )  # (R, k)
    if runner_up:
        ends = (_shifted(u, x, alpha, weights, _CANDIDATE_SHIFTS) for u in candidates.unbind(1))
        candidates = torch.stack(list(ends), 1)
    f = torch.stack([_height(u, x, alpha, weights) for u in candidates.unbind(1)], 1)
    best = f.argmin(1, keepdim=True)
    u = _shifted(candidates.gather(1, best).squeeze(1), x, alpha, weights, _FINAL_SHIFTS)
    if not runner_up:
        return u, torch.full_like(u, torch.inf)
    # Candidates of the same window differ by rounding.
    other = (candidates - u.unsqueeze(1)).abs() > 1e-9 * (alpha + candidates.abs())
    gap = torch.where(other, f, torch.inf).amin(1) - _height(u, x, alpha, weights)
    return u, gap


def _height(u: Tensor, x: Tensor, alpha: Tensor, weights: Tensor | None) -> Tensor:
    """``f(u)``, shape ``(R,)``."""
    z = x - u.unsqueeze(1)
    return 0.5 * weighted_sum(torch.minimum(z.mul_(z), alpha * alpha), weights)


def _shifted(u: Tensor, x: Tensor, alpha: Tensor, weights: Tensor | None, steps: int) -> Tensor:
    """Mean shift: ``f`` is no higher at the mean of the points within ``alpha`` of ``u``."""
    for _ in range(steps):
        z = x - u.unsqueeze(1)
        inside = (z.abs() <= alpha).to(x.dtype)
        mass = weighted_sum(inside, weights)
        inside = inside if weights is None else inside * weights
        u = torch.where(mass > 0, u + weighted_sum(z, inside) / mass, u)
    return u


def _best_windows(x: Tensor, alpha: Tensor, w: Tensor | None, count: int) -> Tensor:
    """Means of the windows of sorted points with the least bounds, shape ``(R, k)``.

    A bound is the window's quadratic at its mean, minus ``alpha^2 W / 2`` with the total mass
    ``W``.
    """
    n = x.shape[1]
    last = None  # index after the last point of each point's cell, (R, n); None for one cell
    if bool((x[:, -1:] - x[:, :1] <= _ONE_CELL_RANGE * alpha).all()):
        edge = 0.5 * (x[:, -1:] + x[:, :1])
    else:
        cell = ((x - x[:, :1]) / (2 * alpha)).floor()
        edge = x[:, :1] + 2 * alpha * cell
        last = torch.searchsorted(cell, cell, right=True)
    t = x - edge
    if w is None:
        mass = torch.arange(n + 1, dtype=x.dtype, device=x.device).expand(len(x), -1)
        sums = (mass, _prefix(t), _prefix(t * t))
    else:
        sums = (_prefix(w), _prefix(w * t), _prefix(w * t * t))

    def at(prefix: Tensor, place: Tensor | None) -> Tensor:
        return prefix[:, 1:] if place is None else prefix.gather(1, place)

    def window(begin: Tensor | None, end: Tensor | None) -> tuple[Tensor, Tensor]:
        """Bounds and means of ``[begin, end)``; None stands for the index after each point."""
        first_edge = edge
        if last is None:
            m, s, q = (at(prefix, end) - at(prefix, begin) for prefix in sums)
        else:
            after = torch.arange(1, n + 1, device=x.device).expand_as(x)
            begin = after if begin is None else begin
            end = after if end is None else end
            first_point = begin.clamp(max=n - 1)
            split = torch.minimum(last.gather(1, first_point), end)
            first_edge = edge.gather(1, first_point)
            shift = edge.gather(1, (end - 1).clamp(min=0)) - first_edge
            shift = torch.where(end > split, shift, 0.0)
            m, s, q = (at(prefix, split) - at(prefix, begin) for prefix in sums)
            m2, s2, q2 = (at(prefix, end) - at(prefix, split) for prefix in sums)
            q = q + q2 + shift * (2 * s2 + shift * m2)
            s = s + s2 + shift * m2
            m = m + m2
        # All sums of a window of zero mass are zero.
        mean = s / torch.where(m > 0, m, 1.0)
        bound = torch.addcmul(q, s, mean, value=-1.0).addcmul_(m, alpha * alpha, value=-1.0).div_(2)
        return bound, mean.add_(first_edge)

    # Windows right after a point has entered, and right after a point has left.
    begin = torch.searchsorted(x, x - 2 * alpha)
    # Index after the last point whose window begins here or before.
    end = torch.zeros_like(begin).scatter_add_(1, begin, torch.ones_like(begin)).cumsum(1)
    bounds, means = [], []
    for bound, mean in (window(begin, None), window(None, end)):
        lowest = bound.topk(min(count, n), dim=1, largest=False)
        bounds.append(lowest.values)
        means.append(mean.gather(1, lowest.indices))
    chosen = torch.cat(bounds, 1).topk(min(count, 2 * n), dim=1, largest=False).indices
    return torch.cat(means, 1).gather(1, chosen)


def _sorted(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Points in order, and their weights, float64."""
    if weights is not None:
        x, order = x.double().sort(1)
        return x, weights.gather(1, order)
    # NumPy sorts with vector instructions, float32 twice as fast as float64.
    x = x.sort(1).values if x.device.type != "cpu" else torch.from_numpy(np.sort(x.numpy(), axis=1))
    return x.double(), None


def _prefix(values: Tensor) -> Tensor:
    """Prefix sums, shape ``(R, n + 1)``."""
    sums = values.new_empty((len(values), values.shape[1] + 1))
    sums[:, 0] = 0
    torch.cumsum(values, 1, out=sums[:, 1:])
    return sums
