"""Objective and constraint violation of any layer's answer, evaluated by cvxpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.solution import evaluated, largest_violation


def with_all_variables(declaration: Declaration) -> Declaration:
    """The declaration with the problem's other variables after its own."""
    own = {variable.id for variable in declaration.variables}
    rest = [variable for variable in declaration.problem.variables() if variable.id not in own]
    return replace(declaration, variables=(*declaration.variables, *rest))


def evaluate(
    declaration: Declaration,
    tensors: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    counted: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``problem.objective`` and the largest violation of ``problem.constraints``.

    Args:
        declaration: from :func:`with_all_variables`.
        tensors: the inputs, ``(B, *parameter.shape)``, float64.
        values: the answer, ``(B, *variable.shape)``, float64.
        counted: elements to evaluate, bool, ``(B,)``.

    Returns:
        Two float64 tensors of shape ``(B,)``, NaN where not counted.
    """
    leaves = (*declaration.parameters, *declaration.variables)
    objective, violation = evaluated(
        declaration.problem,
        leaves,
        (*tensors, *values),
        counted,
        lambda problem: problem.objective.value,
        largest_violation,
    )
    return objective, violation
