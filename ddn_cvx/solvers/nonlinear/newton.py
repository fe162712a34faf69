"""Newton's method with an exact trust region.

The step minimises the quadratic model ``g'p + p'Hp / 2`` over the ball ``|p| <= radius`` globally,
also where ``H`` is indefinite: it is the only one with

    (H + sigma I) p = -g,   H + sigma I positive semidefinite,   sigma >= 0,
    sigma (radius - |p|) = 0

(Moré and Sorensen, "Computing a trust region step", 1983; Conn, Gould and Toint, "Trust-Region
Methods", 2000, section 7.3). With ``H = V diag(lam) V'`` and ``c = V'g`` the unknown ``sigma`` is
the root of a scalar function, found for all elements at once by Newton's method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.solvers.nonlinear.trust_region import Step, TrustRegion, WorkingSet, norm

_SECULAR_ITERATIONS, _CHECK_EVERY = 48, 4
_SECULAR_TOLERANCE = 1e-6
# A gradient's component along a flat direction is rounding below this many units.
_FLAT = 10.0


@dataclass(frozen=True)
class TrustRegionNewton(TrustRegion):
    """Exact trust-region Newton: one Hessian and one eigendecomposition for every trial point.

    It leaves saddle points wherever the curvature is negative, and converges quadratically where
    the Hessian is positive definite. The settings are those of
    :class:`~ddn_cvx.solvers.nonlinear.trust_region.TrustRegion`.
    """

    name: ClassVar[str] = "newton"

    def evaluate(
        self, function: NonlinearInstance, u: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """``f`` ``(W,)``, gradient ``(W, n)``, and the Hessian ``(W, n, n)``."""
        f, g, hessian = function.hessian(u)
        return f, g, (0.5 * (hessian + hessian.mT),)

    def propose(self, function: NonlinearInstance, at: WorkingSet) -> Step:
        """The global minimum of the quadratic model within the radius."""
        lam, vectors = torch.linalg.eigh(at.local[0])  # (W, n), (W, n, n)
        c = (vectors * at.g[:, :, None]).sum(1)
        eps = torch.finfo(lam.dtype).eps
        size = lam.abs().amax(1, keepdim=True)
        lam = torch.where(lam.abs() <= lam.shape[1] * eps * size, 0.0, lam)
        # what rounding leaves of a gradient H u + q that vanishes
        scale = at.g.abs() + (at.local[0] * at.u[:, None, :]).abs().sum(2)  # (W, n)
        noise = _FLAT * eps * norm(scale)[:, None]
        c = torch.where((lam == 0) & (c.abs() <= noise), 0.0, c)
        found = ball_minimum(lam, c, at.radius)
        return found._replace(p=(vectors * found.p[:, None, :]).sum(2))


def ball_minimum(lam: Tensor, c: Tensor, radius: Tensor) -> Step:
    """Minimise ``c'p + p' diag(lam) p / 2`` over ``|p| <= radius``, globally.

    Arguments:
        lam: shape ``(W, n)``, of any sign.
        c: shape ``(W, n)``.
        radius: shape ``(W,)``, positive.

    With ``shift = max(0, -min lam)``, ``d = lam + shift`` and ``sigma = shift + t`` the minimum is
    ``p(t) = -c / (d + t)``, where ``t >= 0`` is the root of ``1/|p(t)| = 1/radius``. The left side
    is increasing and concave, so that Newton's method converges monotonically from the left.
    Working with ``t`` rather than ``sigma``, nothing cancels when ``c`` is tiny along the lowest
    curvature. The hard case is ``|p(0)| < radius`` with ``shift > 0``: there ``sigma = shift``, and
    a multiple of the lowest direction is added (Moré and Sorensen, section 3).
    """
    tiny = torch.finfo(lam.dtype).tiny
    lowest, first = lam.min(1, keepdim=True)  # (W, 1)
    shift = (-lowest).clamp(min=0.0)
    d = lam + shift
    zero = c == 0
    r = radius[:, None]

    def path(t: Tensor) -> tuple[Tensor, Tensor]:
        """``p(t)`` and ``d + t``."""
        below = (d + t).clamp(min=tiny)
        return torch.where(zero, 0.0, -c / below), below

    size = torch.linalg.vector_norm(c, dim=1, keepdim=True)
    lower = (c.abs() / r - d).amax(1, keepdim=True).clamp(min=0.0)
    upper = torch.maximum(size / r - (lowest + shift), lower)
    p, _ = path(torch.zeros_like(lower))
    outside = ~(torch.linalg.vector_norm(p, dim=1, keepdim=True) <= r)  # (W, 1)
    t = torch.where(outside, lower, 0.0)
    tolerance = max(_SECULAR_TOLERANCE, 100 * torch.finfo(lam.dtype).eps)
    searching = outside
    for iteration in range(_SECULAR_ITERATIONS):
        if iteration % _CHECK_EVERY == 0 and not bool(searching.any()):
            break
        p, below = path(t)
        length = torch.linalg.vector_norm(p, dim=1, keepdim=True)
        searching = searching & ~((length - r).abs() <= tolerance * r)
        slope = (p * p / below).sum(1, keepdim=True)
        better = t + (length / r - 1) * (length * length / slope)
        better = torch.where(better.isfinite(), better, 0.5 * (lower + upper))
        t = torch.where(searching, better.clamp(lower, upper), t)

    p, _ = path(t)
    length = torch.linalg.vector_norm(p, dim=1, keepdim=True)
    p = torch.where(length > r, p * (r / length), p)
    hard = ~outside & (shift > 0)
    rest = ((r - length) * (r + length)).clamp(min=0.0).sqrt()
    p = torch.where(hard, p.scatter_add(1, first, rest), p)
    sigma = shift + t
    # -(c'p + p' diag(lam) p / 2) with diag(lam) p = -c - sigma p: a sum of nonnegative terms
    predicted = 0.5 * ((-c * p).sum(1) + (sigma * p * p).sum(1))
    return Step(p, predicted, (outside | hard)[:, 0])
