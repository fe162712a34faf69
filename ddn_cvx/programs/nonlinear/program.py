"""A nonlinear program: batched torch functions of the unknown and the inputs.

    minimise f(u, x)   subject to   -c(u, x) in K

for each element of a batch, with a product of cones ``K`` (:class:`~ddn_cvx.cones.product.Cones`,
rows in its order: zero, nonnegative, second-order, semidefinite). Signs of the Lagrangian and its
multipliers: :mod:`ddn_cvx.programs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch

from ddn_cvx.cones.product import Cones

BatchedFunction = Callable[..., torch.Tensor]


@dataclass(frozen=True, eq=False)
class NonlinearProgram:
    """Objective and constraints of a batch, as torch functions that treat elements independently.

    Attributes:
        variables: number of unknowns ``n``.
        objective: ``f(u, *inputs)``, shapes ``(B, n)``, ``(B, *input) -> (B,)``.
        constraint: ``c(u, *inputs) -> (B, m)``; None without constraints.
        cones: ``K``, with ``cones.rows == m``.
        affine: which rows of ``c`` are known to be affine in ``u``; bool, shape ``(m,)``, on the
            CPU.
        residuals: ``r(u, *inputs) -> (B, k)`` where the objective is known to be ``|r|^2``.
        shared: the last inputs of every function that have no batch dimension, parameters of a
            module; their number.
        traceable: the functions depend on nothing but their arguments, so that their derivatives
            may be recorded and replayed.
    """

    variables: int
    objective: BatchedFunction
    constraint: BatchedFunction | None = None
    cones: Cones = field(default_factory=Cones)
    affine: torch.Tensor | None = None
    residuals: BatchedFunction | None = None
    shared: int = 0
    traceable: bool = False

    has_pattern: ClassVar[bool] = False

    @cached_property
    def rows(self) -> int:
        """Number of constraint rows ``m``."""
        return self.cones.rows

    @cached_property
    def is_constrained(self) -> bool:
        """There is at least one constraint."""
        return self.constraint is not None and self.rows > 0

    def constraints(self, u: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """``c(u, *inputs)``, shape ``(B, m)``; of shape ``(B, 0)`` without constraints."""
        if self.constraint is None:
            return u.new_zeros((u.shape[0], 0))
        return self.constraint(u, *inputs)

    def lagrangian(
        self, u: torch.Tensor, dual: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``L = f + <y, c>``, shape ``(B,)``, and ``c``, shape ``(B, m)``."""
        constraint, value = self.constraints(u, *inputs), self.objective(u, *inputs)
        if self.is_constrained:
            value = value + (dual * constraint).sum(1)
        return value, constraint
