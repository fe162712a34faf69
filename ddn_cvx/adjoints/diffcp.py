"""diffcp's adjoint: the homogeneous self-dual embedding, for programs with a linear objective.

Agrawal, Barratt, Boyd, Busseti and Moursi, "Differentiating through a cone program" (2019),
section 3: with ``Q = [[0, A', c], [-A, 0, b], [-c', -b', 0]]`` and ``z = (x, y - s, 1)``, the
adjoint solves ``M' r = dz`` for ``M = (Q - I) DPi(z) + I``. diffcp does not look at how well that
system was solved; here its residual is computed, and a miss climbs the ladder LSQR, LSMR, dense.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ddn_cvx.kkt.adjoint import push_forward
from ddn_cvx.kkt.point import Point
from ddn_cvx.linalg.dense import apply_policy
from ddn_cvx.programs.cone.instance import ConeInstance, slack_at
from ddn_cvx.programs.cone.program import ConeData, ConeProgram

MODES = ("lsqr", "lsmr", "dense")

# Relative residual of the adjoint system above which the next mode of the ladder is tried.
TOLERANCE = 1e-7


class DiffcpAdjoint:
    """One of diffcp's modes, with its residual checked; forward mode is the exact one.

    Args:
        mode: the first rung: "lsqr", "lsmr" or "dense".
    """

    by_solver = False
    form = "linear"

    def __init__(self, mode: str) -> None:
        self.name = mode

    def supports(self, program: ConeProgram) -> str | None:
        """None if diffcp takes the program, else the reason why not, in words."""
        if program.cones.power:
            return "diffcp takes no power cones"
        if program.is_quadratic:
            return (
                "diffcp knows no quadratic objective, and this interface asks for one "
                "(supports_quad_obj)"
            )
        return None

    def describe(self, program: ConeProgram) -> str:
        """See :class:`~ddn_cvx.engine.plan.Adjoint`."""
        return "diffcp's, its residual checked"

    def pull_back(
        self,
        instance: ConeInstance,
        point: Point,
        primal_gradient: torch.Tensor,
        dual_gradient: torch.Tensor,
        on_failure: str,
    ) -> tuple[torch.Tensor, ...]:
        """See :func:`ddn_cvx.kkt.adjoint.pull_back`; not differentiable again."""
        program, data = instance.program, instance.data
        tensors = (data.q, data.A, data.b, point.primal, point.dual, primal_gradient, dual_gradient)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise NotImplementedError(
                f'adjoint="{self.name}" is diffcp\'s and cannot be differentiated twice; use '
                'adjoint="kkt" for second derivatives.'
            )
        host = ConeData(data.P, data.q, data.A, data.b).detach_to_host()
        slack = slack_at(program, data, point.primal)
        vectors = point.primal, point.dual, slack, primal_gradient, dual_gradient
        arrays = [vector.detach().cpu().numpy() for vector in vectors]
        n, m = program.variables, program.rows
        solution = torch.zeros(data.batch, n + m + 1, dtype=torch.float64)
        residual = torch.zeros(data.batch, dtype=torch.float64)
        for element in (~point.failed).nonzero().squeeze(1).tolist():
            r, residual[element] = _solve(program, host, arrays, element, self.name)
            solution[element] = torch.tensor(r)
        solution = apply_policy(solution, residual, on_failure).to(data.q.device)
        return _gradients(program, point, solution)

    push_forward = staticmethod(push_forward)


def _solve(
    program: ConeProgram, data: ConeData, arrays: list[np.ndarray], element: int, mode: str
) -> tuple[np.ndarray, float]:
    """``r`` of one element and its relative residual, from the first mode that is good enough.

    Args:
        arrays: ``x``, ``y``, ``s`` and the incoming gradients of ``x`` and ``y``, of all elements.
    """
    import diffcp._diffcp as engine
    import scipy.sparse
    from diffcp.cones import parse_cone_dict, parse_cone_dict_cpp
    from scipy.sparse.linalg import LinearOperator, lsmr

    x, y, s, dx, dy = (array[element] for array in arrays)
    A = program.A_pattern.sparse(data.A[element].numpy())
    b, c = data.b[element].numpy()[:, None], data.q[element].numpy()[:, None]
    dictionary = program.cones.scs()
    dictionary.pop("p")
    cones, v = parse_cone_dict_cpp(parse_cone_dict(dictionary)), y - s
    blocks = [[None, A.T, c], [-A, None, b], [-c.T, -b.T, None]]
    Q = scipy.sparse.csc_matrix(scipy.sparse.bmat(blocks))
    M = engine.M_operator(Q, cones, x, v, 1.0).transpose()
    on_z = engine.dprojection(v, cones, True).rmatvec(dy)
    right = np.concatenate([dx, on_z, [-(x @ dx + y @ dy)]])

    def by_lsqr() -> np.ndarray:
        return np.asarray(engine.lsqr(M, right).solution)

    def by_lsmr() -> np.ndarray:
        shape, limit = (right.size, right.size), 10 * right.size
        operator: Any = LinearOperator(shape, matvec=M.matvec, rmatvec=M.rmatvec, dtype=np.float64)
        return np.asarray(lsmr(operator, right, maxiter=limit, atol=1e-12, btol=1e-12)[0])

    def by_dense() -> np.ndarray:
        matrix = engine.M_dense(np.asfortranarray(Q.toarray()), cones, x, v, 1.0)
        return np.asarray(engine._solve_adjoint_derivative_dense(matrix, matrix.T, right))

    size = np.abs(right).max()
    best, best_residual = np.zeros_like(right), 1.0 if size > 0 else 0.0
    for solve in (by_lsqr, by_lsmr, by_dense)[MODES.index(mode) :]:
        if best_residual <= TOLERANCE:
            break
        candidate = solve()
        residual = float(np.abs(M.matvec(candidate) - right).max() / size)
        if residual < best_residual:
            best, best_residual = candidate, residual
    return best, best_residual


def _gradients(
    program: ConeProgram, point: Point, solution: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The data's gradients from ``r``: ``dQ = Pi(z) r'`` read at the places of A, b and c."""
    n = program.variables
    on_x, on_y, on_one = solution[:, :n], solution[:, n:-1], solution[:, -1:]
    x, y = point.primal, point.dual
    device = solution.device
    rows, columns, _ = program.A_pattern.places(device)
    A = x[:, columns] * on_y[:, rows] - y[:, rows] * on_x[:, columns]
    P = x.new_zeros(x.shape[0], program.P_pattern.stored)
    return P, x * on_one - on_x, A, y * on_one - on_y
