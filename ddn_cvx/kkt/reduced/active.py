"""The active set at a point: which rows are equations, and the curvature of the cones.

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


class ActiveSet(NamedTuple):
    """``D`` at a point, by its eigenvalues ``l`` and eigenvectors.

    Attributes:
        equations: rows whose eigenvalue is one, shape ``(B, m)``, bool.
        weights: ``l / (1 - l)`` of rows with ``l`` between zero and one, zero for others, shape
            ``(B, m)``; None where all are zero.
        spectra: of each group of cones.
    """

    equations: torch.Tensor
    weights: torch.Tensor | None
    spectra: tuple[Spectrum, ...]


def active_set_at(cones: ConeProduct, z: torch.Tensor, s: torch.Tensor) -> ActiveSet:
    """The active set at a pair ``z``, ``s`` of multipliers and slacks, shapes ``(B, m)``."""
    equations = z > s
    equations[:, : cones.equations] = True
    if not cones.groups:
        return ActiveSet(equations, None, ())
    weights = torch.zeros_like(z)
    spectra = []
    for group in cones.groups:
        spectrum = group.spectrum(group.of(z), group.of(s))
        group.of(equations)[:] = spectrum.equations
        group.of(weights)[:] = spectrum.weights
        spectra.append(spectrum)
    return ActiveSet(equations, weights, tuple(spectra))


def to_eigenbasis(cones: ConeProduct, active_set: ActiveSet, rows: torch.Tensor) -> torch.Tensor:
    """Vectors ``(B, m)`` or matrices ``(B, m, n)`` in the eigenvectors' coordinates."""
    if not cones.groups:
        return rows
    found = rows.clone()
    for group, spectrum in zip(cones.groups, active_set.spectra, strict=True):
        group.to_eigenbasis(spectrum, group.of(rows), group.of(found))
    return found


def from_eigenbasis(cones: ConeProduct, active_set: ActiveSet, v: torch.Tensor) -> torch.Tensor:
    """Vectors ``(B, m)`` from the eigenvectors' coordinates, without those of eigenvalue zero."""
    if not cones.groups:
        return v
    found = v.clone()
    for group, spectrum in zip(cones.groups, active_set.spectra, strict=True):
        group.from_eigenbasis(spectrum, group.of(v), group.of(found))
    return found
