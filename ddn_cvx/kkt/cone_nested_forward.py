"""Forward mode within forward mode, for cone programs."""

from __future__ import annotations

import torch

from ddn_cvx.kkt.adjoint import DENSE_UNKNOWNS, dense_system
from ddn_cvx.kkt.nested_forward import chord_steps
from ddn_cvx.kkt.residuals import products, slack_at
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.cone.units import natural_units


def reattached(
    program: ConeProgram, data: ConeData, primal: torch.Tensor, dual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The solution as a function of the data; see :mod:`ddn_cvx.kkt.nested_forward`.

    Args:
        primal, dual: a solution, constant, shapes ``(B, n)`` and ``(B, m)``; NaN stays NaN.

    Raises:
        NotImplementedError: the program is so large that its KKT systems are sparse.
    """
    n = program.variables
    if n + program.rows > DENSE_UNKNOWNS:
        raise NotImplementedError(
            "Forward mode within forward mode works up to "
            f"{DENSE_UNKNOWNS} unknowns; this program has {n + program.rows}. Put reverse mode "
            "inside: torch.func.jacfwd(torch.func.jacrev(...)), which torch.func.hessian does."
        )
    failed = primal.isnan().any(1, keepdim=True)
    units = natural_units(program, data)
    data = units.scale(data)
    x = torch.where(failed, 0.0, primal / units.rho)
    y = torch.where(failed, 0.0, dual / units.sigma)
    constant = ConeData(*(t.detach() for t in (data.P, data.q, data.A, data.b)))
    slack = slack_at(program, constant, x)
    matrix = dense_system(program, constant, program.cones.derivative(y, slack)).mT
    identity = torch.eye(matrix.shape[-1], dtype=x.dtype, device=x.device)
    matrix = torch.where(failed.unsqueeze(2), identity, matrix)

    def conditions(z: torch.Tensor) -> torch.Tensor:
        x, v = z[:, :n], z[:, n:]
        y = program.cones.project_dual(v, slack)
        Px, Ax, Aty = products(program, data, x, y)
        value = torch.cat([Px + data.q + Aty, Ax + y - v - data.b], 1)
        return torch.where(failed, 0.0, value)

    z = chord_steps(conditions, matrix, torch.cat([x, y - slack], 1))
    y = program.cones.project_dual(z[:, n:], slack)
    return (
        torch.where(failed, torch.nan, z[:, :n] * units.rho),
        torch.where(failed, torch.nan, y * units.sigma),
    )
