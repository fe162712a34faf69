"""What a solver of cone programs is, and what it returns."""

from __future__ import annotations

from typing import Any, Protocol

from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.solvers.answer import Answer

Settings = dict[str, Any]

# Settings by which a user limits the work: a solver that stops there has done what was asked.
LIMITS = frozenset({"max_iters", "max_iter", "time_limit", "time_limit_secs"})

# Settings that cvxpylayers hands to diffcp rather than to the solver behind it.
DIFFCP_SETTINGS = frozenset({"mode", "solve_method", "n_jobs_backward", "derivative_kwargs"})

# Settings of diffcp's loop over the batch, which only the SCS adapter has.
LOOP_SETTINGS = frozenset({"n_jobs_forward", "warm_starts", "raise_on_error"})


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

    @property
    def on_device(self) -> bool:
        """It takes data on any device, and leaves its solution there."""
        ...

    def supports(self, program: ConeProgram) -> str | None:
        """None if the solver takes the program, else the reason why not, in words."""
        ...

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> Answer:
        """Solve a program that :meth:`supports` takes.

        Args:
            program: the sparsity patterns and the cones.
            data: detached, finite, float64, and in host memory unless ``on_device``.
            settings: in the solver's own words.

        Raises:
            TypeError: a setting that the solver does not have.
        """
        ...


def under_own_names(settings: Settings) -> Settings:
    """Settings under Clarabel's names: cvxpylayers' guide writes ``eps`` and ``max_iters``."""
    renamed = dict(settings)
    if "eps" in renamed:
        tolerance = renamed.pop("eps")
        renamed |= dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance)
    if "max_iters" in renamed:
        renamed["max_iter"] = renamed.pop("max_iters")
    return renamed
