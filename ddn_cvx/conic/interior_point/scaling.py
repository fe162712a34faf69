"""The nonnegative and second-order cones of a program, and Nesterov and Todd's scaling of them.

For ``s, z`` inside the cone there is a ``W`` with ``W z = W^-1 s = lambda``; directions are
computed in its coordinates. Vectors have the rows of these cones only, without the zero cone's.
Formulas: Vandenberghe, "The CVXOPT linear and quadratic cone program solvers" (2010), sections 4
and 8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.conic.cones import Cones

# Below this a cone's determinant counts as zero: the point is on the boundary.
_TINY = 1e-300


class Scaling(NamedTuple):
    """``W`` at a point.

    Attributes:
        linear: ``sqrt(s / z)``, shape ``(B, l)``.
        size: for each group of second-order cones ``eta``, shape ``(B, k, 1)``.
        axis: and the unit hyperbolic vector ``w``, shape ``(B, k, d)``.
        point: ``lambda``, shape ``(B, rows)``.
    """

    linear: torch.Tensor
    size: tuple[torch.Tensor, ...]
    axis: tuple[torch.Tensor, ...]
    point: torch.Tensor


class SymmetricCones:
    """A product of nonnegative and second-order cones; its rows begin after the zero cone's.

    Args:
        cones: of the program; zero, nonnegative and second-order ones only.
        device: of the tensors to come.
    """

    def __init__(self, cones: Cones, device: torch.device) -> None:
        self.linear = cones.nonnegative
        self.rows = cones.rows - cones.zero
        self.groups = [group.index_on(device) - cones.zero for group in cones.groups]
        # mu is <s, z> over this and one.
        self.degree = self.linear + sum(len(group) for group in self.groups)
        self._unit = torch.ones(self.rows, dtype=torch.float64, device=device)
        self._unit[self.linear :] = 0.0
        for group in self.groups:
            self._unit[group[:, 0]] = 1.0

    @property
    def identity(self) -> torch.Tensor:
        """The unit ``e`` of the cones' algebra, shape ``(rows,)``."""
        return self._unit

    def margin(self, v: torch.Tensor) -> torch.Tensor:
        """The least eigenvalue, positive inside the cone, shape ``(B,)``."""
        least = [v[:, : self.linear].amin(1)] if self.linear else []
        for group in self.groups:
            part = v[:, group]
            least.append((part[..., 0] - part[..., 1:].norm(dim=-1)).amin(1))
        if not least:
            return v.new_full(v.shape[:1], torch.inf)
        return torch.stack(least).amin(0)

    def moved_inside(self, v: torch.Tensor, least: float) -> torch.Tensor:
        """``v`` and so much of the unit that its least eigenvalue is ``least`` or more."""
        shift = (least - self.margin(v)).clamp_min(0.0)
        return v + shift.unsqueeze(1) * self.identity

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> Scaling:
        """At ``s, z`` inside the cone."""
        first = self.linear
        linear = (s[:, :first] / z[:, :first]).sqrt()
        point = torch.empty_like(s)
        torch.mul(linear, z[:, :first], out=point[:, :first])
        sizes, axes = [], []
        for group in self.groups:
            a, b = s[:, group], z[:, group]
            root_a, root_b = _determinant(a).sqrt(), _determinant(b).sqrt()
            a, b = a / root_a, b / root_b
            half = ((1 + (a * b).sum(-1, keepdim=True)) / 2).sqrt()
            w = (a + _reflected(b)) / (2 * half)
            size = (root_a / root_b).sqrt()
            sizes.append(size)
            axes.append(w)
            point[:, group] = size * root_b * _turned(w, b)
        return Scaling(linear, tuple(sizes), tuple(axes), point)

    def times(self, W: Scaling, v: torch.Tensor) -> torch.Tensor:
        """``W v``."""
        found = torch.empty_like(v)
        torch.mul(W.linear, v[:, : self.linear], out=found[:, : self.linear])
        for group, size, w in zip(self.groups, W.size, W.axis, strict=True):
            found[:, group] = size * _turned(w, v[:, group])
        return found

    def over(self, W: Scaling, v: torch.Tensor) -> torch.Tensor:
        """``W^-1 v``."""
        found = torch.empty_like(v)
        torch.div(v[:, : self.linear], W.linear, out=found[:, : self.linear])
        for group, size, w in zip(self.groups, W.size, W.axis, strict=True):
            found[:, group] = _turned(_reflected(w), v[:, group]) / size
        return found

    def rows_over(self, W: Scaling, rows: torch.Tensor) -> torch.Tensor:
        """``W^-1 A`` for ``(B, rows, n)``."""
        found = torch.empty_like(rows)
        torch.div(rows[:, : self.linear], W.linear.unsqueeze(2), out=found[:, : self.linear])
        for group, size, w in zip(self.groups, W.size, W.axis, strict=True):
            part = rows[:, group].mT  # (B, k, n, d)
            turned = _turned(_reflected(w).unsqueeze(2), part) / size.unsqueeze(2)
            found[:, group] = turned.mT
        return found

    def product(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Jordan's product ``u o v``."""
        found = u * v
        for group in self.groups:
            a, b = u[:, group], v[:, group]
            head = (a * b).sum(-1, keepdim=True)
            tail = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:]
            found[:, group] = torch.cat([head, tail], -1)
        return found

    def quotient(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The ``x`` with ``u o x = v``, for ``u`` inside the cone."""
        found = torch.empty_like(v)
        torch.div(v[:, : self.linear], u[:, : self.linear], out=found[:, : self.linear])
        for group in self.groups:
            a, b = u[:, group], v[:, group]
            head = (a * _reflected(b)).sum(-1, keepdim=True) / _determinant(a)
            tail = (b[..., 1:] - head * a[..., 1:]) / a[..., :1]
            found[:, group] = torch.cat([head, tail], -1)
        return found

    def longest_step(self, v: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """The largest ``t`` with ``v + t direction`` in the cone, ``(B,)``, maybe infinite."""
        steps = []
        if self.linear:
            a, d = v[:, : self.linear], direction[:, : self.linear]
            # One over the largest rate at which a coordinate vanishes.
            steps.append((-d / a).amax(1).clamp_min(0.0).reciprocal())
        for group in self.groups:
            u, d = v[:, group], direction[:, group]
            a, c = _determinant(d, clamp=False), _determinant(u)
            b = (u * _reflected(d)).sum(-1, keepdim=True)
            root = (b.square() - a * c).clamp_min(0.0).sqrt() - b
            meets = (b.square() > a * c) & (root > 0)
            step = torch.where(meets, c / torch.where(root > 0, root, 1.0), torch.inf)
            # Along the axis of the other half of the cone there is one root only.
            head = torch.where(d[..., :1] < 0, -u[..., :1] / d[..., :1], torch.inf)
            steps.append(torch.minimum(step, head).flatten(1).amin(1))
        if not steps:
            return v.new_full(v.shape[:1], torch.inf)
        return torch.stack(steps).amin(0)


def _reflected(v: torch.Tensor) -> torch.Tensor:
    """``J v``, with all but the first coordinate's sign changed."""
    return torch.cat([v[..., :1], -v[..., 1:]], -1)


def _determinant(v: torch.Tensor, clamp: bool = True) -> torch.Tensor:
    """``v' J v``, shape ``(..., 1)``."""
    far = v[..., 1:].norm(dim=-1, keepdim=True)
    found = (v[..., :1] - far) * (v[..., :1] + far)
    determinant: torch.Tensor = found.clamp_min(_TINY) if clamp else found
    return determinant


def _turned(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The hyperbolic rotation ``[[w0, w1'], [w1, I + w1 w1' / (1 + w0)]]`` of ``v``."""
    along = (w[..., 1:] * v[..., 1:]).sum(-1, keepdim=True)
    head = w[..., :1] * v[..., :1] + along
    tail = v[..., 1:] + w[..., 1:] * (v[..., :1] + along / (1 + w[..., :1]))
    return torch.cat([head, tail], -1)
