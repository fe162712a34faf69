"""Which rows are active at a point, and the curvature of its cones: the parts of a linear system.

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
