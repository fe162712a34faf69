"""Second-order cones: the hyperbolic scaling, and the curvature of their boundary.

Formulas: Vandenberghe, "The CVXOPT linear and quadratic cone program solvers" (2010), sections 4
and 8.
"""

from __future__ import annotations

import math

import torch

from ddn_cvx.cones.base import STIFF, TINY, Part, SymmetricGroup, Tensors


class SecondOrder(SymmetricGroup):
    """See :class:`Group`; ``W`` is ``eta`` ``(B, k, 1)`` and the unit hyperbolic ``w``."""

    def __init__(self, start: int, number: int, size: int) -> None:
        super().__init__(start, number, size)
        self.degree = number

    def set_identity(self, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[..., 0] = 1.0

    def margin(self, v: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        least: torch.Tensor = (v[..., 0] - v[..., 1:].norm(dim=-1)).amin(1)
        return least

    def projected(self, v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        head, tail = v[..., :1], v[..., 1:]
        length = tail.norm(dim=-1, keepdim=True)
        scale = (1 + head / length.clamp_min(TINY)) / 2
        outside = torch.cat([scale * length, scale * tail], -1)
        inside = torch.where(length <= head, v, outside)
        return torch.where(length <= -head, 0.0, inside)

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        root_s, root_z = _determinant(s).sqrt(), _determinant(z).sqrt()
        s, z = s / root_s, z / root_z
        half = ((1 + (s * z).sum(-1, keepdim=True)) / 2).sqrt()
        w = (s + _reflected(z)) / (2 * half)
        size = (root_s / root_z).sqrt()
        return (size, w), size * root_z * _turned(w, z)

    def times(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        size, w = W
        torch.mul(size, _turned(w, v), out=out)

    def over(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        size, w = W
        torch.div(_turned(_reflected(w), v), size, out=out)

    def multiplier(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        self.over(W, v, out)  # W is symmetric

    def rows_over(self, W: Tensors, rows: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        size, w = W
        divisor, head = size.unsqueeze(2), w[..., :1].unsqueeze(2)
        along = w[..., 1:].unsqueeze(2) @ rows[:, :, 1:]  # (B, k, 1, n)
        torch.div(head * rows[:, :, :1] - along, divisor, out=out[:, :, :1])
        pulled = (along / (1 + head) - rows[:, :, :1]) / divisor
        torch.div(rows[:, :, 1:], divisor, out=out[:, :, 1:])
        out[:, :, 1:].addcmul_(w[..., 1:].unsqueeze(3), pulled)

    def product(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        found = torch.empty_like(u)
        found[..., 0] = (u * v).sum(-1)
        torch.mul(u[..., :1], v[..., 1:], out=found[..., 1:])
        found[..., 1:].addcmul_(v[..., :1], u[..., 1:])
        return found

    def quotient(self, point: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        head = (point * _reflected(v)).sum(-1, keepdim=True) / _determinant(point)
        return torch.cat([head, (v[..., 1:] - head * point[..., 1:]) / point[..., :1]], -1)

    def shrinking(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor]
    ) -> list[torch.Tensor]:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        c, rates = _determinant(point), []
        for d in directions:
            # lambda + t d reaches the boundary where c + 2 b t + a t^2 vanishes: in 1 / t, the
            # larger of the roots, which are real; the head vanishes no earlier.
            b = (point * _reflected(d)).sum(-1, keepdim=True) / c
            a = _determinant(d, clamp=False) / c
            rates.append(((b.square() - a).clamp_min(0.0).sqrt() - b).flatten(1).amax(1))
        return rates

    def part(self, z: torch.Tensor, s: torch.Tensor) -> Part:
        """See :class:`~ddn_cvx.cones.base.Group`."""
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
        return Part(equations, weights, tail / safe, between)

    def turned(self, part: Part, rows: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        axis, curved = part.axes, part.curved
        if rows.ndim == 4:
            axis, curved = axis.unsqueeze(3), curved.unsqueeze(3)
        along = (axis * rows[:, :, 1:]).sum(2, keepdim=True)
        head = (rows[:, :, :1] + along) / math.sqrt(2)
        out[:, :, :1] = torch.where(curved, head, rows[:, :, :1])
        out[:, :, 1:] -= torch.where(curved, axis * along, 0.0)

    def turned_back(self, part: Part, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        axis, curved = part.axes, part.curved
        head = v[..., :1] / math.sqrt(2)
        along = (axis * v[..., 1:]).sum(-1, keepdim=True)
        out[..., :1] = torch.where(curved, head, v[..., :1])
        out[..., 1:] += torch.where(curved, axis * (head - along), 0.0)


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


def _turned(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The hyperbolic rotation ``[[w0, w1'], [w1, I + w1 w1' / (1 + w0)]]`` of ``v``."""
    along = (w[..., 1:] * v[..., 1:]).sum(-1, keepdim=True)
    found = torch.empty_like(v)
    torch.addcmul(along, w[..., :1], v[..., :1], out=found[..., :1])
    torch.addcmul(v[..., 1:], w[..., 1:], v[..., :1] + along / (1 + w[..., :1]), out=found[..., 1:])
    return found
