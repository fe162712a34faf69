"""A declaration's dedicated solver as a solver of its nonlinear program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.kkt.multipliers import recover_multipliers
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.status import Status


@dataclass(frozen=True, eq=False)
class Dedicated:
    """Calls ``declaration.dedicated``; the point is checked like any other solver's.

    Attributes:
        declaration: the problem.
        compiled: packs and unpacks the unknown.
        name: under which users ask for it.

    Raises:
        DeclarationError: the declaration has no dedicated solver.
    """

    declaration: Declaration
    compiled: Any
    name: str

    in_torch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.declaration.dedicated is None:
            raise DeclarationError(
                f"The declaration {self.declaration.name or self.declaration.problem} has no "
                "dedicated solver; pass dedicated= to Declaration, or choose another solver."
            )

    def primal(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The unknown ``u``, shape ``(B, n)``, differentiable by the solver's own rule."""
        assert self.declaration.dedicated is not None
        found = self.declaration.dedicated(*inputs)
        shapes = [variable.shape for variable in self.compiled.variables]
        values = [
            value.to(torch.float64).reshape(-1, *shape)
            for value, shape in zip(found, shapes, strict=False)
        ]
        values += [found[0].new_zeros((len(found[0]), *s)) for s in shapes[len(found) :]]
        return packed(self.compiled, values, inputs)

    def __call__(self, program: NonlinearInstance, start: torch.Tensor) -> Answer:
        """Solve; multipliers are recovered from the KKT conditions."""
        point = self.primal(program.inputs)
        status = torch.full((len(start),), int(Status.SOLVED), device=start.device)
        status[point.isnan().any(1)] = int(Status.FAILED)
        point = torch.where(point.isnan(), start, point)
        return Answer(point, recover_multipliers(program, point), status, torch.zeros_like(status))


def packed(
    compiled: Any, values: list[torch.Tensor], inputs: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """``u`` of shape ``(B, n)``: the variables' values, and those that follow from them."""
    for slot, function in compiled.auxiliary:
        values[slot] = function(*values, *inputs).reshape_as(values[slot])
    return cast(torch.Tensor, compiled.unknown.pack(values))
