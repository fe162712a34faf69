"""The exact adjoint: implicit differentiation of the KKT conditions, batched in torch.

With ``v = y - s``, ``Pi`` the projection onto ``K*`` and ``D`` its derivative at ``v``, a solution
is a zero of

    F(x, v) = (P x + q + A' Pi(v),  A x + Pi(v) - v - b),      y = Pi(v)

(Busseti, Moursi and Boyd 2019; with a quadratic objective as in Healey, Nobel and Boyd 2025). The
implicit function theorem gives ``dz = -J^-1 dF`` for ``z = (x, v)`` and

    J = [[P, A' D], [A, D - I]].

For an incoming gradient ``(g_x, g_y)`` the adjoint variables ``(a, c)`` solve

    J' (a, c) = (g_x, D g_y)

and one product with the partial derivatives of ``F`` gives the gradient of the data:

    dP = -a x',  dq = -a,  dA = -(y a' + c x'),  db = c.

The same formulas, read as torch operations, are differentiable again.
"""

from __future__ import annotations

import torch

from ddn_cvx.cones.product import Derivative
from ddn_cvx.kkt.active_adjoint import reduced_adjoint
from ddn_cvx.kkt.point import Point
from ddn_cvx.kkt.reduced.prepared import has_reduced_kkt
from ddn_cvx.kkt.residuals import products, slack_at
from ddn_cvx.kkt.sparse import sparse_adjoint, sparse_adjoint_checked, sparse_tangent
from ddn_cvx.linalg.dense import (
    DIRECT_TOLERANCE,
    apply_policy,
    linear_solve,
    solve_checked,
)
from ddn_cvx.linalg.outer import outer_at
from ddn_cvx.programs.cone.program import ConeData, ConeProgram

# Up to this many unknowns the KKT matrix is factored dense, batched; beyond, sparse, one by one.
DENSE_UNKNOWNS = 1000
# So few elements with so few unknowns take less time than the calls that leave rows out.
_FEW = 2
_FEW_UNKNOWNS = 100


class KKTAdjoint:
    """Solves the KKT system, with refinement; minimum norm where it is singular.

    By Cholesky or sparse factors without the inactive rows where that determines it, else by LU.
    """

    name = "kkt"

    def __call__(
        self,
        program: ConeProgram,
        data: ConeData,
        point: Point,
        primal_gradient: torch.Tensor,
        dual_gradient: torch.Tensor,
        on_failure: str,
    ) -> ConeData:
        """See :class:`~ddn_cvx.kkt.point.Adjoint`."""
        failed = point.failed.unsqueeze(1)
        primal_gradient = torch.where(failed, 0.0, primal_gradient)
        dual_gradient = torch.where(failed, 0.0, dual_gradient)
        incoming = primal_gradient, dual_gradient
        plain = not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
        few = len(data.q) <= _FEW and program.variables + program.rows <= _FEW_UNKNOWNS
        light = point.factors is not None or (not few and has_reduced_kkt(program))
        if plain and light:
            solution = _solve_light(program, data, point, incoming, on_failure)
        else:
            solution = _solve_whole(program, data, point, incoming, on_failure)
        n = program.variables
        return gradients(program, point, solution[:, :n], solution[:, n:])


def _solve_light(
    program: ConeProgram,
    data: ConeData,
    point: Point,
    incoming: tuple[torch.Tensor, torch.Tensor],
    on_failure: str,
) -> torch.Tensor:
    """``(a, c)`` without inactive rows; by the whole system where that does not determine them."""
    if point.factors is not None:
        tensors, solve = point.factors
        solution, residual = solve(tensors, *incoming)
        if bool((residual <= DIRECT_TOLERANCE).all()):
            return solution
    solution, residual, found = reduced_adjoint(program, data, point, *incoming)
    if bool(found.all()):
        return solution
    rest = (~found).nonzero().squeeze(1)
    some, at = data.select(rest), point.select(rest)
    derivative = derivative_at(program, some, at)
    right = torch.cat([incoming[0][rest], derivative.times(incoming[1][rest])], 1)
    if program.variables + program.rows <= DENSE_UNKNOWNS:
        matrix = _without_failed(dense_system(program, some, derivative), at.failed)
        solution[rest], residual[rest] = solve_checked(matrix, right)
    else:
        solution[rest], residual[rest] = sparse_adjoint_checked(program, some, derivative, right)
    return apply_policy(solution, residual, on_failure)


def _solve_whole(
    program: ConeProgram,
    data: ConeData,
    point: Point,
    incoming: tuple[torch.Tensor, torch.Tensor],
    on_failure: str,
) -> torch.Tensor:
    """``(a, c)`` by the whole system, differentiable."""
    derivative = derivative_at(program, data, point)
    right = torch.cat([incoming[0], derivative.times(incoming[1])], 1)
    if program.variables + program.rows > DENSE_UNKNOWNS:
        return sparse_adjoint(program, data, derivative, right, on_failure)
    matrix = _without_failed(dense_system(program, data, derivative), point.failed)
    return linear_solve(matrix, right, on_failure)[0]


def derivative_at(program: ConeProgram, data: ConeData, point: Point) -> Derivative:
    """``D`` at a solution."""
    return program.cones.derivative(point.dual, slack_at(program, data, point.primal))


def dense_system(program: ConeProgram, data: ConeData, derivative: Derivative) -> torch.Tensor:
    """``J'`` as dense matrices, shape ``(B, n + m, n + m)``."""
    P = program.P_pattern.dense(data.P)
    A = program.A_pattern.dense(data.A)
    if P.shape[0] != A.shape[0]:
        P = P.expand(A.shape[0], -1, -1)
    identity = torch.eye(program.rows, dtype=A.dtype, device=A.device)
    top = torch.cat([P, A.mT], 2)
    bottom = torch.cat([derivative.times_matrix(A), derivative.dense() - identity], 2)
    return torch.cat([top, bottom], 1)


def _without_failed(matrix: torch.Tensor, failed: torch.Tensor) -> torch.Tensor:
    """The identity in the place of failed elements' matrices."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(failed[:, None, None], identity, matrix)


def gradients(program: ConeProgram, point: Point, a: torch.Tensor, c: torch.Tensor) -> ConeData:
    """Gradients of the stored values from the adjoint variables."""
    x, y = point.primal, point.dual
    back = -a
    P = outer_at(program.P_pattern, (back, x))
    A = outer_at(program.A_pattern, (y, back), (-c, x))
    return ConeData(P, back, A, c)


def tangent(
    program: ConeProgram, data: ConeData, point: Point, tangents: ConeData, on_failure: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward mode: ``(dx, dy)`` for tangents of the data; ``dz = -J^-1 dF``, ``dy = D dv``."""
    derivative = derivative_at(program, data, point)
    dPx, dAx, dAty = products(program, tangents, point.primal, point.dual)
    right = -torch.cat([dPx + tangents.q + dAty, dAx - tangents.b], 1)
    failed = point.failed
    right = torch.where(failed.unsqueeze(1), 0.0, right)
    if program.variables + program.rows > DENSE_UNKNOWNS:
        return sparse_tangent(program, data, derivative, right, on_failure)
    matrix = _without_failed(dense_system(program, data, derivative), failed)
    step, _ = linear_solve(matrix.mT, right, on_failure)
    n = program.variables
    return step[:, :n], derivative.times(step[:, n:])
