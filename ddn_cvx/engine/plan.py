"""The plan of one call: program, solver, adjoint and failure policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ddn_cvx.kkt.point import Point
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.status import Status

Tensors = tuple[torch.Tensor, ...]


class Adjoint(Protocol):
    """The derivative of a solution map; see :mod:`ddn_cvx.kkt.adjoint`.

    Attributes:
        name: under which users ask for it.
        by_solver: the derivative is the solver's own, comes with its answer, and is taken once.
        form: the cone program that it takes: "quadratic", or "linear", without ``P``.
    """

    name: str
    by_solver: bool
    form: str

    def supports(self, program: Any) -> str | None:
        """None if the adjoint takes the program, else the reason why not, in words."""
        ...

    def describe(self, program: Any) -> str:
        """In words, for ``repr(layer)``."""
        ...

    def pull_back(
        self,
        instance: Any,
        point: Point,
        primal_gradient: torch.Tensor,
        dual_gradient: torch.Tensor,
        on_failure: str,
    ) -> Tensors:
        """The gradient of each of the instance's tensors."""
        ...

    def push_forward(
        self, instance: Any, point: Point, tangents: Tensors, on_failure: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``(du, dy)`` along tangents of the instance's tensors."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """How the batch of one call is solved and differentiated.

    Attributes:
        program: compiled.
        at: the program's instance at the tensors that it depends on, and a batch size.
        solver: maps an instance and a start (shape ``(B, n)``, or None) to an answer.
        solver_names: of the ladder's rungs, for ``Solution.solver``.
        adjoint: differentiates.
        on_failure: "raise", "nan" or "warn".
        recoveries: read each of the layer's variables from ``u`` and ``y``.
        dual_recoveries: for each constraint of the problem those of its multipliers, or None.
        limited: the user limited the work, so that stopping short is what was asked.
        shared: the last of the instance's tensors that have no batch dimension; their number.
        traced: a solve that autograd follows, maps an instance and a start to ``u`` and ``y``; its
            point is checked, but left as it is. None where the adjoint differentiates.
    """

    program: Any
    at: Callable[..., Any]
    solver: Callable[[Any, torch.Tensor | None], Answer]
    solver_names: tuple[str, ...]
    adjoint: Adjoint
    on_failure: str
    recoveries: Sequence[Any]
    dual_recoveries: Sequence[Any]
    limited: bool = False
    shared: int = 0
    traced: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None

    @torch.no_grad()
    def solve(self, instance: Any, excluded: torch.Tensor, start: torch.Tensor | None) -> Answer:
        """Solve the elements that are not ``excluded`` (bool, shape ``(B,)``)."""
        instance = instance.detach()
        if not bool(excluded.any()):
            return self.solver(instance, start)
        kept = (~excluded).nonzero().squeeze(1)
        some = None if start is None else start[kept]
        return self.solver(instance.select(kept), some).spread(kept, instance.batch)

    def has_failed(self, status: torch.Tensor) -> torch.Tensor:
        """Which elements the failure policy applies to."""
        failed = status != Status.SOLVED
        return failed & (status != Status.INACCURATE) if self.limited else failed
