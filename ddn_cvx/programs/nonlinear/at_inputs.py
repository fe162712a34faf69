"""A nonlinear program at a batch of inputs: the instance that a solver is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.programs.nonlinear.derivatives import Derivatives
from ddn_cvx.programs.nonlinear.program import NonlinearProgram


@dataclass(frozen=True, eq=False)
class BoundProgram:
    """Functions of the unknown alone, for every element of a batch.

    It is the :class:`~ddn_cvx.solvers.nonlinear.trust_region.SmoothFunction` of the unconstrained
    solvers. Everything is computed without autograd.

    Attributes:
        derivatives: of the program.
        inputs: tensors ``(B, *input)``, then the program's shared ones.
        batch: ``B``.
    """

    derivatives: Derivatives
    inputs: tuple[torch.Tensor, ...]
    batch: int

    @property
    def program(self) -> NonlinearProgram:
        """The program."""
        return self.derivatives.program

    def select(self, elements: torch.Tensor) -> BoundProgram:
        """The same functions for some elements of the batch."""
        own = len(self.inputs) - self.program.shared
        inputs = [tensor.index_select(0, elements) for tensor in self.inputs[:own]]
        return BoundProgram(self.derivatives, (*inputs, *self.inputs[own:]), len(elements))

    def values(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``f`` of shape ``(B,)``, ``c`` of shape ``(B, m)``."""
        value, constraint = self.derivatives.values(u, *self.inputs)
        return value, constraint

    def first(self, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``f``, its gradient, ``c``, its Jacobian ``(B, m, n)``."""
        return self.derivatives.first(u, *self.inputs)

    def second(self, u: torch.Tensor, dual: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``f``, its gradient, ``c``, its Jacobian, the Lagrangian's Hessian ``(B, n, n)``."""
        return self.derivatives.second(u, dual, *self.inputs)

    # -- as a smooth function without constraints -----------------------------------------------

    def value(self, u: torch.Tensor) -> torch.Tensor:
        """``f``, shape ``(B,)``."""
        return self.values(u)[0]

    def gradient(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``f`` and its gradient, ``(B, n)``."""
        value, gradient = self.derivatives.gradient(u, *self.inputs)
        return value, gradient

    def hessian(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``f``, its gradient and its Hessian, ``(B, n, n)``."""
        value, gradient, _, _, hessian = self.second(u, u.new_zeros((len(u), self.program.rows)))
        return value, gradient, hessian

    def hessian_product(self, u: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """The Hessian of ``f`` times ``direction``, ``(B, n)``."""
        dual = u.new_zeros((len(u), self.program.rows))
        return self.derivatives.product(u, dual, direction, *self.inputs)[0]

    def residuals(self, u: torch.Tensor) -> torch.Tensor:
        """``r`` with ``f = |r|^2``, shape ``(B, k)``."""
        return self.derivatives.residuals(u, *self.inputs)[0]

    def residual_jacobian(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``r`` and its Jacobian, ``(B, k, n)``."""
        residuals, jacobian = self.derivatives.residual_jacobian(u, *self.inputs)
        return residuals, jacobian
