"""Second-order cones ``{(t, z): |z| <= t}``, self-dual.

The derivative of the projection: Busseti, Moursi and Boyd, "Solution refinement at regular points
of conic problems" (2019), section 3. The hyperbolic scaling: Vandenberghe, "The CVXOPT linear and
quadratic cone program solvers" (2010), sections 4 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ddn_cvx.cones.base import STIFF, TINY, Spectrum, SymmetricCone, Tensors


class SecondOrder(SymmetricCone):
    """See :class:`~ddn_cvx.cones.base.Cone`; ``W`` is ``eta`` ``(B, k, 1)`` and the unit ``w``."""

    name, field, scs, cvxpy = "second-order", "second_order", "q", "soc"

    def __init__(self, index: np.ndarray, behind: int = 0) -> None:
        super().__init__(index, behind)
        self.degree = self.number

    @staticmethod
    def lengths(members: Any) -> list[int]:
        """See :class:`~ddn_cvx.cones.base.Cone`; ``members`` are the cones' dimensions."""
        return list(members)

    # -- membership and projection --------------------------------------------------------------

    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        return self.margin(point).neg().clamp_min(0.0)

    def project(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        height, rest = point[..., :1], point[..., 1:]
        square = (rest * rest).sum(-1, keepdim=True)  # norm() fails in nested forward mode
        positive = square > 0
        safe = torch.where(positive, square, 1.0).sqrt()
        length = torch.where(positive, safe, 0.0)
        scale = 0.5 * (1 + height / safe)
        outside = torch.cat([scale * length, scale * rest], -1)
        inside = torch.where(length <= height, point, outside)
        return torch.where(length <= -height, 0.0, inside)

    def derivative(self, dual: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        point = dual - slack
        height, rest = point[..., :1], point[..., 1:]  # (B, k, 1), (B, k, d - 1)
        square = (rest * rest).sum(-1, keepdim=True)
        positive = square > 0
        safe = torch.where(positive, square, 1.0).sqrt()
        length, direction = torch.where(positive, safe, 0.0), rest / safe
        identity = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
        # One along the ray (1, z / |z|), and (1 + t / |z|) / 2 in the tail but for that direction.
        ray = torch.cat([torch.ones_like(height), direction], -1)
        axis = torch.cat([torch.zeros_like(height), direction], -1)
        tail = torch.diag_embed(torch.cat([torch.zeros_like(height), torch.ones_like(rest)], -1))
        tail = tail - axis.unsqueeze(-1) * axis.unsqueeze(-2)
        boundary = ray.unsqueeze(-1) * ray.unsqueeze(-2) + (1 + height / safe).unsqueeze(-1) * tail
        inside, polar = (length <= height).unsqueeze(-1), (length <= -height).unsqueeze(-1)
        return torch.where(inside, identity, torch.where(polar, 0.0, 0.5 * boundary))

    def spectrum(self, z: torch.Tensor, s: torch.Tensor) -> Spectrum:
        """See :class:`~ddn_cvx.cones.base.Cone`; ``axes`` is the direction of ``z - s``'s tail."""
        v = z - s
        head, tail = v[..., :1], v[..., 1:]
        length = tail.norm(dim=-1, keepdim=True)
        inside, polar = length <= head, length <= -head
        between = ~(inside | polar)
        safe = torch.where(length > 0, length, 1.0)
        ratio = head / safe
        weight = torch.where(between, (1 + ratio) / (1 - ratio).clamp_min(1e-300), 0.0)
        stiff = between & (weight > STIFF)
        others = torch.where(stiff, 0.0, weight).expand_as(tail)
        weights = torch.cat([torch.zeros_like(head), others], -1)
        equations = torch.cat([inside | between, (inside | stiff).expand_as(tail)], -1)
        return Spectrum(equations, weights, tail / safe, between)

    def to_eigenbasis(self, spectrum: Spectrum, rows: torch.Tensor, out: torch.Tensor) -> None:
        axis, curved = spectrum.axes, spectrum.curved
        if rows.ndim == 4:
            axis, curved = axis.unsqueeze(3), curved.unsqueeze(3)
        along = (axis * rows[:, :, 1:]).sum(2, keepdim=True)
        head = (rows[:, :, :1] + along) / math.sqrt(2)
        out[:, :, :1] = torch.where(curved, head, rows[:, :, :1])
        out[:, :, 1:] -= torch.where(curved, axis * along, 0.0)

    def from_eigenbasis(self, spectrum: Spectrum, v: torch.Tensor, out: torch.Tensor) -> None:
        axis, curved = spectrum.axes, spectrum.curved
        head = v[..., :1] / math.sqrt(2)
        along = (axis * v[..., 1:]).sum(-1, keepdim=True)
        out[..., :1] = torch.where(curved, head, v[..., :1])
        out[..., 1:] += torch.where(curved, axis * (head - along), 0.0)

    # -- Jordan algebra -------------------------------------------------------------------------

    def set_identity(self, out: torch.Tensor) -> None:
        out[..., 0] = 1.0

    def margin(self, v: torch.Tensor) -> torch.Tensor:
        least: torch.Tensor = v[..., 0] - v[..., 1:].norm(dim=-1)
        return least

    def largest(self, v: torch.Tensor) -> torch.Tensor:
        """The larger of the head and the tail's norm."""
        return torch.maximum(v[..., 0].abs(), v[..., 1:].norm(dim=-1))

    def log_det(self, s: torch.Tensor) -> torch.Tensor:
        """Half of the usual barrier, of degree one: ``<s, s^-1> = 1`` as for other cones."""
        inside = torch.where(s[..., 0] > 0, _determinant(s, clamp=False).squeeze(-1), -1.0)
        return 0.5 * inside.log()

    def inverse(self, s: torch.Tensor) -> torch.Tensor:
        return _reflected(s) / _determinant(s, clamp=False)

    def product(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        found = torch.empty_like(u)
        found[..., 0] = (u * v).sum(-1)
        torch.mul(u[..., :1], v[..., 1:], out=found[..., 1:])
        found[..., 1:].addcmul_(v[..., :1], u[..., 1:])
        return found

    def quotient(self, point: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        head = (point * _reflected(v)).sum(-1, keepdim=True) / _determinant(point)
        return torch.cat([head, (v[..., 1:] - head * point[..., 1:]) / point[..., :1]], -1)

    # -- scaling --------------------------------------------------------------------------------

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        root_s, root_z = _determinant(s).sqrt(), _determinant(z).sqrt()
        s, z = s / root_s, z / root_z
        half = ((1 + (s * z).sum(-1, keepdim=True)) / 2).sqrt()
        w = (s + _reflected(z)) / (2 * half)
        size = (root_s / root_z).sqrt()
        return (size, w), size * root_z * _rotated(w, z)

    def scale(
        self, W: Tensors, v: torch.Tensor, out: torch.Tensor, *, inverse: bool, transposed: bool
    ) -> None:
        size, w = W  # W is symmetric
        if inverse:
            torch.div(_rotated(_reflected(w), v), size, out=out)
        else:
            torch.mul(size, _rotated(w, v), out=out)

    def scale_rows(self, W: Tensors, rows: torch.Tensor, out: torch.Tensor) -> None:
        size, w = W
        divisor, head = size.unsqueeze(2), w[..., :1].unsqueeze(2)
        along = w[..., 1:].unsqueeze(2) @ rows[:, :, 1:]  # (B, k, 1, n)
        torch.div(head * rows[:, :, :1] - along, divisor, out=out[:, :, :1])
        pulled = (along / (1 + head) - rows[:, :, :1]) / divisor
        torch.div(rows[:, :, 1:], divisor, out=out[:, :, 1:])
        out[:, :, 1:].addcmul_(w[..., 1:].unsqueeze(3), pulled)

    def step_rates(
        self, W: Tensors, point: torch.Tensor, directions: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        c, rates = _determinant(point), []
        for d in directions:
            # lambda + t d reaches the boundary where c + 2 b t + a t^2 vanishes: in 1 / t, the
            # larger of the roots, which are real; the head vanishes no earlier.
            b = (point * _reflected(d)).sum(-1, keepdim=True) / c
            a = _determinant(d, clamp=False) / c
            rates.append(((b.square() - a).clamp_min(0.0).sqrt() - b).flatten(1).amax(1))
        return rates


def _reflected(v: torch.Tensor) -> torch.Tensor:
    """``J v``, with all but the first coordinate's sign changed."""
    reflected = v.neg()
    reflected[..., 0] = v[..., 0]
    return reflected


def _determinant(v: torch.Tensor, clamp: bool = True) -> torch.Tensor:
    """``v' J v``, shape ``(..., 1)``."""
    far = v[..., 1:].norm(dim=-1, keepdim=True)
    found = (v[..., :1] - far) * (v[..., :1] + far)
    determinant: torch.Tensor = found.clamp_min(TINY) if clamp else found
    return determinant


def _rotated(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The hyperbolic rotation ``[[w0, w1'], [w1, I + w1 w1' / (1 + w0)]]`` of ``v``."""
    along = (w[..., 1:] * v[..., 1:]).sum(-1, keepdim=True)
    found = torch.empty_like(v)
    torch.addcmul(along, w[..., :1], v[..., :1], out=found[..., :1])
    torch.addcmul(v[..., 1:], w[..., 1:], v[..., :1] + along / (1 + w[..., :1]), out=found[..., 1:])
    return found
