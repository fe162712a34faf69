"""The last digits of a nonlinear program's solution, from a solver's point."""

from __future__ import annotations

import torch

from ddn_cvx.kkt.residuals import kkt_residual, largest
from ddn_cvx.kkt.semismooth import NewtonPoint, semismooth_newton
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance

# |F|, relative to its terms, that is rounding.
_ROUNDING = 1e-14


def polish(
    instance: NonlinearInstance,
    u: torch.Tensor,
    dual: torch.Tensor,
    steps: int,
    known: tuple[torch.Tensor, ...] | None = None,
) -> tuple[NewtonPoint, torch.Tensor]:
    """Take up to ``steps`` Newton steps; never returns a worse point.

    Args:
        u, dual: shapes ``(B, n)`` and ``(B, m)``; the multipliers are in ``K*``.
        steps: at most; an element that stops improving is left alone.
        known: ``NonlinearInstance.second`` at ``u`` and ``dual``, if it is known already.

    Returns:
        The point, of which ``rest`` is objective, its gradient and ``c``, and its relative KKT
        residual, shape ``(B,)``.
    """
    cones = instance.program.cones

    def at(u: torch.Tensor, dual: torch.Tensor, known: tuple[torch.Tensor, ...]) -> NewtonPoint:
        f, gradient, c, jacobian, hessian = known
        # Where the pair is not complementary the derivative belongs to v = y + c.
        v = dual + c
        projected = cones.project_dual(v, -c) if cones.rows else v
        stationarity = gradient + (jacobian.mT @ dual.unsqueeze(2)).squeeze(2)
        mismatch = projected - dual
        pulled = (jacobian.mT @ mismatch.unsqueeze(2)).squeeze(2)
        value = torch.cat([stationarity + pulled, mismatch], 1)
        size = largest(stationarity) / (1 + largest(gradient))
        if cones.rows:
            # The mismatch mixes units of multipliers and constraints: relative to both.
            terms = 1 + torch.maximum(largest(dual), largest(c))
            size = torch.maximum(size, largest(mismatch) / terms)
        size = torch.nan_to_num(size, nan=torch.inf)
        rest = (f, gradient, c)
        return NewtonPoint(u, v, projected, dual, jacobian, hessian, value, size, rest)

    def evaluate(u: torch.Tensor, v: torch.Tensor, slack: torch.Tensor) -> NewtonPoint:
        dual = cones.project_dual(v, slack) if cones.rows else v
        return at(u, dual, instance.second(u, dual))

    start = at(u, dual, instance.second(u, dual) if known is None else known)
    best = semismooth_newton(cones, start, evaluate, steps=steps, target=_ROUNDING, patience=1)
    _, gradient, c = best.rest
    return best, kkt_residual(cones, best.u, best.dual, gradient, c, best.jacobian)
