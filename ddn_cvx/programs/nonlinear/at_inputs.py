"""A nonlinear program at a batch of inputs: the instance that a solver is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ddn_cvx.programs.nonlinear.derivatives import Derivatives
from ddn_cvx.programs.nonlinear.program import NonlinearProgram

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class NonlinearInstance:
    """Functions of the unknown alone, for every element of a batch.

    The functions for solvers are called without autograd.

    Attributes:
        derivatives: of the program.
        inputs: tensors ``(B, *input)``, then the program's shared ones.
        batch: ``B``.
    """

    derivatives: Derivatives
    inputs: Tensors
    batch: int

    @cached_property
    def program(self) -> NonlinearProgram:
        """The program."""
        return self.derivatives.program

    def select(self, elements: torch.Tensor) -> NonlinearInstance:
        """The same functions for some elements of the batch."""
        own = len(self.inputs) - self.program.shared
        chosen = [tensor.index_select(0, elements) for tensor in self.inputs[:own]]
        inputs = (*chosen, *self.inputs[own:])
        return NonlinearInstance(self.derivatives, inputs, len(elements))

    @property
    def tensors(self) -> Tensors:
        """The inputs."""
        return self.inputs

    def detach(self) -> NonlinearInstance:
        """The same numbers without derivatives."""
        return replace(self, inputs=tuple(tensor.detach() for tensor in self.inputs))

    def harmless(self, failed: torch.Tensor) -> NonlinearInstance:
        """Failed elements have a good element's inputs, where functions are defined."""
        if len(failed) == 0:
            return self
        good = (~failed).to(torch.int8).argmax(0).reshape(1)
        own = len(self.inputs) - self.derivatives.program.shared
        inputs = []
        for tensor in self.inputs[:own]:
            mask = failed.reshape(-1, *[1] * (tensor.ndim - 1))
            inputs.append(torch.where(mask, tensor.index_select(0, good).detach(), tensor))
        return NonlinearInstance(self.derivatives, (*inputs, *self.inputs[own:]), self.batch)

    def zeroed(self, gradients: Tensors, failed: torch.Tensor) -> Tensors:
        """Gradients of the inputs with zeros for failed elements."""
        own = len(gradients) - self.derivatives.program.shared
        kept = []
        for gradient in gradients[:own]:
            mask = failed.reshape(-1, *[1] * (gradient.ndim - 1))
            kept.append(torch.where(mask, 0.0, gradient))
        return (*kept, *gradients[own:])

    def in_natural_units(self) -> tuple[NonlinearInstance, None]:
        """The same: a nonlinear program is solved in the user's units."""
        return self, None

    # -- for the adjoint, differentiable --------------------------------------------------------

    def slack(self, u: torch.Tensor) -> torch.Tensor:
        """``-c``, shape ``(B, m)``."""
        return -self.program.constraints(u, *self.inputs)

    def stationarity(self, u: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``grad_u L``, shape ``(B, n)``, and ``c``, shape ``(B, m)``."""
        return self.derivatives.stationarity(u, y, *self.inputs)

    def pull_back(
        self, u: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor
    ) -> Tensors:
        """Gradient of ``<a, grad_u L> + <b, c>`` with respect to each input."""
        return self.derivatives.pull_back(u, y, a, b, *self.inputs)

    def push_forward(
        self, u: torch.Tensor, y: torch.Tensor, tangents: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change of ``grad_u L`` and of ``c`` along tangents of the inputs."""
        return self.derivatives.push_forward(u, y, self.inputs, tangents)

    def system(self, u: torch.Tensor, y: torch.Tensor) -> Tensors:
        """Jacobian of ``c``, ``(B, m, n)``, and the Lagrangian's Hessian, ``(B, n, n)``."""
        return self.derivatives.second(u, y, *self.inputs)[3:]

    # -- for a solver ---------------------------------------------------------------------------

    def values(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``f`` of shape ``(B,)``, ``c`` of shape ``(B, m)``."""
        value, constraint = self.derivatives.values(u, *self.inputs)
        return value, constraint

    def first(self, u: torch.Tensor) -> Tensors:
        """``f``, its gradient, ``c``, its Jacobian ``(B, m, n)``."""
        return self.derivatives.first(u, *self.inputs)

    def second(self, u: torch.Tensor, dual: torch.Tensor) -> Tensors:
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
