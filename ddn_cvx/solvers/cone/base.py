"""The protocol of a solver of cone programs, and settings that several solvers share."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ddn_cvx.batch.elements import per_program
from ddn_cvx.linalg.pattern import Pattern
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
    """Solves every element of a batch; never differentiated through, keeps no state.

    Attributes:
        name: under which users ask for it.
        defaults: settings that make the solution accurate enough to differentiate.
        known: all settings that it has, if these are few; None if others are left to its package.
        ignored: settings of cvxpylayers that are not handed to it.
        patient: settings of its second try; empty if other solvers come next.
        on_device: it takes data on any device, and leaves its solution there.
        warm_starts: a call can start from the previous call's solution.
        install: the command that installs its package, if that is optional.
    """

    name: str
    defaults: Settings = {}
    known: frozenset[str] | None = None
    ignored: frozenset[str] = DIFFCP_SETTINGS | LOOP_SETTINGS
    patient: Settings = {}
    on_device: bool = False
    warm_starts: bool = False
    install: str = ""

    @staticmethod
    def is_installed() -> bool:
        """Its package can be imported."""
        return True

    def supports(self, program: ConeProgram) -> str | None:
        """None if the solver takes the program, else the reason why not, in words."""
        return None

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


def under_own_names(settings: Settings, short: str = "eps") -> Settings:
    """Settings under Clarabel's names: cvxpylayers' guide writes ``eps`` and ``max_iters``.

    Args:
        short: the name of all tolerances in one.
    """
    renamed = dict(settings)
    if short in renamed:
        tolerance = renamed.pop(short)
        renamed |= dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance)
    if "max_iters" in renamed:
        renamed["max_iter"] = renamed.pop("max_iters")
    return renamed


@per_program
def upper_triangle(program: ConeProgram) -> tuple[np.ndarray, Pattern]:
    """Which stored values of ``P`` are on or above its diagonal, and their pattern."""
    P = program.P_pattern
    order = (P.rows <= P.columns).nonzero()[0]
    return order, Pattern.of_entries(P.rows[order], P.columns[order], P.shape)[0]
