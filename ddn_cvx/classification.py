"""Which path a problem takes: cone program or nonlinear program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.torch_problem import TorchProblem

if TYPE_CHECKING:
    from ddn_cvx.conic.layer_engine import LayerEngine
    from ddn_cvx.conic.peer import PeerEngine
    from ddn_cvx.nonlinear.engine import NonlinearEngine

NONLINEAR_SOLVERS = ("TORCH", "UNO", "IPOPT")


def create_engine(
    declaration: Declaration | TorchProblem,
    *,
    solver: Any,
    adjoint: str | None,
    verbose: bool,
    canon_backend: str | None,
    solver_args: dict[str, Any],
    starts: int,
    fallback: str | None,
) -> LayerEngine | PeerEngine | NonlinearEngine:
    """Classify, compile, and say why.

    A :class:`~ddn_cvx.TorchProblem` is a nonlinear program. A cvxpy problem that is DCP and DPP (log-log
    convex and DPP with ``gp``) is a cone program, anything else a nonlinear one; a solver of the
    other kind forces the other path, where the problem allows it.

    Raises:
        DeclarationError: the problem cannot become a layer; the message says why.
    """
    name = solver.upper() if isinstance(solver, str) else None
    reason = _why_nonlinear(declaration, name, solver, nonlinear_options=starts > 1 or bool(fallback))
    if reason is None:
        from ddn_cvx.conic.layer_engine import create_engine as conic_engine

        assert isinstance(declaration, Declaration)
        return conic_engine(
            declaration,
            solver=solver,
            adjoint=adjoint,
            verbose=verbose,
            canon_backend=canon_backend,
            solver_args=solver_args,
        )
    from ddn_cvx.nonlinear.engine import nonlinear_engine
    from ddn_cvx.nonlinear.settings import Settings, settings_from

    if adjoint not in (None, "implicit"):
        raise DeclarationError(
            f"A nonlinear program has one adjoint, 'implicit'; got {adjoint!r}."
        )
    settings = Settings(solver=name or "TORCH", starts=starts, fallback=fallback)
    settings = settings_from(settings, solver_args)
    return nonlinear_engine(declaration, settings, reason)


def _why_nonlinear(
    declaration: Declaration | TorchProblem, name: str | None, solver: Any, *, nonlinear_options: bool
) -> str | None:
    """Why the problem is to be a nonlinear program; None if it is to be a cone program."""
    if isinstance(declaration, TorchProblem):
        if solver is not None and name != "TORCH":
            raise DeclarationError(
                f"A TorchProblem is solved by solver='TORCH' (or None); got {solver!r}."
            )
        return "a TorchProblem"
    if name in NONLINEAR_SOLVERS:
        return f"solver={name!r}"
    if solver is not None:
        return None  # the conic path refuses what it cannot take, and explains
    problem = declaration.problem
    if declaration.gp:
        return None if problem.is_dgp(dpp=True) else "not DGP and DPP"
    if not problem.is_dcp():
        return "not DCP"
    if not problem.is_dcp(dpp=True):
        return "DCP, not DPP"
    return "starts or a fallback were asked for" if nonlinear_options else None
