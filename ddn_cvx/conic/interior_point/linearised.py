"""A program whose active rows are known, and the curvature of its cones: one linear system.

With ``v = z - s`` the optimality conditions of a program in ``x`` and ``v`` are ``P x + q +
A' Pi(v) = 0`` and ``A x + Pi(v) - v = b`` (see :mod:`ddn_cvx.conic.adjoints.kkt`). The derivative
``D`` of ``Pi`` has eigenvalues from zero to one. In its eigenvectors' coordinates rows with one are
equations, rows with zero have no multiplier, and a row ``a`` with ``l`` between them has the
multiplier ``w (a' x - b)`` with ``w = l / (1 - l)``, as if its square stood in the objective:

    P x + q + A' y = 0,    a_i' x = b_i  or  y_i = w_i (a_i' x - b_i).

For linear programs and quadratic ones that is the active set; for second-order cones it is one
Newton step. The KKT systems of derivatives have the same form.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ddn_cvx.conic.interior_point.scaling import SymmetricCones
from ddn_cvx.conic.interior_point.system import SaddlePoint

_REFINEMENTS = 2
# Pivots of a factor that are smaller than this share of the largest are those of dependent rows.
_DEPENDENT = 1e-8
# Numbers that are smaller than this share of the largest are rounding.
_NOTHING = 1e-25
# Rows with a weight above this are equations.
_STIFF = 1e9


class Pieces(NamedTuple):
    """``D`` at a point, in its eigenvectors' coordinates.

    Attributes:
        equations: rows whose eigenvalue is one, shape ``(B, m)``, bool.
        weights: ``l / (1 - l)`` of rows between zero and one, and zero, shape ``(B, m)``; None for
            zeros.
        axes: for each group of second-order cones the direction of the point's tail ``(B, k, d -
            1)``.
        curved: and whether the point is outside of the cone and of its polar, ``(B, k, 1)``.
    """

    equations: torch.Tensor
    weights: torch.Tensor | None
    axes: tuple[torch.Tensor, ...]
    curved: tuple[torch.Tensor, ...]


class Solved(NamedTuple):
    """``x`` ``(B, n)``, ``y`` ``(B, m)``, relative residual and whether it is the only solution."""

    x: torch.Tensor
    y: torch.Tensor
    residual: torch.Tensor
    regular: torch.Tensor


def pieces_at(cones: SymmetricCones, v: torch.Tensor) -> Pieces:
    """Of the projection onto the dual cone at ``v = z - s``, shape ``(B, m)``."""
    equations = v > 0
    equations[:, : cones.equations] = True
    if not cones.groups:
        return Pieces(equations, None, (), ())
    weights = torch.zeros_like(v)
    axes, curved = [], []
    for group in cones.groups:
        part = group.of(v)
        head, tail = part[..., :1], part[..., 1:]
        length = tail.norm(dim=-1, keepdim=True)
        inside, polar = length <= head, length <= -head
        between = ~(inside | polar)
        ratio = head / torch.where(length > 0, length, 1.0)
        weight = torch.where(between, (1 + ratio) / (1 - ratio).clamp_min(1e-300), 0.0)
        stiff = between & (weight > _STIFF)
        group.of(weights)[..., 1:] = torch.where(stiff, 0.0, weight)
        group.of(equations)[..., :1] = inside | between
        group.of(equations)[..., 1:] = inside | stiff
        axes.append(tail / torch.where(length > 0, length, 1.0))
        curved.append(between)
    return Pieces(equations, weights, tuple(axes), tuple(curved))


def turned(cones: SymmetricCones, pieces: Pieces, rows: torch.Tensor) -> torch.Tensor:
    """Vectors ``(B, m)`` or matrices ``(B, m, n)`` in the eigenvectors' coordinates."""
    if not cones.groups:
        return rows
    found = rows.clone()
    for group, axis, curved in zip(cones.groups, pieces.axes, pieces.curved, strict=True):
        part, place = group.of(rows), group.of(found)
        if rows.ndim == 3:
            axis, curved = axis.unsqueeze(3), curved.unsqueeze(3)
        along = (axis * part[:, :, 1:]).sum(2, keepdim=True)
        head = (part[:, :, :1] + along) / math.sqrt(2)
        place[:, :, :1] = torch.where(curved, head, part[:, :, :1])
        place[:, :, 1:] -= torch.where(curved, axis * along, 0.0)
    return found


def turned_back(cones: SymmetricCones, pieces: Pieces, v: torch.Tensor) -> torch.Tensor:
    """Vectors ``(B, m)`` from the eigenvectors' coordinates, without the one that has zero."""
    if not cones.groups:
        return v
    found = v.clone()
    for group, axis, curved in zip(cones.groups, pieces.axes, pieces.curved, strict=True):
        part, place = group.of(v), group.of(found)
        head = part[..., :1] / math.sqrt(2)
        along = (axis * part[..., 1:]).sum(-1, keepdim=True)
        place[..., :1] = torch.where(curved, head, part[..., :1])
        place[..., 1:] += torch.where(curved, axis * (head - along), 0.0)
    return found


def solve_linearised(
    P: torch.Tensor | None,
    q: torch.Tensor,
    A: torch.Tensor,
    b: torch.Tensor,
    pieces: Pieces,
    curved_from: int,
) -> Solved:
    """The system above; elsewhere ``y`` is zero.

    Args:
        P: shape ``(B, n, n)``, or None for zero.
        q: shape ``(B, n)``.
        A, b: :func:`turned`, shapes ``(B, m, n)`` and ``(B, m)``.
        pieces: an element with more equations than columns is not regular.
        curved_from: rows from this one on may have weights.
    """
    active = pieces.equations
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
    rows, g = rows / size.unsqueeze(2), used * b.gather(1, order) / size
    root = None
    if pieces.weights is not None:
        root = (pieces.weights[:, curved_from:] / scale).sqrt()
        rows = torch.cat([rows, root.unsqueeze(2) * A[:, curved_from:]], 1)
        g = torch.cat([g, root * b[:, curved_from:]], 1)
    system = SaddlePoint(P, rows, count)
    f, right = (-q / scale).unsqueeze(2), g.unsqueeze(2)
    x, y = system.solve(f, right, _REFINEMENTS)
    residual = system.relative_residual(f, right, x, y)
    x, y = x.squeeze(2), y.squeeze(2)
    # What refinement leaves of a zero.
    x = torch.where(x.abs() < _NOTHING * x.abs().amax(1, keepdim=True), 0.0, x)
    whole = torch.zeros_like(b).scatter(1, order, used * scale * y[:, :count] / size)
    if root is not None:
        whole[:, curved_from:] += scale * root * y[:, count:]
    return Solved(x, whole, residual, independent & system.is_regular(used, _DEPENDENT))
