"""Power cones ``{(x, y, z): x^a y^(1-a) >= |z|, x, y >= 0}``, each with its exponent ``a``.

With ``b = 1 - a`` the boundary is ``g = |z| - x^a y^b``, the dual cone ``{(u, v, w): (u / a)^a
(v / b)^b >= |w|}``. The barrier, of parameter three, is Chares', "Cones and interior-point
algorithms for structured convex optimization involving powers and exponentials" (2009):

    F = -log h - b log x - a log y,    h = x^2a y^2b - z^2.

With ``r = x^2a y^2b / h`` and ``t = r - 1 = z^2 / h`` a step ``(x p, y q, h^1/2 o)`` has the square

    F''[.,.] = (4 r^2 - 2 r) (a p + b q)^2 - 8 r t^1/2 o (a p + b q) + (4 t + 2) o^2
               + 2 r a b (p - q)^2 + b p^2 + a q^2,

whose Cholesky factors have closed forms without differences.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch

from ddn_cvx.batch.device import OnDevice
from ddn_cvx.cones.nonsymmetric import Barrier, Boundary, NonsymmetricCone, Triangle

# Newton's steps for a shadow. The error is at least halved by each, and squared near the root: 12
# are enough for exponents between 1e-6 and 1 - 1e-6.
_SHADOW_STEPS = 12
# The logarithm of the largest ratio of a multiplier's parts; beyond it a shadow's z is zero.
_DEEPEST = 600.0


class Power(NonsymmetricCone):
    """See :class:`~ddn_cvx.cones.base.Cone` and :class:`NonsymmetricCone`.

    Args:
        index: numbers of the cones' rows, shape ``(k, 3)``.
        exponents: ``a`` of each cone, shape ``(k,)``.
    """

    name, field, scs, cvxpy = "power", "power", "p", "p3d"

    def __init__(self, index: np.ndarray, exponents: np.ndarray, behind: int = 0) -> None:
        super().__init__(index, behind)
        a, b = exponents, 1 - exponents
        logarithms = np.stack([b, a, np.zeros_like(a)], -1)
        self._constants = OnDevice(a, b, logarithms, a**3 + b**3)

    @classmethod
    def at(cls, index: np.ndarray, members: Any) -> Self:
        """See :class:`~ddn_cvx.cones.base.Cone`; ``members`` are the exponents."""
        return cls(index, np.array(members))

    def _constants_like(self, like: torch.Tensor) -> list[torch.Tensor]:
        return [constant.to(like.dtype) for constant in self._constants(like.device)]

    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        a, b, *_ = self._constants_like(point)
        x, y, z = point.unbind(-1)
        low = torch.maximum(-x, -y).clamp_min(0.0)
        x, y = x.clamp_min(0.0), y.clamp_min(0.0)
        if dual_cone:
            x, y = x / a, y / b
        return torch.maximum(low, z.abs() - x**a * y**b).clamp_min(0.0)

    def boundary(self, point: torch.Tensor) -> Boundary:
        a, b, *_ = self._constants_like(point)
        x, y, z = point.unbind(-1)
        size = 1e-14 * (1 + point.abs().amax(-1))
        smooth = (x > size) & (y > size) & (z.abs() > 0)
        x = torch.where(smooth, x, torch.ones_like(x))
        y = torch.where(smooth, y, torch.ones_like(y))
        mean = x**a * y**b
        gradient = torch.stack([-a * mean / x, -b * mean / y, torch.sign(z)], -1)
        curvature = a * b * mean
        mixed = -curvature / (x * y)
        entries = torch.stack([curvature / x**2, mixed, mixed, curvature / y**2], -1)
        hessian = torch.nn.functional.pad(entries.unflatten(-1, (2, 2)), (0, 1, 0, 1))
        return Boundary(z.abs() - mean, gradient, hessian, smooth)

    def face(self, point: torch.Tensor) -> torch.Tensor:
        # s = (x, 0, 0), y = (0, v, 0): x moves freely, y stays at zero. Along z, the projection of
        # (x, -v, h) minimises (z - h)^2 / 2 + v y for the smallest y, (|z| / x^a)^(1 / (1 - a)):
        # a power of |z| below 2 if a < 1/2, which holds z at zero, above 2 if a > 1/2, which
        # leaves it free, and z^2 / x if a = 1/2. On the other ray x, v and a become y, u and 1 - a.
        a, b, *_ = self._constants_like(point)
        x, y, _ = point.unbind(-1)
        first = x >= y
        length, beside = torch.maximum(x, y), (-torch.minimum(x, y)).clamp_min(0.0)
        safe = torch.where(length > 0, length, torch.ones_like(length))
        exponent = torch.where(first, a, b).expand_as(x)
        along = torch.where(exponent > 0.5, torch.ones_like(x), torch.zeros_like(x))
        along = torch.where(exponent == 0.5, 1 / (1 + 2 * beside / safe), along)
        along = torch.where(length > 0, along, torch.zeros_like(along))
        return torch.stack([(x > 0).to(x), (y > 0).to(x), along], -1)

    def set_identity(self, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.cones.base.Cone`; ``z`` is zero."""
        a, b, *_ = self._constants_like(out)
        out[..., 0], out[..., 1] = (1 + a).sqrt(), (1 + b).sqrt()

    # -- barrier --------------------------------------------------------------------------------

    def logarithms(self, like: torch.Tensor) -> torch.Tensor:
        return self._constants_like(like)[2]

    def barrier(self, slack: torch.Tensor) -> Barrier:
        a, b, *_ = self._constants_like(slack)
        x, y, z = slack.unbind(-1)
        mean = x**a * y**b
        return self._barrier(slack, mean.square(), (mean - z.abs()) * (mean + z.abs()))

    def _barrier(self, point: torch.Tensor, square: torch.Tensor, h: torch.Tensor) -> Barrier:
        """The barrier for ``x^2a y^2b`` and ``h``, which the point may tell less exactly."""
        a, b, *_ = self._constants_like(point)
        x, y, z = point.unbind(-1)
        inverse = torch.stack([1 / x, 1 / y, torch.zeros_like(z)], -1)
        slope = torch.stack([2 * a * square / x, 2 * b * square / y, -2 * z], -1)
        return Barrier(point, inverse, h, slope)

    def hessian(self, barrier: Barrier) -> Triangle:
        a, b, _, cubes = self._constants_like(barrier.h)
        x, y, z = barrier.point.unbind(-1)
        root = barrier.h.sqrt()
        side = z / root
        r = 1 + side.square()
        mixed = 2 * a * b * r
        # The factor of (a p + b q)^2, and what is left of it where o is eliminated.
        whole = 2 * r * (2 * r - 1)
        rest = 2 * r / (2 * r - 1)
        # Determinants of the forms in p and q with these factors.
        of_whole, of_rest = (k * (mixed + cubes) + mixed + a * b for k in (whole, rest))
        first = whole * a.square() + mixed + b
        pivot, second = first.sqrt(), (of_whole / first).sqrt()
        slope = -4 * r * side
        return Triangle(
            pivot / x,
            2 * mixed * side.square() / (pivot * y),
            slope * a / (pivot * root),
            second / y,
            slope * b * (2 * r * a + b) / (first * second * root),
            ((4 * r - 2) * of_rest / of_whole).sqrt() / root,
        )

    def curvature(self, barrier: Barrier, p: torch.Tensor) -> torch.Tensor:
        a, b, *_ = self._constants_like(p)
        p_x, p_y, _ = (p * barrier.inverse).unbind(-1)
        along = 2 * (a * p_x + b * p_y)
        slope_x, slope_y, _ = barrier.slope.unbind(-1)
        return torch.stack([slope_x * (along - p_x), slope_y * (along - p_y), -2 * p[..., 2]], -1)

    def third(self, barrier: Barrier, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        a, b, *_ = self._constants_like(p)
        a, b = 2 * a, 2 * b
        (p_x, p_y, _), (q_x, q_y, _) = ((v * barrier.inverse).unbind(-1) for v in (p, q))
        slope_x, slope_y, _ = barrier.slope.unbind(-1)
        x, y, across = p_x * q_x, p_y * q_y, p_x * q_y + p_y * q_x
        of_x = (a - 1) * (a - 2) * x + (a - 1) * b * across + b * (b - 1) * y
        of_y = a * (a - 1) * x + a * (b - 1) * across + (b - 1) * (b - 2) * y
        of_x, of_y = (s * v for s, v in ((slope_x, of_x), (slope_y, of_y)))
        return torch.stack([of_x, of_y, torch.zeros_like(x)], -1)

    def is_inside(self, slack: torch.Tensor) -> torch.Tensor:
        a, b, *_ = self._constants_like(slack)
        x, y, z = slack.unbind(-1)
        positive = (x > 0) & (y > 0)
        mean = a * torch.where(positive, x, 1.0).log() + b * torch.where(positive, y, 1.0).log()
        return positive & (mean > z.abs().log())

    def depth_of_multiplier(self, multiplier: torch.Tensor) -> torch.Tensor:
        """``2 log((u / a)^a (v / b)^b / |w|)``; minus one far outside."""
        a, b, *_ = self._constants_like(multiplier)
        u, v, w = multiplier.unbind(-1)
        usable = (u > 0) & (v > 0)
        u, v = torch.where(usable, u, 1.0), torch.where(usable, v, 1.0)
        depth = 2 * (a * (u / a).log() + b * (v / b).log() - w.abs().log())
        return torch.where(usable, depth.clamp_max(_DEEPEST), -1.0)

    def shadow(self, multiplier: torch.Tensor) -> tuple[torch.Tensor, Barrier]:
        """See :class:`NonsymmetricCone`.

        In terms of ``t`` above, ``x = (1 + a + 2 a t) / u``, ``y = (1 + b + 2 b t) / v`` and ``z =
        -w h / 2``. With ``p = log(1 + 1 / t)``, ``e = 1 - exp(-p)`` and the multiplier's depth

            p + 2 a log(1 + b e / 2 a) + 2 b log(1 + a e / 2 b) = depth.

        The left side is concave with slopes from two to one: from half of the depth Newton's steps
        come to the root from below.
        """
        a, b, *_ = self._constants_like(multiplier)
        u, v, w = multiplier.unbind(-1)
        depth = self.depth_of_multiplier(multiplier)
        of_a, of_b = b / (2 * a), a / (2 * b)
        p = depth / 2
        for _ in range(_SHADOW_STEPS):
            e = -torch.expm1(-p)
            value = p + 2 * a * torch.log1p(of_a * e) + 2 * b * torch.log1p(of_b * e)
            slope = 1 + (1 - e) * (b / (1 + of_a * e) + a / (1 + of_b * e))
            p = p - (value - depth) / slope
        t = 1 / torch.expm1(p)
        x, y = (1 + a + 2 * a * t) / u, (1 + b + 2 * b * t) / v
        square = x ** (2 * a) * y ** (2 * b)
        h = square / (1 + t)
        slack = torch.stack([x, y, -w * h / 2], -1)
        return slack, self._barrier(slack, square, h)
