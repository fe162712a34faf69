"""Batched factors of sparse symmetric matrices of one pattern, on any device.

``K = L D L'`` in rounds: each round eliminates rows and columns no two of which meet, for all
elements at once, those with few neighbours first (multiple minimum degree: Liu, "Modification of
the minimum-degree algorithm by multiple elimination", 1985). The remaining block, once it is small
or nearly full, is factored dense. The elimination order and the positions of all numbers are found
once, for the pattern. Pivots are not chosen by their values: the matrix should be quasi-definite,
as KKT matrices with a shifted diagonal are (Vanderbei, "Symmetric quasidefinite matrices", 1995),
and the solution refined.
"""

from __future__ import annotations

from array import array

import numpy as np
import torch

from ddn_cvx.batch.columns import picked, placed
from ddn_cvx.batch.device import OnDevice
from ddn_cvx.linalg.dense import factored

# The remaining block is factored dense when it has at most so many rows (for band matrices 4 took
# 1.4 times as long for 16 elements, 32 twice as long for 256), or when so much of it is filled.
_DENSE_ROWS = 16
_DENSE_SHARE = 0.5
# A round eliminates rows of degree at most `_DEGREE_FACTOR * least + _DEGREE_SLACK` (Liu's
# tolerance of multiple elimination): fewer rounds, thus fewer calls, for a little more fill-in.
_DEGREE_FACTOR = 1.5
_DEGREE_SLACK = 2


class TooManyUpdates(Exception):
    """A matrix fills in so much that dense factors cost less."""


class Elimination:
    """Elimination order of one pattern, and the positions of all values.

    Args:
        rows, columns: positions of the matrix's entries; of two symmetric ones, one.
        size: number of rows ``N``.
        most: updates after which the search for an order is given up; None for any number.

    Raises:
        TooManyUpdates: the order needs more than ``most`` updates.

    Attributes:
        stored: number of values of the matrix and of its fill-in.
        updates: products in one element's factorisation, without those of the dense block.
        widest: largest number of updates in a round.
        rest: number of rows of the dense block.
    """

    def __init__(
        self, rows: np.ndarray, columns: np.ndarray, size: int, most: int | None = None
    ) -> None:
        self.size, self.updates, self.widest = size, 0, 0
        self._place: dict[tuple[int, int], int] = {}
        neighbours: list[set[int]] = [set() for _ in range(size)]
        positions = np.empty(len(rows), dtype=np.int64)
        for k, (i, j) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            positions[k] = i if i == j else self._place_of(i, j)
            if i != j:
                neighbours[i].add(j)
                neighbours[j].add(i)
        self._positions = OnDevice(positions)
        # Of each round with k pivots, e entries below them and p updates: the pivots' rows (k,);
        # for each entry the position of its value, the number of its pivot, and its row, (e,); for
        # each update the numbers of the two entries that are multiplied, and the position of the
        # value that changes, (p,).
        self._rounds: list[OnDevice] = []
        left = set(range(size))
        while len(left) > _DENSE_ROWS:
            edges = sum(len(neighbours[v]) for v in left)
            if edges > _DENSE_SHARE * len(left) ** 2:
                break
            self._rounds.append(self._round(left, neighbours, most))
        rest = sorted(left)
        self.rest = len(rest)
        self.stored = size + len(self._place)
        nowhere = self.stored  # the position of a zero
        block = [
            i if i == j else self._place.get((min(i, j), max(i, j)), nowhere)
            for i in rest
            for j in rest
        ]
        self._dense = OnDevice(np.array(rest, dtype=np.int64), np.array(block, dtype=np.int64))
        del self._place

    def _place_of(self, i: int, j: int) -> int:
        return self._place.setdefault((min(i, j), max(i, j)), self.size + len(self._place))

    def _round(self, left: set[int], neighbours: list[set[int]], most: int | None) -> OnDevice:
        """Choose rows no two of which are neighbours, and eliminate them from the graph."""
        degrees = {v: len(neighbours[v]) for v in left}
        limit = _DEGREE_FACTOR * min(degrees.values()) + _DEGREE_SLACK
        blocked: set[int] = set()
        chosen = []
        for v in sorted(degrees, key=degrees.__getitem__):
            if degrees[v] > limit:
                break
            if v not in blocked:
                chosen.append(v)
                blocked |= neighbours[v]
        entries: list[int] = []
        pivots: list[int] = []
        met: list[int] = []
        first, second, targets = array("q"), array("q"), array("q")  # of millions, without objects
        for number, v in enumerate(chosen):
            around = sorted(neighbours[v])
            self.updates += len(around) * (len(around) + 1) // 2
            if most is not None and self.updates > most:
                raise TooManyUpdates
            start = len(entries)
            entries += [self._place_of(v, u) for u in around]
            pivots += [number] * len(around)
            met += around
            for a, i in enumerate(around):
                neighbours[i].discard(v)
                neighbours[i].update(around)
                neighbours[i].discard(i)
                for b in range(a, len(around)):
                    first.append(start + a)
                    second.append(start + b)
                    targets.append(i if a == b else self._place_of(i, around[b]))
            neighbours[v] = set()
        left.difference_update(chosen)
        self.widest = max(self.widest, len(targets))
        arrays = (chosen, entries, pivots, met, first, second, targets)
        return OnDevice(*(np.array(array, dtype=np.int64) for array in arrays))

    def factor(self, values: torch.Tensor) -> SparseFactor:
        """Factors of the matrices with values ``(B, entries)`` at ``(rows, columns)``."""
        (places,) = self._positions(values.device)
        return SparseFactor(self, placed(values, places, self.stored + 1))


class SparseFactor:
    """Factors of a batch of matrices.

    Args:
        elimination: the order.
        values: ``(B, stored + 1)``, the last one zero; changed in place.
    """

    def __init__(self, elimination: Elimination, values: torch.Tensor) -> None:
        self._elimination = elimination
        self._steps: list[tuple[torch.Tensor, ...]] = []
        device = values.device
        for step in elimination._rounds:
            pivots, entries, pivot, met, first, second, targets = step(device)
            inverse = picked(values, pivots).reciprocal()
            below = picked(values, entries)
            scaled = below * picked(inverse, pivot)
            change = picked(below, first).mul_(picked(scaled, second)).neg_()
            values.scatter_add_(1, targets.expand(len(values), -1), change)
            self._steps.append((pivots, pivot, met, inverse, scaled))
        rest, block = elimination._dense(device)
        self._rest = rest
        dense = picked(values, block).view(len(values), len(rest), len(rest))
        self._factors = factored(torch.linalg.lu_factor_ex, dense)[:2] if len(rest) else None

    def solve(self, right: torch.Tensor) -> torch.Tensor:
        """``K^-1 right`` for ``(B, N)``."""
        x = right.clone()
        batch = len(x)
        for pivots, pivot, met, _, scaled in self._steps:
            moved = picked(picked(x, pivots), pivot).mul_(scaled).neg_()
            x.scatter_add_(1, met.expand(batch, -1), moved)
        if self._factors is not None:
            inner = torch.linalg.lu_solve(*self._factors, picked(x, self._rest).unsqueeze(2))
            x.scatter_(1, self._rest.expand(batch, -1), inner.squeeze(2))
        for pivots, pivot, met, inverse, scaled in reversed(self._steps):
            found = picked(x, pivots).mul_(inverse)
            moved = picked(x, met).mul_(scaled).neg_()
            found.scatter_add_(1, pivot.expand(batch, -1), moved)
            x.scatter_(1, pivots.expand(batch, -1), found)
        return x
