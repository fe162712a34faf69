"""Second-order conditions at a KKT point: minimum, saddle, or degenerate."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ddn_cvx.cones.product import Cones, Derivative

# Curvature below this, relative to the Hessian's size, is none.
_FLAT = 1e-9
_NEGATIVE = 1e-7
# A constraint gradient's singular value below this, relative to the largest, is dependence.
_DEPENDENT = 1e-9
# Weakly active: slack and multiplier of a row are both below this, relative to one plus the
# element's largest; of a curved cone with d rows their norms are both below this over sqrt(d).
_WEAK = 1e-6


class SecondOrder(NamedTuple):
    """The kind of a KKT point; bool, shape ``(B,)`` but for ``direction``.

    Attributes:
        saddle: the Lagrangian curves down along a direction that the active constraints allow.
        flat: it does not curve along such a direction: the solution may not be unique.
        dependent: gradients of active constraints are linearly dependent: the multipliers are not
            unique.
        weak: an inequality is active with a zero multiplier: the derivative is one-sided.
        direction: of the least curvature, shape ``(B, n)``.
    """

    saddle: torch.Tensor
    flat: torch.Tensor
    dependent: torch.Tensor
    weak: torch.Tensor
    direction: torch.Tensor


def second_order(
    cones: Cones,
    dual: torch.Tensor,
    constraint: torch.Tensor,
    jacobian: torch.Tensor,
    hessian: torch.Tensor,
) -> SecondOrder:
    """Check a KKT point; Nocedal and Wright, "Numerical optimization" (2006), section 12.5.

    The curvature of a second-order or semidefinite cone's boundary enters through the derivative
    ``D`` of the projection: an eigenvalue ``d`` of ``D`` strictly between 0 and 1 adds ``d / (1 -
    d)`` times the square of its row, and an eigenvalue 1 is an active row.

    Args:
        dual, constraint: ``y`` and ``c``, shape ``(B, m)``.
        jacobian: shape ``(B, m, n)``.
        hessian: of the Lagrangian, shape ``(B, n, n)``.
    """
    weak = dependent = torch.zeros(len(hessian), dtype=torch.bool, device=hessian.device)
    curvature = hessian
    if cones.rows:
        weak = weakly_active(cones, -constraint, dual)
        D = cones.derivative(dual, -constraint)
        rows, added = _active_rows(cones, D, constraint, jacobian)
        curvature = hessian + added
    size = curvature.abs().amax((1, 2)).clamp_min(1e-300)
    curvature = torch.nan_to_num(curvature)
    if cones.rows:
        # Rows are compared by direction, not by the user's units.
        length = rows.norm(dim=2, keepdim=True)
        unit = torch.where(length > 1e-14, rows / length.clamp_min(1e-300), torch.zeros_like(rows))
        _, values, right = torch.linalg.svd(torch.nan_to_num(unit), full_matrices=False)
        independent = values > _DEPENDENT * values[:, :1].clamp_min(1e-300)
        active = (length.squeeze(2) > 1e-14).sum(1)
        # An equality or an active inequality with a zero gradient depends on the others, too.
        vanished = ((D.diagonal > 0.5) & (length[:, : cones.linear, 0] <= 1e-14)).any(1)
        dependent = (independent.sum(1) < active) | vanished
        kept = right * independent.unsqueeze(2)
        span = kept.mT @ kept
        free = torch.eye(span.shape[1], dtype=hessian.dtype, device=hessian.device) - span
        curvature = free @ curvature @ free + 2 * size[:, None, None] * span
    values, vectors = torch.linalg.eigh(torch.nan_to_num(0.5 * (curvature + curvature.mT)))
    least = values[:, 0] / size
    saddle, flat = least < -_NEGATIVE, least.abs() <= _FLAT
    return SecondOrder(saddle, flat, dependent, weak, vectors[:, :, 0])


def weakly_active(cones: Cones, slack: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
    """Elements with an inequality or a curved cone that is active with a zero multiplier.

    Args:
        slack, dual: ``s`` and ``y`` of a solution, shape ``(B, m)``.

    Returns:
        bool, shape ``(B,)``.
    """
    weak = torch.zeros(len(dual), dtype=torch.bool, device=dual.device)
    part = slice(cones.zero, cones.linear)
    if cones.nonnegative:
        s, y = slack[:, part].abs(), dual[:, part].abs()
        size = 1 + torch.maximum(s.amax(1), y.amax(1))
        weak = (torch.maximum(s, y) < _WEAK * size.unsqueeze(1)).any(1)
    for group in cones.groups:
        index = group.index_on(dual.device)
        size = torch.maximum(slack[:, index].norm(dim=-1), dual[:, index].norm(dim=-1))
        weak = weak | (size < _WEAK / math.sqrt(index.shape[1])).any(1)
    return weak


def _active_rows(
    cones: Cones, D: Derivative, constraint: torch.Tensor, jacobian: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the active rows, zero elsewhere, ``(B, m, n)``, and the curvature of cones."""
    slack = constraint.abs()
    mask = D.diagonal.clone()
    part = slice(cones.zero, cones.linear)
    # A weakly active row blocks too: the point that it makes a minimum is no saddle.
    mask[:, part] = torch.maximum(mask[:, part], (slack[:, part] < _WEAK).to(mask))
    linear = mask.unsqueeze(2) * jacobian[:, : cones.linear]
    rows = torch.cat([linear, torch.zeros_like(jacobian[:, cones.linear :])], 1)
    added = torch.zeros_like(jacobian[:, :1].mT @ jacobian[:, :1])
    for index, block in D.blocks:
        values, vectors = torch.linalg.eigh(block)  # (B, k, d), (B, k, d, d)
        turned = vectors.mT @ jacobian[:, index]  # (B, k, d, n)
        active = values > 1 - 1e-9
        weight = torch.where(active, 0.0, values.clamp(0.0, 1 - 1e-9))
        weight = (weight / (1 - weight)).unsqueeze(-1)
        added = added + (turned.mT @ (weight * turned)).sum(1)
        kept = turned * active.unsqueeze(-1)
        rows = rows.index_copy(1, index.reshape(-1), kept.flatten(1, 2))
    return rows, added
