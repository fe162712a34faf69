"""The relative KKT residual of a batch of cone programs."""

from __future__ import annotations

import torch

from ddn_cvx.conic.program import ConeData, ConeProgram


def products(
    program: ConeProgram, data: ConeData, primal: torch.Tensor, dual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``P x``, ``A x`` and ``A' y``, shapes ``(B, n)``, ``(B, m)``, ``(B, n)``."""
    device = primal.device
    Px = torch.zeros_like(primal)
    if program.is_quadratic:
        rows, columns, _ = program.P_pattern.places(device)
        Px = Px.index_add(1, rows, data.P * primal.index_select(1, columns))
    rows, columns, _ = program.A_pattern.places(device)
    Ax = torch.zeros_like(dual).index_add(1, rows, data.A * primal.index_select(1, columns))
    Aty = torch.zeros_like(primal).index_add(1, columns, data.A * dual.index_select(1, rows))
    return Px, Ax, Aty


def relative_residual(
    program: ConeProgram,
    data: ConeData,
    primal: torch.Tensor,
    dual: torch.Tensor,
) -> torch.Tensor:
    """The largest of the relative stationarity, feasibility and complementarity residuals.

    With ``s = b - A x``, each of ``|P x + q + A' y|``, the distance of ``s`` from ``K`` and of
    ``y`` from ``K*`` (infinity norms) and ``|<s, y>|`` is divided by one plus the largest of the
    terms it is made of, as SCS and Clarabel do.

    Args:
        primal, dual: ``x``, shape ``(B, n)``, and ``y``, shape ``(B, m)``.

    Returns:
        Shape ``(B,)``, float64; NaN where the point is not finite.
    """
    Px, Ax, Aty = products(program, data, primal, dual)
    slack = data.b - Ax
    stationarity = _size(Px + data.q + Aty) / (1 + _largest(Px, data.q, Aty))
    scale = 1 + torch.maximum(_largest(Ax, data.b), _size(dual))
    violation = program.cones.violation(slack, dual) / scale
    quadratic, linear = (Px * primal).sum(1), (data.q * primal).sum(1)
    constant = (data.b * dual).sum(1)
    gap = (quadratic + linear + constant).abs()
    gap = gap / (1 + torch.stack([quadratic, linear, constant]).abs().amax(0))
    return torch.stack([stationarity, violation, gap]).amax(0)


def _size(vector: torch.Tensor) -> torch.Tensor:
    if vector.shape[1] == 0:
        return vector.new_zeros(vector.shape[0])
    return vector.abs().amax(1)


def _largest(*vectors: torch.Tensor) -> torch.Tensor:
    return torch.stack([_size(vector) for vector in vectors]).amax(0)
