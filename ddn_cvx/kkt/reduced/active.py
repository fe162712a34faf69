"""Which rows are active at a point, and the curvature of its cones: the parts of a linear system.

With ``v = z - s`` the optimality conditions of a program in ``x`` and ``v`` are ``P x + q +
A' Pi(v) = 0`` and ``A x + Pi(v) - v = b`` (see :mod:`ddn_cvx.kkt.adjoint`). The derivative
``D`` of ``Pi`` has eigenvalues from zero to one. In its eigenvectors' coordinates rows with one are
equations, rows with zero have no multiplier, and a row ``a`` with ``l`` between them has the
multiplier ``w (a' x - b)`` with ``w = l / (1 - l)``, as if its square stood in the objective:

    P x + q + A' y = 0,    a_i' x = b_i  or  y_i = w_i (a_i' x - b_i).

For linear programs and quadratic ones that is the active set; for curved cones it is one Newton
step. The KKT systems of derivatives have the same form.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.cones.base import Spectrum
from ddn_cvx.cones.scaling import ConeProduct


class Pieces(NamedTuple):
    """``D`` at a point, in its eigenvectors' coordinates.

    Attributes:
        equations: rows whose eigenvalue is one, shape ``(B, m)``, bool.
        weights: ``l / (1 - l)`` of rows between zero and one, and zero, shape ``(B, m)``; None for
            zeros.
        parts: of each group of cones.
    """

    equations: torch.Tensor
    weights: torch.Tensor | None
    parts: tuple[Spectrum, ...]


def pieces_at(cones: ConeProduct, z: torch.Tensor, s: torch.Tensor) -> Pieces:
    """Of the projection onto the dual cone at ``z - s``, shapes ``(B, m)``."""
    equations = z > s
    equations[:, : cones.equations] = True
    if not cones.groups:
        return Pieces(equations, None, ())
    weights = torch.zeros_like(z)
    parts = tuple(group.spectrum(group.of(z), group.of(s)) for group in cones.groups)
    for group, part in zip(cones.groups, parts, strict=True):
        group.of(equations)[:] = part.equations
        group.of(weights)[:] = part.weights
    return Pieces(equations, weights, parts)


def turned(cones: ConeProduct, pieces: Pieces, rows: torch.Tensor) -> torch.Tensor:
    """Vectors ``(B, m)`` or matrices ``(B, m, n)`` in the eigenvectors' coordinates."""
    if not cones.groups:
        return rows
    found = rows.clone()
    for group, part in zip(cones.groups, pieces.parts, strict=True):
        group.to_eigenbasis(part, group.of(rows), group.of(found))
    return found


def turned_back(cones: ConeProduct, pieces: Pieces, v: torch.Tensor) -> torch.Tensor:
    """Vectors ``(B, m)`` from the eigenvectors' coordinates, without those of eigenvalue zero."""
    if not cones.groups:
        return v
    found = v.clone()
    for group, part in zip(cones.groups, pieces.parts, strict=True):
        group.from_eigenbasis(part, group.of(v), group.of(found))
    return found
