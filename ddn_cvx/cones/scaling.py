"""The cones of a program, and Nesterov and Todd's scaling of those that are not equations.

For ``s, z`` inside the cone there is a ``W`` with ``W z = W'^-1 s = lambda``; directions are
computed in its coordinates. Rows of equations come first: there ``W`` is one, and ``s`` and
``lambda`` are zero. Cones of a kind and size lie together. Vandenberghe, "The CVXOPT linear and
quadratic cone program solvers" (2010), sections 4 and 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ddn_cvx.cones.base import Group, SymmetricGroup, Tensors
from ddn_cvx.cones.exponential import Exponential
from ddn_cvx.cones.product import Cones
from ddn_cvx.cones.second_order import SecondOrder
from ddn_cvx.cones.semidefinite import Semidefinite


def groups_of(cones: Cones, equations: int) -> list[Group]:
    """The cones with several rows, those of a kind and size together, after the linear rows."""
    groups: list[Group] = []
    start = equations + cones.nonnegative
    kinds = ((cones.second_order, SecondOrder), (cones.semidefinite, Semidefinite))
    for sizes, kind in kinds:
        for size in sorted(set(sizes)):
            group = kind(start, sizes.count(size), size)
            groups.append(group)
            start += group.number * group.size
    if cones.exponential:
        groups.append(Exponential(start, cones.exponential))
    return groups


class Scaling(NamedTuple):
    """``W`` at a point.

    Attributes:
        linear: ``sqrt(s / z)`` of the rows before the groups', one for equations.
        groups: each group's own.
        point: ``lambda``, shape ``(B, m)``.
        divisor: the same with one for equations.
    """

    linear: torch.Tensor
    groups: tuple[Tensors, ...]
    point: torch.Tensor
    divisor: torch.Tensor


class ConeProduct:
    """A product of zero, nonnegative, second-order, semidefinite and exponential cones.

    Vectors have all its rows.

    Args:
        cones: of the program, which may have others, too.
        equations: number of rows of the zero cone, which may be fewer than the program's.
        like: a tensor of the device and type of those to come.
    """

    def __init__(self, cones: Cones, equations: int, like: torch.Tensor) -> None:
        self._cones = cones
        self.equations = equations
        self.linear = equations + cones.nonnegative
        self.groups = groups_of(cones, equations)
        self.rows = self.linear + sum(group.number * group.size for group in self.groups)
        # mu is <s, z> over this and one.
        self.degree = cones.nonnegative + sum(group.degree for group in self.groups)
        unit = like.new_zeros(self.rows)
        unit[equations : self.linear] = 1.0
        for group in self.groups:
            group.set_identity(group.of(unit.unsqueeze(0)))
        self.identity = unit
        self.is_symmetric = cones.is_symmetric
        self.symmetric = [group for group in self.groups if isinstance(group, SymmetricGroup)]
        self.inner = torch.ones_like(unit)
        self.inner[:equations] = 0.0

    def like(self, tensor: torch.Tensor) -> ConeProduct:
        """The same for tensors of another device or type."""
        return ConeProduct(self._cones, self.equations, tensor)

    def margin(self, v: torch.Tensor) -> torch.Tensor:
        """The least eigenvalue, positive inside the symmetric cones, shape ``(B,)``."""
        least = []
        if self.linear > self.equations:
            least.append(v[:, self.equations : self.linear].amin(1))
        least += [group.margin(group.of(v)) for group in self.symmetric]
        if not least:
            return v.new_full(v.shape[:1], torch.inf)
        return torch.stack(least).amin(0)

    def moved_inside(self, v: torch.Tensor, least: float) -> torch.Tensor:
        """``v`` and so much of the unit that its least eigenvalue is ``least`` or more."""
        shift = (least - self.margin(v)).clamp_min(0.0)
        return torch.addcmul(v, shift.unsqueeze(1), self.identity)

    def projected(self, v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """The nearest point of the dual cone, of which ``v`` is about ``s`` away, ``(B, m)``."""
        found = v.clone()
        found[:, self.equations : self.linear].clamp_min_(0.0)
        for group in self.groups:
            group.of(found)[:] = group.projected(group.of(v), group.of(s))
        return found

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> Scaling:
        """At ``s, z`` inside the cone."""
        p, last = self.equations, self.linear
        inner = (s[:, p:last] / z[:, p:last]).sqrt()
        linear = torch.nn.functional.pad(inner, (p, 0), value=1.0) if p else inner
        point = linear * z[:, :last] * self.inner[:last]
        if not self.groups:
            return Scaling(linear, (), point, point + (1 - self.inner))
        point = torch.cat([point, torch.empty_like(z[:, last:])], 1)
        scalings = []
        for group in self.groups:
            W, group.of(point)[:] = group.scaling(group.of(s), group.of(z))
            scalings.append(W)
        return Scaling(linear, tuple(scalings), point, point + (1 - self.inner))

    def times(self, W: Scaling, v: torch.Tensor) -> torch.Tensor:
        """``W' v``: slacks from scaled coordinates."""
        return self._by_group(W, v, torch.mul, lambda group: group.times)

    def over(self, W: Scaling, v: torch.Tensor) -> torch.Tensor:
        """``W'^-1 v``: slacks in scaled coordinates."""
        return self._by_group(W, v, torch.div, lambda group: group.over)

    def multipliers(self, W: Scaling, v: torch.Tensor) -> torch.Tensor:
        """``W^-1 v``: multipliers from scaled coordinates."""
        return self._by_group(W, v, torch.div, lambda group: group.multiplier)

    def rows_over(self, W: Scaling, rows: torch.Tensor) -> torch.Tensor:
        """``W'^-1 A`` for ``(B, m, n)``."""
        return self._by_group(W, rows, torch.div, lambda group: group.rows_over)

    def _by_group(
        self,
        W: Scaling,
        v: torch.Tensor,
        of_linear: Callable[..., torch.Tensor],
        of_group: Callable[[Group], Callable[[Tensors, torch.Tensor, torch.Tensor], None]],
    ) -> torch.Tensor:
        linear = W.linear if v.ndim == 2 else W.linear.unsqueeze(2)
        found = torch.empty_like(v)
        of_linear(v[:, : self.linear], linear, out=found[:, : self.linear])
        for group, scaling in zip(self.groups, W.groups, strict=True):
            of_group(group)(scaling, group.of(v), group.of(found))
        return found

    def pull(
        self, W: Scaling, directions: tuple[torch.Tensor, torch.Tensor], weight: torch.Tensor,
        target: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """See :class:`~ddn_cvx.cones.base.Group`; of equations zero."""
        second = weight * directions[0] * directions[1] - target * self.identity
        found = W.point + second / W.divisor
        for group, scaling in zip(self.groups, W.groups, strict=True):
            slack, multiplier = map(group.of, directions)
            group.pull(
                scaling, group.of(W.point), (slack, multiplier), weight, target, group.of(found)
            )
        return found

    def shrinking(self, W: Scaling, directions: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """One over the longest step along scaled directions of slacks and multipliers, or zero."""
        rates = []
        if self.linear > self.equations:
            part = slice(self.equations, self.linear)
            lam = W.point[:, part]
            rates = [(d[:, part] / lam).amin(1).neg() for d in directions]
        for group, scaling in zip(self.groups, W.groups, strict=True):
            slack, multiplier = map(group.of, directions)
            rates += group.shrinking(scaling, group.of(W.point), (slack, multiplier))
        if not rates:
            return W.point.new_zeros(len(W.point))
        return torch.stack(rates).amax(0).clamp_min(0.0)
