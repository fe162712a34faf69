"""Which rows a comparison has, and how each row's layer is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ddn_cvx.comparison.measure import Layer
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose import Extent
from ddn_cvx.engine.classify import NONLINEAR_SOLVERS
from ddn_cvx.engine.engine import Engine
from ddn_cvx.errors import DeclarationError
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.solvers.cone import adjoints_for, installed_solvers
from ddn_cvx.solvers.nonlinear.settings import installed_nonlinear_solvers

PEER = "cvxpylayers"


@dataclass(frozen=True)
class Candidate:
    """A row before it was run.

    Attributes:
        solver, adjoint: names, as the row's.
        build: makes the layer.
        is_default: what the layer chooses by itself.
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
    """What the layer chooses by itself first, then solvers x adjoints, then the peer.

    Args:
        declaration: what is to be compared on.
        solvers: names; None takes all that are installed and can take the problem: for a convex
            one the solvers of cone programs, diffcp's own pair of solver and derivative (``DIFFCP
            native``), TORCH, and the peer, ``cvxpylayers``; for another TORCH and UNO.
        adjoints: names; None takes all that go with the solver.
        batch: number of elements, on which the layer's choice may depend; None for many.

    Raises:
        DeclarationError: an unknown name, or a solver that is not installed.
    """
    conic = (*installed_solvers(), "DIFFCP")
    own: tuple[str, ...] = ("DEDICATED",) if declaration.dedicated is not None else ()
    nonlinear = ("TORCH", *own, *installed_nonlinear_solvers())
    known = (*conic, *nonlinear, PEER.upper())
    asked = [name.upper() for name in solvers or _suited(declaration, conic, nonlinear)]
    for name in asked:
        if name not in known:
            raise DeclarationError(
                f"Unknown or missing solver {name!r}; here are {', '.join(known)}."
            )
    chosen = default_pair(declaration, batch)
    pairs: list[tuple[str, str]] = []
    for solver in asked:
        if solver != PEER.upper():
            own = _adjoints(declaration, solver, named=solvers is not None)
            pairs += [(solver, name) for name in adjoints or own if (solver, name) not in pairs]
    if adjoints is not None and solvers is None:
        pairs = [(s, a) for s, a in pairs if a in _adjoints(declaration, s, named=False)]
    if chosen is not None:
        pairs = [chosen, *(pair for pair in pairs if pair != chosen)]
    found = [Candidate(s, a, _ours(s, a), (s, a) == chosen) for s, a in pairs]
    if PEER.upper() in asked:
        found.append(Candidate(PEER, "default", _peer(None)))
        if "MOREAU" in known:
            found.append(Candidate(PEER, "MOREAU", _peer("MOREAU")))
    return found


def default_pair(declaration: Declaration, batch: int | None = None) -> tuple[str, str] | None:
    """Solver and adjoint that the layer chooses by itself; None if it refuses the problem."""
    try:
        engine = DeclarativeLayer(declaration)._engine
    except DeclarationError:
        return None
    if batch is not None and isinstance(engine, Engine):
        return engine.solver_for(Extent(batch, torch.device("cpu"))), engine.adjoint_name
    return engine.solver_name, getattr(engine, "adjoint_name", "native")


def _suited(
    declaration: Declaration, conic: tuple[str, ...], nonlinear: tuple[str, ...]
) -> tuple[str, ...]:
    """The solvers that can take the problem."""
    batched = tuple(name for name in nonlinear if name in ("TORCH", "DEDICATED"))
    if default_pair(declaration) not in [(solver, "implicit") for solver in nonlinear]:
        # UNO and IPOPT go through a batch one by one: shown where there is no cone program.
        return (*conic, *batched, PEER.upper())
    external = nonlinear[len(batched) :] if declaration.problem.is_dnlp() else ()
    return (*batched, *external)


def _adjoints(declaration: Declaration, solver: str, *, named: bool) -> tuple[str, ...]:
    if solver in NONLINEAR_SOLVERS:
        try:
            engine = DeclarativeLayer(declaration, solver=solver)._engine
            return tuple(getattr(engine.path, "adjoints", ()))
        except DeclarationError:  # its row says why
            return ("implicit",)
    if solver != "DIFFCP":
        return adjoints_for(solver)
    # DIFFCP is SCS behind diffcp: unless asked for, only what the solver SCS does not show.
    return (*adjoints_for("SCS"), "native") if named else ("native",)


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
