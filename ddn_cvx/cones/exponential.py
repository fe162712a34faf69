"""Exponential cones ``cl {(x, y, z): y > 0, y exp(x / y) <= z}``.

The boundary is ``g = x - y log(z / y)``, the barrier ``F = -log h - log y - log z`` with ``h = -g``
(see :mod:`ddn_cvx.cones.nonsymmetric`). The dual cone is ``cl {(u, v, w): u < 0, -u exp(v / u) <=
e w}``.
"""

from __future__ import annotations

import torch

from ddn_cvx.cones.nonsymmetric import Barrier, Boundary, NonsymmetricCone, Triangle

# The point of the central path with mu = 1, which is its own shadow.
_CENTRE = (-0.8278383990656786, 0.8051020015847954, 1.290927709856958)
# Newton's steps for a shadow, from where they converge for every multiplier.
_SHADOW_STEPS = 8


class Exponential(NonsymmetricCone):
    """See :class:`~ddn_cvx.cones.base.Cone` and :class:`NonsymmetricCone`."""

    name, field, scs, cvxpy = "exponential", "exponential", "ep", "exp"

    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        x, y, z = point.unbind(-1)
        # The exponential is taken in logarithms: next to a face it outgrows every z, and a bound
        # on its exponent alone would let points far outside count as inside.
        if dual_cone:
            safe = (-x).clamp_min(1e-300)
            outside = torch.exp((safe.log() - y / safe - 1).clamp_max(700.0)) - z
            flat = torch.maximum((-y).clamp_min(0.0), (-z).clamp_min(0.0))
            on_face = torch.maximum(flat, x.abs())
            return torch.minimum(torch.maximum(outside.clamp_min(0.0), x), on_face).clamp_min(0.0)
        safe = y.clamp_min(1e-300)
        outside = torch.exp((safe.log() + x / safe).clamp_max(700.0)) - z
        inside = torch.maximum(outside.clamp_min(0.0), (-y).clamp_min(0.0))
        face = torch.maximum(torch.maximum(y.abs(), x.clamp_min(0.0)), (-z).clamp_min(0.0))
        return torch.minimum(inside, face)

    def boundary(self, point: torch.Tensor) -> Boundary:
        x, y, z = point.unbind(-1)
        smooth = (y > 1e-14 * (1 + point.abs().amax(-1))) & (z > 0)
        y = torch.where(smooth, y, torch.ones_like(y))
        z = torch.where(smooth, z, torch.ones_like(z))
        logarithm = torch.log(z / y)
        gradient = torch.stack([torch.ones_like(x), 1 - logarithm, -y / z], -1)
        curvature = torch.stack([1 / y, -1 / z, -1 / z, y / z**2], -1).unflatten(-1, (2, 2))
        hessian = torch.nn.functional.pad(curvature, (1, 0, 1, 0))
        return Boundary(x - y * logarithm, gradient, hessian, smooth)

    def face(self, point: torch.Tensor) -> torch.Tensor:
        # s = (x <= 0, 0, z >= 0): x and z move freely where they are nonzero, y stays at zero.
        x, _, z = point.unbind(-1)
        return torch.stack([(x < 0).to(x), torch.zeros_like(x), (z > 0).to(x)], -1)

    def set_identity(self, out: torch.Tensor) -> None:
        for place, value in enumerate(_CENTRE):
            out[..., place] = value

    # -- barrier --------------------------------------------------------------------------------

    def logarithms(self, like: torch.Tensor) -> float:
        """See :class:`NonsymmetricCone`; of ``y`` and ``z``, whose inverses are not zero."""
        return 1.0

    def barrier(self, slack: torch.Tensor) -> Barrier:
        x, y, z = slack.unbind(-1)
        logarithm = torch.log(z / y)
        return _barrier(slack, y, z, y * logarithm - x, logarithm)

    def hessian(self, barrier: Barrier) -> Triangle:
        _, y, z = barrier.point.unbind(-1)
        h = barrier.h
        slope = barrier.slope / h.unsqueeze(-1)
        d = ((y + h) / h).sqrt() / y
        return Triangle(
            1 / h, -slope[..., 1], -slope[..., 2], d, -1 / (z * h * d),
            ((2 * y + h) / (y + h)).sqrt() / z,
        )  # fmt: skip

    def curvature(self, barrier: Barrier, p: torch.Tensor) -> torch.Tensor:
        (_, y, z), (_, p_y, p_z) = barrier.point.unbind(-1), p.unbind(-1)
        of_y = p_z / z - p_y / y
        return torch.stack([torch.zeros_like(of_y), of_y, -of_y * y / z], -1)

    def third(self, barrier: Barrier, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        (_, y, z), (_, p_y, p_z), (_, q_y, q_z) = (v.unbind(-1) for v in (barrier.point, p, q))
        of_z = p_z * q_z
        of_y = p_y * q_y / y.square() - of_z / z.square()
        mixed = 2 * y * of_z / z**3 - (p_y * q_z + p_z * q_y) / z.square()
        return torch.stack([torch.zeros_like(y), of_y, mixed], -1)

    def is_inside(self, slack: torch.Tensor) -> torch.Tensor:
        x, y, z = slack.unbind(-1)
        positive = (y > 0) & (z > 0)
        ratio = torch.where(positive, z, 1.0) / torch.where(positive, y, 1.0)
        return positive & (y * ratio.log() > x)

    def depth_of_multiplier(self, multiplier: torch.Tensor) -> torch.Tensor:
        """``1 + log(w / a) + v / a`` with ``a = -u``; minus one far outside."""
        u, v, w = multiplier.unbind(-1)
        usable = (u < 0) & (w > 0)
        a, w = torch.where(usable, -u, 1.0), torch.where(usable, w, 1.0)
        return torch.where(usable, 1 + (w / a).log() + v / a, -1.0)

    def shadow(self, multiplier: torch.Tensor) -> tuple[torch.Tensor, Barrier]:
        """See :class:`NonsymmetricCone`.

        With ``a = -u`` and ``p = 1 / (a y)`` it is ``p + log(1 + p) = 1 + log(w / a) + v / a``.
        """
        u, _, w = multiplier.unbind(-1)
        a, depth = -u, self.depth_of_multiplier(multiplier)
        p = depth / 2
        for _ in range(_SHADOW_STEPS):
            p = p - (p + torch.log1p(p) - depth) * (1 + p) / (2 + p)
        y, z, h = 1 / (a * p), (1 + 1 / p) / w, 1 / a
        logarithm = torch.log(a / w) + torch.log1p(p)
        slack = torch.stack([y * logarithm - h, y, z], -1)
        return slack, _barrier(slack, y, z, h, logarithm)


def _barrier(
    point: torch.Tensor, y: torch.Tensor, z: torch.Tensor, h: torch.Tensor, logarithm: torch.Tensor
) -> Barrier:
    """The barrier for ``h`` and ``log(z / y)`` that may be known better than from the point."""
    inverse = torch.stack([torch.zeros_like(y), 1 / y, 1 / z], -1)
    slope = torch.stack([-torch.ones_like(y), logarithm - 1, y / z], -1)
    return Barrier(point, inverse, h, slope)
