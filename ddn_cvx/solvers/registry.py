"""Every solver that users ask for by name: the list, and all that differs by name.

A new solver of cone programs is its adapter, see :class:`~ddn_cvx.solvers.cone.base.ConeSolver`,
and its line here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from ddn_cvx.errors import DeclarationError
from ddn_cvx.solvers.cone.base import ConeSolver
from ddn_cvx.solvers.cone.clarabel import Clarabel
from ddn_cvx.solvers.cone.interface import DiffcpPair, NativePair
from ddn_cvx.solvers.cone.interior_point.solver import InteriorPoint
from ddn_cvx.solvers.cone.moreau import Moreau, MoreauPair
from ddn_cvx.solvers.cone.scs import SCS
from ddn_cvx.solvers.nonlinear.dedicated import Dedicated
from ddn_cvx.solvers.nonlinear.settings import DEDICATED, EXTERNAL, TORCH
from ddn_cvx.solvers.nonlinear.uno_ipopt import External


class ListedSolver(NamedTuple):
    """A solver of cone programs, as users ask for it.

    Attributes:
        build: makes the adapter.
        native: makes the pair of a solve and a derivative behind ``adjoint="native"``; None if
            there is none.
    """

    build: type[ConeSolver]
    native: Callable[[], NativePair] | None = None


# By name, in the order of tables.
CONE_SOLVERS = {
    listed.build.name: listed
    for listed in (
        ListedSolver(InteriorPoint),
        ListedSolver(Clarabel, functools.partial(DiffcpPair, "Clarabel")),
        ListedSolver(SCS, functools.partial(DiffcpPair, SCS.name)),
        ListedSolver(Moreau, MoreauPair),
    )
}
_ALIASES = {DiffcpPair.name: SCS.name}  # DIFFCP is SCS as diffcp runs it


class ListedNonlinear(NamedTuple):
    """A solver of nonlinear programs, as users ask for it.

    Attributes:
        described: in ``repr(layer)``.
        build: makes it from a declaration, its compiled program and its own name; None where the
            engine chooses a method.
    """

    described: str
    build: Callable[..., Any] | None


NONLINEAR_SOLVERS = {
    TORCH: ListedNonlinear("batched", None),
    **dict.fromkeys(EXTERNAL, ListedNonlinear("through cvxpy, one element at a time", External)),
    DEDICATED: ListedNonlinear("the declaration's own algorithm", Dedicated),
}


def installed_solvers() -> tuple[str, ...]:
    """Names of the solvers of cone programs that can be used here.

    Example:
        >>> from ddn_cvx.solvers.registry import installed_solvers
        >>> installed_solvers()[:3]
        ('INTERIOR', 'CLARABEL', 'SCS')
    """
    return tuple(name for name, listed in CONE_SOLVERS.items() if listed.build.is_installed())


def has_own_derivative(name: str) -> bool:
    """The solver of cone programs brings a backward pass of its own."""
    listed = CONE_SOLVERS.get(name.upper())
    return listed is not None and listed.native is not None and listed.native().name == name.upper()


def _listed(name: str) -> ListedSolver:
    key = name.upper()
    listed = CONE_SOLVERS.get(_ALIASES.get(key, key))
    if listed is None:
        raise DeclarationError(
            f"Unknown solver {name!r}; installed: {', '.join(installed_solvers())} (and "
            f"{DiffcpPair.name}, which is {SCS.name}), or pass a cvxpylayers SolverInterface."
        )
    if not listed.build.is_installed():
        raise DeclarationError(f"solver={key!r} needs a package: {listed.build.install}.")
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
    return _listed(name).build()


def native_pair(name: str | None) -> NativePair:
    """The pair behind ``adjoint="native"``; diffcp's where no solver was asked for.

    Raises:
        DeclarationError: the solver has none, is unknown or not installed.
    """
    native = _listed(name or SCS.name).native
    if native is None:
        raise DeclarationError(
            f"solver={name!r} has no backward pass of its own; adjoint='kkt' is exact."
        )
    return native()
