"""Semismooth Newton on the KKT conditions: from a solver's accuracy to rounding.

On the map ``F(u, v) = (grad_u L(u, Pi(v)), c(u) + Pi(v) - v)`` of :mod:`ddn_cvx.kkt.adjoint`, whose
Jacobian is the adjoint's matrix, so that the point at which the adjoint differentiates is as exact
as its linear system; for cone programs this is Busseti, Moursi and Boyd, "Solution refinement at
regular points of conic problems" (2019), with a quadratic objective and without the homogeneous
embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ddn_cvx.batch.elements import where
from ddn_cvx.cones.product import Cones
from ddn_cvx.kkt.system import kkt_matrix
from ddn_cvx.linalg.dense import solve_checked

# Newton's method is left alone farther out than this: |F| relative to its terms.
_FARTHEST = 1e-2


class NewtonPoint(NamedTuple):
    """A point with its derivatives and ``F``; first dimension ``B``.

    Attributes:
        u, v: shapes ``(B, n)`` and ``(B, m)``.
        projected: ``Pi(v)``, shape ``(B, m)``.
        dual: the multipliers that belong to ``u``: ``Pi(v)`` but at a solver's own point.
        jacobian, hessian: of ``c``, ``(B, m, n)``, and of the Lagrangian, ``(B, n, n)``.
        value: ``F``, shape ``(B, n + m)``.
        size: the largest entry of ``F``, relative to the terms of its rows, shape ``(B,)``.
        rest: what the caller wants to keep of the point.
    """

    u: torch.Tensor
    v: torch.Tensor
    projected: torch.Tensor
    dual: torch.Tensor
    jacobian: torch.Tensor
    hessian: torch.Tensor
    value: torch.Tensor
    size: torch.Tensor
    rest: tuple[torch.Tensor, ...] = ()


# Maps u, v and an approximation of the slack Pi(v) - v, near which a curved cone is projected onto.
Evaluate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], NewtonPoint]


def semismooth_newton(
    cones: Cones,
    start: NewtonPoint,
    evaluate: Evaluate,
    *,
    steps: int,
    target: float,
    patience: int,
    farthest: float = _FARTHEST,
) -> NewtonPoint:
    """Take Newton steps and keep each element's best point.

    A first step may go uphill: the iteration goes on from where it is.

    Args:
        steps: at most.
        target: size at which an element is done.
        patience: steps in a row without a better point of any element, after which it gives up.
        farthest: elements whose start is larger are left alone.
    """
    best = current = start
    stalled = 0
    for _ in range(steps):
        running = (best.size > target) & (best.size < farthest)
        if stalled == patience or not bool(running.any()):
            break
        current = evaluate(*_step(cones, current, running))
        # Converged elements are frozen, so that the result does not depend on the batch.
        better = running & (current.size < best.size)
        stalled = 0 if bool(better.any()) else stalled + 1
        best = where(better, current, best)
    return best


def _step(
    cones: Cones, point: NewtonPoint, running: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``u``, ``v`` and the slack, to first order, of one full step."""
    n, slack, derivative = point.u.shape[1], point.projected - point.v, None
    matrix = point.hessian
    if cones.rows:
        derivative = cones.derivative(point.projected, slack)
        matrix = kkt_matrix(matrix, point.jacobian, derivative).mT
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    broken = ~(matrix.sum((1, 2)) + point.value.sum(1)).isfinite() | ~running
    matrix = torch.where(broken[:, None, None], identity, matrix).contiguous()
    step, _ = solve_checked(matrix, torch.where(broken.unsqueeze(1), 0.0, -point.value))
    change = step[:, n:]
    if derivative is not None:
        slack = slack + derivative.times(change) - change
    return point.u + step[:, :n], point.v + change, slack
