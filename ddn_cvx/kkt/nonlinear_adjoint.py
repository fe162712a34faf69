"""The adjoint of a nonlinear program, from its optimality conditions.

With ``v = y - s``, ``s = -c``, ``Pi`` the projection onto ``K*`` and ``D`` its derivative at ``v``,
a solution is a zero of

    F(u, v) = (grad_u L(u, Pi(v), x),  c(u, x) + Pi(v) - v),      y = Pi(v).

The implicit function theorem (Gould, Hartley and Campbell, "Deep declarative networks", 2021,
proposition 4.6) gives ``dz = -M^-1 dF`` for ``z = (u, v)`` and

    M = [[H, J' D], [J, D - I]],

with ``H`` the Hessian of the Lagrangian and ``J`` the Jacobian of ``c``. ``D`` is one at an
equality and at an active inequality, and zero at an inactive one, whose row then reads ``b = 0``:
constraints are masked, not removed, and the batch stays whole. Second-order and semidefinite cones
have a block in its place. For an incoming gradient ``(g_u, g_y)`` the adjoint variables ``(a, b)``
solve

    M' (a, b) = (g_u, D g_y)

and one reverse pass of ``-(<a, grad_u L(u, y, x)> + <b, c(u, x)>)`` gives the gradient of every
input. Neither ``dy/dx`` nor the mixed Hessian is formed. All is done by differentiable operations,
so that the adjoint is differentiable again.

At a weakly active inequality (slack and multiplier both zero) one piece of ``Pi`` is taken, which
gives a one-sided derivative. Where ``M`` is singular (dependent active constraints, as in
``R.T @ R == I``; a flat objective) the minimum-norm solution is taken if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.cones.product import Derivative
from ddn_cvx.kkt.krylov import krylov_solve
from ddn_cvx.linalg.block_diagonal import positive_definite_solve
from ddn_cvx.linalg.dense import DIRECT_TOLERANCE, linear_solve, relative_residual
from ddn_cvx.programs.nonlinear.derivatives import Derivatives

Tensors = tuple[torch.Tensor, ...]

# Up to this many unknowns (variables and constraint rows) the KKT matrix is formed and factored;
# beyond, it is only multiplied.
DENSE_UNKNOWNS = 1500


@dataclass(frozen=True, eq=False)
class Optimum:
    """A solution to differentiate at.

    Attributes:
        u: shape ``(B, n)``.
        dual: ``y``, shape ``(B, m)``.
        failed: elements without a solution, whose gradient is zero; bool, shape ``(B,)``.
        known: ``c``, ``J`` and ``H`` there, if they are known and need not be differentiated.
    """

    u: torch.Tensor
    dual: torch.Tensor
    failed: torch.Tensor
    known: Tensors | None = None


def kkt_matrix(
    derivatives: Derivatives, u: torch.Tensor, dual: torch.Tensor, inputs: Tensors
) -> torch.Tensor:
    """``M'``, shape ``(B, n + m, n + m)``."""
    _, _, constraint, jacobian, hessian = derivatives.second(u, dual, *inputs)
    return assemble(derivatives, dual, constraint, jacobian, hessian)


def assemble(
    derivatives: Derivatives,
    dual: torch.Tensor,
    constraint: torch.Tensor,
    jacobian: torch.Tensor,
    hessian: torch.Tensor,
) -> torch.Tensor:
    """``M'`` from the derivatives at a point."""
    program = derivatives.program
    if not program.rows:
        return hessian
    D = program.cones.derivative(dual, -constraint)
    identity = torch.eye(program.rows, dtype=dual.dtype, device=dual.device)
    top = torch.cat([hessian, jacobian.mT], 2)
    bottom = torch.cat([D.times_matrix(jacobian), D.dense() - identity], 2)
    return torch.cat([top, bottom], 1)


def adjoint(
    derivatives: Derivatives,
    optimum: Optimum,
    inputs: Tensors,
    primal_gradient: torch.Tensor,
    dual_gradient: torch.Tensor,
    on_failure: str,
) -> Tensors:
    """Vector-Jacobian product: the gradient of each input.

    Args:
        inputs: of the program's functions.
        primal_gradient, dual_gradient: ``g_u`` and ``g_y``, shapes ``(B, n)`` and ``(B, m)``.
        on_failure: what to do about elements whose linear system has no solution, see
            :func:`~ddn_cvx.linalg.dense.linear_solve`.
    """
    u, dual = optimum.u, optimum.dual
    failed = optimum.failed.unsqueeze(1)
    n = u.shape[1]
    right = torch.where(failed, 0.0, primal_gradient)
    if derivatives.program.rows:
        D = _derivative(derivatives, optimum, inputs)
        right = torch.cat([right, D.times(torch.where(failed, 0.0, dual_gradient))], 1)
    solution = _solve(derivatives, optimum, inputs, right, on_failure, transposed=False)
    a, b = solution[:, :n], solution[:, n:]
    return tuple(-g for g in derivatives.pull_back(u, dual, a, b, *inputs))


def tangent(
    derivatives: Derivatives,
    optimum: Optimum,
    inputs: Tensors,
    tangents: Tensors,
    on_failure: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Jacobian-vector product: ``(du, dy)`` along tangents of the inputs."""
    u, dual = optimum.u, optimum.dual
    n = u.shape[1]
    change = torch.cat(derivatives.push_forward(u, dual, inputs, tangents), 1)
    right = torch.where(optimum.failed.unsqueeze(1), 0.0, -change)
    step = _solve(derivatives, optimum, inputs, right, on_failure, transposed=True)
    if not derivatives.program.rows:
        return step, dual
    D = _derivative(derivatives, optimum, inputs)
    return step[:, :n], D.times(step[:, n:])


def _derivative(derivatives: Derivatives, optimum: Optimum, inputs: Tensors) -> Derivative:
    """``D`` at the solution."""
    if optimum.known is not None:
        constraint = optimum.known[0]
    else:
        constraint = derivatives.program.constraints(optimum.u, *inputs)
    return derivatives.program.cones.derivative(optimum.dual, -constraint)


def _solve(
    derivatives: Derivatives,
    optimum: Optimum,
    inputs: Tensors,
    right: torch.Tensor,
    on_failure: str,
    *,
    transposed: bool,
) -> torch.Tensor:
    """``M'^-1 right``, or ``M^-1 right`` where ``transposed``."""
    if right.shape[1] > DENSE_UNKNOWNS and derivatives.program.cones.is_polyhedral:
        return krylov_solve(derivatives, optimum.u, optimum.dual, inputs, right, on_failure)
    if optimum.known is not None:
        if not derivatives.program.rows:
            return _definite(optimum, right, on_failure)
        matrix = assemble(derivatives, optimum.dual, *optimum.known)
    else:
        matrix = kkt_matrix(derivatives, optimum.u, optimum.dual, inputs)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    matrix = torch.where(optimum.failed[:, None, None], identity, matrix)
    solution, _ = linear_solve(matrix.mT if transposed else matrix, right, on_failure)
    return solution


def _definite(optimum: Optimum, right: torch.Tensor, on_failure: str) -> torch.Tensor:
    """``H^-1 right`` without constraints: Cholesky, by blocks where there are any.

    Elements whose Hessian is not positive definite take the general way.
    """
    assert optimum.known is not None
    hessian = optimum.known[2]
    identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    hessian = torch.where(optimum.failed[:, None, None], identity, hessian)
    solution, definite = positive_definite_solve(hessian, right)
    residual = relative_residual(hessian, torch.nan_to_num(solution), right)
    missed = ~(definite & (residual <= DIRECT_TOLERANCE))
    if bool(missed.any()):
        # All of them, so that an error names elements by their places in the batch.
        general, _ = linear_solve(hessian, right, on_failure)
        solution = torch.where(missed.unsqueeze(1), general, solution)
    return solution
