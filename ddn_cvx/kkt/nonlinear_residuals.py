"""The relative KKT residual of a nonlinear program."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.cones.product import Cones


@dataclass(frozen=True, eq=False)
class Residuals:
    """How far a point is from satisfying the KKT conditions; each of shape ``(B,)``.

    Attributes:
        stationarity: ``|grad_u L|`` over one plus the largest of the gradients it is made of.
        feasibility: distance of the slack from ``K`` and of the multipliers from ``K*``, each
            relative to its own size.
        complementarity: ``|<s, y>|`` of the worst row or cone, over one plus the largest of its
            parts.
    """

    stationarity: torch.Tensor
    feasibility: torch.Tensor
    complementarity: torch.Tensor

    @property
    def largest(self) -> torch.Tensor:
        """The largest of the three; NaN where the point is not finite."""
        return torch.stack([self.stationarity, self.feasibility, self.complementarity]).amax(0)


def residuals(
    cones: Cones,
    u: torch.Tensor,
    dual: torch.Tensor,
    gradient: torch.Tensor,
    constraint: torch.Tensor,
    jacobian: torch.Tensor,
) -> Residuals:
    """Residuals at ``u`` with multipliers ``dual``.

    Args:
        gradient: of ``f``, shape ``(B, n)``.
        constraint: ``c``, shape ``(B, m)``.
        jacobian: of ``c``, shape ``(B, m, n)``.
    """
    pulled = (jacobian.mT @ dual.unsqueeze(2)).squeeze(2)
    scale = 1 + torch.maximum(_size(gradient), _size(pulled))
    stationarity = _size(gradient + pulled) / scale
    if not cones.rows:
        return Residuals(stationarity, *(torch.zeros_like(stationarity),) * 2)
    # A row's own size: what its terms add up to if it were linear.
    terms = (jacobian.abs() @ u.abs().unsqueeze(2)).squeeze(2)
    size = 1 + torch.maximum(_size(terms), _size(constraint))
    zero = torch.zeros_like(dual)
    primal = cones.violation(-constraint, zero) / size
    multiplier = cones.violation(zero, dual) / (1 + _size(dual))
    products = (constraint * dual).abs()
    products = products / (1 + torch.maximum(constraint.abs(), dual.abs()))
    complementarity = _size(products[:, cones.zero : cones.linear])
    for group in cones.groups:
        index = group.index_on(u.device)
        part, other = constraint[:, index], dual[:, index]
        gap = (part * other).sum(-1).abs()
        gap = gap / (1 + torch.maximum(part.norm(dim=-1), other.norm(dim=-1)))
        complementarity = torch.maximum(complementarity, gap.amax(1))
    return Residuals(stationarity, torch.maximum(primal, multiplier), complementarity)


def _size(vector: torch.Tensor) -> torch.Tensor:
    if vector.shape[1] == 0:
        return vector.new_zeros(len(vector))
    return vector.abs().amax(1)
