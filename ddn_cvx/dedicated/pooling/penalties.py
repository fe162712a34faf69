"""The penalties of robust pooling and their derivatives, of a residual and of its square.

``phi(z; alpha)`` of a residual ``z``, or of its norm, with ``alpha > 0`` between inliers and
outliers (Gould, Hartley and Campbell, "Deep declarative networks", 2021, section 5.1, figure 2):

    quadratic            z^2 / 2
    pseudo_huber         alpha^2 (sqrt(1 + (z / alpha)^2) - 1)
    huber                z^2 / 2 for |z| <= alpha, else alpha (|z| - alpha / 2)
    welsch               1 - exp(-z^2 / (2 alpha^2))
    truncated_quadratic  min(z^2, alpha^2) / 2

The penalty of a vector's norm is a function of ``s = |r|^2``, so that no square root is taken at
zero: it has

    gradient  psi(s) r                     psi = phi'(z) / z, the weight of reweighted least squares
    Hessian   psi(s) I + bend(s) r r'      bend = 2 psi'(s)

All five are increasing and concave in ``s``: the quadratic ``psi(s0) s / 2`` majorises each at
``s0``, so a step of reweighted least squares never raises the objective (Black and Rangarajan, "On
the unification of line processes, outlier rejection, and robust statistics with applications in
early vision", 1996), and ``psi`` bounds the curvature.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Penalty:
    """``phi`` and its derivatives; all arguments broadcast.

    The methods of this class are those of ``z^2 / 2``, from which the other penalties differ.

    Attributes:
        convex: whether ``phi`` is convex, so that every minimum is global.
        curved: whether ``bend`` is ever nonzero, so that Newton's step differs from the mean.
        kinked: whether ``phi'`` or ``phi''`` jumps at ``z = alpha``.
        degree: of ``phi`` as a homogeneous function of ``z`` and ``alpha``.
    """

    convex, curved, kinked, degree = True, False, False, 2

    def value(self, z: Tensor, alpha: Tensor) -> Tensor:
        """``phi(z; alpha)``."""
        return self.of_square(z * z, alpha)

    def slope(self, z: Tensor, alpha: Tensor) -> Tensor:
        """``d phi / dz``."""
        return z * self.weight(z * z, alpha)

    def curvature(self, z: Tensor, alpha: Tensor) -> Tensor:
        """``d^2 phi / dz^2``; at a kink, that of ``|z| < alpha``."""
        return torch.ones_like(z) + 0 * alpha

    def mixed(self, z: Tensor, alpha: Tensor) -> Tensor:
        """``d^2 phi / dz dalpha``, by Euler's theorem on homogeneous functions."""
        return ((self.degree - 1) * self.slope(z, alpha) - z * self.curvature(z, alpha)) / alpha

    def of_square(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        """``phi(sqrt(s); alpha)``."""
        return s / 2 + 0 * alpha

    def weight(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        """``psi(s)`` times the power of ``alpha`` that makes it 1 at ``s = 0``.

        The factor moves no minimiser; at ``alpha = 1`` it is one.
        """
        return torch.ones_like(s) + 0 * alpha

    def bend(self, s: Tensor) -> Tensor:
        """``2 psi'(s)`` at ``alpha = 1``."""
        return torch.zeros_like(s)

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        """``phi`` at ``s + by`` minus ``phi`` at ``s``, without cancellation, at ``alpha = 1``."""
        return by / 2


class _PseudoHuber(Penalty):
    curved = True

    def curvature(self, z: Tensor, alpha: Tensor) -> Tensor:
        t = z / alpha
        r = (1 + t * t).rsqrt()
        return r * r * r

    def mixed(self, z: Tensor, alpha: Tensor) -> Tensor:
        # Euler's theorem subtracts what is nearly equal where alpha is large.
        t = z / alpha
        r = t * (1 + t * t).rsqrt()
        return r * r * r

    def of_square(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        # alpha^2 (sqrt(1 + s / alpha^2) - 1) without cancellation
        return s / (1 + (1 + s / alpha**2).sqrt())

    def weight(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        return (1 + s / alpha**2).rsqrt()

    def bend(self, s: Tensor) -> Tensor:
        return -((1 + s) ** -1.5)

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        return by / ((1 + s).sqrt() + (1 + s + by).sqrt())


class _Huber(Penalty):
    curved, kinked = True, True

    def curvature(self, z: Tensor, alpha: Tensor) -> Tensor:
        return (z.abs() <= alpha).to(z.dtype)

    # Slopes of outliers are alpha to the last digit, and constant: they cancel in a sum without
    # inliers, whose derivatives are zero.
    def slope(self, z: Tensor, alpha: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(z, -alpha), alpha)

    def mixed(self, z: Tensor, alpha: Tensor) -> Tensor:
        return torch.where(z.abs() > alpha, z.sign(), 0.0)

    def of_square(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        inside, far = _split(s, alpha)
        return torch.where(inside, s / 2, alpha * (far.sqrt() - alpha / 2))

    def weight(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        inside, far = _split(s, alpha)
        return torch.where(inside, 1.0, alpha * far.rsqrt())

    def bend(self, s: Tensor) -> Tensor:
        inside, far = _split(s)
        return torch.where(inside, 0.0, -(far**-1.5))

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        to = s + by
        (before, far), (after, away) = _split(s), _split(to)
        both_far = by / (far.sqrt() + away.sqrt())
        crossing = torch.where(after, to / 2, away.sqrt() - 0.5) - torch.where(
            before, s / 2, far.sqrt() - 0.5
        )
        return torch.where(before & after, by / 2, torch.where(before | after, crossing, both_far))


class _Welsch(Penalty):
    convex, curved, degree = False, True, 0

    def slope(self, z: Tensor, alpha: Tensor) -> Tensor:
        return super().slope(z, alpha) / alpha**2

    def curvature(self, z: Tensor, alpha: Tensor) -> Tensor:
        t = z / alpha
        return (1 - t * t) * (-t * t / 2).exp() / (alpha * alpha)

    def of_square(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        return -torch.expm1(-s / (2 * alpha**2))

    def weight(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        return torch.exp(-s / (2 * alpha**2))

    def bend(self, s: Tensor) -> Tensor:
        return -torch.exp(-s / 2)

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        # from the smaller of both arguments: the exponential cannot overflow
        nearer = torch.minimum(s, s + by)
        return -torch.exp(-nearer / 2) * torch.expm1(-by.abs() / 2) * by.sign()


class _TruncatedQuadratic(Penalty):
    convex, kinked = False, True

    def curvature(self, z: Tensor, alpha: Tensor) -> Tensor:
        return (z.abs() <= alpha).to(z.dtype)

    def of_square(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        return torch.where(s > alpha**2, alpha**2, s) / 2  # NaN stays NaN

    def weight(self, s: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        return (s <= alpha**2).to(s.dtype) + 0 * alpha

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        to = s + by
        crossing = (to.clamp(max=1) - s.clamp(max=1)) / 2
        return torch.where((s <= 1) & (to <= 1), by / 2, crossing)


PENALTIES: dict[str, Penalty] = {
    "quadratic": Penalty(),
    "pseudo_huber": _PseudoHuber(),
    "huber": _Huber(),
    "welsch": _Welsch(),
    "truncated_quadratic": _TruncatedQuadratic(),
}


def penalty_named(name: str) -> Penalty:
    """The penalty of a name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in PENALTIES:
        raise ValueError(f"Unknown penalty {name!r}; known are {', '.join(PENALTIES)}.")
    return PENALTIES[name]


def _split(s: Tensor, alpha: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Whether ``s <= alpha^2``, and ``s`` with those values replaced by 1: no root at zero."""
    inside = s <= alpha**2
    return inside, torch.where(inside, 1.0, s)
