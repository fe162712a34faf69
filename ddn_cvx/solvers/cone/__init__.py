"""Solvers of cone programs, each behind one small adapter, and the ladder over them."""

from __future__ import annotations

from ddn_cvx.errors import DeclarationError
from ddn_cvx.solvers.cone.base import ConeSolver
from ddn_cvx.solvers.cone.clarabel import Clarabel
from ddn_cvx.solvers.cone.interior_point.solver import InteriorPoint
from ddn_cvx.solvers.cone.moreau import Moreau
from ddn_cvx.solvers.cone.scs import SCS

__all__ = [
    "SCS",
    "Clarabel",
    "InteriorPoint",
    "Moreau",
    "adjoints_for",
    "by_name",
    "installed_solvers",
]

ADJOINTS = ("kkt", "lsqr", "lsmr", "dense", "native")


def installed_solvers() -> tuple[str, ...]:
    """Names of the solvers of cone programs that can be used here.

    Example:
        >>> from ddn_cvx.solvers.cone import installed_solvers
        >>> installed_solvers()[:3]
        ('INTERIOR', 'CLARABEL', 'SCS')
    """
    return ("INTERIOR", "CLARABEL", "SCS") + (("MOREAU",) if Moreau.is_installed() else ())


def adjoints_for(solver: str) -> tuple[str, ...]:
    """Names of the adjoints that go with a solver: all of ours, and its own where it has one.

    Example:
        >>> from ddn_cvx.solvers.cone import adjoints_for
        >>> adjoints_for("CLARABEL")
        ('kkt', 'lsqr', 'lsmr', 'dense')
    """
    own = ("native",) if solver.upper() == "MOREAU" else ()
    return ("kkt", "lsqr", "lsmr", "dense", *own)


def by_name(name: str) -> ConeSolver:
    """The adapter for a solver's name.

    Raises:
        DeclarationError: unknown or not installed.

    Example:
        >>> from ddn_cvx.solvers.cone import by_name
        >>> by_name("diffcp").name
        'SCS'
    """
    match name.upper():
        case "INTERIOR":
            return InteriorPoint()
        case "CLARABEL":
            return Clarabel()
        case "SCS" | "DIFFCP":
            return SCS()
        case "MOREAU" if Moreau.is_installed():
            return Moreau()
        case "MOREAU":
            raise DeclarationError(
                'solver="MOREAU" needs the package moreau: pip install "ddn-cvx[moreau]".'
            )
    raise DeclarationError(
        f"Unknown solver {name!r}; installed: {', '.join(installed_solvers())} (and DIFFCP, which "
        "is SCS), or pass a cvxpylayers SolverInterface."
    )
