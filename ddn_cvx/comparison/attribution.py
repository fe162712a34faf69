"""Whose row it is: the solver that answers each element.

A layer hands elements that its solver cannot solve on to the next solver of the ladder. The answers
are right, and say nothing about the layer's solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

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
