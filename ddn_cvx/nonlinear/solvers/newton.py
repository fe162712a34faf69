"""Newton's method with an exact trust region, for a whole batch at once.

The step minimises the quadratic model in a ball (Moré and Sorensen, "Computing a trust region step",
1983): in the eigenbasis of the Hessian, ``p_i = -g_i / (h_i + lambda)`` with the smallest ``lambda >=
max(0, -h_1)`` for which ``|p|`` is the radius, found by Newton's method on ``1/|p| - 1/radius``. At an
indefinite Hessian this goes down along negative curvature; in the hard case, and at a saddle, where
the gradient has no part in that direction, the eigenvector is added to reach the boundary. Radius
update and acceptance as in Conn, Gould and Toint, "Trust-region methods" (2000), algorithm 6.1.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.nonlinear.solvers.minimum import Minimum, Progress, SmoothFunction

# Curvature below this, relative to the Hessian's size, counts as negative.
_NEGATIVE = 1e-9
_SECULAR_STEPS = 40


@dataclass(frozen=True)
class TrustRegionNewton:
    """The method's settings.

    Attributes:
        max_iterations: each element stops there, whatever it has.
        tolerance: of the gradient, relative to one plus the value.
        radius: the first trust region's, relative to one plus the start's length.
    """

    max_iterations: int = 300
    tolerance: float = 1e-10
    radius: float = 1.0

    def __call__(self, function: SmoothFunction, start: torch.Tensor) -> Minimum:
        """Minimise from ``start``, shape ``(B, n)``."""
        with torch.no_grad():
            return self._run(function, start)

    def _run(self, function: SmoothFunction, start: torch.Tensor) -> Minimum:
        progress = Progress(function, start, self.tolerance)
        u = start.clone()
        radius = self.radius * (1 + u.norm(dim=1))
        value, gradient, hessian = progress.function.hessian(u)
        stalled = torch.zeros_like(progress.done)
        for iteration in range(self.max_iterations + 1):
            values, vectors = torch.linalg.eigh(torch.nan_to_num(hessian, posinf=0.0, neginf=0.0))
            size = values.abs().amax(1)
            down = values[:, 0] < -_NEGATIVE * size.clamp_min(1e-300)
            if progress.record(u, value, gradient, down, stalled, iteration):
                break
            kept = progress.compress()
            if kept is not None:
                u, radius, value = u[kept], radius[kept], value[kept]
                gradient, values, vectors = gradient[kept], values[kept], vectors[kept]
                hessian, stalled = hessian[kept], stalled[kept]
            step, predicted = trust_region_step(values, vectors, gradient, radius)
            moved = u + step
            new, new_gradient, new_hessian = progress.function.hessian(moved)
            actual = value - new
            # Below rounding of f the ratio says nothing; then the gradient decides.
            noise = 10 * torch.finfo(u.dtype).eps * (1 + value.abs())
            quiet = (predicted.abs() <= noise) & (actual.abs() <= noise)
            smaller = new_gradient.abs().amax(1) < gradient.abs().amax(1)
            ratio = actual / predicted.clamp_min(1e-300)
            finite = new.isfinite() & new_gradient.isfinite().all(1)
            good = torch.where(quiet, smaller, ratio > 1e-4) & finite & ~progress.done
            length = step.norm(dim=1)
            poor = ~good | ((ratio < 0.25) & ~quiet)
            wide = (ratio > 0.75) & (length > 0.8 * radius) & ~quiet
            radius = torch.where(poor, 0.25 * length, torch.where(wide, 2.5 * radius, radius))
            tiny = length <= 1e-16 * (1 + u.norm(dim=1))
            stalled = ~good & (tiny | quiet)
            column = good.unsqueeze(1)
            u = torch.where(column, moved, u)
            value, gradient = (
                torch.where(good, new, value),
                torch.where(column, new_gradient, gradient),
            )
            hessian = torch.where(good[:, None, None], new_hessian, hessian)
        return progress.found


def trust_region_step(
    values: torch.Tensor, vectors: torch.Tensor, gradient: torch.Tensor, radius: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's minimiser in the ball, and by how much the model falls there.

    Args:
        values, vectors: eigenvalues in increasing order, ``(B, n)``, and eigenvectors.
        gradient: shape ``(B, n)``.
        radius: shape ``(B,)``.

    Returns:
        The step, shape ``(B, n)``, and the predicted decrease, shape ``(B,)``.
    """
    g = (vectors.mT @ torch.nan_to_num(gradient).unsqueeze(2)).squeeze(2)  # in the eigenbasis
    size = values.abs().amax(1, keepdim=True).clamp_min(1e-300)
    least = values[:, :1]
    target = radius.unsqueeze(1)
    floor = (-least).clamp_min(0.0)
    tiny = 1e-14 * size

    def length(shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        curvature = (values + shift).clamp_min(tiny)
        p = g / curvature
        return p.norm(dim=1, keepdim=True), (p * p / curvature).sum(1, keepdim=True)

    newton, _ = length(torch.zeros_like(floor))
    inside = (least > tiny) & (newton <= target)
    # Bounds of the multiplier: |p| <= |g| / (least + shift).
    low = floor
    high = torch.maximum(g.norm(dim=1, keepdim=True) / target - least, floor + tiny)
    shift = torch.maximum(low + tiny, high * 1e-3).minimum(high)
    for _ in range(_SECULAR_STEPS):
        norm, slope = length(shift)
        low = torch.where(norm > target, torch.maximum(low, shift), low)
        high = torch.where(norm <= target, torch.minimum(high, shift), high)
        change = (norm / target - 1) * norm * norm / slope.clamp_min(1e-300)
        guess = shift + change
        safe = (guess > low) & (guess < high)
        shift = torch.where(safe, guess, 0.5 * (low + high))
        if bool(((norm / target - 1).abs() < 1e-10).logical_or(inside).all()):
            break
    shift = torch.where(inside, torch.zeros_like(shift), shift)
    curvature = (values + shift).clamp_min(tiny)
    p = -g / curvature
    # The hard case: no multiplier reaches the boundary, the eigenvector does.
    short = (target**2 - (p * p).sum(1, keepdim=True)).clamp_min(0.0).sqrt()
    hard = ~inside & (p.norm(dim=1, keepdim=True) < 0.99 * target) & (least <= tiny)
    sign = torch.where(p[:, :1] < 0, -1.0, 1.0)
    p = torch.cat([p[:, :1] + torch.where(hard, sign * short, 0.0), p[:, 1:]], 1)
    too_long = target / p.norm(dim=1, keepdim=True).clamp_min(1e-300)
    p = p * torch.where(inside, 1.0, too_long.clamp_max(1.0))
    predicted = -(g * p + 0.5 * values * p * p).sum(1)
    return (vectors @ p.unsqueeze(2)).squeeze(2), predicted
