"""The exact adjoint without the rows that have no multiplier: the primal and the active rows alone.

For zero, nonnegative and second-order cones the eigenvectors of ``D`` are at hand, and the KKT
system of :mod:`ddn_cvx.conic.adjoints.kkt` becomes the one of
:mod:`ddn_cvx.conic.interior_point.linearised`: for linear and quadratic programs

    [P    A_1'] [a  ]   [g_x    ]
    [A_1  0   ] [c_1] = [(g_y)_1],      c_0 = 0,

with the active rows ``A_1``, and for second-order cones their curvature in ``P``. Two Cholesky
factors solve it, of half the size and less. Elements of which the active rows depend on one
another, or that miss the tolerance, are left to the whole system.
"""

from __future__ import annotations

import torch

from ddn_cvx.conic.interior_point.linearised import (
    pieces_at,
    solve_linearised,
    turned,
    turned_back,
)
from ddn_cvx.conic.interior_point.reduction import reduction_of
from ddn_cvx.conic.interior_point.scaling import SymmetricCones
from ddn_cvx.conic.program import ConeData, ConeProgram
from ddn_cvx.implicit.linear_solve import DIRECT_TOLERANCE


def reduced_adjoint(
    program: ConeProgram, data: ConeData, point: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(a, c)`` with ``J' (a, c) = right``, ``(B, n + m)``, its residual, and where it was found.

    Args:
        program: of zero, nonnegative and second-order cones only.
        data: in the elements' units.
        point: ``y - s``, shape ``(B, m)``.
        right: of failed elements zero; its last ``m`` entries in the range of ``D``.
    """
    n = program.variables
    q, b = -right[:, :n], right[:, n:]
    reduction = reduction_of(program)
    matrices = reduction.matrices(data.P, data.A)
    inner_q, inner_b = reduction.reduced(matrices, q, b)
    _, v, _ = reduction.kept(q, point, b)
    cones = SymmetricCones(program.cones, reduction.zero, v)
    pieces = pieces_at(cones, v)
    inner_b = turned(cones, pieces, inner_b)
    if pieces.weights is not None:
        # A row's multiplier is (l a' x - b) / (1 - l) with the eigenvalue l.
        w = pieces.weights
        inner_b = torch.where(w > 0, inner_b * (1 + w) / torch.where(w > 0, w, 1.0), inner_b)
    rows = turned(cones, pieces, matrices.A)
    found = solve_linearised(matrices.P, inner_q, rows, inner_b, pieces, cones.linear)
    y = turned_back(cones, pieces, found.y)
    a, c = reduction.restored(matrices, q, b, found.x, y)
    good = found.regular & (found.residual <= DIRECT_TOLERANCE)
    return torch.cat([a, c], 1), found.residual, good
