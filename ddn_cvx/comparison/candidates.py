"""Which rows a comparison has, and how each row's layer is built."""

from __future__ import annotations

from collections.abc import Sequence

from ddn_cvx.adjoints.registry import ADJOINTS
from ddn_cvx.comparison.measure import Layer
from ddn_cvx.comparison.result import Row
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose import Extent
from ddn_cvx.engine.engine import Engine
from ddn_cvx.errors import DeclarationError
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.solvers.cone.interface import DiffcpPair
from ddn_cvx.solvers.cone.moreau import Moreau
from ddn_cvx.solvers.nonlinear.settings import DEDICATED, TORCH, installed_nonlinear_solvers
from ddn_cvx.solvers.registry import (
    NONLINEAR_SOLVERS,
    has_own_derivative,
    installed_solvers,
)

PEER = "cvxpylayers"


def build(row: Row, declaration: Declaration) -> Layer:
    """The layer of a row."""
    if row.solver != PEER:
        return DeclarativeLayer(
            declaration, solver=row.solver, adjoint=row.adjoint, on_failure="nan"
        )
    from cvxpylayers.torch import CvxpyLayer

    layer: Layer = CvxpyLayer(
        declaration.problem,
        list(declaration.parameters),
        list(declaration.variables),
        gp=declaration.gp,
        solver=None if row.adjoint == "default" else row.adjoint,
    )
    return layer


def candidates(
    declaration: Declaration,
    solvers: Sequence[str] | None,
    adjoints: Sequence[str] | None,
    extent: Extent,
) -> list[Row]:
    """Rows without figures: the layer's own choice first, then solvers x adjoints, then the peer.

    Args:
        declaration: of the problem.
        solvers: names; None takes all that are installed and can take the problem: for a convex
            one the solvers of cone programs, diffcp's own pair of solver and derivative (``DIFFCP
            native``), TORCH, and the peer, ``cvxpylayers``; for others TORCH, UNO and IPOPT.
        adjoints: names; None takes all that go with the solver.
        extent: batch size and device, on which the layer's choice may depend.

    Raises:
        DeclarationError: an unknown name, or a solver that is not installed.
    """
    chosen = _own_choice(declaration, extent)
    asked = _asked(
        declaration, solvers, is_nonlinear=chosen is not None and chosen[1] == "implicit"
    )
    pairs = [] if chosen is None else [chosen]
    for solver in asked:
        if solver != PEER.upper():
            named = solvers is not None
            names = _adjoints(declaration, solver, adjoints, named=named)
            pairs += [(solver, name) for name in names]
    if PEER.upper() in asked:
        pairs.append((PEER, "default"))
        if Moreau.name in installed_solvers():
            pairs.append((PEER, Moreau.name))
    return [Row(*pair, is_default=pair == chosen) for pair in dict.fromkeys(pairs)]


def _own_choice(declaration: Declaration, extent: Extent) -> tuple[str, str] | None:
    """Solver and adjoint that the layer chooses by itself; None if it refuses the problem."""
    try:
        engine = DeclarativeLayer(declaration)._engine
    except DeclarationError:
        return None
    assert isinstance(engine, Engine)  # the peer's is only for a solver that is asked for
    return engine.solver_for(extent), engine.adjoint_name


def _asked(
    declaration: Declaration, solvers: Sequence[str] | None, *, is_nonlinear: bool
) -> Sequence[str]:
    """Names of the solvers to compare, in capitals."""
    conic = (*installed_solvers(), DiffcpPair.name)
    batched = (TORCH,) if declaration.dedicated is None else (TORCH, DEDICATED)
    external = installed_nonlinear_solvers()
    known = (*conic, *batched, *external, PEER.upper())
    asked = [name.upper() for name in solvers or ()]
    for name in asked:
        if name not in known:
            raise DeclarationError(
                f"Unknown or missing solver {name!r}; here are {', '.join(known)}."
            )
    if asked:
        return asked
    if is_nonlinear:
        return (*batched, *(external if declaration.problem.is_dnlp() else ()))
    # UNO and IPOPT go through a batch one by one: shown where there is no cone program.
    return (*conic, *batched, PEER.upper())


def _adjoints(
    declaration: Declaration, solver: str, adjoints: Sequence[str] | None, *, named: bool
) -> Sequence[str]:
    """The adjoints asked for, if the solver was asked for by name; else those that go with it."""
    if adjoints and named:
        return adjoints
    own: Sequence[str] = [
        name for name in ADJOINTS if name != "native" or has_own_derivative(solver)
    ]
    if solver in NONLINEAR_SOLVERS:
        try:
            layer = DeclarativeLayer(declaration, solver=solver)
            own = getattr(layer._engine.path, "adjoints", ())
        except DeclarationError:  # its refusal says why
            own = ("implicit",)
    elif solver == DiffcpPair.name:
        # DIFFCP is SCS behind diffcp: unless it is asked for, only its derivative is news.
        own = tuple(ADJOINTS) if named else ("native",)
    return [name for name in own if not adjoints or name in adjoints]
