"""Whose row it is: the solver that answers each element, and the reason of one that does not.

A layer hands elements that its solver cannot solve, and programs that its solver does not take, on
to the next solver of the ladder. The answers are right, and say nothing about the layer's solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ddn_cvx.adjoints.diffcp import MODES
from ddn_cvx.engine.cone_path import ConePath
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.programs.cone.program import ConeProgram
from ddn_cvx.solvers.cone import by_name


def refusal(layer: Any, adjoint: str) -> str | None:
    """The reason why a layer's solver or adjoint does not take the layer's program.

    None if both take it, and for other layers than those of cone programs.
    """
    path = layer._engine.path if isinstance(layer, DeclarativeLayer) else None
    if not isinstance(path, ConePath):
        return None
    program = layer._engine.plan({}).program
    return _adjoint_refusal(adjoint, path.solver, program) or supports(path.solver, program)


def answering_solvers(layer: Any, inputs: Sequence[torch.Tensor], name: str) -> tuple[str, ...]:
    """Name of the solver that answers each element, ``B`` of them; none for the peer's layers.

    Args:
        name: of the layer's solver, which replaces the name of the solver behind it: DIFFCP is SCS.
    """
    if not isinstance(layer, DeclarativeLayer):
        return ()
    own = layer._engine.solver_name
    return tuple(name if solver == own else solver for solver in layer.solve(*inputs).solver)


def supports(solver: str, program: ConeProgram) -> str | None:
    """None if a solver of cone programs takes a program, else the reason."""
    answer = getattr(by_name(solver), "supports", lambda program: None)(program)
    if answer is False:
        kind = "semidefinite" if program.cones.semidefinite else "power"
        return f"{solver} takes no {kind} cones"
    if by_name(solver).name == "SCS" and program.rows == 0:
        return f"{solver} takes no program without constraints"
    return answer if isinstance(answer, str) else None


def _adjoint_refusal(adjoint: str, solver: str, program: ConeProgram) -> str | None:
    by_diffcp = adjoint in MODES or (adjoint == "native" and solver != "MOREAU")
    if by_diffcp and program.cones.power:
        return "diffcp differentiates no power cones"
    return None
