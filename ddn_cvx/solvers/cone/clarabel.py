"""Clarabel: an interior-point method for every cone, one element at a time.

Goulart and Chen, "Clarabel: an interior-point solver for conic programs with quadratic
objectives" (2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from ddn_cvx.batch.elements import per_program
from ddn_cvx.cones.product import Cones
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.linalg.triangle import scaled_triangle, triangle
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.cone.base import ConeSolver, Settings, under_own_names, upper_triangle
from ddn_cvx.status import Status, translated


class Clarabel(ConeSolver):
    """Adapter to the ``clarabel`` package; settings are the fields of its ``DefaultSettings``."""

    name = "CLARABEL"
    defaults: Settings = {
        "tol_gap_abs": 1e-11,
        "tol_gap_rel": 1e-11,
        "tol_feas": 1e-11,
        "reduced_tol_gap_abs": 1e-8,
        "reduced_tol_gap_rel": 1e-8,
        "reduced_tol_feas": 1e-8,
    }

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> Answer:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        import clarabel

        options = clarabel.DefaultSettings()
        options.verbose = False
        for key, value in under_own_names(settings).items():
            if not hasattr(options, key):
                raise TypeError(f"Clarabel has no setting {key!r}; see clarabel.DefaultSettings.")
            setattr(options, key, value)
        form = _form(program)
        cones = _cones(clarabel, program.cones)
        P_values = data.P.numpy()[:, form.P_order]
        A_values = data.A.numpy()[:, form.A_order]
        q, b = data.q.numpy(), data.b.numpy()[:, form.rows]
        P, A = form.P.copy(), form.A.copy()
        n, m = program.variables, program.rows
        primal, dual = np.full((data.batch, n), np.nan), np.full((data.batch, m), np.nan)
        status = np.full(data.batch, int(Status.FAILED))
        iterations = np.zeros(data.batch, dtype=np.int64)
        for element in range(data.batch):
            P.data, A.data = P_values[element], A_values[element]
            try:
                solver = clarabel.DefaultSolver(P, q[element], A, b[element], cones, options)
                solution = solver.solve()
            except BaseException as error:
                # Where numbers overflow it may panic, which is no Exception; the others go on.
                if type(error).__name__ != "PanicException":
                    raise
                continue
            primal[element], dual[element] = solution.x, solution.z
            status[element] = int(translated(self.name, str(solution.status)))
            iterations[element] = solution.iterations
        arrays = (primal, dual[:, np.argsort(form.rows)], status, iterations)
        x, y, *rest = map(torch.from_numpy, arrays)
        return Answer(x, y, *rest)


class _Form(NamedTuple):
    """A program as Clarabel wants it: upper triangle of ``P``, its own order of semidefinite rows.

    Attributes:
        rows: row of our program for each row of Clarabel's.
        P, A: scipy matrices whose values are to be replaced.
        P_order, A_order: our stored value for each of theirs.
    """

    rows: np.ndarray
    P: Any
    A: Any
    P_order: np.ndarray
    A_order: np.ndarray


@per_program
def _form(program: ConeProgram) -> _Form:
    A, rows = program.A_pattern, _triangle_order(program.cones)
    P_order, upper = upper_triangle(program)
    moved, places = Pattern.of_entries(np.argsort(rows)[A.rows], A.columns, A.shape)
    P_form, A_form = (pattern.sparse(np.zeros(pattern.stored)) for pattern in (upper, moved))
    return _Form(rows, P_form, A_form, P_order, np.argsort(places))


def _cones(clarabel: Any, cones: Cones) -> list[Any]:
    result: list[Any] = []
    if cones.zero:
        result.append(clarabel.ZeroConeT(cones.zero))
    if cones.nonnegative:
        result.append(clarabel.NonnegativeConeT(cones.nonnegative))
    result += [clarabel.SecondOrderConeT(size) for size in cones.second_order]
    result += [clarabel.PSDTriangleConeT(side) for side in cones.semidefinite]
    result += [clarabel.ExponentialConeT() for _ in range(cones.exponential)]
    result += [clarabel.PowerConeT(alpha) for alpha in cones.power]
    return result


def _triangle_order(cones: Cones) -> np.ndarray:
    """Row of our program for each row of Clarabel's, which stacks upper triangles by column."""
    start = cones.linear + sum(cones.second_order)
    order = [np.arange(start)]
    for side in cones.semidefinite:
        position, _ = scaled_triangle(side)
        order.append(start + position.reshape(side, side)[np.tril_indices(side)])
        start += triangle(side)
    order.append(np.arange(start, cones.rows))
    return np.concatenate(order)
