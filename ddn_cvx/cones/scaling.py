"""The grouped cones of a program, and the scaling of a product of them at an interior point.

For ``s, z`` inside the cone there is a ``W`` with ``W z = W'^-1 s = lambda``; directions are
computed in its coordinates. Rows of equations come first: there ``W`` is one, and ``s`` and
``lambda`` are zero. Cones of a kind and size lie together. For symmetric cones it is Nesterov and
Todd's scaling: Vandenberghe, "The CVXOPT linear and quadratic cone program solvers" (2010),
sections 4 and 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partialmethod
from typing import NamedTuple

import torch

from ddn_cvx.cones.base import SymmetricCone, Tensors
from ddn_cvx.cones.linear import Linear
from ddn_cvx.cones.product import Cones


class Scaling(NamedTuple):
    """``W`` at a point.

    Attributes:
        diagonal: ``sqrt(s / z)`` of inequalities, one elsewhere, shape ``(B, m)``.
        groups: each group's own.
        point: ``lambda``, shape ``(B, m)``.
        divisor: the same with one for equations.
    """

    diagonal: torch.Tensor
    groups: tuple[Tensors, ...]
    point: torch.Tensor
    divisor: torch.Tensor


class ConeProduct:
    """A product of cones whose vectors ``(B, m)`` have grouped rows.

    Args:
        cones: of the program.
        equations: number of rows of the zero cone, which may be fewer than the program's.
        like: a tensor of the device and type of those to come.

    Attributes:
        linear: number of rows of the zero and nonnegative cones.
        groups: the others.
        degree: parameter of the barrier; ``mu`` is ``<s, z>`` over it.
        identity: the point of the central path with ``mu = 1``, shape ``(m,)``; zero for equations.
        inner: zero for equations and one for other rows, shape ``(m,)``.
    """

    def __init__(self, cones: Cones, equations: int, like: torch.Tensor) -> None:
        self._cones = cones
        self.equations = equations
        self.linear = equations + cones.nonnegative
        self.rows = cones.rows - cones.zero + equations
        self.groups, self.is_symmetric = cones.groups, cones.is_symmetric
        self._symmetric = [group for group in self.groups if isinstance(group, SymmetricCone)]
        self._linear_rows = Linear(equations, cones.nonnegative, self.rows - self.linear)
        self.degree = cones.nonnegative + sum(group.degree for group in self.groups)
        self.identity = like.new_zeros(self.rows)
        self.identity[equations : self.linear] = 1.0
        for group in self.groups:
            group.set_identity(group.of(self.identity.unsqueeze(0)))
        self.inner = torch.ones_like(self.identity)
        self.inner[:equations] = 0.0
        self._outer = 1 - self.inner

    def like(self, tensor: torch.Tensor) -> ConeProduct:
        """The same for tensors of another device or type."""
        return ConeProduct(self._cones, self.equations, tensor)

    def projected(self, v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """The nearest point of the dual cone, of which ``v`` is about ``s`` away, ``(B, m)``."""
        found = v.clone()
        found[:, self.equations : self.linear].clamp_min_(0.0)
        for group in self.groups:
            group.of(found)[:] = group.project(group.of(v), group.of(s))
        return found

    def violation(self, z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Relative distance of ``z`` and ``s`` from cones that are not symmetric, shape ``(B,)``.

        Their projections are local iterations, which can converge to another stationary point.
        """
        worst = z.new_zeros(len(z))
        for group in self.groups:
            if group.is_symmetric:
                continue
            for v, dual_cone in ((group.of(z), True), (group.of(s), False)):
                outside = group.violation(v, dual_cone) / (1 + v.abs().amax(-1))
                worst = torch.maximum(worst, outside.amax(1))
        return worst

    # -- scaling --------------------------------------------------------------------------------

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> Scaling:
        """At ``s, z`` inside the cone."""
        diagonal, point = self._linear_rows.scaling(s, z)
        scalings = []
        for group in self.groups:
            W, group.of(point)[:] = group.scaling(group.of(s), group.of(z))
            scalings.append(W)
        return Scaling(diagonal, tuple(scalings), point, point + self._outer)

    def scale(
        self, W: Scaling, v: torch.Tensor, *, inverse: bool, transposed: bool
    ) -> torch.Tensor:
        """``W v``, or that of the inverse of ``W``, its transpose, or both."""
        found = v / W.diagonal if inverse else v * W.diagonal
        for group, scaling in zip(self.groups, W.groups, strict=True):
            part = group.of(found)
            group.scale(scaling, group.of(v), part, inverse=inverse, transposed=transposed)
        return found

    # W'^-1 v, W' v, W v and W^-1 v.
    scale_slacks = partialmethod(scale, inverse=True, transposed=True)
    unscale_slacks = partialmethod(scale, inverse=False, transposed=True)
    scale_multipliers = partialmethod(scale, inverse=False, transposed=False)
    unscale_multipliers = partialmethod(scale, inverse=True, transposed=False)

    def scale_rows(self, W: Scaling, rows: torch.Tensor) -> torch.Tensor:
        """``W'^-1 A`` for ``(B, m, n)``."""
        if not self.groups:
            return rows / W.diagonal.unsqueeze(2)
        found, last = torch.empty_like(rows), self.linear
        torch.div(rows[:, :last], W.diagonal[:, :last].unsqueeze(2), out=found[:, :last])
        for group, scaling in zip(self.groups, W.groups, strict=True):
            group.scale_rows(scaling, group.of(rows), group.of(found))
        return found

    def correction(
        self, W: Scaling, directions: tuple[torch.Tensor, torch.Tensor], weight: torch.Tensor,
        target: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """See :class:`~ddn_cvx.cones.base.Cone`; zero for equations."""
        second = weight * directions[0] * directions[1] - target * self.identity
        found = W.point + second / W.divisor
        for group, scaling in zip(self.groups, W.groups, strict=True):
            slack, multiplier = map(group.of, directions)
            group.correction(
                scaling, group.of(W.point), (slack, multiplier), weight, target, group.of(found)
            )
        return found

    def step_rate(self, W: Scaling, directions: Sequence[torch.Tensor]) -> torch.Tensor:
        """One over the longest step along scaled directions, or zero, shape ``(B,)``.

        Args:
            W: the scaling.
            directions: of slacks, of multipliers; of cones that are not symmetric both.
        """
        rates = []
        if self.linear > self.equations:
            rates = self._linear_rows.step_rates(W.point, directions)
        for group, scaling in zip(self.groups, W.groups, strict=True):
            of_group = [group.of(direction) for direction in directions]
            rates += group.step_rates(scaling, group.of(W.point), of_group)
        if not rates:
            return W.point.new_zeros(len(W.point))
        worst = rates[0] if len(rates) == 1 else torch.stack(rates).amax(0)
        return worst.clamp_min(0.0)

    # -- symmetric cones ------------------------------------------------------------------------

    def margin(self, v: torch.Tensor) -> torch.Tensor:
        """The least eigenvalue, positive inside the symmetric cones, shape ``(B,)``."""
        least = [group.margin(group.of(v)) for group in self._symmetric]
        if self.linear > self.equations:
            least.append(self._linear_rows.margin(v))
        if not least:
            return v.new_full(v.shape[:1], torch.inf)
        return torch.cat(least, 1).amin(1)

    def moved_inside(self, v: torch.Tensor, least: float) -> torch.Tensor:
        """``v`` and so much of the unit that its least eigenvalue is ``least`` or more."""
        shift = (least - self.margin(v)).clamp_min(0.0)
        return torch.addcmul(v, shift.unsqueeze(1), self.identity)

    def over_square(self, W: Scaling, v: torch.Tensor) -> torch.Tensor:
        """``W^-2 v``: multipliers from slacks."""
        if not self.groups:
            return v / W.diagonal.square()
        return self.unscale_multipliers(W, self.scale_slacks(W, v))

    def margins(self, v: torch.Tensor) -> torch.Tensor:
        """The least eigenvalue of each row's cone, shape ``(B, m)``; without equations."""
        found = v.clone()
        for group in self._symmetric:
            group.of(found)[:] = group.margin(group.of(v)).unsqueeze(2)
        return found

    def log_det(self, s: torch.Tensor) -> torch.Tensor:
        """``log det s``, shape ``(B,)``; NaN or minus infinity outside; without equations."""
        total = s[:, : self.linear].log().sum(1)
        for group in self._symmetric:
            total = total + group.log_det(group.of(s)).sum(1)
        return total

    def inverse(self, s: torch.Tensor) -> torch.Tensor:
        """``s^-1``, the gradient of ``log det``, shape ``(B, m)``; without equations."""
        found = s.reciprocal()
        for group in self._symmetric:
            group.of(found)[:] = group.inverse(group.of(s))
        return found

    def distance_from_path(
        self, s: torch.Tensor, z: torch.Tensor, mu: torch.Tensor
    ) -> torch.Tensor:
        """The largest entry of ``s o z - mu e``, shape ``(B,)``; without equations."""
        apart = torch.addcmul(s * z, mu.unsqueeze(1), self.identity, value=-1)
        worst = apart[:, : self.linear].abs()
        for group in self._symmetric:
            product = group.product(group.of(s), group.of(z))
            unit = group.of(self.identity.unsqueeze(0))
            distance = group.largest(product - mu[:, None, None] * unit)
            worst = torch.cat([worst, distance], 1)
        return worst.amax(1)
