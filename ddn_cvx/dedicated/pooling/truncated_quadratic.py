"""Truncated-quadratic pooling: the global minimizer, exactly, in ``O(n log n)``.

``f(u) = sum_i w_i min((u - x_i)^2, alpha^2) / 2`` is a quadratic between two neighbours of the
``2 n`` breakpoints ``x_i - alpha``, ``x_i + alpha``, where the inliers are a window of the sorted
points. The mean of a window is a candidate; its window's quadratic bounds ``f`` from above there,
so that the least of these bounds is the minimum. Prefix sums of the sorted points give all of them.
The points are measured from the edges of cells of width ``2 alpha``, of which a window meets at
most two, so that the sums lose no digits to points far away; and the best few candidates are
evaluated anew: rounding does not decide.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.dedicated.pooling.convex import weighted_sum
from ddn_cvx.dedicated.pooling.penalties import PENALTIES

# Candidates that are evaluated anew.
_BEST = 4
# Mean-shift steps from these, in case rounding put a point on the wrong side of a window.
_SHIFTS = 2


def truncated_minimum(
    x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The global minimizer, and the gap to the best of the other candidates, shape ``(R,)``.

    Args:
        x: shape ``(R, n)``, float64, finite.
        alpha: shape ``(R, 1)``, positive.
        weights: shape ``(R, n)``, nonnegative, a positive one in each row; None for ones.
    """
    candidates = _best_windows(x, alpha, weights)  # (R, k)
    phi = PENALTIES["truncated_quadratic"]
    heights = []
    points = []
    for candidate in candidates.unbind(1):
        u = candidate
        for _ in range(_SHIFTS):
            u = _shifted(u, x, alpha, weights)
        points.append(u)
        heights.append(weighted_sum(phi.value(u.unsqueeze(1) - x, alpha), weights))
    f, u = torch.stack(heights, 1), torch.stack(points, 1)
    best = f.argmin(1, keepdim=True)
    minimum = u.gather(1, best)
    # Candidates of one window differ by rounding only.
    other = (u - minimum).abs() > 1e-9 * (alpha + u.abs())
    runner_up = torch.where(other, f, torch.inf).amin(1)
    return minimum.squeeze(1), runner_up - f.gather(1, best).squeeze(1)


def _shifted(
    u: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """The mean of the points within ``alpha`` of ``u``: ``f`` is no higher there."""
    z = x - u.unsqueeze(1)
    inside = (z.abs() <= alpha).to(x.dtype)
    mass = weighted_sum(inside, weights)
    shift = weighted_sum(inside * z, weights) / mass
    return torch.where(mass > 0, u + shift, u)


def _best_windows(
    x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Means of the windows with the least bounds, shape ``(R, k)``."""
    w = None
    if weights is None:
        x = x.sort(1).values
    else:
        x, order = x.sort(1)
        w = weights.gather(1, order)
    n = x.shape[1]
    index = torch.arange(n, device=x.device).expand_as(x).contiguous()
    sums = _CellSums.of(x, alpha, w)
    # What is inside right after a point has entered, and right after it has left.
    begin = torch.searchsorted(x, x - 2 * alpha)
    end = torch.searchsorted(x, x + 2 * alpha, right=True)
    entered = sums.window(begin, index + 1, alpha)
    left = sums.window(index + 1, end, alpha)
    bound, mean = (torch.cat(pair, 1) for pair in zip(entered, left, strict=True))
    chosen = bound.topk(min(_BEST, 2 * n), dim=1, largest=False).indices
    return mean.gather(1, chosen)


class _CellSums(NamedTuple):
    """Prefix sums of sorted points, each measured from the edge of its cell.

    Attributes:
        edge: of each point's cell, shape ``(R, n)``.
        last: one past the last point of each point's cell, shape ``(R, n)``.
        mass, first, second: of 1, of the distance from the edge, and of its square, times the
            weights; shape ``(R, n + 1)``.
    """

    edge: torch.Tensor
    last: torch.Tensor
    mass: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, alpha: torch.Tensor, w: torch.Tensor | None) -> _CellSums:
        """For sorted points."""
        cell = ((x - x[:, :1]) / (2 * alpha)).floor()
        edge = x[:, :1] + 2 * alpha * cell
        t = x - edge
        one = torch.ones_like(x) if w is None else w
        last = _last_of_runs(cell)
        weighted = one * t
        return cls(edge, last, _prefix(one), _prefix(weighted), _prefix(weighted * t))

    def window(
        self, begin: torch.Tensor, end: torch.Tensor, alpha: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For windows ``[begin, end)``: ``f`` of their quadratics at their means, less
        ``alpha^2 W / 2``, and the means; both of the shape of ``begin``.
        """
        n = self.edge.shape[1]
        first_point = begin.clamp(max=n - 1)
        split = torch.minimum(self.last.gather(1, first_point), end)
        edge = self.edge.gather(1, first_point)
        shift = self.edge.gather(1, (end - 1).clamp(min=0)) - edge
        shift = torch.where(end > split, shift, 0.0)

        def between(prefix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            middle = prefix.gather(1, split)
            return middle - prefix.gather(1, begin), prefix.gather(1, end) - middle

        (m, m2), (s, s2), (q, q2) = (
            between(prefix) for prefix in (self.mass, self.first, self.second)
        )
        q = q + q2 + shift * (2 * s2 + shift * m2)
        s = s + s2 + shift * m2
        m = m + m2
        present = (m > 0) & (end > begin)
        mean = torch.where(present, s / m, 0.0)
        bound = torch.where(present, (q - s * mean - alpha * alpha * m) / 2, 0.0)
        return bound, edge + mean


def _last_of_runs(cell: torch.Tensor) -> torch.Tensor:
    """One past the last entry that equals this one, for sorted entries."""
    n = cell.shape[1]
    index = torch.arange(1, n + 1, device=cell.device).expand_as(cell)
    ends = torch.nn.functional.pad(cell[:, 1:] != cell[:, :-1], (0, 1), value=True)
    last = torch.where(ends, index, n)
    return last.flip(1).cummin(1).values.flip(1)


def _prefix(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))
