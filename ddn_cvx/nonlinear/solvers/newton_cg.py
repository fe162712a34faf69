"""Newton's method for many variables: truncated conjugate gradients in a trust region.

Steihaug, "The conjugate gradient method and trust regions in large scale optimization" (1983); the
Hessian is only multiplied. Inner and outer iterations run for all elements at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.nonlinear.solvers.minimum import Minimum, Progress, SmoothFunction


@dataclass(frozen=True)
class NewtonCG:
    """The method's settings.

    Attributes:
        max_iterations: outer iterations; each element stops there, whatever it has.
        tolerance: of the gradient, relative to one plus the value.
        radius: the first trust region's, relative to one plus the start's length.
        max_products: Hessian-vector products in one step; None for twice the variables.
    """

    max_iterations: int = 500
    tolerance: float = 1e-10
    radius: float = 1.0
    max_products: int | None = None

    def __call__(self, function: SmoothFunction, start: torch.Tensor) -> Minimum:
        """Minimise from ``start``, shape ``(B, n)``."""
        with torch.no_grad():
            return self._run(function, start)

    def _run(self, function: SmoothFunction, start: torch.Tensor) -> Minimum:
        progress = Progress(function, start, self.tolerance)
        u = start.clone()
        radius = self.radius * (1 + u.norm(dim=1))
        value, gradient = progress.function.gradient(u)
        stalled = torch.zeros_like(progress.done)
        down = torch.zeros_like(progress.done)
        for iteration in range(self.max_iterations + 1):
            if progress.record(u, value, gradient, down, stalled, iteration):
                break
            kept = progress.compress()
            if kept is not None:
                u, radius, value = u[kept], radius[kept], value[kept]
                gradient, stalled, down = gradient[kept], stalled[kept], down[kept]
            step, predicted = self._step(progress.function, u, gradient, radius)
            moved = u + step
            new, new_gradient = progress.function.gradient(moved)
            actual = value - new
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
            stalled = ~good & (quiet | (length <= 1e-16 * (1 + u.norm(dim=1))))
            column = good.unsqueeze(1)
            u, value = torch.where(column, moved, u), torch.where(good, new, value)
            gradient = torch.where(column, new_gradient, gradient)
        return progress.found

    def _step(
        self,
        function: SmoothFunction,
        u: torch.Tensor,
        gradient: torch.Tensor,
        radius: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Steihaug's step and the decrease that the model predicts."""
        g = torch.nan_to_num(gradient)
        step, residual = torch.zeros_like(u), g.clone()
        direction = -residual
        square = (residual * residual).sum(1)
        length = square.sqrt()
        target = length * torch.minimum(torch.full_like(length, 0.5), length.sqrt())
        done = length == 0
        curved = torch.zeros_like(step)
        for _ in range(self.max_products or 2 * u.shape[1]):
            product = torch.nan_to_num(function.hessian_product(u, direction))
            curvature = (direction * product).sum(1)
            flat = curvature <= 1e-16 * (direction * direction).sum(1)
            alpha = torch.where(flat, 0.0, square / curvature)
            beyond = (step + alpha.unsqueeze(1) * direction).norm(dim=1) >= radius
            ends = flat | beyond
            # To the boundary along the direction, where it ends there.
            a = (direction * direction).sum(1).clamp_min(1e-300)
            b = (step * direction).sum(1)
            c = ((step * step).sum(1) - radius**2).clamp_max(0.0)
            to_boundary = (-b + (b * b - a * c).clamp_min(0.0).sqrt()) / a
            alpha = torch.where(done, 0.0, torch.where(ends, to_boundary, alpha)).unsqueeze(1)
            step, curved = step + alpha * direction, curved + alpha * product
            residual = residual + alpha * product
            new = (residual * residual).sum(1)
            done = done | ends | (new.sqrt() <= target)
            if bool(done.all()):
                break
            beta = torch.where(done, 0.0, new / square.clamp_min(1e-300)).unsqueeze(1)
            direction = torch.where(done.unsqueeze(1), direction, -residual + beta * direction)
            square = torch.where(done, square, new)
        predicted = -(g * step).sum(1) - 0.5 * (step * curved).sum(1)
        return step, predicted
