"""What a cone program's :class:`~ddn_cvx.Solution` checks itself with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ddn_cvx.kkt.residuals import largest, products, slack_at
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.recovery import Recovery
from ddn_cvx.solution import InfeasibilityCertificate, Multipliers
from ddn_cvx.status import Status


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

    def refutation(self, status: torch.Tensor) -> InfeasibilityCertificate:
        """What the claims of infeasibility and unboundedness stand on, normalised.

        The point of an element without a solution is the solver's proof, of any size.

        Args:
            status: of each element, shape ``(B,)``.
        """
        program, data = self.program, self.data
        rate, falls = -(data.b * self.dual).sum(1), -(data.q * self.primal).sum(1)
        refuted = (status == Status.INFEASIBLE) & (rate > 0)
        descends = (status == Status.UNBOUNDED) & (falls > 0)
        y, d = _over(self.dual, rate, refuted), _over(self.primal, falls, descends)
        Pd, Ad, Aty = products(program, data, d, y)
        none = torch.zeros_like(y)
        residual = torch.where(status == Status.INFEASIBLE, torch.inf, torch.nan)
        residual = torch.where(status == Status.UNBOUNDED, torch.inf, residual)
        of_y = torch.maximum(largest(Aty), program.cones.violation(none, y.nan_to_num()))
        of_d = torch.maximum(largest(Pd), program.cones.violation(-Ad.nan_to_num(), none))
        residual = torch.where(refuted, of_y, torch.where(descends, of_d, residual))

        def multipliers(group: tuple[Recovery, ...] | None) -> Multipliers:
            if group is None:
                return None
            values = tuple(recovery(d, y) for recovery in group)
            return values[0] if len(values) == 1 else values

        return InfeasibilityCertificate(
            dual=tuple(multipliers(group) for group in program.dual_recoveries),
            direction=tuple(
                replace(recovery, exponential=False)(d, y) for recovery in program.primal_recoveries
            ),
            residual=residual.double(),
        )


def _over(vector: torch.Tensor, divisor: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The vectors of the chosen elements, divided; NaN for the others."""
    divided = vector / torch.where(chosen, divisor, 1.0).unsqueeze(1)
    return torch.where(chosen.unsqueeze(1), divided, torch.nan)
