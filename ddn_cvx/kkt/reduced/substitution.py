"""The program without the variables that an equation of its own defines.

Canonicalisation writes ``|F u|^2`` as ``|t|^2`` with ``t = F u``: for a sparse solver that is as
well, a dense one would factor twice the unknowns. A variable that stands in one equation only, with
a constant coefficient, is substituted:

    x_C = D^-1 (b_R - A_RK x_K),

for the rows ``R`` of those equations and the rest ``K`` of the columns. The multipliers ``y_R``
follow from stationarity in the columns ``C``. The KKT systems of derivatives have the same form, so
that they are reduced alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ddn_cvx.batch.columns import picked, placed
from ddn_cvx.batch.device import OnDevice
from ddn_cvx.batch.elements import per_program
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.linalg.products import matvec
from ddn_cvx.programs.cone.program import ConeProgram


@dataclass(frozen=True, eq=False)
class _Block:
    """Stored values of a matrix that lie in some rows and columns: where from and where to.

    Attributes:
        shape: rows and columns.
        places: which stored values, and where they go in the flattened block; in the block's order.
        empty, full: none or all of its entries are stored.
        is_diagonal: see :meth:`of`.
    """

    shape: tuple[int, int]
    places: OnDevice
    empty: bool
    full: bool
    is_diagonal: bool

    @classmethod
    def of(
        cls, pattern: Pattern, rows: np.ndarray, columns: np.ndarray, *, square: bool = False
    ) -> _Block:
        """The block; of a square one that is diagonal only the diagonal, as one row."""
        row_of = np.full(pattern.shape[0], -1)
        column_of = np.full(pattern.shape[1], -1)
        row_of[rows], column_of[columns] = np.arange(len(rows)), np.arange(len(columns))
        r, c = row_of[pattern.rows], column_of[pattern.columns]
        stored = ((r >= 0) & (c >= 0)).nonzero()[0]
        r, c = r[stored], c[stored]
        is_diagonal = square and bool((r == c).all())
        flat = c if is_diagonal else r * max(1, len(columns)) + c
        shape = (1 if is_diagonal else len(rows), len(columns))
        order = np.argsort(flat)
        full = len(flat) == shape[0] * shape[1]
        places = OnDevice(stored[order], flat[order])
        return cls(shape, places, len(stored) == 0, full, is_diagonal)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The dense block ``(B, rows, columns)``."""
        stored, flat = self.places(values.device)
        flattened = picked(values, stored)
        if not self.full:
            flattened = placed(flattened, flat, self.shape[0] * self.shape[1])
        return flattened.view(len(values), *self.shape)


class Reduction:
    """Which variables of a program are substituted, and how.

    Args:
        program: any; where no variable can be, nothing is reduced.

    Attributes:
        zero: equations that are left.
        is_trivial: nothing is substituted.
        size: columns and rows that are left, and the share of entries of their matrices that are
            stored.
        may_curve: every column that is left has a part in the quadratic objective.
        in_order: the rows that are left keep their order.
        orders: columns and rows, the rest's in front, and the way back of each.
        coefficients: ``D``.
    """

    def __init__(self, program: ConeProgram) -> None:
        columns, rows, coefficients = _defined(program)
        rest = np.setdiff1d(np.arange(program.variables), columns)
        # Cones of a kind and size lie together.
        others = program.cones.order
        others = others[~np.isin(others, rows)]
        self.zero = program.cones.zero - len(rows)
        self.is_trivial = len(columns) == 0
        self.in_order = bool((np.diff(others) > 0).all())
        self.size = (len(rest), len(others), _filled(program, rest, others))
        orders = [np.concatenate([rest, columns]), np.concatenate([others, rows])]
        self.orders = OnDevice(*orders, *map(np.argsort, orders))
        self.coefficients = OnDevice(coefficients)
        # Minus one, as canonicalisation writes it: the division is left out.
        self._is_plain = bool((coefficients == -1.0).all())
        A, P = program.A_pattern, program.P_pattern
        self._A_rest, self._A_below = _Block.of(A, others, rest), _Block.of(A, others, columns)
        self._A_defining = _Block.of(A, rows, rest)
        self._P_rest, self._P_across = _Block.of(P, rest, rest), _Block.of(P, rest, columns)
        self._P_inner = _Block.of(P, columns, columns, square=True)
        squared = P.columns[P.rows == P.columns]
        through = A.columns[np.isin(A.rows, rows[np.isin(columns, squared)])]
        self.may_curve = bool(np.isin(rest, np.concatenate([squared, through])).all())

    def matrices(
        self, P_values: torch.Tensor, A_values: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, Substitution]:
        """From the stored values ``(B, stored)``.

        Returns:
            ``P`` of the rest, ``(B, k, k)``, or None for zero; ``A`` of the rest, ``(B, rows, k)``;
            and the coordinates.
        """
        if len(P_values) != len(A_values):
            P_values = P_values.expand(len(A_values), -1)
        A = self._A_rest(A_values)
        P = None if self._P_rest.empty else self._P_rest(P_values)
        if self.is_trivial:
            none = A.new_empty(len(A), 0, A.shape[2])
            return P, A, Substitution(self, none, None, None, None)
        (coefficients,) = self.coefficients(A.device)
        T = self._A_defining(A_values)
        if not self._is_plain:
            T = -T / coefficients.unsqueeze(1)
        below = None if self._A_below.empty else self._A_below(A_values)
        across = None if self._P_across.empty else self._P_across(P_values)
        if below is not None:
            A = torch.baddbmm(A, below, T)
        if across is not None:
            mixed = torch.bmm(across, T)
            P = _sum(P, mixed + mixed.mT)
        inner = None
        if not self._P_inner.empty:
            inner = self._P_inner(P_values)
            if self._P_inner.is_diagonal:
                inner = inner.squeeze(1)
                pulled = inner.unsqueeze(2) * T
            else:
                pulled = torch.bmm(inner, T)
            P = _sum(P, torch.bmm(T.mT, pulled))
        return P, A, Substitution(self, T, across, inner, below)


class Substitution(NamedTuple):
    """The coordinates without the substituted variables: from and to those of the program.

    Attributes:
        reduction: which variables.
        T: ``x_C = T x_K + t``, shape ``(B, c, k)``.
        across: the block ``P_KC``; None where it is zero.
        inner: ``P_CC``, of which the diagonal ``(B, c)`` where nothing else is stored; likewise.
        below: ``A`` in the rest's rows and the columns ``C``; None where it is zero.
    """

    reduction: Reduction
    T: torch.Tensor
    across: torch.Tensor | None
    inner: torch.Tensor | None
    below: torch.Tensor | None

    def vectors(self, q: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``q`` and ``b`` of the rest, from those of the program, ``(B, n)`` and ``(B, m)``."""
        reduction, rest = self.reduction, self.T.shape[2]
        columns, rows, *_ = reduction.orders(q.device)
        if reduction.is_trivial:
            return q, b if reduction.in_order else picked(b, rows)
        (coefficients,) = reduction.coefficients(q.device)
        q, outer = picked(q, columns).tensor_split([rest], 1)
        b, defining = picked(b, rows).tensor_split([reduction.size[1]], 1)
        t = defining / coefficients
        if self.inner is not None:
            outer = outer + _inner_times(self.inner, t)
        q = q + matvec(self.T.mT, outer)
        if self.across is not None:
            q = q + matvec(self.across, t)
        return q, b if self.below is None else b - matvec(self.below, t)

    def inside(
        self, x: torch.Tensor, y: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The rest's entries of a point."""
        columns, rows, *_ = self.reduction.orders(x.device)
        rest, others = columns[: self.reduction.size[0]], rows[: self.reduction.size[1]]
        return picked(x, rest), picked(y, others), picked(s, others)

    def outside(
        self, x: torch.Tensor, y: torch.Tensor, q: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All variables and multipliers from the rest's; of certificates with zero ``q, b``."""
        columns, rows, columns_back, rows_back = self.reduction.orders(q.device)
        if self.reduction.is_trivial:
            return x, y if self.reduction.in_order else picked(y, rows_back)
        (coefficients,) = self.reduction.coefficients(q.device)
        defined = matvec(self.T, x) + picked(b, rows[y.shape[1] :]) / coefficients
        slope = picked(q, columns[x.shape[1] :])
        if self.inner is not None:
            slope = slope + _inner_times(self.inner, defined)
        if self.across is not None:
            slope = slope + matvec(self.across.mT, x)
        if self.below is not None:
            slope = slope + matvec(self.below.mT, y)
        whole_x = picked(torch.cat([x, defined], 1), columns_back)
        return whole_x, picked(torch.cat([y, -slope / coefficients], 1), rows_back)

    def products(
        self, A: torch.Tensor, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """``A x`` and ``A' y`` of the program, by the dense ``A`` of the rest.

        None where that is not a part of the program's.
        """
        reduction = self.reduction
        if self.below is not None:
            return None
        columns, rows, columns_back, rows_back = reduction.orders(x.device)
        if reduction.is_trivial:
            if reduction.in_order:
                return matvec(A, x), matvec(A.mT, y)
            return picked(matvec(A, x), rows_back), matvec(A.mT, picked(y, rows))
        (coefficients,) = reduction.coefficients(x.device)
        x, defined = picked(x, columns).tensor_split([A.shape[2]], 1)
        y, defining = picked(y, rows).tensor_split([A.shape[1]], 1)
        scaled = coefficients * defining
        Ax = torch.cat([matvec(A, x), coefficients * (defined - matvec(self.T, x))], 1)
        Aty = torch.cat([matvec(A.mT, y) - matvec(self.T.mT, scaled), scaled], 1)
        return picked(Ax, rows_back), picked(Aty, columns_back)


class Permutation(NamedTuple):
    """The coordinates of a sparse system, in which cones of a size lie together.

    Attributes:
        order: row of the program for each row.
    """

    order: torch.Tensor

    def vectors(self, q: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Substitution`."""
        return q, b[:, self.order]

    def inside(
        self, x: torch.Tensor, y: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See :class:`Substitution`."""
        return x, y[:, self.order], s[:, self.order]

    def outside(
        self, x: torch.Tensor, y: torch.Tensor, q: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Substitution`."""
        return x, torch.empty_like(y).index_copy_(1, self.order, y)

    def products(self, A: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        """None: no dense ``A``."""


def _defined(program: ConeProgram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, the row that defines each, and its coefficient there."""
    pattern, zero = program.A_pattern, program.cones.zero
    constant = np.ones(pattern.stored, dtype=bool)
    constant[program.A_map.rows] = False
    equations = pattern.rows < zero
    uses = np.bincount(pattern.columns[equations], minlength=program.variables)
    found: dict[int, int] = {}
    for place in (equations & constant & (uses[pattern.columns] == 1)).nonzero()[0]:
        if abs(program.A_map.offset[place]) == 1.0:
            found.setdefault(int(pattern.rows[place]), int(place))
    if len(found) == program.variables:
        found.popitem()  # something has to be left to solve for
    places = np.array(list(found.values()), dtype=np.int64)
    return pattern.columns[places], pattern.rows[places], program.A_map.offset[places]


def _filled(program: ConeProgram, rest: np.ndarray, others: np.ndarray) -> float:
    # The entries of a substituted variable's equation take the place of that variable.
    kept = np.isin(program.A_pattern.rows, others) | np.isin(program.A_pattern.columns, rest)
    stored = int(kept.sum()) + program.P_pattern.stored
    return stored / max(1, len(rest) * (len(others) + len(rest)))


@per_program
def reduction_of(program: ConeProgram) -> Reduction:
    """The reduction of a program."""
    return Reduction(program)


def _sum(matrix: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if matrix is None else matrix + other


def _inner_times(inner: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return inner * vector if inner.ndim == 2 else matvec(inner, vector)
