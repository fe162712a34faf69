"""The answer of a solver: one type, from the first adapter to the solution map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from ddn_cvx.kkt.point import Factors
from ddn_cvx.programs.cone.units import Units
from ddn_cvx.status import Status

# Relative KKT residuals. A solve that misses TARGET goes on (another rung, refinement, polishing);
# below SOLVED an element still counts as solved, below INACCURATE as inaccurate.
TARGET = 1e-9
SOLVED = 1e-6
INACCURATE = 1e-3

# The answer of an element with bad input.
_OF_BAD_INPUT = {
    "primal": torch.nan,
    "dual": torch.nan,
    "status": int(Status.BAD_INPUT),
    "iterations": 0,
    "residual": torch.nan,
    "rung": 0,
    "degeneracy": 0,
    "runner_up": torch.inf,
}


@dataclass(frozen=True, eq=False)
class Answer:
    """A batch of answers; a ladder fills in the fields that its solver leaves at None.

    Attributes:
        primal: ``u``, shape ``(B, n)``, float64, on the instance's device as all of it.
        dual: ``y``, shape ``(B, m)``.
        status: :class:`~ddn_cvx.Status` of each element, int64, shape ``(B,)``: as the solver sees
            it, and in the end as its residual says.
        iterations: of the solver that gave the element's answer, int64, shape ``(B,)``.
        residual: relative KKT residual, shape ``(B,)``; infinity where there is no point.
        rung: number of the solver of the ladder that gave the element's answer, int64, ``(B,)``.
        objective: ``f``, shape ``(B,)``.
        degeneracy: :class:`~ddn_cvx.status.Degeneracy` flags, int64, shape ``(B,)``.
        runner_up: by how much the next best local solution's objective is higher, relative to one
            plus the best; infinite with one start, or if all starts agree; shape ``(B,)``.
        factors: from which a backward pass starts; of all elements or of none.
        pull: maps an incoming gradient, shapes ``(B, n)`` and ``(B, m)``, to that of each of the
            instance's tensors, if the solver brings a derivative of its own.
        products: ``A x`` and ``A' y`` of a cone program, if the solver has computed them more
            cheaply than from stored values; shapes ``(B, m)`` and ``(B, n)``.
        evaluation: ``f``, its gradient, ``c``, its Jacobian and the Hessian of the Lagrangian at
            the point of a nonlinear program, if the solver has them.
        units: in which the element was solved, and is differentiated.
        known_solved: the host knows that all elements are solved.
        reason: the exception for which elements failed, if there was one.
    """

    primal: torch.Tensor
    dual: torch.Tensor
    status: torch.Tensor
    iterations: torch.Tensor
    _: KW_ONLY
    residual: Any = None
    rung: Any = None
    objective: Any = None
    degeneracy: torch.Tensor | None = None
    runner_up: torch.Tensor | None = None
    factors: Factors | None = None
    pull: Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]] | None = None
    products: tuple[torch.Tensor, torch.Tensor] | None = None
    evaluation: tuple[torch.Tensor, ...] | None = None
    units: Units | None = None
    known_solved: bool = False
    reason: Exception | None = None

    def spread(self, kept: torch.Tensor, batch: int) -> Answer:
        """The answers of elements ``kept`` in a larger batch, the others with bad input."""

        def placed(values: torch.Tensor, fill: float) -> torch.Tensor:
            full = values.new_full((batch, *values.shape[1:]), fill)
            full[kept] = values
            return full

        def pull(primal: torch.Tensor, dual: torch.Tensor) -> list[torch.Tensor]:
            assert self.pull is not None
            return [placed(part, 0.0) for part in self.pull(primal[kept], dual[kept])]

        fields = ((name, getattr(self, name), fill) for name, fill in _OF_BAD_INPUT.items())
        whole: dict[str, Any] = {name: placed(v, fill) for name, v, fill in fields if v is not None}
        factors = self.factors
        if factors is not None:  # a solve with the factors of some elements is not that of all
            tensors = tuple(None if t is None else placed(t, 0.0) for t in factors.tensors)
            factors = Factors(tensors) if factors.solve is None else None
        return Answer(
            **whole,
            factors=factors,
            pull=None if self.pull is None else pull,
            units=None if self.units is None else Units(*(placed(u, 1.0) for u in self.units)),
            reason=self.reason,
        )


def status_of(residual: torch.Tensor, solved: float, limited: bool) -> torch.Tensor:
    """Statuses of points from their relative residuals, shape ``(B,)``.

    Args:
        solved: the residual below which a point counts as solved.
        limited: the user limited the work: what stops short is INACCURATE, not FAILED.
    """
    rest = Status.INACCURATE if limited else Status.FAILED
    inaccurate = residual <= max(INACCURATE, solved)
    status = torch.where(inaccurate, int(Status.INACCURATE), int(rest))
    return torch.where(residual <= solved, int(Status.SOLVED), status)
