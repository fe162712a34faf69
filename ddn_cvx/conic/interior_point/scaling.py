"""The cones of a program, and Nesterov and Todd's scaling of those that are not equations.

For ``s, z`` inside the cone there is a ``W`` with ``W z = W^-1 s = lambda``; directions are
computed in its coordinates. Rows of equations come first: there ``W`` is one, and ``s`` and
``lambda`` are zero. Second-order cones of a size lie together. Formulas: Vandenberghe, "The CVXOPT
linear and quadratic cone program solvers" (2010), sections 4 and 8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.conic.cones import Cones

# Below this a cone's determinant counts as zero: the point is on the boundary.
_TINY = 1e-35


class Group(NamedTuple):
    """``number`` second-order cones of ``size`` rows each, behind one another from ``start``."""

    start: int
    number: int
    size: int

    def of(self, v: torch.Tensor) -> torch.Tensor:
        """Their part of ``(B, m, ...)``, a view: ``(B, number, size, ...)``."""
        rows = v[:, self.start : self.start + self.number * self.size]
        part: torch.Tensor = rows.unflatten(1, (self.number, self.size))
        return part


def second_order_groups(cones: Cones, equations: int) -> list[Group]:
    """The second-order cones, those of a size together, after so many equations and the rest."""
    groups, start = [], equations + cones.nonnegative
    for size in sorted(set(cones.second_order)):
        groups.append(Group(start, cones.second_order.count(size), size))
        start += groups[-1].number * size
    return groups


class Scaling(NamedTuple):
    """``W`` at a point.

    Attributes:
        linear: ``sqrt(s / z)`` of the rows before the second-order cones', one for equations.
        size: for each group of second-order cones ``eta``, shape ``(B, k, 1)``.
        axis: and the unit hyperbolic vector ``w``, shape ``(B, k, d)``.
        point: ``lambda``, shape ``(B, m)``.
        divisor: the same with one for equations.
    """

    linear: torch.Tensor
    size: tuple[torch.Tensor, ...]
    axis: tuple[torch.Tensor, ...]
    point: torch.Tensor
    divisor: torch.Tensor


class SymmetricCones:
    """A product of zero, nonnegative and second-order cones; vectors have all its rows.

    Args:
        cones: of the program, which may have others, too.
        equations: number of rows of the zero cone, which may be fewer than the program's.
        like: a tensor of the device and type of those to come.
    """

    def __init__(self, cones: Cones, equations: int, like: torch.Tensor) -> None:
        self._cones = cones
        self.equations = equations
        self.linear = equations + cones.nonnegative
        self.groups = second_order_groups(cones, equations)
        self.rows = self.linear + sum(cones.second_order)
        # mu is <s, z> over this and one.
        self.degree = cones.nonnegative + len(cones.second_order)
        unit = like.new_zeros(self.rows)
        unit[equations : self.linear] = 1.0
        for group in self.groups:
            group.of(unit.unsqueeze(0))[..., 0] = 1.0
        self.identity = unit
        self.inner = torch.ones_like(unit)
        self.inner[:equations] = 0.0

    def like(self, tensor: torch.Tensor) -> SymmetricCones:
        """The same for tensors of another device or type."""
        return SymmetricCones(self._cones, self.equations, tensor)

    def margin(self, v: torch.Tensor) -> torch.Tensor:
        """The least eigenvalue, positive inside the cone, shape ``(B,)``."""
        least = []
        if self.linear > self.equations:
            least.append(v[:, self.equations : self.linear].amin(1))
        for group in self.groups:
            part = group.of(v)
            least.append((part[..., 0] - part[..., 1:].norm(dim=-1)).amin(1))
        if not least:
            return v.new_full(v.shape[:1], torch.inf)
        return torch.stack(least).amin(0)

    def moved_inside(self, v: torch.Tensor, least: float) -> torch.Tensor:
        """``v`` and so much of the unit that its least eigenvalue is ``least`` or more."""
        shift = (least - self.margin(v)).clamp_min(0.0)
        return torch.addcmul(v, shift.unsqueeze(1), self.identity)

    def projected(self, v: torch.Tensor) -> torch.Tensor:
        """The nearest point of the dual cone, for ``(B, m)``."""
        found = v.clone()
        found[:, self.equations : self.linear].clamp_min_(0.0)
        for group in self.groups:
            part = group.of(v)
            head, tail = part[..., :1], part[..., 1:]
            length = tail.norm(dim=-1, keepdim=True)
            scale = (1 + head / length.clamp_min(_TINY)) / 2
            outside = torch.cat([scale * length, scale * tail], -1)
            inside = torch.where(length <= head, part, outside)
            group.of(found)[:] = torch.where(length <= -head, 0.0, inside)
        return found

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> Scaling:
        """At ``s, z`` inside the cone."""
        p, last = self.equations, self.linear
        inner = (s[:, p:last] / z[:, p:last]).sqrt()
        linear = torch.nn.functional.pad(inner, (p, 0), value=1.0) if p else inner
        point = linear * z[:, :last] * self.inner[:last]
        if not self.groups:
            return Scaling(linear, (), (), point, point + (1 - self.inner))
        point = torch.cat([point, torch.empty_like(z[:, last:])], 1)
        sizes, axes = [], []
        for group in self.groups:
            a, b = group.of(s), group.of(z)
            root_a, root_b = _determinant(a).sqrt(), _determinant(b).sqrt()
            a, b = a / root_a, b / root_b
            half = ((1 + (a * b).sum(-1, keepdim=True)) / 2).sqrt()
            w = (a + _reflected(b)) / (2 * half)
            size = (root_a / root_b).sqrt()
            sizes.append(size)
            axes.append(w)
            group.of(point)[:] = size * root_b * _turned(w, b)
        return Scaling(linear, tuple(sizes), tuple(axes), point, point + (1 - self.inner))

    def times(self, W: Scaling, v: torch.Tensor) -> torch.Tensor:
        """``W v``."""
        if not self.groups:
            return W.linear * v
        found = torch.empty_like(v)
        torch.mul(W.linear, v[:, : self.linear], out=found[:, : self.linear])
        for group, size, w in zip(self.groups, W.size, W.axis, strict=True):
            torch.mul(size, _turned(w, group.of(v)), out=group.of(found))
        return found

    def over(self, W: Scaling, v: torch.Tensor) -> torch.Tensor:
        """``W^-1 v``."""
        if not self.groups:
            return v / W.linear
        found = torch.empty_like(v)
        torch.div(v[:, : self.linear], W.linear, out=found[:, : self.linear])
        for group, size, w in zip(self.groups, W.size, W.axis, strict=True):
            torch.div(_turned(_reflected(w), group.of(v)), size, out=group.of(found))
        return found

    def rows_over(self, W: Scaling, rows: torch.Tensor) -> torch.Tensor:
        """``W^-1 A`` for ``(B, m, n)``."""
        linear = W.linear.unsqueeze(2)
        if not self.groups:
            return rows / linear
        found = torch.empty_like(rows)
        torch.div(rows[:, : self.linear], linear, out=found[:, : self.linear])
        for group, size, w in zip(self.groups, W.size, W.axis, strict=True):
            part, place = group.of(rows), group.of(found)  # (B, k, d, n)
            divisor, head = size.unsqueeze(2), w[..., :1].unsqueeze(2)
            along = w[..., 1:].unsqueeze(2) @ part[:, :, 1:]  # (B, k, 1, n)
            torch.div(head * part[:, :, :1] - along, divisor, out=place[:, :, :1])
            pulled = (along / (1 + head) - part[:, :, :1]) / divisor
            torch.div(part[:, :, 1:], divisor, out=place[:, :, 1:])
            place[:, :, 1:].addcmul_(w[..., 1:].unsqueeze(3), pulled)
        return found

    def product(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Jordan's product ``u o v``; of equations the product of numbers."""
        found = u * v
        for group in self.groups:
            a, b, place = group.of(u), group.of(v), group.of(found)
            place[..., 0] = place.sum(-1)
            torch.mul(a[..., :1], b[..., 1:], out=place[..., 1:])
            place[..., 1:].addcmul_(b[..., :1], a[..., 1:])
        return found

    def quotient(self, W: Scaling, v: torch.Tensor) -> torch.Tensor:
        """The ``x`` with ``lambda o x = v``."""
        found = v / W.divisor
        for group in self.groups:
            a, b, place = group.of(W.point), group.of(v), group.of(found)
            head = (a * _reflected(b)).sum(-1, keepdim=True) / _determinant(a)
            torch.div(b[..., 1:] - head * a[..., 1:], a[..., :1], out=place[..., 1:])
            place[..., :1] = head
        return found

    def shrinking(self, W: Scaling, directions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """One over the largest ``t`` with ``lambda + t d`` in the cone for all ``d``, or zero."""
        rates = []
        if self.linear > self.equations:
            part = slice(self.equations, self.linear)
            lam = W.point[:, part]
            rates = [(d[:, part] / lam).amin(1).neg() for d in directions]
        for group in self.groups:
            u = group.of(W.point)
            c = _determinant(u)
            for direction in directions:
                d = group.of(direction)
                # lambda + t d reaches the boundary where c + 2 b t + a t^2 vanishes: in 1 / t, the
                # larger of the roots, which are real; the head vanishes no earlier.
                b = (u * _reflected(d)).sum(-1, keepdim=True) / c
                a = _determinant(d, clamp=False) / c
                rates.append(((b.square() - a).clamp_min(0.0).sqrt() - b).flatten(1).amax(1))
        if not rates:
            return W.point.new_zeros(len(W.point))
        return torch.stack(rates).amax(0).clamp_min(0.0)


def _reflected(v: torch.Tensor) -> torch.Tensor:
    """``J v``, with all but the first coordinate's sign changed."""
    reflected = v.neg()
    reflected[..., 0] = v[..., 0]
    return reflected


def _determinant(v: torch.Tensor, clamp: bool = True) -> torch.Tensor:
    """``v' J v``, shape ``(..., 1)``."""
    far = v[..., 1:].norm(dim=-1, keepdim=True)
    found = (v[..., :1] - far) * (v[..., :1] + far)
    determinant: torch.Tensor = found.clamp_min(_TINY) if clamp else found
    return determinant


def _turned(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The hyperbolic rotation ``[[w0, w1'], [w1, I + w1 w1' / (1 + w0)]]`` of ``v``."""
    along = (w[..., 1:] * v[..., 1:]).sum(-1, keepdim=True)
    found = torch.empty_like(v)
    torch.addcmul(along, w[..., :1], v[..., :1], out=found[..., :1])
    torch.addcmul(v[..., 1:], w[..., 1:], v[..., :1] + along / (1 + w[..., :1]), out=found[..., 1:])
    return found
