"""Forward mode within forward mode.

``torch.autograd.Function`` loses the outer level's tangents in nested forward mode, without a word
(pytorch issue 197867). There a solution is made differentiable by ordinary operations instead: from
the solved point, held constant, Newton steps on the KKT conditions. They change nothing in value,
and ``k`` of them have the solution map's derivatives up to order ``2^k - 1``, because each squares
the distance from the solution of nearby inputs.
"""

from __future__ import annotations

import torch

from ddn_cvx.implicit.adjoint import assemble
from ddn_cvx.nonlinear.derivatives import Derivatives

Tensors = tuple[torch.Tensor, ...]


def reattached(
    derivatives: Derivatives, u: torch.Tensor, dual: torch.Tensor, inputs: Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    """The solution as a function of the inputs, up to third derivatives.

    Args:
        u, dual: a solution, constant, shapes ``(B, n)`` and ``(B, m)``.
        inputs: of the program's functions, with tangents.
    """
    cones = derivatives.program.cones
    n = u.shape[1]
    v = dual
    if cones.rows:
        v = (dual + derivatives.program.constraints(u, *inputs)).detach()
    for _ in range(2):
        dual = cones.project_dual(v, (dual - v).detach()) if cones.rows else v
        _, gradient, c, jacobian, hessian = derivatives.second(u, dual, *inputs)
        pulled = (jacobian.mT @ dual.unsqueeze(2)).squeeze(2)
        value = torch.cat([gradient + pulled, c + dual - v], 1)
        # At the solution the slack is y - v, whatever c says nearby.
        matrix = assemble(derivatives, dual, v - dual, jacobian, hessian).mT
        step = torch.linalg.solve_ex(matrix, -value.unsqueeze(2)).result.squeeze(2)
        u, v = u + step[:, :n], v + step[:, n:]
    return u, cones.project_dual(v, (dual - v).detach()) if cones.rows else v
