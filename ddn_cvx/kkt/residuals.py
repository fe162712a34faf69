"""How far a point is from satisfying the KKT conditions, relative to the terms of each.

Of any instance from its derivatives (:func:`kkt_residual`), and of a cone program from its
products.
"""

from __future__ import annotations

import torch

from ddn_cvx.batch.columns import added, picked
from ddn_cvx.cones.product import Cones
from ddn_cvx.programs.cone.instance import products
from ddn_cvx.programs.cone.program import ConeData, ConeProgram


def kkt_residual(
    cones: Cones,
    u: torch.Tensor,
    dual: torch.Tensor,
    gradient: torch.Tensor,
    constraint: torch.Tensor,
    jacobian: torch.Tensor,
) -> torch.Tensor:
    """The largest residual at ``u`` with multipliers ``dual``; infinite if not finite, ``(B,)``.

    Of ``|grad_u L|`` over one plus the largest of the gradients it is made of; of the distances of
    the slack from ``K`` and of the multipliers from ``K*``, each relative to its own size; and of
    ``|<s, y>|`` of each row or cone, over one plus the largest of its parts.

    Args:
        gradient: of ``f``, shape ``(B, n)``.
        constraint: ``c``, shape ``(B, m)``.
        jacobian: of ``c``, shape ``(B, m, n)``.
    """
    pulled = (jacobian.mT @ dual.unsqueeze(2)).squeeze(2)
    scale = 1 + torch.maximum(largest(gradient), largest(pulled))
    parts = [largest(gradient + pulled) / scale]
    if cones.rows:
        # A row's own size: what its terms add up to if it were linear.
        terms = (jacobian.abs() @ u.abs().unsqueeze(2)).squeeze(2)
        size = 1 + torch.maximum(largest(terms), largest(constraint))
        zero = torch.zeros_like(dual)
        parts.append(cones.violation(-constraint, zero) / size)
        parts.append(cones.violation(zero, dual) / (1 + largest(dual)))
        products = (constraint * dual).abs()
        products = products / (1 + torch.maximum(constraint.abs(), dual.abs()))
        parts.append(largest(products[:, cones.zero : cones.linear]))
    for group in cones.groups:
        index = group.index_on(u.device)
        part, other = constraint[:, index], dual[:, index]
        gap = (part * other).sum(-1).abs()
        parts.append((gap / (1 + torch.maximum(part.norm(dim=-1), other.norm(dim=-1)))).amax(1))
    return torch.stack(parts).amax(0).nan_to_num(torch.inf, torch.inf)


def relative_residual(
    program: ConeProgram,
    data: ConeData,
    primal: torch.Tensor,
    dual: torch.Tensor,
    known: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The largest of the relative stationarity, feasibility and complementarity residuals.

    With ``s = b - A x``, each of ``|P x + q + A' y|``, the distance of ``s`` from ``K`` and of
    ``y`` from ``K*`` (infinity norms) and ``|<s, y>|`` is divided by one plus the largest of the
    terms it is made of, as SCS and Clarabel do.

    Args:
        primal, dual: ``x``, shape ``(B, n)``, and ``y``, shape ``(B, m)``.
        known: their :func:`products`, where these are at hand.

    Returns:
        Shape ``(B,)``, float64; NaN where the point is not finite.
    """
    Px, Ax, Aty = products(program, data, primal, dual) if known is None else known
    slack = data.b - Ax
    stationarity = largest(Px + data.q + Aty) / (1 + largest(torch.cat([Px, data.q, Aty], 1)))
    scale = 1 + torch.maximum(largest(torch.cat([Ax, data.b], 1)), largest(dual))
    violation = program.cones.violation(slack, dual) / scale
    quadratic, linear = (Px * primal).sum(1), (data.q * primal).sum(1)
    constant = (data.b * dual).sum(1)
    gap = (quadratic + linear + constant).abs()
    gap = gap / (1 + torch.stack([quadratic, linear, constant]).abs().amax(0))
    return torch.stack([stationarity, violation, gap]).amax(0)


def strict_residual(
    program: ConeProgram, data: ConeData, primal: torch.Tensor, dual: torch.Tensor
) -> torch.Tensor:
    """As :func:`relative_residual`, but row by row, and cone by cone where a cone has several rows.

    Next to data of 1e8, :func:`relative_residual` does not see that a row of size one is violated;
    this one does. Each entry is divided by one plus the sum of its own terms' sizes.

    Returns:
        Shape ``(B,)``, float64.
    """
    Px, Ax, Aty = products(program, data, primal, dual)
    columns, rows = magnitudes(program, data, primal, dual)
    slack, multiplier = (data.b - Ax) / rows, dual / _by_cone(program, 1 + dual.abs())
    overlap = slack * multiplier
    gaps = [overlap[:, : program.cones.linear]]
    gaps += [overlap[:, group.index_on(dual.device)].sum(-1) for group in program.cones.groups]
    stationarity = (Px + data.q + Aty) / columns
    violation = program.cones.violation(slack, multiplier)
    return torch.stack([largest(stationarity), violation, largest(torch.cat(gaps, 1))]).amax(0)


def row_violation(program: ConeProgram, data: ConeData, primal: torch.Tensor) -> torch.Tensor:
    """How far ``b - A x`` is from ``K``, each row (of a curved cone, all of its) in its own units.

    The other residuals add one to the sizes of a row's terms, and do not see rows of data far below
    one; here ``|A| 1`` is added, so that a row may be multiplied by anything.

    Returns:
        Shape ``(B,)``.
    """
    rows, columns, _ = program.A_pattern.places(primal.device)
    x = picked(primal, columns)
    sizes = _by_cone(program, added(data.b.abs(), rows, data.A.abs() * (1 + x.abs())))
    slack = added(data.b, rows, -data.A * x) / torch.where(sizes > 0, sizes, 1.0)
    return program.cones.violation(slack, torch.zeros_like(slack))


def magnitudes(
    program: ConeProgram, data: ConeData, primal: torch.Tensor, dual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One plus the sizes of the terms of ``P x + q + A' y`` and of ``b - A x``, ``(B, n), (B, m)``.

    The rows of a cone have the largest of its rows' magnitudes.
    """
    sizes = ConeData(data.P.abs(), data.q.abs(), data.A.abs(), data.b.abs())
    Px, Ax, Aty = products(program, sizes, primal.abs(), dual.abs())
    return 1 + Px + sizes.q + Aty, _by_cone(program, 1 + Ax + sizes.b)


def _by_cone(program: ConeProgram, sizes: torch.Tensor) -> torch.Tensor:
    result = sizes.clone()
    for group in program.cones.groups:
        index = group.index_on(sizes.device)
        result[:, index] = sizes[:, index].amax(-1, keepdim=True).expand(-1, -1, index.shape[1])
    return result


def largest(vector: torch.Tensor) -> torch.Tensor:
    """Largest absolute entry of each element, shape ``(B,)``; zero without entries."""
    if vector.shape[1] == 0:
        return vector.new_zeros(vector.shape[0])
    return vector.abs().amax(1)
