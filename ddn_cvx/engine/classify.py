"""Which path a problem takes: cone program or nonlinear program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ddn_cvx.adjoints.registry import ADJOINTS, NONLINEAR_ADJOINTS, NONLINEAR_DEFAULT
from ddn_cvx.adjoints.unrolled import Unrolled
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.cone_path import ConePath
from ddn_cvx.engine.engine import Engine
from ddn_cvx.engine.nonlinear_path import NonlinearPath
from ddn_cvx.errors import DeclarationError
from ddn_cvx.solvers.nonlinear.settings import DEDICATED, TORCH, Settings, settings_from
from ddn_cvx.solvers.registry import NONLINEAR_SOLVERS
from ddn_cvx.torch_problem import TorchProblem

if TYPE_CHECKING:
    from ddn_cvx.engine.peer import PeerEngine


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
) -> Engine | PeerEngine:
    """Classify, compile, and say why.

    A :class:`~ddn_cvx.TorchProblem` is a nonlinear program. A cvxpy problem that is DCP and DPP
    (DGP and DPP with ``gp``) is a cone program, anything else a nonlinear one. A solver or an
    adjoint of one path forces that path, where the problem allows it.

    Raises:
        DeclarationError: the problem cannot become a layer; the message says why.
    """
    name = solver.upper() if isinstance(solver, str) else None
    reason = _asked_for(declaration, name, solver, adjoint)
    if reason is None and (starts > 1 or fallback is not None):
        reason = "starts or a fallback were asked for"
    if reason is None and solver is None and adjoint is None:
        reason = _not_a_cone_program(declaration)
    if reason is None:
        convex = cast(Declaration, declaration)
        options: dict[str, Any] = {"verbose": verbose, "canon_backend": canon_backend}
        if getattr(solver, "is_parametric", False):
            from ddn_cvx.engine.peer import PeerEngine

            return PeerEngine(convex, solver, solver_args=solver_args, **options)
        conic = ConePath(convex, name or solver, adjoint, solver_args, options)
        return Engine(convex, conic)
    if name is None:
        # A declaration's own algorithm knows more than a local search, unless the user directs one.
        own = getattr(declaration, "dedicated", None) is not None and adjoint != Unrolled.name
        directed = starts > 1 or fallback is not None or solver_args
        name = DEDICATED if own and not directed else TORCH
    settings = settings_from(Settings(name, starts=starts, fallback=fallback), solver_args)
    path = NonlinearPath(declaration, settings, reason, adjoint or NONLINEAR_DEFAULT)
    return Engine(declaration, path)


def _asked_for(
    declaration: Declaration | TorchProblem, name: str | None, solver: Any, adjoint: str | None
) -> str | None:
    """Why the user's own choice makes it a nonlinear program; None if it does not."""
    if isinstance(declaration, TorchProblem):
        if solver is not None and name != TORCH:
            raise DeclarationError(
                f"A TorchProblem is solved by solver={TORCH!r} (or None); got {solver!r}."
            )
        return "a TorchProblem"
    if name in NONLINEAR_SOLVERS:
        return f"solver={name!r}"
    nonlinear_only = adjoint in NONLINEAR_ADJOINTS.keys() - ADJOINTS.keys()
    return f"adjoint={adjoint!r}" if nonlinear_only else None


def _not_a_cone_program(declaration: Declaration | TorchProblem) -> str | None:
    """The rules that the problem breaks; ``programs.diagnosis.explanation`` says where and why."""
    from cvxpy.utilities.scopes import quad_form_dpp_scope

    convex = cast(Declaration, declaration)
    problem, gp = convex.problem, convex.gp
    rules = "DGP" if gp else "DCP"
    if not (problem.is_dgp() if gp else problem.is_dcp()):
        return f"not {rules}"
    with quad_form_dpp_scope():
        is_dpp = problem.is_dpp(*(("dgp",) if gp else ()))
    return None if is_dpp else f"{rules}, not DPP"
