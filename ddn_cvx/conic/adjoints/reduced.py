"""The exact adjoint of linear and quadratic programs: the primal and the active rows alone.

Where ``D`` is zero or one in each row, the KKT system of :mod:`ddn_cvx.conic.adjoints.kkt` is that
of a quadratic program whose active rows are equations,

    [P    A_1'] [a  ]   [g_x    ]
    [A_1  0   ] [c_1] = [(g_y)_1],      c_0 = 0,

and two Cholesky factors solve it, of half the size and less. Elements of which the active rows
depend on one another, or that miss the tolerance, are left to the whole system.
"""

from __future__ import annotations

import torch

from ddn_cvx.conic.cones import Derivative
from ddn_cvx.conic.interior_point.active_set import solve_on_active_set
from ddn_cvx.conic.interior_point.reduction import reduction_of
from ddn_cvx.conic.program import ConeData, ConeProgram
from ddn_cvx.implicit.linear_solve import DIRECT_TOLERANCE


def reduced_adjoint(
    program: ConeProgram, data: ConeData, derivative: Derivative, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(a, c)`` with ``J' (a, c) = right``, ``(B, n + m)``, its residual, and where it was found.

    Args:
        program: of zero and nonnegative cones only.
        data: in the elements' units.
        derivative: its ``D``.
        right: of failed elements zero.
    """
    n = program.variables
    q, b = -right[:, :n], right[:, n:]
    reduction = reduction_of(program)
    matrices = reduction.matrices(data.P, data.A)
    inner_q, inner_b = reduction.reduced(matrices, q, b)
    _, active, _ = reduction.kept(q, derivative.diagonal > 0, b)
    found = solve_on_active_set(matrices.P, inner_q, matrices.A, inner_b, active)
    a, c = reduction.restored(matrices, q, b, found.x, found.y)
    good = found.regular & (found.residual <= DIRECT_TOLERANCE)
    return torch.cat([a, c], 1), found.residual, good
