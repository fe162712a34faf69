"""Multipliers of a point that came without them."""

from __future__ import annotations

import torch

from ddn_cvx.implicit.nonnegative_least_squares import nonnegative_least_squares
from ddn_cvx.nonlinear.bound import BoundProgram

# An inequality with a slack below this, relative to its row's size, may have a multiplier.
_ACTIVE = 1e-5


def recover_multipliers(program: BoundProgram, u: torch.Tensor) -> torch.Tensor:
    """``y`` in ``K*`` that brings ``grad f + J' y`` nearest to zero, shape ``(B, m)``.

    Least squares with nonnegative multipliers for active inequalities, so that a redundant set of
    active constraints still gives valid signs. Rows of second-order and semidefinite cones are
    first left free, then projected onto their cones.

    Args:
        u: shape ``(B, n)``.
    """
    cones = program.program.cones
    _, gradient, c, jacobian = program.first(u)
    if not cones.rows:
        return c
    size = 1 + (jacobian.abs() @ u.abs().unsqueeze(2)).squeeze(2)
    row = torch.arange(cones.rows, device=u.device)
    equality = (row < cones.zero) | (row >= cones.linear)
    free = equality.expand_as(c)
    allowed = free | (c >= -_ACTIVE * size)
    sound = (gradient.sum(1) + jacobian.sum((1, 2))).isfinite()
    matrix = torch.where(sound[:, None, None], jacobian.mT, 0.0)
    right = torch.where(sound.unsqueeze(1), -gradient, 0.0)
    y = nonnegative_least_squares(matrix, right, free, allowed)
    return cones.project_dual(y, torch.zeros_like(y))
