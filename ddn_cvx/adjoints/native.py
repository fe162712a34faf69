"""``adjoint="native"``: the backward pass that comes with a solver, unchecked, once only."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from ddn_cvx.kkt.multipliers import recover_multipliers
from ddn_cvx.kkt.point import Point
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance


class Native:
    """Hands the incoming gradient to the solver's own derivative, which travels in the answer."""

    name = "native"
    by_solver = True
    form = "quadratic"

    def supports(self, program: Any) -> None:
        """Every program that the solver takes; the solver says so itself."""
        return

    def describe(self, program: Any) -> str:
        """See :class:`~ddn_cvx.engine.plan.Adjoint`."""
        return "the solver's own, unchecked"

    def pull_back(
        self,
        instance: Any,
        point: Point,
        primal_gradient: torch.Tensor,
        dual_gradient: torch.Tensor,
        on_failure: str,
    ) -> tuple[torch.Tensor, ...]:
        """The gradient of each of the instance's tensors; zero for failed elements."""
        if point.pull is None:
            raise NotImplementedError(
                'adjoint="native" has no derivative inside torch.func; adjoint="kkt" has.'
            )
        failed = point.failed.unsqueeze(1)
        incoming = (torch.where(failed, 0.0, g) for g in (primal_gradient, dual_gradient))
        return tuple(torch.where(failed, 0.0, gradient) for gradient in point.pull(*incoming))

    def push_forward(self, *_: Any) -> NoReturn:
        """Solvers bring no forward mode.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            'adjoint="native" has no forward mode; use adjoint="kkt", which has.'
        )


class NativeOfDedicated:
    """Autograd follows a dedicated solver, whose operations have derivatives of their own."""

    name = "native"
    describe = Native.describe

    def supports(self, program: Any, solver: Any) -> str | None:
        """None for a dedicated solver."""
        return None if hasattr(solver, "primal") else "the solver is not a dedicated one"

    def solve(
        self, solver: Any, instance: NonlinearInstance, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The solver's point, and its multipliers without a derivative."""
        primal = solver.primal(instance.inputs)
        with torch.no_grad():
            dual = recover_multipliers(instance.detach(), torch.nan_to_num(primal.detach()))
        return primal, dual
