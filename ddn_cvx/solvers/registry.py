"""Every solver that users ask for by name: the list, and all that differs by name.

A new solver of cone programs is its adapter, see :class:`~ddn_cvx.solvers.cone.base.ConeSolver`,
and its line here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ddn_cvx.errors import DeclarationError
from ddn_cvx.solvers.cone.base import ConeSolver
from ddn_cvx.solvers.cone.clarabel import Clarabel
from ddn_cvx.solvers.cone.interface import DiffcpPair, MoreauPair, NativePair
from ddn_cvx.solvers.cone.interior_point.solver import InteriorPoint
from ddn_cvx.solvers.cone.moreau import Moreau
from ddn_cvx.solvers.cone.scs import SCS


@dataclass(frozen=True)
class ListedSolver:
    """A solver of cone programs, as users ask for it.

    Attributes:
        build: makes the adapter.
        native: makes the pair of a solve and its own derivative behind ``adjoint="native"``; None
            if there is none.
        has_own_derivative: ``native`` is the solver's own, not diffcp's behind it.
        warm_starts: a call can start from the previous call's solution.
        is_installed: its package can be imported.
        install: the command that installs it.
    """

    build: Callable[[], ConeSolver]
    native: Callable[[], NativePair] | None = None
    has_own_derivative: bool = False
    warm_starts: bool = False
    is_installed: Callable[[], bool] = lambda: True
    install: str = ""


# By name, in the order of tables. DIFFCP is SCS as diffcp runs it.
CONE_SOLVERS = {
    "INTERIOR": ListedSolver(InteriorPoint, warm_starts=True),
    "CLARABEL": ListedSolver(Clarabel, functools.partial(DiffcpPair, "Clarabel")),
    "SCS": ListedSolver(SCS, functools.partial(DiffcpPair, "SCS")),
    "MOREAU": ListedSolver(
        Moreau,
        MoreauPair,
        has_own_derivative=True,
        warm_starts=True,
        is_installed=Moreau.is_installed,
        install='pip install "ddn-cvx[moreau]"',
    ),
}
_ALIASES = {"DIFFCP": "SCS"}

# Solvers of nonlinear programs, and what each is in ``repr(layer)``; of TORCH the method is shown.
NONLINEAR_SOLVERS = {
    "TORCH": "batched",
    "UNO": "through cvxpy, one element at a time",
    "IPOPT": "through cvxpy, one element at a time",
    "DEDICATED": "the declaration's own algorithm",
}


def installed_solvers() -> tuple[str, ...]:
    """Names of the solvers of cone programs that can be used here.

    Example:
        >>> from ddn_cvx.solvers.registry import installed_solvers
        >>> installed_solvers()[:3]
        ('INTERIOR', 'CLARABEL', 'SCS')
    """
    return tuple(name for name, listed in CONE_SOLVERS.items() if listed.is_installed())


def has_own_derivative(name: str) -> bool:
    """The solver of cone programs brings a backward pass of its own."""
    listed = CONE_SOLVERS.get(name.upper())
    return listed is not None and listed.has_own_derivative


def listed_solver(name: str) -> ListedSolver:
    """What is known of a solver of cone programs.

    Raises:
        DeclarationError: unknown or not installed.
    """
    key = name.upper()
    listed = CONE_SOLVERS.get(_ALIASES.get(key, key))
    if listed is None:
        raise DeclarationError(
            f"Unknown solver {name!r}; installed: {', '.join(installed_solvers())} (and DIFFCP, "
            "which is SCS), or pass a cvxpylayers SolverInterface."
        )
    if not listed.is_installed():
        raise DeclarationError(f"solver={key!r} needs a package: {listed.install}.")
    return listed


def by_name(name: str) -> ConeSolver:
    """The adapter for a solver's name.

    Raises:
        DeclarationError: unknown or not installed.

    Example:
        >>> from ddn_cvx.solvers.registry import by_name
        >>> by_name("diffcp").name
        'SCS'
    """
    return listed_solver(name).build()


def native_pair(name: str | None) -> Any:
    """The pair behind ``adjoint="native"``; diffcp's where no solver was asked for.

    Raises:
        DeclarationError: the solver has none, is unknown or not installed.
    """
    native = listed_solver(name or "SCS").native
    if native is None:
        raise DeclarationError(
            f"solver={name!r} has no backward pass of its own; adjoint='kkt' is exact."
        )
    return native()
