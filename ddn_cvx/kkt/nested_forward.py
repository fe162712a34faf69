"""Forward mode within forward mode.

``torch.autograd.Function`` loses the outer level's tangents in nested forward mode, without a word
(pytorch issue 197867). There a solution is made differentiable by ordinary operations instead:
chord steps on the optimality conditions,

    z <- z - M^-1 F(z, x),      M = dF/dz at the solution, constant.

They change nothing in value, and each makes one more order of derivatives right, because it lets
the error of a solution for nearby inputs shrink by one more power of the distance.
"""

from __future__ import annotations

from typing import Any

import torch

from ddn_cvx.kkt.system import DENSE_UNKNOWNS, kkt_matrix

# Derivatives up to this order are those of the solution map.
ORDER = 4


def reattached(
    instance: Any, u: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The solution as a function of the instance's tensors.

    Args:
        instance: harmless where there is no solution.
        u, y: a solution, constant, shapes ``(B, n)`` and ``(B, m)``; NaN stays NaN.

    Raises:
        NotImplementedError: the system is too large for a pseudoinverse.
    """
    program, n = instance.program, u.shape[1]
    if n + program.rows > DENSE_UNKNOWNS:
        raise NotImplementedError(
            f"Forward mode within forward mode works up to {DENSE_UNKNOWNS} unknowns; this program "
            f"has {n + program.rows}. Put reverse mode inside: "
            "torch.func.jacfwd(torch.func.jacrev(...)), which torch.func.hessian does."
        )
    failed = u.isnan().any(1, keepdim=True)
    u, y = torch.where(failed, 0.0, u), torch.where(failed, 0.0, y)
    constant = instance.detach()
    slack = constant.slack(u)
    jacobian, matrix = constant.system(u, y)
    if program.rows:
        matrix = kkt_matrix(matrix, jacobian, program.cones.derivative(y, slack)).mT
    identity = torch.eye(matrix.shape[-1], dtype=u.dtype, device=u.device)
    inverse = torch.linalg.pinv(torch.where(failed.unsqueeze(2), identity, matrix))

    def multipliers(v: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = program.cones.project_dual(v, slack) if program.rows else v
        return projected

    z = torch.cat([u, y - slack], 1)
    for _ in range(ORDER):
        v = z[:, n:]
        y = multipliers(v)
        gradient, c = instance.stationarity(z[:, :n], y)
        conditions = torch.where(failed, 0.0, torch.cat([gradient, c + y - v], 1))
        z = z - (inverse @ conditions.unsqueeze(2)).squeeze(2)
    u, y = z[:, :n], multipliers(z[:, n:])
    return torch.where(failed, torch.nan, u), torch.where(failed, torch.nan, y)
