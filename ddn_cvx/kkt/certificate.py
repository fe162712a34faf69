"""The KKT conditions at a canonical point, by which a :class:`~ddn_cvx.Solution` checks itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ddn_cvx.kkt.point import Point
from ddn_cvx.kkt.residuals import largest
from ddn_cvx.programs.cone.instance import ConeInstance, products
from ddn_cvx.programs.recovery import Recovery
from ddn_cvx.solution import InfeasibilityCertificate, Multipliers
from ddn_cvx.status import Status


@dataclass(frozen=True, eq=False)
class KKTCertificate:
    """The canonical solution; one batch dimension, see :class:`~ddn_cvx.solution.Certificate`.

    Attributes:
        instance: detached, see :class:`~ddn_cvx.programs.instance.Instance`.
        primal, dual: ``u``, shape ``(B, n)``, and ``y``, shape ``(B, m)``.
        recoveries: read ``problem.variables()`` from the two.
    """

    instance: Any
    primal: torch.Tensor
    dual: torch.Tensor
    recoveries: Sequence[Any] = ()

    @torch.no_grad()
    def variables(self) -> list[torch.Tensor]:
        """Values of ``problem.variables()``, each ``(B, *shape)``."""
        return [recovery(self.primal, self.dual) for recovery in self.recoveries]

    @torch.no_grad()
    def stationarity(self) -> torch.Tensor:
        """``|grad_u L|``, shape ``(B,)``."""
        return largest(self.instance.stationarity(self.primal, self.dual)[0])

    @torch.no_grad()
    def complementarity(self) -> torch.Tensor:
        """``|<s, y>|``, shape ``(B,)``."""
        slack: torch.Tensor = self.instance.slack(self.primal)
        return (slack * self.dual).sum(1).abs()

    @torch.no_grad()
    def objective(self) -> torch.Tensor:
        """``f``, of a cone program without the problem's constant; shape ``(B,)``."""
        value: torch.Tensor = self.instance.value(self.primal)
        return value

    @torch.no_grad()
    def violation(self) -> torch.Tensor:
        """Distance of the slack from ``K``, shape ``(B,)``."""
        slack = self.instance.slack(self.primal)
        violation: torch.Tensor = self.instance.program.cones.violation(
            slack, torch.zeros_like(slack)
        )
        return violation

    def point(self, elements: torch.Tensor) -> tuple[Any, Point]:
        """Some elements (an index tensor) in their own units, in which they are differentiated."""
        instance, units = self.instance.select(elements).in_natural_units()
        u, y = self.primal[elements], self.dual[elements]
        if units is not None:
            u, y = u / units.rho, y / units.sigma
        failed = torch.zeros(len(elements), dtype=torch.bool, device=elements.device)
        return instance, Point(u, y, failed)


@dataclass(frozen=True, eq=False)
class ConeCertificate(KKTCertificate):
    """The certificate of a cone program, which also proves that there is no solution.

    Attributes:
        dual_recoveries: for each of ``problem.constraints`` those of its dual variables, or None.
    """

    instance: ConeInstance
    dual_recoveries: Sequence[tuple[Recovery, ...] | None] = ()

    def refutation(self, status: torch.Tensor) -> InfeasibilityCertificate:
        """The proofs of infeasibility and unboundedness, normalised.

        The point of an element without a solution is the solver's proof, of any size.

        Args:
            status: of each element, shape ``(B,)``.
        """
        program, data = self.instance.program, self.instance.data
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
            dual=tuple(multipliers(group) for group in self.dual_recoveries),
            direction=tuple(
                replace(recovery, exponential=False)(d, y) for recovery in self.recoveries
            ),
            residual=residual.double(),
        )


def _over(vector: torch.Tensor, divisor: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The vectors of the chosen elements, divided; NaN for the others."""
    divided = vector / torch.where(chosen, divisor, 1.0).unsqueeze(1)
    return torch.where(chosen.unsqueeze(1), divided, torch.nan)
