"""Forward mode within forward mode.

``torch.autograd.Function`` loses the outer level's tangents in nested forward mode, without a word
(pytorch issue 197867). There a solution is made differentiable by ordinary operations instead:
chord steps on the optimality conditions,

    z <- z - M^-1 F(z, x),      M = dF/dz at the solution, constant.

They change nothing in value, and each makes one more order of derivatives right, because it lets
the error of a solution for nearby inputs shrink by one more power of the distance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ddn_cvx.kkt.nonlinear_adjoint import assemble
from ddn_cvx.programs.nonlinear.derivatives import Derivatives

Tensors = tuple[torch.Tensor, ...]

# Derivatives up to this order are those of the solution map.
ORDER = 4


def chord_steps(
    conditions: Callable[[torch.Tensor], torch.Tensor], matrix: torch.Tensor, z: torch.Tensor
) -> torch.Tensor:
    """``z`` as a function of whatever ``conditions`` depend on.

    Args:
        conditions: ``F``, of shape ``(B, N)``, zero at ``z``.
        matrix: ``M``, constant, shape ``(B, N, N)``; minimum-norm steps where it is singular.
        z: shape ``(B, N)``.
    """
    inverse = torch.linalg.pinv(matrix)
    for _ in range(ORDER):
        z = z - (inverse @ conditions(z).unsqueeze(2)).squeeze(2)
    return z


def reattached(
    derivatives: Derivatives, u: torch.Tensor, dual: torch.Tensor, inputs: Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    """The solution of a nonlinear program as a function of its inputs.

    Args:
        u, dual: a solution, constant, shapes ``(B, n)`` and ``(B, m)``.
        inputs: of the program's functions, with tangents.
    """
    program, n = derivatives.program, u.shape[1]
    constant = tuple(tensor.detach() for tensor in inputs)
    _, _, c, jacobian, hessian = (t.detach() for t in derivatives.second(u, dual, *constant))
    matrix = assemble(derivatives, dual, c, jacobian, hessian).mT
    slack = -c

    def multipliers(v: torch.Tensor) -> torch.Tensor:
        return program.cones.project_dual(v, slack) if program.rows else v

    def conditions(z: torch.Tensor) -> torch.Tensor:
        u, v = z[:, :n], z[:, n:]
        y = multipliers(v)
        gradient, c = derivatives.stationarity(u, y, *inputs)
        return torch.cat([gradient, c + y - v], 1)

    z = chord_steps(conditions, matrix, torch.cat([u, dual - slack], 1))
    return z[:, :n], multipliers(z[:, n:])
