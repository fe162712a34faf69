"""Penalties of a residual's norm, as functions of the squared norm.

With ``s = z^2`` and ``r = u - x``, a penalty ``phi(z; alpha)`` has

    gradient  psi(s) r                     psi = phi'(z) / z, the weight of reweighted least squares
    Hessian   psi(s) I + bend(s) r r'      bend = 2 psi'(s)

and no square root is taken at ``z = 0``. All five are increasing and concave in ``s``: the
quadratic ``psi(s0) s / 2`` majorises each at ``s0``, so a reweighted least-squares step never
raises the objective (Black and Rangarajan, "On the unification of line processes, outlier
rejection, and robust statistics with applications in early vision", 1996), and ``psi`` bounds the
curvature.
"""

from __future__ import annotations

from typing import Protocol

import torch

Tensor = torch.Tensor


class Penalty(Protocol):
    """What the solver and the adjoint ask of a penalty.

    ``value`` is the penalty itself; ``weight`` is ``psi`` up to a positive factor of ``alpha`` that
    makes it 1 at ``s = 0``, which moves no minimiser; ``bend`` and ``change`` are at ``alpha = 1``,
    of what ``weight`` belongs to.

    Attributes:
        convex: whether ``phi`` is convex, so that every minimum is global.
        curved: whether ``bend`` is ever nonzero, so that Newton's step differs from the mean.
        kinked: whether ``phi'`` or ``phi''`` jumps at ``z = alpha``.
    """

    convex: bool
    curved: bool
    kinked: bool

    def value(self, s: Tensor, alpha: Tensor) -> Tensor:
        """``phi(sqrt(s); alpha)``."""
        ...

    def weight(self, s: Tensor, alpha: Tensor) -> Tensor:
        """``psi(s)``, scaled to 1 at ``s = 0``; differentiable for both."""
        ...

    def bend(self, s: Tensor) -> Tensor:
        """``2 psi'(s)`` at ``alpha = 1``."""
        ...

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        """``phi`` at ``s + by`` minus ``phi`` at ``s``, without cancellation, at ``alpha = 1``."""
        ...


class Quadratic:
    """``phi = z^2 / 2``: the weighted mean."""

    convex, curved, kinked = True, False, False

    def value(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return s / 2 + 0 * alpha

    def weight(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return torch.ones_like(s) + 0 * alpha

    def bend(self, s: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return torch.zeros_like(s)

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return by / 2


class PseudoHuber:
    """``phi = alpha^2 (sqrt(1 + (z / alpha)^2) - 1)``: smooth, convex, linear far away."""

    convex, curved, kinked = True, True, False

    def value(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return s / (1 + (1 + s / alpha**2).sqrt())

    def weight(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return (1 + s / alpha**2).rsqrt()

    def bend(self, s: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return -((1 + s) ** -1.5)

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return by / ((1 + s).sqrt() + (1 + s + by).sqrt())


class Huber:
    """``phi = z^2 / 2`` up to ``alpha``, ``alpha (z - alpha / 2)`` beyond: convex."""

    convex, curved, kinked = True, True, True

    def value(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        inside, far = _split(s, alpha)
        return torch.where(inside, s / 2, alpha * (far.sqrt() - alpha / 2))

    def weight(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        inside, far = _split(s, alpha)
        return torch.where(inside, 1.0, alpha * far.rsqrt())

    def bend(self, s: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        inside, far = _split(s, torch.ones_like(s))
        return torch.where(inside, 0.0, -(far**-1.5))

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        one, to = torch.ones_like(s), s + by
        (before, far), (after, away) = _split(s, one), _split(to, one)
        both_far = by / (far.sqrt() + away.sqrt())
        crossing = torch.where(after, to / 2, away.sqrt() - 0.5) - torch.where(
            before, s / 2, far.sqrt() - 0.5
        )
        return torch.where(before & after, by / 2, torch.where(before | after, crossing, both_far))


class Welsch:
    """``phi = 1 - exp(-z^2 / (2 alpha^2))``: smooth, bounded, nonconvex."""

    convex, curved, kinked = False, True, False

    def value(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return -torch.expm1(-s / (2 * alpha**2))

    def weight(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return torch.exp(-s / (2 * alpha**2))

    def bend(self, s: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return -torch.exp(-s / 2)

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        # from the nearer of the two: the exponential cannot overflow
        nearer = torch.minimum(s, s + by)
        return -torch.exp(-nearer / 2) * torch.expm1(-by.abs() / 2) * by.sign()


class TruncatedQuadratic:
    """``phi = z^2 / 2`` up to ``alpha``, ``alpha^2 / 2`` beyond: nonconvex, has a kink."""

    convex, curved, kinked = False, False, True

    def value(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return torch.where(s <= alpha**2, s, alpha**2) / 2

    def weight(self, s: Tensor, alpha: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return (s <= alpha**2).to(s.dtype) + 0 * alpha

    def bend(self, s: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        return torch.zeros_like(s)

    def change(self, s: Tensor, by: Tensor) -> Tensor:
        """See :class:`Penalty`."""
        to = s + by
        crossing = (to.clamp(max=1) - s.clamp(max=1)) / 2
        return torch.where((s <= 1) & (to <= 1), by / 2, crossing)


PENALTIES: dict[str, Penalty] = {
    "quadratic": Quadratic(),
    "pseudo_huber": PseudoHuber(),
    "huber": Huber(),
    "welsch": Welsch(),
    "truncated_quadratic": TruncatedQuadratic(),
}


def _split(s: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Whether ``z <= alpha``, and ``s`` with those replaced by 1: no root is taken at 0."""
    inside = s <= alpha**2
    return inside, torch.where(inside, 1.0, s)
