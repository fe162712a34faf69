"""What a cone program's :class:`~ddn_cvx.Solution` checks itself with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.conic.program import ConeData, ConeProgram
from ddn_cvx.conic.residuals import products, slack_at


@dataclass(frozen=True, eq=False)
class ConeCertificate:
    """The canonical solution; one batch dimension, see :class:`~ddn_cvx.solution.Certificate`."""

    program: ConeProgram
    data: ConeData
    primal: torch.Tensor
    dual: torch.Tensor

    def variables(self) -> list[torch.Tensor]:
        """Values of ``problem.variables()``, each ``(B, *shape)``."""
        recoveries = self.program.primal_recoveries
        return [recovery(self.primal, self.dual) for recovery in recoveries]

    def stationarity(self) -> torch.Tensor:
        """``|P x + q + A' y|``, shape ``(B,)``."""
        Px, _, Aty = products(self.program, self.data, self.primal, self.dual)
        return (Px + self.data.q + Aty).abs().amax(1)

    def complementarity(self) -> torch.Tensor:
        """``|<b - A x, y>|``, shape ``(B,)``."""
        return (slack_at(self.program, self.data, self.primal) * self.dual).sum(1).abs()

    def objective(self) -> torch.Tensor:
        """``x' P x / 2 + q' x``, without the problem's constant, shape ``(B,)``."""
        Px, _, _ = products(self.program, self.data, self.primal, self.dual)
        return ((0.5 * Px + self.data.q) * self.primal).sum(1)

    def violation(self) -> torch.Tensor:
        """Distance of ``b - A x`` from ``K``, shape ``(B,)``."""
        slack = slack_at(self.program, self.data, self.primal)
        return self.program.cones.violation(slack, torch.zeros_like(slack))
