"""The Levenberg-Marquardt method for sums of squares, for a whole batch at once.

``(J' J + lambda I) p = -J' r`` with Nielsen's update of ``lambda`` ("Damping parameter in Marquardt's
method", 1999). Where the residuals stay large at the solution this converges slowly; elements that
have not converged when the gain of a step is small are finished by
:class:`~ddn_cvx.nonlinear.solvers.newton.TrustRegionNewton`, whose Hessian is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.nonlinear.solvers.minimum import Minimum, Progress, SumOfSquares
from ddn_cvx.nonlinear.solvers.newton import TrustRegionNewton
from ddn_cvx.status import Status


@dataclass(frozen=True)
class LevenbergMarquardt:
    """The method's settings.

    Attributes:
        max_iterations: each element stops there, whatever it has.
        tolerance: of the gradient of ``|r|^2``, relative to one plus the value.
        damping: the first ``lambda``, relative to the largest diagonal entry of ``J' J``.
    """

    max_iterations: int = 300
    tolerance: float = 1e-10
    damping: float = 1e-3

    def __call__(self, function: SumOfSquares, start: torch.Tensor) -> Minimum:
        """Minimise ``|r|^2`` from ``start``, shape ``(B, n)``."""
        with torch.no_grad():
            found = self._run(function, start)
            rest = (found.status == Status.INACCURATE).nonzero().squeeze(1)
            if len(rest):
                finish = TrustRegionNewton(self.max_iterations, self.tolerance)
                ended = finish(function.select(rest), found.point[rest])
                found.point[rest], found.value[rest] = ended.point, ended.value
                found.gradient[rest], found.residual[rest] = ended.gradient, ended.residual
                found.status[rest] = ended.status
                found.iterations[rest] += ended.iterations
            return found

    def _run(self, function: SumOfSquares, start: torch.Tensor) -> Minimum:
        progress = Progress(function, start, self.tolerance)
        u = start.clone()
        r, jacobian = function.residual_jacobian(u)
        value, normal, gradient = self._model(r, jacobian)
        damping = self.damping * torch.diagonal(normal, dim1=1, dim2=2).amax(1).clamp_min(1e-300)
        growth = torch.full_like(damping, 2.0)
        slow = torch.zeros_like(progress.element)
        never = torch.zeros_like(progress.done)
        identity = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        for iteration in range(self.max_iterations + 1):
            if progress.record(u, value, gradient, never, slow >= 3, iteration):
                break
            kept = progress.compress()
            if kept is not None:
                u, value, gradient, normal = u[kept], value[kept], gradient[kept], normal[kept]
                damping, growth, slow = damping[kept], growth[kept], slow[kept]
                never = never[kept]
            matrix = torch.nan_to_num(normal) + damping[:, None, None] * identity
            factor, info = torch.linalg.cholesky_ex(matrix)
            right = -0.5 * torch.nan_to_num(gradient)
            step = torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
            step = torch.where((info == 0).unsqueeze(1), step, 0.0)
            moved = u + step
            working: SumOfSquares = progress.function  # type: ignore[assignment]
            r, jacobian = working.residual_jacobian(moved)
            new, new_normal, new_gradient = self._model(r, jacobian)
            predicted = (step * (damping.unsqueeze(1) * step + right)).sum(1)
            gain = (value - new) / predicted.clamp_min(1e-300)
            finite = new.isfinite() & new_gradient.isfinite().all(1)
            good = (gain > 0) & finite & (info == 0) & ~progress.done
            before, after = gradient.abs().amax(1), new_gradient.abs().amax(1)
            slow = torch.where(good & (after < 0.5 * before), 0, slow + 1)
            shrink = torch.maximum(1 - (2 * gain - 1) ** 3, torch.full_like(gain, 1 / 3))
            damping = torch.where(good, damping * shrink, damping * growth)
            growth = torch.where(good, 2.0, growth * 2)
            # Far from the solution a gradient may grow for a while: slow is what stops falling too.
            falls = good & (value - new > 1e-2 * value.abs())
            slow = torch.where(falls, 0, slow)
            slow = torch.where(~good & (damping < 1e12), torch.minimum(slow, slow * 0 + 2), slow)
            column = good.unsqueeze(1)
            u = torch.where(column, moved, u)
            value = torch.where(good, new, value)
            gradient = torch.where(column, new_gradient, gradient)
            normal = torch.where(good[:, None, None], new_normal, normal)
        return progress.found

    @staticmethod
    def _model(
        r: torch.Tensor, jacobian: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``|r|^2``, ``J' J`` and the gradient ``2 J' r``."""
        gradient = 2 * (jacobian.mT @ r.unsqueeze(2)).squeeze(2)
        return (r * r).sum(1), jacobian.mT @ jacobian, gradient
