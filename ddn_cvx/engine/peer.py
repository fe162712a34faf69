"""Layers that only cvxpylayers itself can run: those of parametric interfaces.

The values come from an inner ``CvxpyLayer``; batching, dtype, bad input and the failure policy are
ours. No canonical solution comes back, so that no residual can be computed.
"""

from __future__ import annotations

from typing import Any

import torch

from ddn_cvx.batch.inputs import BatchedInputs
from ddn_cvx.batch.policy import enforce
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.policy import solve_error, unsolved_warning
from ddn_cvx.solution import Solution
from ddn_cvx.solvers.cone.base import Settings
from ddn_cvx.solvers.cone.scs import SCS
from ddn_cvx.status import Status


class PeerEngine:
    """Runs an inner ``CvxpyLayer``; the counterpart of :class:`~ddn_cvx.engine.engine.Engine`."""

    adjoint_name = "native"
    warm_starts = False
    why_no_start = "initial= is for nonlinear programs; this layer is run by cvxpylayers."

    def another_solver(self) -> str:
        """For the audit."""
        return SCS.name

    def advice(self) -> str:
        """Nothing: it is a cone program."""
        return ""

    @property
    def path(self) -> PeerEngine:
        """Itself: there is nothing to choose."""
        return self

    def __init__(self, declaration: Declaration, solver: Any, **options: Any) -> None:
        from cvxpylayers.torch import CvxpyLayer

        self.solver_name = type(solver).__name__
        self._layer = CvxpyLayer(
            declaration.problem,
            list(declaration.parameters),
            list(declaration.variables),
            solver=solver,
            gp=declaration.gp,
            **options,
        )
        self._shapes = [tuple(variable.shape) for variable in declaration.variables]

    def describe(self) -> list[str]:
        """Lines for ``repr(layer)``."""
        return [
            f"solver={self.solver_name!r} (as asked, run by cvxpylayers)",
            "adjoint='native' (the solver's own, unchecked)",
        ]

    def forward(
        self,
        inputs: BatchedInputs,
        solver_args: Settings,
        on_failure: str,
        *,
        warm_start: bool = False,
    ) -> list[torch.Tensor]:
        """The requested variables, each of shape ``(B, *shape)``."""
        values, status = self._run(inputs, solver_args)
        enforce(
            status != Status.SOLVED,
            on_failure,
            lambda: solve_error(self._solution(inputs, values, status)),
            lambda: unsolved_warning(status),
        )
        return values

    def solve(self, inputs: BatchedInputs, solver_args: Settings) -> Solution:
        """Solve without differentiating."""
        return self._solution(inputs, *self._run(inputs, solver_args))

    def _solution(
        self, inputs: BatchedInputs, values: list[torch.Tensor], status: torch.Tensor
    ) -> Solution:
        unknown = torch.full(status.shape, torch.nan, dtype=torch.float64)
        return Solution(
            primal=tuple(inputs.restore(value.detach()).to(inputs.dtype) for value in values),
            dual=(),
            status=inputs.restore(status),
            residual=inputs.restore(unknown),
            iterations=inputs.restore(torch.zeros_like(status)),
            degenerate=inputs.restore(torch.zeros_like(inputs.bad)),
            solver=(self.solver_name,) * status.numel(),
        )

    def _run(
        self, inputs: BatchedInputs, solver_args: Settings
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        batch = inputs.bad.shape[0]
        good = (~inputs.bad).nonzero().squeeze(1)
        values = [
            torch.full((batch, *shape), torch.nan, dtype=torch.float64, device=inputs.device)
            for shape in self._shapes
        ]
        status = torch.full((batch,), int(Status.FAILED), device=inputs.device)
        status[inputs.bad] = int(Status.BAD_INPUT)
        for element in good.split(1):  # cvxpygen's solvers take one problem at a time
            tensors = [tensor[element[0]] for tensor in inputs.tensors]
            try:
                found = self._layer(*tensors, solver_args=solver_args)
            except Exception:  # whatever the interface raises is this element's failure
                continue
            if all(bool(part.isfinite().all()) for part in found):
                status[element] = int(Status.SOLVED)
            for whole, part in zip(values, found, strict=True):
                whole[element] = part.to(whole)
        return values, status
