"""The pattern of a program's KKT matrix, and whether its sparse factors are worth it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddn_cvx.batch.device import OnDevice
from ddn_cvx.batch.elements import per_program
from ddn_cvx.kkt.reduced.substitution import reduction_of
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.linalg.sparse_batched import Elimination, TooManyUpdates
from ddn_cvx.programs.cone.program import ConeProgram

# From this share of entries on a matrix is dense anyway; with more entries than this the order of a
# sparse factorisation takes too long to find.
_FILLED = 0.3
_MOST_ENTRIES = 200_000
# With more products than this a solver that works on blocks of columns is better.
_MOST_UPDATES = 300_000
# A sparse factor's number costs as much as so many operations of a dense one.
_ENTRY = 100


@dataclass(frozen=True, eq=False)
class SparseStructure:
    """The matrix ``[P, A'; A, -H]`` of the unknowns ``(x, y)`` and two more for each curved cone.

    Attributes:
        variables, rows: number of columns and rows of ``A``.
        P_pattern: of the program.
        lower: stored values of ``P`` on or below the diagonal, and their places in the block of
            ``P``, whose first values are the diagonal.
        block: number of values of that block.
        order: row of the program for each row here, where second-order cones of a size lie
            together.
        places: rows here and columns of the stored values of ``A``.
        elimination: of the matrix, whose values are those of the block, of ``A``, of the diagonal
            of the rows and of the unknowns more, and of their columns.
    """

    variables: int
    rows: int
    P_pattern: Pattern
    lower: OnDevice
    block: int
    order: OnDevice
    places: OnDevice
    elimination: Elimination


@per_program
def sparse_structure(program: ConeProgram) -> SparseStructure | None:
    """The sparse KKT matrix of a program; None where dense factors of the reduced one cost less."""
    P, A, n, m = program.P_pattern, program.A_pattern, program.variables, program.rows
    columns, rows, filled = reduction_of(program).size
    too_large = P.stored + A.stored > _MOST_ENTRIES
    if not program.cones.is_quadratic or filled > _FILLED or too_large:
        return None
    order = program.cones.order
    A_rows = np.argsort(order)[A.rows]
    below = np.flatnonzero(P.rows > P.columns)
    dense = columns**2 * (2 * rows + columns)
    try:
        elimination = _elimination(program, below, A_rows, min(dense // _ENTRY, _MOST_UPDATES))
    except TooManyUpdates:
        return None
    if _ENTRY * (elimination.updates + elimination.stored) + elimination.rest**3 >= dense:
        return None
    diagonal = np.flatnonzero(P.rows == P.columns)
    kept = np.concatenate([diagonal, below])
    places = np.concatenate([P.rows[diagonal], n + np.arange(len(below))])
    return SparseStructure(
        n, m, P, OnDevice(kept, places), n + len(below), OnDevice(order),
        OnDevice(A_rows, A.columns), elimination,
    )  # fmt: skip


def _elimination(
    program: ConeProgram, below: np.ndarray, A_rows: np.ndarray, most: int
) -> Elimination:
    P, A, cones, n = program.P_pattern, program.A_pattern, program.cones, program.variables
    start = n + program.rows
    size = start + 2 * len(cones.second_order)
    diagonal = np.arange(size)
    rows = [diagonal[:n], P.rows[below], n + A_rows, diagonal[n:]]
    columns = [diagonal[:n], P.columns[below], A.columns, diagonal[n:]]
    for group in cones.groups:
        last = n + program.rows - group.behind
        members = np.arange(last - group.number * group.size, last)
        cone = np.repeat(np.arange(group.number), group.size)
        rows += [start + cone, start + group.number + cone]
        columns += [members, members]
        start += 2 * group.number
    return Elimination(np.concatenate(rows), np.concatenate(columns), size, most)
