"""The exact adjoint without the rows that have no multiplier: the primal and the active rows alone.

For zero, nonnegative and second-order cones the eigenvectors of ``D`` are at hand, and the KKT
system of :mod:`ddn_cvx.conic.adjoints.kkt` becomes the one of
:mod:`ddn_cvx.conic.interior_point.pieces`: for linear and quadratic programs

    [P    A_1'] [a  ]   [g_x    ]
    [A_1  0   ] [c_1] = [(g_y)_1],      c_0 = 0,

with the active rows ``A_1``, and for second-order cones their curvature in ``P``. Two Cholesky
factors solve it, of half the size and less. Elements of which the active rows depend on one
another, or that miss the tolerance, are left to the whole system.
"""

from __future__ import annotations

import torch

from ddn_cvx.conic.interior_point.dense import DenseMatrices
from ddn_cvx.conic.interior_point.pieces import pieces_at, turned, turned_back
from ddn_cvx.conic.interior_point.reduction import is_sparse, reduction_of
from ddn_cvx.conic.interior_point.scaling import SymmetricCones
from ddn_cvx.conic.interior_point.sparse import SparseMatrices, structure_of
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
    if is_sparse(program):
        cones = SymmetricCones(program.cones, program.cones.zero, point)
        matrices = SparseMatrices(structure_of(program), data.P.expand(len(q), -1), data.A)
        found = matrices.linearised(cones, pieces_at(cones, point), q, b)
        good = found.residual <= DIRECT_TOLERANCE
        return torch.cat([found.x, found.y], 1), found.residual, good
    reduction = reduction_of(program)
    blocks = reduction.matrices(data.P, data.A)
    inner_q, inner_b = reduction.reduced(blocks, q, b)
    _, v, _ = reduction.kept(q, point, b)
    cones = SymmetricCones(program.cones, reduction.zero, v)
    pieces = pieces_at(cones, v)
    if pieces.weights is not None:
        # A row's multiplier is (l a' x - b) / (1 - l) with the eigenvalue l.
        w, seen = pieces.weights, turned(cones, pieces, inner_b)
        seen = torch.where(w > 0, seen * (1 + w) / torch.where(w > 0, w, 1.0), seen)
        inner_b = turned_back(cones, pieces, seen)
    dense = DenseMatrices(blocks.P, blocks.A)
    found = dense.linearised(cones, pieces, inner_q, inner_b)
    a, c = reduction.restored(blocks, q, b, found.x, found.y)
    good = found.regular & (found.residual <= DIRECT_TOLERANCE)
    return torch.cat([a, c], 1), found.residual, good
