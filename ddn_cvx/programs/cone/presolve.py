"""A cone program without the variables that canonicalisation added and a solution does not need.

``norm(A u) <= r`` is canonicalised as ``|A u| <= t`` and ``t <= r``. Where the constraint does not
hold with equality ``t`` is anything in between: the solution of the program is not unique although
that of the problem is, and neither is its derivative. With ``t = r`` both are, in fewer unknowns;
the two rows had the same multiplier, as ``t`` is nowhere else.

``|u - x|^2`` is canonicalised as ``|t|^2`` with ``t = u - x``. Where ``t`` is that simple, it costs
a solver more than ``u - x`` in its place.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from ddn_cvx.cones.product import Cones
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.programs.cone.program import ConeProgram
from ddn_cvx.programs.recovery import Recovery

# Variables by which one is substituted, at most: k of them bring k^2 entries to P for one.
_TERMS = 2


def presolved(program: ConeProgram) -> ConeProgram:
    """The program without either kind of variable; the same one where it has none."""
    return _without_defined(_without_bounded_heads(program))


# -- bounds of norms -------------------------------------------------------------------------------


def _without_bounded_heads(program: ConeProgram) -> ConeProgram:
    columns, bounds, heads = _bounded_heads(program)
    if len(columns) == 0:
        return program
    A, P = program.A_pattern, program.P_pattern
    column_of, n = _numbers(program.variables, columns)
    row_of, m = _numbers(program.rows, bounds)
    row_of[bounds] = row_of[heads]
    # Entries of a bound's row move to its cone's head row, and add up with the head's own.
    stored = np.flatnonzero(column_of[A.columns] >= 0)
    of_A, places = Pattern.of_entries(row_of[A.rows[stored]], column_of[A.columns[stored]], (m, n))
    of_P, _ = Pattern.of_entries(column_of[P.rows], column_of[P.columns], (n, n))
    kept = np.flatnonzero(column_of >= 0)
    return replace(
        program,
        variables=n,
        cones=replace(program.cones, nonnegative=program.cones.nonnegative - len(bounds)),
        P_pattern=of_P,
        A_pattern=of_A,
        q_map=program.q_map.then(_sparse(column_of[kept], kept, (n, program.variables))),
        A_map=program.A_map.then(_sparse(places, stored, (of_A.stored, A.stored))),
        b_map=program.b_map.then(_sparse(row_of, np.arange(program.rows), (m, program.rows))),
        **_moved_recoveries(program, column_of, row_of),
    )


def _bounded_heads(program: ConeProgram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of the ``t``, the row that bounds each, and the head's row of its cone."""
    A, cones = program.A_pattern, program.cones
    head = np.zeros(program.rows, dtype=bool)
    head[_heads(cones)] = True
    bound = np.zeros(program.rows, dtype=bool)
    bound[cones.zero : cones.linear] = True
    constant = np.ones(A.stored, dtype=bool)
    constant[program.A_map.rows] = False
    upper = constant & bound[A.rows] & (program.A_map.offset == 1.0)
    lower = constant & head[A.rows] & (program.A_map.offset == -1.0)
    free = np.bincount(A.columns, minlength=program.variables) == 2
    free &= (program.q_map.offset == 0.0) & ~_read(program, "primal")
    free[program.q_map.rows] = False
    free[program.P_pattern.columns] = False
    row_of_bound = np.full(program.variables, -1)
    row_of_bound[A.columns[upper]] = A.rows[upper]
    row_of_head = np.full(program.variables, -1)
    row_of_head[A.columns[lower]] = A.rows[lower]
    columns = np.flatnonzero(free & (row_of_bound >= 0) & (row_of_head >= 0))
    # A bound on the sum of several is one equation, for one of them.
    rows, first = np.unique(row_of_bound[columns], return_index=True)
    return columns[first], rows, row_of_head[columns[first]]


def _heads(cones: Cones) -> np.ndarray:
    sizes = np.array(cones.second_order, dtype=np.int64)
    return cones.linear + np.cumsum(sizes) - sizes


# -- definitions -----------------------------------------------------------------------------------


def _without_defined(program: ConeProgram) -> ConeProgram:
    """``x = E x_K + t`` with the rest ``K`` of the columns, and ``t`` from the definitions."""
    columns, rows, coefficients = _defined(program)
    if len(columns) == 0:
        return program
    A, P = program.A_pattern, program.P_pattern
    old_n, old_m = program.variables, program.rows
    column_of, n = _numbers(old_n, columns)
    row_of, m = _numbers(old_m, rows)
    rest, others = np.flatnonzero(column_of >= 0), np.flatnonzero(row_of >= 0)

    scale, target = np.zeros(old_m), np.full(old_m, -1)
    scale[rows], target[rows] = 1 / coefficients, columns
    terms = np.flatnonzero((scale[A.rows] != 0) & (column_of[A.columns] >= 0))
    E = _sparse(
        np.concatenate([rest, target[A.rows[terms]]]),
        np.concatenate([column_of[rest], column_of[A.columns[terms]]]),
        (old_n, n),
        np.concatenate([np.ones(n), -program.A_map.offset[terms] * scale[A.rows[terms]]]),
    )
    t_of_b = _sparse(columns, rows, (old_n, old_m), 1 / coefficients)

    stored = np.flatnonzero(row_of[A.rows] >= 0)
    entry, to, by = _expanded(E, A.columns[stored])
    of_A, places = Pattern.of_entries(row_of[A.rows[stored[entry]]], to, (m, n))
    A_of_A = _sparse(places, stored[entry], (of_A.stored, A.stored), by)

    entry, left, by_left = _expanded(E, P.rows)
    again, right, by_right = _expanded(E, P.columns[entry])
    of_P, places = Pattern.of_entries(left[again], right, (n, n))
    P_of_P = _sparse(places, entry[again], (of_P.stored, P.stored), by_left[again] * by_right)

    # Whatever meets t is constant.
    meets = stored[np.isin(A.columns[stored], columns)]
    A_t = _sparse(row_of[A.rows[meets]], A.columns[meets], (m, old_n), program.A_map.offset[meets])
    meets = np.flatnonzero(np.isin(P.columns, columns))
    P_t = _sparse(P.rows[meets], P.columns[meets], (old_n, old_n), program.P_map.offset[meets])
    kept_rows = _sparse(row_of[others], others, (m, old_m))
    return replace(
        program,
        variables=n,
        cones=replace(program.cones, zero=program.cones.zero - len(rows)),
        P_pattern=of_P,
        A_pattern=of_A,
        P_map=program.P_map.then(P_of_P),
        q_map=program.q_map.then(E.T).plus(program.b_map.then(E.T @ P_t @ t_of_b)),
        A_map=program.A_map.then(A_of_A),
        b_map=program.b_map.then(kept_rows - A_t @ t_of_b),
        **_moved_recoveries(program, column_of, row_of),
    )


def _defined(program: ConeProgram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, the equation that defines each, and its coefficient there.

    Such a column is in one equation only, no variable is read from it, and it meets constants
    alone; nor is a multiplier read from the equation.
    """
    A, P = program.A_pattern, program.P_pattern
    varies = np.zeros(A.stored, dtype=bool)
    varies[program.A_map.rows] = True
    varies_in_P = np.zeros(P.stored, dtype=bool)
    varies_in_P[program.P_map.rows] = True
    equation = A.rows < program.cones.zero
    fits = np.bincount(A.columns[equation], minlength=program.variables) == 1
    fits &= ~_read(program, "primal")
    fits[A.columns[varies]] = False
    fits[P.columns[varies_in_P]] = False
    short = np.bincount(A.rows, minlength=program.rows) <= _TERMS + 1
    short &= ~_read(program, "dual")
    short[A.rows[varies]] = False
    usable = equation & short[A.rows] & fits[A.columns] & (np.abs(program.A_map.offset) == 1.0)
    places = np.flatnonzero(usable)
    places = places[np.unique(A.rows[places], return_index=True)[1]]
    return A.columns[places], A.rows[places], program.A_map.offset[places]


# -- what both need --------------------------------------------------------------------------------


def _read(program: ConeProgram, source: str) -> np.ndarray:
    """Entries of the primal or dual vector that a variable or a multiplier is read from, bool."""
    groups = [group for group in program.dual_recoveries if group is not None]
    read = np.zeros(program.variables if source == "primal" else program.rows, dtype=bool)
    for recovery in itertools.chain(program.recoveries, program.primal_recoveries, *groups):
        if recovery.source == source:
            read[recovery.index[recovery.scale != 0]] = True
    return read


def _numbers(size: int, without: np.ndarray) -> tuple[np.ndarray, int]:
    """New numbers of what is left, -1 for the others, and how many are left."""
    left = np.ones(size, dtype=bool)
    left[without] = False
    return np.where(left, np.cumsum(left) - 1, -1), int(left.sum())


def _moved_recoveries(
    program: ConeProgram, column_of: np.ndarray, row_of: np.ndarray
) -> dict[str, Any]:
    def moved(recovery: Recovery) -> Recovery:
        target = column_of if recovery.source == "primal" else row_of
        return replace(recovery, index=target[recovery.index].clip(min=0))

    duals = program.dual_recoveries
    return {
        "recoveries": tuple(map(moved, program.recoveries)),
        "primal_recoveries": tuple(map(moved, program.primal_recoveries)),
        "dual_recoveries": tuple(g if g is None else tuple(map(moved, g)) for g in duals),
    }


def _expanded(E: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each entry in the given rows of ``E``: which of ``rows`` it is in, column and value."""
    counts = np.diff(E.indptr)[rows]
    which = np.repeat(np.arange(len(rows)), counts)
    place = np.arange(len(which)) - (np.cumsum(counts) - counts)[which] + E.indptr[rows][which]
    return which, E.indices[place], E.data[place]


def _sparse(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], values: Any = None
) -> Any:
    import scipy.sparse

    values = np.ones(len(rows)) if values is None else values
    return scipy.sparse.csr_matrix((values, (rows, columns)), shape=shape)
