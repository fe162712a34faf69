"""Exponential cones, which no scaling makes the same as their dual.

With the barrier ``F`` of the cone, a slack has the shadow ``z^ = -F'(s)`` among multipliers and a
multiplier the one ``s^ = -F*'(z)`` among slacks, and on the central path ``s = mu s^`` and ``z = mu
z^``. The scaling ``H = W' W`` maps ``z`` to ``s`` and ``z^`` to ``s^``, and is otherwise near ``mu
F*''(z)``: Tuncel, "Generalization of primal-dual interior-point methods to convex optimization
problems in conic form" (2001); Dahl and Andersen, "A primal-dual interior-point algorithm for
nonsymmetric exponential-cone optimization" (2022).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.cones.base import STIFF, Group, Part, Tensors
from ddn_cvx.cones.product import exponential_cones

# A point that is its own shadow.
_CENTRE = (-0.8278383990656786, 0.8051020015847954, 1.290927709856958)
# Newton's steps for a shadow, from where they converge for every multiplier.
_SHADOW_STEPS = 8
# Steps that are tried, one after the other so much shorter, are this many, for the cones and then,
# from the longest of these, for the distance from the central path.
_SHORTER, _TRIES = 0.8, 32
_NEARER, _TRIES_NEARER = 0.5, 6
# How far from the central path a point may be: of 1 / (mu mu^), which is one on it.
_NEIGHBOURHOOD = 1e-6
# Nearer to it than this the scaling is the one of the dual barrier.
_CENTRAL = 1e-7


class Exponential(Group):
    """``{(x, y, z): y > 0, y exp(x / y) <= z}``, closed; see :class:`Group`.

    ``W`` is the Cholesky factor ``L = W'`` by its entries, ``s``, ``z``, the shadow of ``z``, and
    the barrier there.
    """

    def __init__(self, start: int, number: int) -> None:
        super().__init__(start, number, 3)
        self.degree = 3 * number
        self._cones = exponential_cones(start, number)

    def set_identity(self, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        for place, value in enumerate(_CENTRE):
            out[..., place] = value

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        shadow, barrier = _shadow(z)
        of_slack = -_Barrier.at(s).gradient()
        mu = (s * z).sum(-1, keepdim=True) / 3
        gap_s, gap_z = s - mu * shadow, z - mu * of_slack
        apart = (gap_s * gap_z).sum(-1, keepdim=True)
        # What is left of H: one direction, in which z and its shadow have no part.
        hessian = barrier.hessian()
        free = torch.linalg.cross(z, of_slack, dim=-1)
        size = hessian.transposed_times(free).square().sum(-1, keepdim=True) / mu
        along = _outer(s) / (3 * mu).unsqueeze(-1)
        far = along + _outer(gap_s) / apart.unsqueeze(-1) + _outer(free) / size.unsqueeze(-1)
        identity = torch.eye(3, dtype=s.dtype, device=s.device).expand(*s.shape, 3)
        of_dual = mu.unsqueeze(-1) * hessian.inverse_times(identity)
        near = along + of_dual - (mu / 3).unsqueeze(-1) * _outer(shadow)
        factor = _Triangle.of(torch.where((apart > _CENTRAL * mu).unsqueeze(-1), far, near))
        # Rounding may leave none; the barrier's own has one longer than the others.
        factor = factor.or_else(_Triangle.of(near)).or_else(_Triangle.of(of_dual))
        return (*factor, s, z, shadow, *barrier), factor.transposed_times(z)

    def times(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[:] = _Triangle(*W[:6]).times(v)

    def over(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[:] = _Triangle(*W[:6]).over(v)

    def multiplier(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[:] = _Triangle(*W[:6]).transposed_over(v)

    def rows_over(self, W: Tensors, rows: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        factor = _Triangle(*(entry.unsqueeze(-1) for entry in W[:6]))
        out[:] = factor.over(rows.mT).mT

    def pull(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor],
        weight: torch.Tensor, target: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """See :class:`~ddn_cvx.cones.base.Group`.

        The second order is half of the third derivative of ``F*``: Dahl and Andersen, section 5.
        """
        factor, (s, _, shadow), barrier = _Triangle(*W[:6]), W[6:9], _Barrier(*W[9:])
        ds, dz = factor.times(directions[0]), factor.transposed_over(directions[1])
        hessian = barrier.hessian()
        third = hessian.inverse_times(barrier.third(hessian.inverse_times(dz), ds)) / 2
        whole = s - target.unsqueeze(-1) * shadow - weight.unsqueeze(-1) * third
        out[:] = factor.over(whole)

    def shrinking(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor]
    ) -> list[torch.Tensor]:
        """See :class:`~ddn_cvx.cones.base.Group`; from a list of steps."""
        factor, (s, z) = _Triangle(*W[:6]), W[6:8]
        ds, dz = factor.times(directions[0]), factor.transposed_over(directions[1])
        steps = _SHORTER ** torch.arange(_TRIES, dtype=s.dtype, device=s.device).view(-1, 1, 1, 1)
        inside = _is_inside(s + steps * ds) & (_depth_of_multiplier(z + steps * dz) > 0)
        length = (inside.all(-1) * steps[..., 0, 0]).amax(0)  # (B,)
        shares = _NEARER ** torch.arange(_TRIES_NEARER, dtype=s.dtype, device=s.device)
        steps = length.view(-1, 1, 1) * shares.view(-1, 1, 1, 1)
        new_s, new_z = s + steps * ds, z + steps * dz
        mu = (new_s * new_z).sum(-1) / 3
        shadows = -_Barrier.at(new_s).gradient() * _shadow(new_z)[0]
        near = (mu * shadows.sum(-1) / 3 < 1 / _NEIGHBOURHOOD).all(-1)
        length = (near * steps[..., 0, 0]).amax(0)
        # All of the way is as far as anyone asks for.
        return [torch.where(length == 1, 0.0, 1 / length)]

    def projected(self, v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        return self._cones.project(v, s)

    def part(self, z: torch.Tensor, s: torch.Tensor) -> Part:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        derivative = self._cones.derivative(z, s)
        finite = derivative.isfinite().flatten(-2).all(-1)
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], derivative, 0.0))
        weights = values.clamp(0.0, 1.0) / (1 - values).clamp_min(1e-300)
        equations = weights > STIFF
        weights = torch.where(equations | (weights < 1 / STIFF), 0.0, weights)
        # Without a derivative the system has no solution either.
        weights = torch.where(finite.unsqueeze(-1), weights, torch.nan)
        return Part(equations, weights, vectors, torch.ones_like(equations[..., :1]))

    def turned(self, part: Part, rows: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        columns = rows if rows.ndim == 4 else rows.unsqueeze(-1)
        out[:] = (part.axes.mT @ columns).view_as(rows)

    def turned_back(self, part: Part, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Group`."""
        out[:] = (part.axes @ v.unsqueeze(-1)).squeeze(-1)


class _Triangle(NamedTuple):
    """Lower triangular matrices ``[[a, 0, 0], [b, d, 0], [c, e, f]]``, each entry ``(...)``.

    Written out, they take a fraction of the time of a library's loop over small matrices.
    """

    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor
    e: torch.Tensor
    f: torch.Tensor

    @classmethod
    def of(cls, H: torch.Tensor) -> _Triangle:
        """Cholesky factors; NaN where there are none."""
        a = H[..., 0, 0].sqrt()
        b, c = H[..., 1, 0] / a, H[..., 2, 0] / a
        d = (H[..., 1, 1] - b.square()).sqrt()
        e = (H[..., 2, 1] - b * c) / d
        return cls(a, b, c, d, e, (H[..., 2, 2] - c.square() - e.square()).sqrt())

    def or_else(self, other: _Triangle) -> _Triangle:
        """Others in the place of those that are not finite."""
        finite = torch.stack(self, -1).isfinite().all(-1)
        return _Triangle(*(torch.where(finite, a, b) for a, b in zip(self, other, strict=True)))

    def times(self, v: torch.Tensor) -> torch.Tensor:
        x, y, z = v.unbind(-1)
        return torch.stack(
            [self.a * x, self.b * x + self.d * y, self.c * x + self.e * y + self.f * z], -1
        )

    def transposed_times(self, v: torch.Tensor) -> torch.Tensor:
        x, y, z = v.unbind(-1)
        return torch.stack(
            [self.a * x + self.b * y + self.c * z, self.d * y + self.e * z, self.f * z], -1
        )

    def over(self, v: torch.Tensor) -> torch.Tensor:
        x, y, z = v.unbind(-1)
        x = x / self.a
        y = (y - self.b * x) / self.d
        return torch.stack([x, y, (z - self.c * x - self.e * y) / self.f], -1)

    def transposed_over(self, v: torch.Tensor) -> torch.Tensor:
        x, y, z = v.unbind(-1)
        z = z / self.f
        y = (y - self.e * z) / self.d
        return torch.stack([(x - self.b * y - self.c * z) / self.a, y, z], -1)

    def inverse_times(self, v: torch.Tensor) -> torch.Tensor:
        """``(L L')^-1 v``, for vectors or, row by row, symmetric matrices."""
        factor = self
        if v.ndim > self.a.ndim + 1:
            factor = _Triangle(*(entry.unsqueeze(-1) for entry in self))
        return factor.transposed_over(factor.over(v))


class _Barrier(NamedTuple):
    """``F = -log h - log y - log z`` with ``h = y log(z / y) - x``, for points ``(..., 3)``."""

    y: torch.Tensor
    z: torch.Tensor
    h: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def at(cls, point: torch.Tensor) -> _Barrier:
        x, y, z = point.unbind(-1)
        logarithm = torch.log(z / y)
        slope = torch.stack([-torch.ones_like(x), logarithm - 1, y / z], -1)
        return cls(y, z, y * logarithm - x, slope)

    def gradient(self) -> torch.Tensor:
        others = torch.stack([torch.zeros_like(self.y), 1 / self.y, 1 / self.z], -1)
        return -self.slope / self.h.unsqueeze(-1) - others

    def _curvature(self, p: torch.Tensor) -> torch.Tensor:
        """``h'' p``."""
        _, p_y, p_z = p.unbind(-1)
        of_y = p_z / self.z - p_y / self.y
        return torch.stack([torch.zeros_like(of_y), of_y, -of_y * self.y / self.z], -1)

    def hessian(self) -> _Triangle:
        """The Cholesky factor of ``F''``: written out there is nothing to cancel."""
        y, z, h = self.y, self.z, self.h
        slope = self.slope / h.unsqueeze(-1)
        d = ((y + h) / h).sqrt() / y
        return _Triangle(
            1 / h, -slope[..., 1], -slope[..., 2], d, -1 / (z * h * d),
            ((2 * y + h) / (y + h)).sqrt() / z,
        )  # fmt: skip

    def third(self, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """``F'''[p, q]``."""
        y, z, h = self.y, self.z, self.h.unsqueeze(-1)
        (_, p_y, p_z), (_, q_y, q_z) = p.unbind(-1), q.unbind(-1)
        curved_p, curved_q = self._curvature(p), self._curvature(q)
        along_p = (self.slope * p).sum(-1, keepdim=True)
        along_q = (self.slope * q).sum(-1, keepdim=True)
        mixed = (curved_p * q).sum(-1, keepdim=True)
        zero, of_z = torch.zeros_like(y), p_z * q_z
        of_h = torch.stack(
            [
                zero,
                p_y * q_y / y.square() - of_z / z.square(),
                2 * y * of_z / z**3 - (p_y * q_z + p_z * q_y) / z.square(),
            ],
            -1,
        )
        found = (curved_p * along_q + curved_q * along_p + mixed * self.slope) / h.square()
        found = found - of_h / h - 2 * along_p * along_q * self.slope / h**3
        return found - 2 * torch.stack([zero, p_y * q_y / y**3, of_z / z**3], -1)


def _is_inside(slack: torch.Tensor) -> torch.Tensor:
    x, y, z = slack.unbind(-1)
    positive = (y > 0) & (z > 0)
    ratio = torch.where(positive, z, 1.0) / torch.where(positive, y, 1.0)
    return positive & (y * ratio.log() > x)


def _depth_of_multiplier(multiplier: torch.Tensor) -> torch.Tensor:
    """``1 + log(w / a) + v / a`` with ``a = -u``, positive inside the dual cone.

    Minus one far outside.
    """
    u, v, w = multiplier.unbind(-1)
    usable = (u < 0) & (w > 0)
    a, w = torch.where(usable, -u, 1.0), torch.where(usable, w, 1.0)
    return torch.where(usable, 1 + (w / a).log() + v / a, -1.0)


def _shadow(multiplier: torch.Tensor) -> tuple[torch.Tensor, _Barrier]:
    """``s`` with ``-F'(s) = z``, and the barrier there.

    With ``a = -u`` and ``p = 1 / (a y)`` that is ``p + log(1 + p) = 1 + log(w / a) + v / a``.
    """
    u, _, w = multiplier.unbind(-1)
    a, depth = -u, _depth_of_multiplier(multiplier)
    p = depth / 2
    for _ in range(_SHADOW_STEPS):
        p = p - (p + torch.log1p(p) - depth) * (1 + p) / (2 + p)
    y, z, h = 1 / (a * p), (1 + 1 / p) / w, 1 / a
    logarithm = torch.log(a / w) + torch.log1p(p)
    slope = torch.stack([-torch.ones_like(y), logarithm - 1, y / z], -1)
    return torch.stack([y * logarithm - h, y, z], -1), _Barrier(y, z, h, slope)


def _outer(v: torch.Tensor) -> torch.Tensor:
    return v.unsqueeze(-1) * v.unsqueeze(-2)
