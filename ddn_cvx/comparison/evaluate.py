"""Objective and constraint violation of any layer's answer, evaluated by cvxpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.solution import largest_violation, quiet_sparse_values, restored_values


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
        tensors: the inputs, ``(B, *parameter.shape)``.
        values: the answer, ``(B, *variable.shape)``.
        counted: elements to evaluate, bool, ``(B,)``.

    Returns:
        Two float64 tensors of shape ``(B,)``, NaN where not counted.
    """
    problem = declaration.problem
    primal = {variable.id for variable in problem.variables()}
    answers = [
        (variable, value.detach().cpu().double().numpy())
        for variable, value in zip(declaration.variables, values, strict=True)
        if variable.id in primal  # dual variables may be among them
    ]
    inputs = zip(declaration.parameters, tensors, strict=True)
    leaves = [*answers, *((leaf, value.detach().cpu().double().numpy()) for leaf, value in inputs)]
    objective = torch.full((len(counted),), torch.nan, dtype=torch.float64)
    violation = objective.clone()
    with restored_values([leaf for leaf, _ in leaves]), quiet_sparse_values():
        for element in counted.nonzero().squeeze(1).tolist():
            for leaf, value in leaves:
                leaf.save_value(value[element])
            objective[element] = float(problem.objective.value)
            violation[element] = largest_violation(problem)
    return objective, violation
