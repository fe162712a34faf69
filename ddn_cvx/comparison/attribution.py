"""Whose row it is: the solver that answers each element, and the reason of one that does not.

A layer hands elements that its solver cannot solve, and programs that its solver does not take, on
to the next solver of the ladder. The answers are right, and say nothing about the layer's solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ddn_cvx.adjoints.diffcp import MODES
from ddn_cvx.engine.engine import LayerEngine
from ddn_cvx.errors import DeclarationError
from ddn_cvx.layer import DeclarativeLayer


def answering_solvers(layer: Any, inputs: Sequence[torch.Tensor], name: str) -> tuple[str, ...]:
    """Name of the solver that answers each element, ``B`` of them; none for the peer's layers.

    Args:
        name: of the layer's solver, which replaces the name of the solver behind it: DIFFCP is SCS.
    """
    if not isinstance(layer, DeclarativeLayer):
        return ()
    own = layer._engine.solver_name
    return tuple(name if solver == own else solver for solver in layer.solve(*inputs).solver)


def require_support(layer: DeclarativeLayer, solver: str, adjoint: str) -> None:
    """Refuse a layer whose solver or adjoint does not take its program.

    Raises:
        DeclarationError: the reason, in words.
    """
    engine = layer._engine
    if isinstance(engine, LayerEngine):
        cones = engine.plan({}).program.cones
        by_diffcp = adjoint in MODES or (adjoint == "native" and solver != "MOREAU")
        if by_diffcp and cones.power:
            raise DeclarationError("diffcp takes no power cones")
        if solver == "MOREAU" and cones.semidefinite:
            raise DeclarationError("MOREAU takes no semidefinite cones")
