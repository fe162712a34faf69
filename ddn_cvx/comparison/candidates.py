"""Which rows a comparison has, and how each row's layer is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ddn_cvx.adjoints.registry import ADJOINTS
from ddn_cvx.comparison.measure import Layer
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose import Extent
from ddn_cvx.engine.engine import Engine
from ddn_cvx.errors import DeclarationError
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.solvers.nonlinear.settings import installed_nonlinear_solvers
from ddn_cvx.solvers.registry import (
    NONLINEAR_SOLVERS,
    has_own_derivative,
    installed_solvers,
)

PEER = "cvxpylayers"


@dataclass(frozen=True)
class Candidate:
    """A row before it is run.

    Attributes:
        solver, adjoint: names, as the row's.
        build: makes the layer.
        is_default: the layer chooses this solver with this adjoint by itself.
    """

    solver: str
    adjoint: str
    build: Callable[[Declaration], Layer]
    is_default: bool = False


def candidates(
    declaration: Declaration,
    solvers: Sequence[str] | None,
    adjoints: Sequence[str] | None,
    batch: int | None = None,
) -> list[Candidate]:
    """The layer's own choice first, then solvers x adjoints, then the peer.

    Args:
        declaration: of the problem.
        solvers: names; None takes all that are installed and can take the problem: for a convex
            one the solvers of cone programs, diffcp's own pair of solver and derivative (``DIFFCP
            native``), TORCH, and the peer, ``cvxpylayers``; for others TORCH, UNO and IPOPT.
        adjoints: names; None takes all that go with the solver.
        batch: number of elements, on which the layer's choice may depend; None for many.

    Raises:
        DeclarationError: an unknown name, or a solver that is not installed.
    """
    asked, known = _asked(declaration, solvers)
    chosen = default_pair(declaration, batch)
    pairs = [] if chosen is None else [chosen]
    for solver in asked:
        if solver != PEER.upper():
            named = solvers is not None
            names = _adjoints(declaration, solver, adjoints, named=named)
            pairs += [(solver, name) for name in names]
    listed = [Candidate(s, a, _ours(s, a), (s, a) == chosen) for s, a in dict.fromkeys(pairs)]
    if PEER.upper() in asked:
        listed.append(Candidate(PEER, "default", _peer(None)))
        if "MOREAU" in known:
            listed.append(Candidate(PEER, "MOREAU", _peer("MOREAU")))
    return listed


def default_pair(declaration: Declaration, batch: int | None = None) -> tuple[str, str] | None:
    """Solver and adjoint that the layer chooses by itself; None if it refuses the problem."""
    try:
        engine = DeclarativeLayer(declaration)._engine
    except DeclarationError:
        return None
    if batch is not None and isinstance(engine, Engine):
        return engine.solver_for(Extent(batch, torch.device("cpu"))), engine.adjoint_name
    return engine.solver_name, getattr(engine, "adjoint_name", "native")


def _asked(
    declaration: Declaration, solvers: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str]]:
    """Names of the solvers to compare, and of all that are installed; in capitals."""
    conic = (*installed_solvers(), "DIFFCP")
    batched = ("TORCH",) if declaration.dedicated is None else ("TORCH", "DEDICATED")
    external = installed_nonlinear_solvers()
    known = (*conic, *batched, *external, PEER.upper())
    asked = [name.upper() for name in solvers or ()]
    for name in asked:
        if name not in known:
            raise DeclarationError(
                f"Unknown or missing solver {name!r}; here are {', '.join(known)}."
            )
    if asked:
        return asked, known
    if default_pair(declaration) not in [(s, "implicit") for s in (*batched, *external)]:
        # UNO and IPOPT go through a batch one by one: shown where there is no cone program.
        return (*conic, *batched, PEER.upper()), known
    return (*batched, *(external if declaration.problem.is_dnlp() else ())), known


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
    elif solver == "DIFFCP":
        # DIFFCP is SCS behind diffcp: unless it is asked for, only its derivative is news.
        own = tuple(ADJOINTS) if named else ("native",)
    return [name for name in own if not adjoints or name in adjoints]


def _ours(solver: str, adjoint: str) -> Callable[[Declaration], Layer]:
    def build(declaration: Declaration) -> Layer:
        return DeclarativeLayer(declaration, solver=solver, adjoint=adjoint, on_failure="nan")

    return build


def _peer(solver: str | None) -> Callable[[Declaration], Layer]:
    def build(declaration: Declaration) -> Layer:
        from cvxpylayers.torch import CvxpyLayer

        layer: Layer = CvxpyLayer(
            declaration.problem,
            list(declaration.parameters),
            list(declaration.variables),
            gp=declaration.gp,
            **({} if solver is None else {"solver": solver}),
        )
        return layer

    return build
