"""What a nonlinear program's :class:`~ddn_cvx.Solution` checks itself with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ddn_cvx.kkt.nonlinear_adjoint import kkt_matrix
from ddn_cvx.programs.nonlinear.at_inputs import BoundProgram


@dataclass(frozen=True, eq=False)
class NonlinearCertificate:
    """The solution in the program's own terms; one batch dimension.

    Attributes:
        program: with its inputs.
        primal, dual: ``u``, shape ``(B, n)``, and ``y``, shape ``(B, m)``.
        compiled: unpacks ``u``.
    """

    program: BoundProgram
    primal: torch.Tensor
    dual: torch.Tensor
    compiled: Any

    @torch.no_grad()
    def variables(self) -> list[torch.Tensor]:
        """Values of ``problem.variables()``, each ``(B, *shape)``."""
        values: list[torch.Tensor] = self.compiled.primal(self.primal)
        return values

    @torch.no_grad()
    def objective(self) -> torch.Tensor:
        """``f``, shape ``(B,)``."""
        return self.program.value(self.primal)

    @torch.no_grad()
    def violation(self) -> torch.Tensor:
        """Largest violation of the program's constraints, shape ``(B,)``."""
        _, c = self.program.values(self.primal)
        return self.program.program.cones.violation(-c, torch.zeros_like(c))

    @torch.no_grad()
    def stationarity(self) -> torch.Tensor:
        """``|grad_u L|``, shape ``(B,)``."""
        _, gradient, _, jacobian = self.program.first(self.primal)
        pulled = (jacobian.mT @ self.dual.unsqueeze(2)).squeeze(2)
        return (gradient + pulled).abs().amax(1)

    @torch.no_grad()
    def complementarity(self) -> torch.Tensor:
        """``|<s, y>|``, shape ``(B,)``."""
        _, c = self.program.values(self.primal)
        return (c * self.dual).sum(1).abs()

    @torch.no_grad()
    def active(self) -> tuple[torch.Tensor, int]:
        """Number of active inequality rows of each element, ``(B,)``, and of all rows."""
        cones = self.program.program.cones
        _, c = self.program.values(self.primal)
        part = slice(cones.zero, cones.linear)
        return ((self.dual + c)[:, part] > 0).sum(1), cones.nonnegative

    @torch.no_grad()
    def kkt_matrix(self, elements: torch.Tensor) -> torch.Tensor:
        """The adjoint's matrix for some elements, ``(len(elements), n + m, n + m)``."""
        part = self.program.select(elements)
        return kkt_matrix(part.derivatives, self.primal[elements], self.dual[elements], part.inputs)
