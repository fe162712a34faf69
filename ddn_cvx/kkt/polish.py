"""The last digits: semismooth Newton on the KKT conditions, from a solver's point.

The map and its Jacobian are the adjoint's (:mod:`ddn_cvx.kkt.adjoint`), so that the point
the adjoint differentiates at is as exact as its linear system. Only steps that lower the residual
are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.kkt.residuals import Residuals, residuals
from ddn_cvx.kkt.system import kkt_matrix
from ddn_cvx.linalg.dense import solve_checked
from ddn_cvx.programs.nonlinear.at_inputs import BoundProgram


class Polished(NamedTuple):
    """A point with everything known about it; shapes as in ``BoundProgram.second``."""

    u: torch.Tensor
    dual: torch.Tensor
    objective: torch.Tensor
    constraint: torch.Tensor
    jacobian: torch.Tensor
    hessian: torch.Tensor
    residual: torch.Tensor
    defect: torch.Tensor  # |F|, relative
    value: torch.Tensor  # F, (B, n + m)


def evaluate(
    program: BoundProgram,
    u: torch.Tensor,
    dual: torch.Tensor,
    known: tuple[torch.Tensor, ...] | None = None,
) -> Polished:
    """Everything at a point whose multipliers are in ``K*``; ``known`` derivatives are taken."""
    cones = program.program.cones
    f, gradient, c, jacobian, hessian = program.second(u, dual) if known is None else known
    parts: Residuals = residuals(cones, u, dual, gradient, c, jacobian)
    stationarity = gradient + (jacobian.mT @ dual.unsqueeze(2)).squeeze(2)
    # F's second part is Pi(v) - v - s with v = y - s: zero where y = Pi(y - s).
    mismatch = dual.new_zeros(dual.shape)
    if cones.rows:
        mismatch = cones.project_dual(dual + c, (-c)) - dual
    residual = torch.nan_to_num(parts.largest, nan=torch.inf)
    scale = 1 + gradient.abs().amax(1)
    defect = stationarity.abs().amax(1) / scale
    if cones.rows:
        # The mismatch mixes units of multipliers and constraints: relative to both.
        size = 1 + torch.maximum(dual.abs().amax(1), c.abs().amax(1))
        defect = torch.maximum(defect, mismatch.abs().amax(1) / size)
    defect = torch.nan_to_num(defect, nan=torch.inf)
    value = torch.cat([stationarity, mismatch], 1)
    return Polished(u, dual, f, c, jacobian, hessian, residual, defect, value)


def polish(
    program: BoundProgram,
    u: torch.Tensor,
    dual: torch.Tensor,
    steps: int,
    known: tuple[torch.Tensor, ...] | None = None,
) -> Polished:
    """Take up to ``steps`` Newton steps; never returns a worse point.

    Args:
        u, dual: shapes ``(B, n)`` and ``(B, m)``.
        steps: at most; an element that stops improving is left alone.
        known: the derivatives at ``u`` and ``dual``, where they are known already.
    """
    cones = program.program.cones
    n = u.shape[1]
    best = evaluate(program, u, dual, known)
    current = best
    for _ in range(steps):
        improvable = (best.defect > 1e-14) & (best.defect < 1e-2)
        if not bool(improvable.any()):
            break
        # Where the pair is not complementary the derivative belongs to v = y + c.
        v = current.dual + current.constraint
        projected = cones.project_dual(v, -current.constraint) if cones.rows else v
        matrix = current.hessian
        if cones.rows:
            derivative = cones.derivative(projected, projected - v)
            matrix = kkt_matrix(current.hessian, current.jacobian, derivative).mT
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        broken = ~(matrix.sum((1, 2)) + current.value.sum(1)).isfinite() | ~improvable
        matrix = torch.where(broken[:, None, None], identity, matrix).contiguous()
        # F at (u, v): stationarity with y = Pi(v), and c + Pi(v) - v.
        pulled = current.jacobian.mT @ (projected - current.dual).unsqueeze(2)
        right = torch.cat(
            [
                current.value[:, :n] + pulled.squeeze(2),
                current.constraint + projected - v,
            ],
            1,
        )
        right = torch.where(broken.unsqueeze(1), 0.0, right)
        step, _ = solve_checked(matrix, -right)
        u_new = current.u + step[:, :n]
        dual_new = current.dual
        if cones.rows:
            moved = v + step[:, n:]
            dual_new = cones.project_dual(moved, projected - v)
        current = evaluate(program, u_new, dual_new)
        better = improvable & (current.defect < best.defect)
        best = _choose(better, current, best)
        if not bool(better.any()):
            break
        current = best
    return best


def _choose(better: torch.Tensor, new: Polished, old: Polished) -> Polished:
    def pick(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return Polished(*(pick(a, b) for a, b in zip(new, old, strict=True)))
