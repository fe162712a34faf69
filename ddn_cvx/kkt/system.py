"""The KKT system of a solution, solved in the cheapest structure that its instance has.

The matrix, with ``H`` the Hessian of the Lagrangian, ``J`` the Jacobian of ``c`` and ``D`` the
derivative of the projection onto ``K*`` (:mod:`ddn_cvx.kkt.adjoint` derives it), is

    M' = [[H, J'], [D J, D - I]].
"""

from __future__ import annotations

from typing import Any

import torch

from ddn_cvx.cones.product import Derivative
from ddn_cvx.kkt.krylov import krylov_solve
from ddn_cvx.kkt.point import Point
from ddn_cvx.kkt.sparse import sparse_kkt, sparse_kkt_checked
from ddn_cvx.linalg.block_diagonal import positive_definite_solve
from ddn_cvx.linalg.dense import DIRECT_TOLERANCE, linear_solve, relative_residual, solve_checked

# Unknowns (variables and rows) up to which the matrix is factored dense and batched. Beyond, one of
# a known pattern is factored sparse, one element at a time.
DENSE_UNKNOWNS = 1000
# Without a pattern, beyond this the matrix is only multiplied, if its program has no curved cone.
FORMED_UNKNOWNS = 1500


def kkt_matrix(
    hessian: torch.Tensor, jacobian: torch.Tensor, derivative: Derivative
) -> torch.Tensor:
    """``M'``, shape ``(B, n + m, n + m)``.

    Args:
        hessian, jacobian: shapes ``(B, n, n)`` and ``(B, m, n)``.
    """
    batch, m, n = jacobian.shape
    identity = torch.eye(m, dtype=jacobian.dtype, device=jacobian.device)
    top = torch.cat([hessian, jacobian.mT], 2)
    bottom = derivative.times_matrix(torch.cat([jacobian, identity.expand(batch, -1, -1)], 2))
    return torch.cat([top, bottom - torch.nn.functional.pad(identity, (n, 0))], 1)


def derivative_at(instance: Any, point: Point) -> Derivative:
    """``D`` at a solution."""
    factors: Any = point.factors
    known = factors is not None and factors.solve is None
    slack = -factors.tensors[0] if known else instance.slack(point.primal)
    derivative: Derivative = instance.program.cones.derivative(point.dual, slack)
    return derivative


def solve_kkt(
    instance: Any,
    point: Point,
    derivative: Derivative | None,
    right: torch.Tensor,
    on_failure: str,
    *,
    transposed: bool = False,
) -> torch.Tensor:
    """``M'^-1 right``, or ``M^-1 right`` where ``transposed``; differentiable.

    Args:
        derivative: ``D`` at the point; None without rows.
        right: shape ``(B, n + m)``.
        on_failure: what to do about elements whose system has no solution, see
            :func:`~ddn_cvx.linalg.dense.linear_solve`.

    Returns:
        Shape ``(B, n + m)``; with ``M`` the second part is ``dv``, the change of ``y - s``.
    """
    program, unknowns = instance.program, right.shape[1]
    if program.has_pattern and unknowns > DENSE_UNKNOWNS:
        if derivative is None:
            derivative = derivative_at(instance, point)
        return sparse_kkt(instance, derivative, right, on_failure, transposed=transposed)
    if unknowns > FORMED_UNKNOWNS and program.cones.is_polyhedral:
        return krylov_solve(instance, point.primal, point.dual, right, on_failure)
    if derivative is None and point.factors is not None:
        return _definite(dense_matrix(instance, point, None), right, on_failure)
    matrix = dense_matrix(instance, point, derivative)
    return linear_solve(matrix.mT if transposed else matrix, right, on_failure)[0]


def solve_kkt_checked(
    instance: Any, point: Point, derivative: Derivative, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``M'^-1 right`` outside autograd, with its relative residual, shape ``(B,)``."""
    if right.shape[1] > DENSE_UNKNOWNS:
        return sparse_kkt_checked(instance, derivative, right)
    return solve_checked(dense_matrix(instance, point, derivative), right)


def dense_matrix(instance: Any, point: Point, derivative: Derivative | None) -> torch.Tensor:
    """``M'`` at a solution, the identity for failed elements; ``H`` where there is no ``D``."""
    factors: Any = point.factors
    if factors is not None and factors.solve is None:
        _, jacobian, matrix = factors.tensors
    else:
        jacobian, matrix = instance.system(point.primal, point.dual)
    if derivative is not None:
        matrix = kkt_matrix(matrix, jacobian, derivative)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(point.failed[:, None, None], identity, matrix)


def _definite(hessian: torch.Tensor, right: torch.Tensor, on_failure: str) -> torch.Tensor:
    """``H^-1 right`` without constraints: Cholesky, by blocks where there are any.

    Elements whose Hessian is not positive definite take the general way.
    """
    solution, definite = positive_definite_solve(hessian, right)
    residual = relative_residual(hessian, torch.nan_to_num(solution), right)
    missed = ~(definite & (residual <= DIRECT_TOLERANCE))
    if bool(missed.any()):
        # All of them, so that an error names elements by their places in the batch.
        general, _ = linear_solve(hessian, right, on_failure)
        solution = torch.where(missed.unsqueeze(1), general, solution)
    return solution
