"""Clarabel: an interior-point method for every cone, one element at a time.

Goulart and Chen, "Clarabel: an interior-point solver for conic programs with quadratic
objectives" (2024).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ddn_cvx.conic.cones import Cones
from ddn_cvx.conic.program import ConeData, ConeProgram
from ddn_cvx.conic.solvers.base import RawSolution, Settings
from ddn_cvx.status import Status

STATUS = {
    "Solved": Status.SOLVED,
    "AlmostSolved": Status.INACCURATE,
    "PrimalInfeasible": Status.INFEASIBLE,
    "AlmostPrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostDualInfeasible": Status.UNBOUNDED,
    "MaxIterations": Status.INACCURATE,
    "MaxTime": Status.INACCURATE,
    "InsufficientProgress": Status.INACCURATE,
    "NumericalError": Status.FAILED,
}


class Clarabel:
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

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> RawSolution:
        """See :class:`~ddn_cvx.conic.solvers.base.ConeSolver`."""
        import clarabel
        import scipy.sparse

        options = clarabel.DefaultSettings()
        options.verbose = False
        for key, value in settings.items():
            if not hasattr(options, key):
                raise TypeError(f"Clarabel has no setting {key!r}; see clarabel.DefaultSettings.")
            setattr(options, key, value)
        cones = _cones(clarabel, program.cones)
        order = _triangle_order(program.cones)  # row of Clarabel's program -> row of ours
        inverse = np.argsort(order)

        # Clarabel wants the upper triangle of P, and rows of A sorted within each column.
        upper = program.P_pattern.rows <= program.P_pattern.columns
        P_indices = program.P_pattern.rows[upper]
        P_indptr = np.concatenate(
            [
                [0],
                np.cumsum(np.bincount(program.P_pattern.columns[upper], minlength=data.q.shape[1])),
            ]
        )
        A_rows = inverse[program.A_pattern.rows]
        A_order = np.lexsort((A_rows, program.A_pattern.columns))
        n, m = program.variables, program.rows
        P_values, A_values = data.P.numpy()[:, upper], data.A.numpy()[:, A_order]
        q, b = data.q.numpy(), data.b.numpy()[:, order]

        P = scipy.sparse.csc_matrix((np.zeros(len(P_indices)), P_indices, P_indptr), shape=(n, n))
        A = scipy.sparse.csc_matrix(
            (np.zeros(len(A_rows)), A_rows[A_order], program.A_pattern.indptr), shape=(m, n)
        )
        primal = torch.full((data.batch, n), torch.nan, dtype=torch.float64)
        dual = torch.full((data.batch, m), torch.nan, dtype=torch.float64)
        status = torch.full((data.batch,), int(Status.FAILED))
        iterations = torch.zeros(data.batch, dtype=torch.int64)
        for element in range(data.batch):
            P.data, A.data = P_values[element], A_values[element]
            solution = clarabel.DefaultSolver(P, q[element], A, b[element], cones, options).solve()
            primal[element] = torch.tensor(solution.x, dtype=torch.float64)
            dual[element] = torch.tensor(solution.z, dtype=torch.float64)
            status[element] = int(STATUS.get(str(solution.status), Status.FAILED))
            iterations[element] = solution.iterations
        return RawSolution(primal, dual[:, torch.from_numpy(inverse)], status, iterations)


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
        number = np.zeros((side, side), dtype=np.int64)
        columns, rows = np.triu_indices(side)
        number[rows, columns] = number[columns, rows] = np.arange(len(rows))
        upper_rows, upper_columns = np.tril_indices(side)[::-1]
        order.append(start + number[upper_rows, upper_columns])
        start += len(rows)
    order.append(np.arange(start, cones.rows))
    return np.concatenate(order)
