"""Newton refinement of a solution: from a solver's accuracy to rounding.

Semismooth Newton on the normalised residual map ``F(x, v) = (P x + q + A' Pi(v), A x + Pi(v) - v -
b)``, where ``Pi`` projects onto ``K*`` and ``v = y - s``; Busseti, Moursi and Boyd, "Solution
refinement at regular points of conic problems" (2019), here with a quadratic objective and without
the homogeneous embedding. Its Jacobian is the transpose of the adjoint's KKT matrix.
"""

from __future__ import annotations

import torch

from ddn_cvx.conic.adjoints.kkt import dense_system
from ddn_cvx.conic.program import ConeData, ConeProgram
from ddn_cvx.conic.residuals import products, relative_residual
from ddn_cvx.implicit.linear_solve import solve_checked


def refine(
    program: ConeProgram,
    data: ConeData,
    primal: torch.Tensor,
    dual: torch.Tensor,
    *,
    steps: int = 6,
    target: float = 1e-14,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take Newton steps for as long as they reduce the residual; never returns a worse point.

    Args:
        primal, dual: a finite approximate solution, shapes ``(B, n)`` and ``(B, m)``.
        steps: largest number of Newton steps.
        target: relative KKT residual below which nothing is done.

    Returns:
        Primal, dual and relative KKT residual, shapes ``(B, n)``, ``(B, m)``, ``(B,)``.
    """
    residual = relative_residual(program, data, primal, dual)
    for _ in range(steps):
        if bool((residual <= target).all()):
            break
        candidate = _newton_step(program, data, primal, dual)
        candidate_residual = relative_residual(program, data, *candidate)
        better = candidate_residual < residual
        if not bool(better.any()):
            break
        primal = torch.where(better.unsqueeze(1), candidate[0], primal)
        dual = torch.where(better.unsqueeze(1), candidate[1], dual)
        residual = torch.where(better, candidate_residual, residual)
    return primal, dual, residual


def _newton_step(
    program: ConeProgram, data: ConeData, primal: torch.Tensor, dual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    n = program.variables
    Px, Ax, Aty = products(program, data, primal, dual)
    slack = data.b - Ax
    point = dual - slack
    projected = program.cones.project_dual(point, slack)
    _, _, Aty = products(program, data, primal, projected)
    residual = torch.cat([Px + data.q + Aty, Ax + projected - point - data.b], 1)
    derivative = program.cones.derivative(projected, projected - point)
    matrix = dense_system(program, data, derivative)
    step, _ = solve_checked(matrix.mT.contiguous(), -residual)
    moved = point + step[:, n:]
    slack = projected - point + derivative.times(step[:, n:]) - step[:, n:]
    return primal + step[:, :n], program.cones.project_dual(moved, slack)
