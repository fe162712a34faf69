"""What a solver of cone programs is, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ddn_cvx.conic.program import ConeData, ConeProgram

Settings = dict[str, Any]

# Settings by which a user limits the work: a solver that stops there has done what was asked.
LIMITS = frozenset({"max_iters", "max_iter", "time_limit", "time_limit_secs"})


@dataclass(frozen=True, eq=False)
class RawSolution:
    """What a solver returned, before anything was checked.

    Attributes:
        primal: ``x``, shape ``(B, n)``, float64.
        dual: ``y``, shape ``(B, m)``, float64.
        status: :class:`~ddn_cvx.Status` of each element as the solver sees it, int64.
        iterations: int64.
    """

    primal: torch.Tensor
    dual: torch.Tensor
    status: torch.Tensor
    iterations: torch.Tensor


class ConeSolver(Protocol):
    """Solves every element of a batch; never differentiated through, keeps no state."""

    @property
    def name(self) -> str:
        """Name under which users ask for it."""
        ...

    @property
    def defaults(self) -> Settings:
        """Settings that make the solution accurate enough to differentiate."""
        ...

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> RawSolution:
        """Solve; ``data`` is detached, finite, float64 and in host memory.

        Raises:
            TypeError: a setting that the solver does not have.
        """
        ...
