"""Welsch pooling: the global minimizer, certified by interval branch and bound.

``f(u) = sum_i w_i (1 - exp(-(u - x_i)^2 / (2 alpha^2))) = W - g(u)``: minimizing ``f`` is finding
the highest mode of a kernel density ``g``. In units of ``alpha``, with ``K(t) = exp(-t^2 / 2)``,

    |K'''| <= 1.3802,

so that on a cell of half-width ``r`` around ``c``

    g(u) <= max over the cell of g(c) + g'(c) d + g''(c) d^2 / 2,  plus 1.3802 W' r^3 / 6,

where ``W'`` is the mass within reach of the cell. First all cells of width 1/2 are bounded at once,
from the moments of the points in each cell; surviving cells are evaluated exactly. A cell on which
``g'' < 0`` is certain holds at most one mode, which bracketed Newton finds; any other is bisected.
Cells whose bound is below the best mode are dropped; once none is left, the best mode is global.
The certificate is how far the largest dropped bound exceeds it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import chunks, select
from ddn_cvx.dedicated.common import in_chunks
from ddn_cvx.dedicated.pooling.convex import LAST_STEP
from ddn_cvx.dedicated.pooling.mean_shift import ascend, moments

# Width of a first cell, in units of alpha, and how many cells on either side contribute to it.
_CELL_WIDTH = 0.5
_NEIGHBOUR_CELLS = 13
# Gaps between points, in units of alpha, are shortened to this when cells are laid out: a kernel at
# this distance is exp(-14^2 / 2) < 1e-42.
_LONGEST_GAP = 14.0
# Largest |K'''|, and a bound of K and its derivatives beyond the neighbours, at t >= 6.25.
_THIRD_DERIVATIVE = 1.3802
_TAIL = 1e-6
# Excess of a bound over the best mode, relative to the mass, that is rounding.
_BOUND_ROUNDING = 1e-13
# Limit on bisections of a cell, whose width is then 5e-13 alpha.
_BISECTIONS = 40
# Slope, relative to the mass, below which a point is a mode and not an end of its cell.
_FLAT_SLOPE = 1e-10
_NEWTON_STEPS = 60
# Cells that are laid out whatever the number of points; beyond, gaps are shortened.
_UNSHORTENED_CELLS = 256
# Entries of the largest temporary array (128 MiB of float64), and of one that is read several times
# (512 KiB: it stays in the cache).
_MEMORY_ENTRIES = 1 << 24
_CACHED_ENTRIES = 1 << 16


def welsch_minimum(
    x: Tensor, alpha: Tensor, weights: Tensor | None, *, runner_up: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The certified global minimizer.

    Cells are laid out from the smallest point on. Where these would be very many, points are sorted
    and large gaps between neighbours shortened.

    Args:
        x: shape ``(R, n)``, float64, finite.
        alpha: shape ``(R, 1)``, positive.
        weights: shape ``(R, n)``, nonnegative, a positive one in each row; None for ones.
        runner_up: search for the runner-up, too, which the certificate does not need.

    Returns:
        Of shape ``(R,)``: the minimizer; the largest amount by which ``f`` could be lower at
        another point, about 1e-13 of the mass where the search was completed; the amount by which
        ``f`` is higher at the best other mode that was met, in cells that were not dropped, or near
        the second-highest peak of the first cells.
    """
    z = x / alpha
    least, most = z.amin(1, keepdim=True), z.amax(1, keepdim=True)
    low: Tensor | None = least
    cells = int((most - least).amax() / _CELL_WIDTH) + 1
    if cells <= max(_UNSHORTENED_CELLS, z.shape[1]):
        placed = z - least
    else:
        z, order = z.sort(1)
        weights = None if weights is None else weights.gather(1, order)
        gap = torch.nn.functional.pad(z.diff(dim=1), (1, 0)).clamp(max=_LONGEST_GAP)
        placed = gap.cumsum(1)
        cells = int(placed.amax() / _CELL_WIDTH) + 1
        low = None
    parts = list(chunks(len(z), 8 * (cells + z.shape[1]), _MEMORY_ENTRIES))
    search = functools.partial(_search, runner_up)
    u, certificate, gap = in_chunks(search, parts, z, weights, _Grid(placed, low))
    return u * alpha.squeeze(1), certificate, gap


class _Grid(NamedTuple):
    """The positions of the points on the axis of the cells.

    Attributes:
        placed: from the left end of the first cell, shape ``(R, n)``.
        low: the left end of the first cell, ``(R, 1)``; None where gaps were shortened, and points
            are sorted.
    """

    placed: Tensor
    low: Tensor | None

    def place(self, row: Tensor, column: Tensor, z: Tensor) -> Tensor:
        """Centres of the cells ``(row, column)`` on the axis of the points, shape ``(S,)``."""
        wanted = ((column.to(z.dtype) + 0.5) * _CELL_WIDTH).unsqueeze(1)
        if self.low is not None:
            return (self.low[row] + wanted).squeeze(1)
        # Undo the shortening of gaps: a cell keeps its distance from the nearest point.
        near = self.placed[row]
        after = torch.searchsorted(near, wanted).clamp(max=z.shape[1] - 1)
        before = (after - 1).clamp(min=0)
        closer = (wanted - near.gather(1, before)).abs() < (near.gather(1, after) - wanted).abs()
        nearest = torch.where(closer, before, after)
        return (z[row].gather(1, nearest) + wanted - near.gather(1, nearest)).squeeze(1)


def _search(
    runner_up: bool, z: Tensor, w: Tensor | None, grid: _Grid
) -> tuple[Tensor, Tensor, Tensor]:
    cells, lower, second = _first_cells(z, w, grid)
    state = _State(z, w, lower)
    if runner_up:
        state.note(*second)
    for _ in range(_BISECTIONS):
        if len(cells.row) == 0:
            break
        cells = state.refine(cells)
    state.give_up(cells)
    return state.mode()


class _Cells(NamedTuple):
    """Some cells of some rows, each of shape ``(S,)``: row, centre, half-width, nearby mass."""

    row: Tensor
    centre: Tensor
    half: Tensor
    mass: Tensor

    def halves(self) -> _Cells:
        r = self.half / 2
        left, right = (self._replace(centre=c, half=r) for c in (self.centre - r, self.centre + r))
        return _Cells(*(torch.cat(pair) for pair in zip(left, right, strict=True)))


def _first_cells(
    z: Tensor, w: Tensor | None, grid: _Grid
) -> tuple[_Cells, Tensor, tuple[Tensor, Tensor]]:
    """Cells that may hold the highest mode, a lower bound of it, the rows' second peaks and places.

    The moments of the points in each cell, about its centre, give ``g`` at all centres by one
    convolution: ``K(t - s) = K(t) - K'(t) s + K''(t) s^2 / 2`` up to ``1.3802 |s|^3 / 6``.
    """
    rows = len(z)
    cell = (grid.placed / _CELL_WIDTH).floor()
    inside = grid.placed - (cell + 0.5) * _CELL_WIDTH  # (R, n), distance from the cell's centre
    cells = int(cell.amax()) + 1
    index = cell.long()
    one = torch.ones_like(z) if w is None else w
    first = inside if w is None else w * inside
    binned = z.new_zeros((3, rows, cells))
    for channel, moment in zip(binned, (one, first, first * inside), strict=True):
        channel.scatter_add_(1, index, moment)
    binned[2] *= 0.5
    binned = binned.movedim(0, 1)  # (R, 3, cells)
    reach = _NEIGHBOUR_CELLS
    offsets = torch.arange(-reach, reach + 1, device=z.device, dtype=z.dtype) * _CELL_WIDTH
    k = (-offsets * offsets / 2).exp()
    # K and its derivatives at centre minus centre; conv1d correlates, hence the sign of offsets.
    t = -offsets
    d1, d2, d3 = -t * k, (t * t - 1) * k, (3 * t - t**3) * k
    zero = torch.zeros_like(k)
    kernel = torch.stack([k, -d1, d2, d1, -d2, d3, torch.ones_like(k), zero, zero])
    kernel = kernel.view(3, 3, -1)  # (3, 3, 2 reach + 1)
    found = torch.nn.functional.conv1d(binned, kernel, padding=reach)
    value, slope, mass = found.unbind(1)  # (R, cells)
    total = one.sum(1, keepdim=True)
    r = _CELL_WIDTH / 2
    # The moments' remainders: of g through K''', of g' through the fourth derivative, |K''''| <= 3.
    error = _THIRD_DERIVATIVE * mass * r**3 / 6 + _TAIL * total
    slope_error = 3 * mass * r**3 / 6 + _TAIL * total
    # |K''| <= 1 below, and K'' <= 0.4463 above: g may rise by that much within the cell.
    upper = value + error + (slope.abs() + slope_error) * r + 0.4463 * mass * r * r / 2
    upper = upper + _TAIL * total
    lower = (value - error).amax(1)
    alive = (upper >= lower.unsqueeze(1)) & (mass > 0)
    row, column = alive.nonzero(as_tuple=True)
    place = grid.place(row, column, z)
    half = torch.full_like(place, r)
    peak = torch.nn.functional.pad(value, (1, 1), value=-torch.inf)
    is_peak = (value >= peak[:, :-2]) & (value > peak[:, 2:]) & (mass > 0)
    ranked = torch.where(is_peak, value, -torch.inf)
    heights, columns = ranked.topk(min(2, cells), dim=1)
    two = (heights[:, -1] > -torch.inf).nonzero().squeeze(1) if cells > 1 else row[:0]
    second = (two, grid.place(two, columns[two, -1], z))
    return _Cells(row, place, half, mass[row, column]), lower, second


class _State:
    """The best mode of each row so far, and the largest bound of the dropped cells."""

    def __init__(self, z: Tensor, w: Tensor | None, lower: Tensor) -> None:
        self.z, self.w = z, w
        self.total = z.new_full((len(z),), z.shape[1]) if w is None else w.sum(1)
        # A lower bound of the highest mode, at first without a point that attains it.
        self.height = lower
        self.bound = torch.full_like(lower, -torch.inf)
        self.modes: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(self, row: Tensor, u: Tensor) -> None:
        """Record the modes to which mean shift leads from positions ``u``."""
        if len(row):
            found = ascend(u, *select((self.z, self.w), row))
            self.modes.append((row, found, self._evaluate(row, found)[0]))

    def refine(self, cells: _Cells) -> _Cells:
        """Bound the cells: drop some, find the modes of concave ones, return halves of the rest."""
        g, g1, g2 = self._evaluate(cells.row, cells.centre)
        self._raise(cells.row, g)
        r = cells.half
        third = _THIRD_DERIVATIVE * cells.mass + _TAIL * self.total[cells.row]
        inside = torch.where(g2 < 0, -g1 / g2.clamp(max=-1e-300), g1.sign() * r)
        d = torch.minimum(torch.maximum(inside, -r), r)
        upper = g + g1 * d + g2 * d * d / 2 + third * r**3 / 6
        # The cell of the best point is kept until its mode is known.
        alive = upper >= self.height[cells.row]
        self._drop(cells.row[~alive], upper[~alive])
        concave = g2 + third * r < 0
        self._climb(*select((cells, d), alive & concave))
        tiny = upper <= self.height[cells.row] + _BOUND_ROUNDING * self.total[cells.row]
        closed = alive & ~concave & tiny
        if bool(closed.any()):  # flat to rounding, as at merging modes
            self.modes.append(select((cells.row, cells.centre, g), closed))
            self._drop(cells.row[closed], upper[closed])
        return select(cells, alive & ~concave & ~closed).halves()

    def give_up(self, cells: _Cells) -> None:
        """Record the centres of undecided cells, and their bounds as dropped ones."""
        if len(cells.row):
            g, g1, _ = self._evaluate(cells.row, cells.centre)
            self.modes.append((cells.row, cells.centre, g))
            self._drop(cells.row, g + g1.abs() * cells.half + self.total[cells.row] * cells.half**2)

    def mode(self) -> tuple[Tensor, Tensor, Tensor]:
        """The best recorded mode of each row, its certificate, and the gap to the runner-up."""
        rows = len(self.total)
        row, u, g = (torch.cat(column) for column in zip(*self.modes, strict=True))
        # Highest first within each row: sort by height, then stably by row.
        order = g.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        row, u, g = row[order], u[order], g[order]
        first = torch.searchsorted(row, torch.arange(rows, device=row.device))
        best, height = u[first], g[first]
        other = (u - best[row]).abs() > 1e-6
        second = torch.full_like(height, -torch.inf)
        second = second.scatter_reduce(0, row, torch.where(other, g, -torch.inf), "amax")
        certificate = (self.bound - height).clamp_min(0.0)
        return best, certificate, height - second

    def _evaluate(self, row: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``g`` and its first two derivatives."""

        def at_some(row: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            t = self.z[row].sub_(at.unsqueeze(1))  # minus the usual sign
            g, slope, bend = moments(t, None if self.w is None else self.w[row], orders=2)
            return g, slope, bend - g

        parts = list(chunks(len(row), self.z.shape[1], _CACHED_ENTRIES))
        derivatives: tuple[Tensor, Tensor, Tensor] = in_chunks(at_some, parts, row, at)
        return derivatives

    def _climb(self, cells: _Cells, step: Tensor) -> None:
        """Maximize ``g`` on cells on which it is concave; record the modes among the maximizers."""
        if len(cells.row) == 0:
            return
        answer, height, slope = (torch.empty_like(cells.centre) for _ in range(3))
        which = torch.arange(len(answer), device=answer.device)
        row, u = cells.row, cells.centre + step
        low, high = cells.centre - cells.half, cells.centre + cells.half
        rounding = 4 * torch.finfo(u.dtype).eps * (1 + u.abs())
        for _ in range(_NEWTON_STEPS):
            g, g1, g2 = self._evaluate(row, u)
            low = torch.where(g1 >= 0, u, low)
            high = torch.where(g1 <= 0, u, high)
            newton = u - g1 / g2.clamp(max=-1e-300)
            # A step that leaves the cell ends on its boundary: the mode is in another cell.
            following = torch.minimum(torch.maximum(newton, low), high)
            step = following - u
            # The error of a short Newton step is its square: it is the last one.
            short = (step.abs() <= LAST_STEP) & (following == newton)
            u = torch.where(short, following, u)
            g = torch.where(short, g + 0.5 * g1 * step, g)
            g1 = torch.where(short, 0.0, g1)
            answer[which], height[which], slope[which] = u, g, g1
            moving = ~short & (step.abs() > rounding)
            kept = moving.nonzero().squeeze(1)
            if len(kept) == 0:
                break
            which, row, u = select((which, row, following), kept)
            low, high, rounding = select((low, high, rounding), kept)
        self._raise(cells.row, height)
        self._drop(cells.row, height)
        flat = slope.abs() <= _FLAT_SLOPE * self.total[cells.row]
        self.modes.append(select((cells.row, answer, height), flat))

    def _raise(self, row: Tensor, height: Tensor) -> None:
        self.height = self.height.scatter_reduce(0, row, height, "amax")

    def _drop(self, row: Tensor, upper: Tensor) -> None:
        self.bound = self.bound.scatter_reduce(0, row, upper, "amax")
