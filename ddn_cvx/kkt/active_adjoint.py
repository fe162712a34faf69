"""The exact adjoint restricted to the active rows.

The eigenvectors of ``D`` are at hand, and the KKT system of :mod:`ddn_cvx.kkt.adjoint` becomes the
one of :mod:`ddn_cvx.kkt.reduced.active`: for linear and quadratic programs

    [P    A_1'] [a  ]   [g_x    ]
    [A_1  0   ] [c_1] = [(g_y)_1],      c_0 = 0,

with the active rows ``A_1``, and for curved cones their curvature in ``P``. Two Cholesky
factors solve it, of half the size and less. Elements of which the active rows depend on one
another, or that miss the tolerance, are left to the whole system.
"""

from __future__ import annotations

import torch

from ddn_cvx.batch.device import read
from ddn_cvx.kkt.point import Point
from ddn_cvx.kkt.reduced.active import active_set_at
from ddn_cvx.kkt.reduced.dense import most
from ddn_cvx.kkt.reduced.prepared import ReducedBatch, in_chunks
from ddn_cvx.linalg.dense import DIRECT_TOLERANCE
from ddn_cvx.programs.cone.instance import ConeInstance, slack_at
from ddn_cvx.programs.cone.program import ConeData


def active_adjoint(
    instance: ConeInstance,
    point: Point,
    primal_gradient: torch.Tensor,
    dual_gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(a, c)`` with ``M' (a, c) = (g_x, D g_y)``, its residual, and whether it is a solution.

    A row with the eigenvalue ``l`` has ``c = l (a' x - g_y) / (1 - l)``: the ``b`` of its system
    is ``g_y``.

    Args:
        instance: in the elements' units.
        point: its solution.
        primal_gradient, dual_gradient: ``g_x``, ``g_y``; of failed elements zero.

    Returns:
        Shapes ``(B, n + m)``, ``(B,)`` and, bool, ``(B,)``.
    """
    program, data = instance.program, instance.data

    def solve(e: slice) -> tuple[torch.Tensor, ...]:
        system = ConeData(data.P[e], -primal_gradient[e], data.A[e], dual_gradient[e])
        part = ReducedBatch(program, system)
        slack = slack_at(program, data.select(e), point.primal[e])
        _, z, s = part.frame.inside(point.primal[e], point.dual[e], slack)
        active_set = active_set_at(part.cones, z, s)
        (size,) = read(most(active_set.equations))
        found = part.program.matrices.linearised(
            part.cones, active_set, part.program.q, part.program.b, size
        )
        good = found.regular & (found.residual <= DIRECT_TOLERANCE)
        whole = part.frame.outside(found.x, found.y, system.q, system.b)
        return torch.cat(whole, 1), found.residual, good

    solution, residual, good = in_chunks(program, len(point.dual), solve)
    return solution, residual, good
