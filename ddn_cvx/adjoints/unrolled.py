"""Backpropagation through the iterations, for comparison with the implicit adjoint.

Newton's method on the KKT conditions, every step an ordinary differentiable operation; step lengths
and regularisation are decisions, and are not differentiated. Its gradient tends to the implicit one
as the iteration converges (Christianson, "Reverse accumulation and attractive fixed points", 1994),
while its memory grows with the number of iterations. For programs without inequalities.
"""

from __future__ import annotations

from typing import Any

import torch

from ddn_cvx.kkt.system import kkt_matrix
from ddn_cvx.linalg.dense import linear_solve
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.programs.nonlinear.derivatives import Derivatives
from ddn_cvx.programs.nonlinear.program import NonlinearProgram

Tensors = tuple[torch.Tensor, ...]

_MAX_STEPS = 60
_BACKTRACKS = 12
_CONVERGED = 1e-12


class Unrolled:
    """Newton's method with a line search on ``|F|``, recorded by autograd."""

    name = "unrolled"

    def supports(self, program: NonlinearProgram, solver: Any) -> str | None:
        """None for a program without inequalities that is solved by torch's operations."""
        unrolls = program.rows == program.cones.zero and solver.in_torch
        return None if unrolls else "only without inequalities"

    def describe(self, program: NonlinearProgram) -> str:
        """See :class:`~ddn_cvx.engine.plan.Adjoint`."""
        return "backpropagation through Newton's iterations, unchecked"

    def solve(
        self, solver: Any, instance: NonlinearInstance, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Solve from a start, ``(B, n)``: ``u`` and ``y`` of shapes ``(B, n)`` and ``(B, m)``."""
        derivatives, inputs = instance.derivatives, instance.inputs
        u, n = start, start.shape[1]
        dual = u.new_zeros((len(u), derivatives.program.rows))
        for _ in range(_MAX_STEPS):
            _, gradient, constraint, jacobian, hessian = derivatives.second(u, dual, *inputs)
            value = _residual(gradient, constraint, jacobian, dual)
            size = value.detach().norm(dim=1)
            scale = 1 + gradient.detach().norm(dim=1)
            if bool((size <= _CONVERGED * scale).all()):
                break
            shifted = hessian + _shift(hessian.detach(), jacobian.detach())
            matrix = shifted
            if jacobian.shape[1]:
                cones = derivatives.program.cones
                matrix = kkt_matrix(shifted, jacobian, cones.derivative(dual, -constraint))
            step, _ = linear_solve(matrix, -value, "nan")
            length = _step_length(derivatives, u, dual, step, size, inputs).unsqueeze(1)
            u = u + length * step[:, :n]
            dual = dual + length * step[:, n:]
        return u, dual


def _residual(
    gradient: torch.Tensor, constraint: torch.Tensor, jacobian: torch.Tensor, dual: torch.Tensor
) -> torch.Tensor:
    pulled = (jacobian.mT @ dual.unsqueeze(2)).squeeze(2)
    return torch.cat([gradient + pulled, constraint], 1)


def _shift(hessian: torch.Tensor, jacobian: torch.Tensor) -> torch.Tensor:
    """``delta I`` that makes the Hessian positive definite along the constraints."""
    n = hessian.shape[1]
    identity = torch.eye(n, dtype=hessian.dtype, device=hessian.device)
    project = identity
    if jacobian.shape[1]:
        project = identity - torch.linalg.pinv(jacobian) @ jacobian
    reduced = project @ hessian @ project
    least = torch.linalg.eigvalsh(reduced)[:, 0]
    size = hessian.abs().amax((1, 2))
    delta = torch.where(least < -1e-10 * size, -least + 1e-2 * size, 0.0)
    return delta[:, None, None] * identity


@torch.no_grad()
def _step_length(
    derivatives: Derivatives,
    u: torch.Tensor,
    dual: torch.Tensor,
    step: torch.Tensor,
    size: torch.Tensor,
    inputs: Tensors,
) -> torch.Tensor:
    """The first of 1, 1/2, 1/4, ... that lowers ``|F|``; the shortest if none does."""
    n = u.shape[1]
    length = torch.ones_like(size)
    for _ in range(_BACKTRACKS):
        column = length.unsqueeze(1)
        moved_u, moved_y = u + column * step[:, :n], dual + column * step[:, n:]
        _, gradient, constraint, jacobian = derivatives.first(moved_u, *inputs)
        after = _residual(gradient, constraint, jacobian, moved_y).norm(dim=1)
        short = ~(after <= (1 - 1e-4 * length) * size) & (size > 1e-13)
        if not bool(short.any()):
            break
        length = torch.where(short, 0.5 * length, length)
    return length
