"""Newton's method with truncated conjugate gradients, for many variables.

The quadratic model is minimised by conjugate gradients from zero, which stop at the trust region's
boundary, at a direction of negative curvature (which is followed to the boundary), or once the
model's gradient is small enough (Steihaug, "The conjugate gradient method and trust regions in
large scale optimization", 1983; Nocedal and Wright, "Numerical Optimization", 2006, algorithm 7.2,
with its forcing sequence for superlinear convergence). Only products with the Hessian are asked
for.

Conjugate gradients from a zero gradient go nowhere, so at a stationary point they are run once more
from an arbitrary right-hand side: a direction of negative curvature shows up there if there is one
(Royer, O'Neill and Wright, "A Newton-CG algorithm with complexity guarantees for smooth
unconstrained optimization", 2020, procedure 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import where
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.solvers.nonlinear.trust_region import (
    Step,
    TrustRegion,
    WorkingSet,
    norm,
    relative_stationarity,
    tolerance_of,
)


@dataclass(frozen=True)
class NewtonCG(TrustRegion):
    """Steihaug's truncated Newton method: it never forms a Hessian.

    Attributes:
        max_products: Hessian products for one step; the other settings are those of
            :class:`~ddn_cvx.solvers.nonlinear.trust_region.TrustRegion`.
    """

    max_iterations: int = 500
    max_products: int = 200

    name: ClassVar[str] = "newton cg"

    def evaluate(
        self, function: NonlinearInstance, u: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """``f`` ``(W,)`` and its gradient ``(W, n)``."""
        f, g = function.gradient(u)
        return f, g, ()

    def propose(self, function: NonlinearInstance, at: WorkingSet) -> Step:
        """Steihaug's step; at a stationary point one of negative curvature, if there is one."""
        residual = relative_stationarity(at.f, at.g)
        running = at.status < 0
        forcing = residual.sqrt().clamp(max=0.1)
        found, *_ = self._conjugate_gradients(function, at.u, at.g, at.radius, forcing, running)
        stationary = running & (residual <= tolerance_of(self.tolerance, residual.dtype))
        if not bool(stationary.any()):
            return found

        # Seeded, so that it is the same for every batch and on every run.
        seed = torch.Generator().manual_seed(0)
        right = torch.randn(at.u.shape[1], generator=seed, dtype=torch.float64).to(at.u)
        unlimited, exact = torch.full_like(at.radius, torch.inf), torch.full_like(residual, 1e-3)
        probe = self._conjugate_gradients(
            function, at.u, right.expand_as(at.u), unlimited, exact, stationary
        )
        d = probe.direction
        d = d / torch.linalg.vector_norm(d, dim=1, keepdim=True).clamp(min=1e-30)
        d = torch.where((d * at.g).sum(1, keepdim=True) > 0, -d, d) * at.radius[:, None]
        gain = -(at.g * d).sum(1) - 0.5 * probe.curvature * at.radius.square()
        # Above rounding of the largest curvature met; False where none was negative.
        flat = torch.finfo(gain.dtype).eps ** 0.5 * probe.largest
        escape = stationary & (probe.curvature < -flat) & (gain > found.predicted)
        return where(escape, Step(d, gain, escape), found)

    def _conjugate_gradients(
        self,
        function: NonlinearInstance,
        u: Tensor,
        g: Tensor,
        radius: Tensor,
        forcing: Tensor,
        running: Tensor,
    ) -> _Truncated:
        """Steihaug's method for ``min g'p + p'Hp / 2`` over ``|p| <= radius``; ``g`` is ``(W, n)``.

        It goes on for the elements that are ``running`` until the model's gradient is below
        ``forcing`` times its first norm; ``radius``, ``forcing`` and ``running`` are ``(W,)``.
        """
        unit = g.abs().amax(1)  # f is measured in it, so that squares stay in range
        unit = torch.where(unit > 0, unit, 1.0)
        g = g / unit[:, None]
        p, r, d = torch.zeros_like(g), g, -g
        square = (g * g).sum(1)
        target = forcing.square() * square
        running = running & (square > 0)
        boundary = torch.zeros_like(running)
        direction, curvature = torch.zeros_like(g), torch.zeros_like(square)
        largest = torch.zeros_like(square)
        for _ in range(min(self.max_products, 2 * g.shape[1])):
            if not bool(running.any()):
                break
            product = function.hessian_product(u, d) / unit[:, None]
            known = product.isfinite().all(1)
            # an unknown curvature counts as none: the direction is followed downhill
            product = torch.where(known[:, None], product, 0.0)
            dd, dHd = (d * d).sum(1), (d * product).sum(1)
            largest = torch.maximum(largest, (product * product).sum(1).sqrt() / dd.sqrt())
            negative = ~(dHd > 0)
            alpha = square / torch.where(negative, 1.0, dHd)
            forward = p + alpha[:, None] * d
            outside = negative | (norm(forward) >= radius)
            # the positive root of |p + tau d| = radius, without cancellation
            pd, gap = (p * d).sum(1), (radius.square() - (p * p).sum(1)).clamp(min=0.0)
            root = (pd.square() + dd * gap).sqrt()
            tau = torch.where(pd > 0, gap / (pd + root), (root - pd) / dd)
            # past the boundary, or with nothing to go on but an unlimited radius: stay
            tau = torch.where(tau.isfinite(), tau, 0.0)
            size = torch.where(running, torch.where(outside, tau, alpha), 0.0)

            here = running & negative
            direction = torch.where(here[:, None], d, direction)
            curvature = torch.where(here, dHd / dd, curvature)
            boundary = boundary | (running & outside)
            p = p + size[:, None] * d
            r = r + size[:, None] * product
            new = (r * r).sum(1)
            running = running & ~outside & (new > target)
            beta = torch.where(running, new / square, 0.0)
            d = torch.where(running[:, None], beta[:, None] * d - r, d)
            square = torch.where(running, new, square)
        predicted = -0.5 * (p * (g + r)).sum(1)
        step = Step(p, predicted * unit, boundary)
        return _Truncated(step, direction, curvature * unit, largest * unit)


class _Truncated(NamedTuple):
    """The last iterate of conjugate gradients, and the curvature met on the way."""

    step: Step
    direction: Tensor  # (W, n), of negative curvature; zero if none was met
    curvature: Tensor  # (W,), along it, for unit length; zero if none was met
    largest: Tensor  # (W,), a lower bound of the Hessian's norm
