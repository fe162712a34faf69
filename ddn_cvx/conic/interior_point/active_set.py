"""A quadratic program whose active rows are known: one linear system."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.conic.interior_point.system import SaddlePoint

_REFINEMENTS = 2
# Pivots of a factor that are smaller than this share of the largest are those of dependent rows.
_DEPENDENT = 1e-8
# Numbers that are smaller than this share of the largest are rounding.
_NOTHING = 1e-25


class OnActiveSet(NamedTuple):
    """``x`` ``(B, n)``, ``y`` ``(B, m)``, relative residual and whether it is the only solution."""

    x: torch.Tensor
    y: torch.Tensor
    residual: torch.Tensor
    regular: torch.Tensor


def solve_on_active_set(
    P: torch.Tensor | None,
    q: torch.Tensor,
    A: torch.Tensor,
    b: torch.Tensor,
    active: torch.Tensor,
) -> OnActiveSet:
    """``P x + q + A' y = 0`` and, in the active rows, ``A x = b``; elsewhere ``y = 0``.

    Args:
        P: shape ``(B, n, n)``, or None for zero.
        q: shape ``(B, n)``.
        A: shape ``(B, m, n)``.
        b: shape ``(B, m)``.
        active: shape ``(B, m)``, bool; an element with more such rows than columns is not regular.
    """
    independent = active.sum(1) <= q.shape[1]
    active = active & independent.unsqueeze(1)
    count = int(active.sum(1).max()) if active.numel() else 0
    # Active rows first; those beyond an element's own are zero.
    order = active.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    used = active.gather(1, order)
    rows = A.gather(1, order.unsqueeze(2).expand(-1, -1, A.shape[2])) * used.unsqueeze(2)
    size = rows.norm(dim=2)
    size = torch.where(size > 0, size, 1.0)
    scale = torch.ones_like(q[:, :1])
    if P is not None:
        scale = P.diagonal(dim1=-2, dim2=-1).amax(1, keepdim=True)
        scale = torch.where(scale > 0, scale, 1.0)
        P = P / scale.unsqueeze(2)
    system = SaddlePoint(P, rows / size.unsqueeze(2), count)
    f, g = (-q / scale).unsqueeze(2), (used * b.gather(1, order) / size).unsqueeze(2)
    x, y = system.solve(f, g, _REFINEMENTS)
    residual = system.relative_residual(f, g, x, y)
    # What refinement leaves of a zero.
    x = torch.where(x.abs() < _NOTHING * x.abs().amax(1, keepdim=True), 0.0, x)
    y = torch.zeros_like(b).scatter(1, order, used * scale * y.squeeze(2) / size)
    regular = independent & system.is_regular(used, _DEPENDENT)
    return OnActiveSet(x.squeeze(2), y, residual, regular)
