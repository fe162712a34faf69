"""The exact adjoint and tangent: implicit differentiation of the KKT conditions, batched in torch.

With the slack ``s = -c``, ``v = y - s``, ``Pi`` the projection onto ``K*`` and ``D`` its derivative
at ``v``, a solution of ``min f(u) subject to -c(u) in K`` is a zero of

    F(u, v) = (grad_u L(u, Pi(v)),  c(u) + Pi(v) - v),      y = Pi(v)

(for cone programs Busseti, Moursi and Boyd 2019, with a quadratic objective Healey, Nobel and Boyd
2025; in general Gould, Hartley and Campbell, "Deep declarative networks", 2021, proposition 4.6).
The implicit function theorem gives ``dz = -M^-1 dF`` for ``z = (u, v)`` and

    M = [[H, J' D], [J, D - I]],

with ``H`` the Hessian of the Lagrangian and ``J`` the Jacobian of ``c``. ``D`` is one at an
equality and at an active inequality, and zero at an inactive one, whose row then reads ``b = 0``:
constraints are masked, not removed, and the batch stays whole. Curved cones have a block in its
place. For an incoming gradient ``(g_u, g_y)`` the adjoint variables ``(a, b)`` solve

    M' (a, b) = (g_u, D g_y)

and the gradient of the parameters is that of ``-(<a, grad_u L> + <b, c>)``: for a cone program

    dP = -(a x' + x a') / 2,  dq = -a,  dA = -(y a' + b x'),  db = b,

where ``P`` is symmetric and so is its gradient, and for a nonlinear one a single reverse pass.
Neither ``dy/dx`` nor the mixed Hessian is formed. All is done by differentiable operations, so that
the adjoint is differentiable again.

At a weakly active inequality (slack and multiplier both zero) one piece of ``Pi`` is taken, which
gives a one-sided derivative. Where ``M`` is singular (dependent active constraints, as in
``R.T @ R == I``; a flat objective) the minimum-norm solution is taken if there is one.
"""

from __future__ import annotations

from typing import Any

import torch

from ddn_cvx.kkt.active_adjoint import active_adjoint
from ddn_cvx.kkt.point import Point
from ddn_cvx.kkt.reduced.prepared import has_reduced_kkt
from ddn_cvx.kkt.system import derivative_at, solve_kkt, solve_kkt_checked
from ddn_cvx.linalg.dense import DIRECT_TOLERANCE, apply_policy

Tensors = tuple[torch.Tensor, ...]

# For at most so many elements with at most so many unknowns one LU of the whole matrix takes less
# time than the calls that leave the inactive rows out.
_FEW = 2
_FEW_UNKNOWNS = 100


def pull_back(
    instance: Any,
    point: Point,
    primal_gradient: torch.Tensor,
    dual_gradient: torch.Tensor,
    on_failure: str,
) -> Tensors:
    """Vector-Jacobian product of the solution map: the gradient of each of the instance's tensors.

    Args:
        instance: see :class:`~ddn_cvx.programs.instance.Instance`.
        point: its solution.
        primal_gradient, dual_gradient: ``g_u`` and ``g_y``, shapes ``(B, n)`` and ``(B, m)``.
        on_failure: "raise", "nan" or "warn": what to do about elements whose linear residual
            misses its tolerance after the whole ladder of factorisations.
    """
    failed, n = point.failed.unsqueeze(1), primal_gradient.shape[1]
    g_u = torch.where(failed, 0.0, primal_gradient)
    g_y = torch.where(failed, 0.0, dual_gradient) if instance.program.rows else dual_gradient
    solution = None
    if instance.program.has_pattern:
        solution = _without_inactive_rows(instance, point, g_u, g_y, on_failure)
    if solution is None:
        derivative, right = None, g_u
        if instance.program.rows:
            derivative = derivative_at(instance, point)
            right = torch.cat([g_u, derivative.times(g_y)], 1)
        solution = solve_kkt(instance, point, derivative, right, on_failure)
    back = -solution
    gradients: Tensors = instance.pull_back(point.primal, point.dual, back[:, :n], back[:, n:])
    if not instance.program.has_pattern:
        gradients = instance.zeroed(gradients, point.failed)
    return gradients


def push_forward(
    instance: Any, point: Point, tangents: Tensors, on_failure: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Jacobian-vector product: ``(du, dy)`` along tangents of the instance's tensors."""
    u, y = point.primal, point.dual
    n = u.shape[1]
    change = torch.cat(instance.push_forward(u, y, tangents), 1)
    right = torch.where(point.failed.unsqueeze(1), 0.0, -change)
    if not instance.program.rows:
        return solve_kkt(instance, point, None, right, on_failure, transposed=True), y
    derivative = derivative_at(instance, point)
    step = solve_kkt(instance, point, derivative, right, on_failure, transposed=True)
    return step[:, :n], derivative.times(step[:, n:])


def _without_inactive_rows(
    instance: Any, point: Point, g_u: torch.Tensor, g_y: torch.Tensor, on_failure: str
) -> torch.Tensor | None:
    """``(a, b)`` from the active rows alone; by the whole system where these do not determine it.

    None where the whole system is to be taken for all: where the adjoint is differentiated itself,
    and where so small a batch gains nothing.
    """
    program = instance.program
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return None
    if point.factors is not None and point.factors.solve is not None:
        found, residual = point.factors.solve(point.factors.tensors, g_u, g_y)
        if bool((residual <= DIRECT_TOLERANCE).all()):
            solution: torch.Tensor = found
            return solution
    elif len(g_u) <= _FEW and program.variables + program.rows <= _FEW_UNKNOWNS:
        return None
    if not has_reduced_kkt(program):
        return None
    solution, residual, good = active_adjoint(instance, point, g_u, g_y)
    if bool(good.all()):
        return solution
    rest = (~good).nonzero().squeeze(1)
    some, at = instance.select(rest), point.select(rest)
    derivative = derivative_at(some, at)
    right = torch.cat([g_u[rest], derivative.times(g_y[rest])], 1)
    solution[rest], residual[rest] = solve_kkt_checked(some, at, derivative, right)
    return apply_policy(solution, residual, on_failure)
