"""One-dimensional total variation denoising by the taut string algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import nondifferentiable
from ddn_cvx.dedicated.projections.rows import Datum, project_rows


def total_variation(x: Tensor, weight: Tensor | float = 1.0, *, dim: int = -1) -> Tensor:
    """``argmin_u 1/2 |u - x|^2 + weight sum_i |u_{i+1} - u_i|``: total-variation denoising.

    By dynamic programming: the derivative of a prefix's minimal cost, as a function of its last
    entry, is piecewise linear; clipped to ``[-weight, weight]`` it becomes a term of the next
    prefix's (Johnson, "A dynamic programming algorithm for the fused lasso and L0-segmentation",
    2013); linear in ``n``, for all rows at once.

    At a kink (neighbouring runs of equal values that are about to merge or to split) the derivative
    is that of the partition into runs which the algorithm returns.

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex`, with the
    weight, one for each sequence along ``dim``, in the place of the radius.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import total_variation
        >>> total_variation(torch.tensor([0.0, 0.2, 5.0, 5.2]), 1.0)
        tensor([0.6000, 0.6000, 4.6000, 4.6000])
    """
    return project_rows(_denoise, x, Datum("weight", weight, nonnegative=True), dim=dim)


def _denoise(x: Tensor, weight: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x + 0 * weight
    jump, centre = nondifferentiable(_jumps, x, weight, chunked=False)
    still = torch.zeros_like(jump[:, :1])
    run = torch.cat([still, (jump != 0).to(jump)], 1).cumsum(1).long()
    # Optimality on a run of equal values: the sum of u - x is the pull of the jumps at its ends.
    pull = torch.cat([jump, still], 1) - torch.cat([still, jump], 1)
    total = torch.zeros_like(x).scatter_add(1, run, x - centre + weight * pull)
    count = torch.zeros_like(x.detach()).scatter_add(1, run, torch.ones_like(x.detach()))
    u: Tensor = centre + (total / count.clamp_min(1.0)).gather(1, run)
    return u


def _jumps(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Signs of ``u_{i+1} - u_i``, shape ``(R, n - 1)``, and the rows' means."""
    centre = x.mean(1, keepdim=True)
    u = _Messages(x - centre, weight.squeeze(1)).solve()
    return (u[:, 1:] - u[:, :-1]).sign(), centre


class _Messages:
    """The derivative of a prefix's minimal cost: knots, and the changes of slope and offset there.

    Knots occupy the places ``ends[1]`` (left) to ``ends[-1]`` (right) of a buffer of ``2 n`` places
    per row; each step removes knots at both ends and appends one at each.
    """

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        rows, n = x.shape
        self.columns = x.T.contiguous().unbind(0)
        self.weight = weight
        self.place, self.slope, self.offset = (x.new_zeros(rows, 2 * n) for _ in range(3))
        left = torch.full((rows,), n, dtype=torch.long, device=x.device)
        self.ends = {1: left, -1: left - 1}

    def solve(self) -> Tensor:
        """The minimizer, shape ``(R, n)``."""
        bounds, weight = [], self.weight
        start = end = -self.columns[0]
        for x in self.columns[1:]:
            low, high = self._clip(start, -weight, 1), self._clip(end, weight, -1)
            bounds.append((low, high))
            # The clipped derivative of the prefix, plus the next term u - x.
            start, end = -weight - x, weight - x
        # The last entry is the root of the derivative.
        slope, offset = self._walk(start, torch.zeros_like(start), 1)
        u = [-offset / slope]
        for low, high in reversed(bounds):
            u.append(torch.minimum(torch.maximum(u[-1], low), high))
        return torch.stack(u[::-1], 1)

    def _walk(self, offset: Tensor, level: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """Slope and offset where the derivative reaches ``level``; knots before it are removed.

        Args:
            sign: 1 from the left end, -1 from the right one.
        """
        slope, side = torch.ones_like(offset), float(sign)  # an integer factor would be converted
        # The knot that was just appended at the left end is kept, whatever rounding says.
        kept = 0 if sign == 1 else 1
        while True:
            index = self.ends[sign].unsqueeze(1)
            place = self.place.gather(1, index).squeeze(1)
            short = (slope * place + offset - level) * side < 0
            passed = short & (self.ends[1] + kept <= self.ends[-1])
            if not bool(passed.any()):
                return slope, offset
            step = passed.to(slope) * side
            slope = slope + step * self.slope.gather(1, index).squeeze(1)
            offset = offset + step * self.offset.gather(1, index).squeeze(1)
            self.ends[sign] = torch.add(self.ends[sign], passed.long(), alpha=sign)

    def _clip(self, offset: Tensor, level: Tensor, sign: int) -> Tensor:
        """The new knot at which the derivative reaches ``level``, to be constant beyond it."""
        slope, offset = self._walk(offset, level, sign)
        place = (level - offset) / slope
        self.ends[sign] = self.ends[sign] - sign
        index = self.ends[sign].unsqueeze(1)
        self.place.scatter_(1, index, place.unsqueeze(1))
        self.slope.scatter_(1, index, (float(sign) * slope).unsqueeze(1))
        self.offset.scatter_(1, index, (float(sign) * (offset - level)).unsqueeze(1))
        return place
