"""The face that a problem shows to solvers and adjoints: a program at a batch of parameters.

Signs and Lagrangian: :mod:`ddn_cvx.programs`. A cone program is the case in which ``f`` is
quadratic, ``c`` is affine and the pattern of both is known.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch

Tensors = tuple[torch.Tensor, ...]


class Instance(Protocol):
    """A program with the numbers of a batch; ``u`` has shape ``(B, n)``, ``y`` shape ``(B, m)``."""

    @property
    def program(self) -> Any:
        """The program; ``variables`` is ``n``, ``rows`` is ``m``, ``cones`` is ``K``.

        ``has_pattern`` says that the sparsity of second derivatives and Jacobian is known.
        """
        ...

    @property
    def batch(self) -> int:
        """Number of elements ``B``."""
        ...

    @property
    def tensors(self) -> Tensors:
        """The tensors that the instance depends on, and derivatives are taken by."""
        ...

    def select(self, elements: torch.Tensor) -> Self:
        """The instance of some elements (an index tensor)."""
        ...

    def detach(self) -> Self:
        """The same numbers without derivatives."""
        ...

    def harmless(self, failed: torch.Tensor) -> Self:
        """An instance whose ``failed`` elements (bool, ``(B,)``) cannot disturb the others."""
        ...

    def in_natural_units(self) -> tuple[Self, Any]:
        """The instance in the units in which it is solved, and these; None for the user's."""
        ...

    def value(self, u: torch.Tensor) -> torch.Tensor:
        """``f``, shape ``(B,)``."""
        ...

    def slack(self, u: torch.Tensor) -> torch.Tensor:
        """``s = -c``, shape ``(B, m)``."""
        ...

    def stationarity(self, u: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``grad_u L``, shape ``(B, n)``, and ``c``, shape ``(B, m)``."""
        ...

    def system(self, u: torch.Tensor, y: torch.Tensor) -> Tensors:
        """Jacobian of ``c``, ``(B, m, n)``, and Hessian of the Lagrangian, ``(B, n, n)``."""
        ...

    def pull_back(
        self, u: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor
    ) -> Tensors:
        """Gradient of ``<a, grad_u L> + <b, c>`` with respect to each of :attr:`tensors`."""
        ...

    def push_forward(
        self, u: torch.Tensor, y: torch.Tensor, tangents: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change of ``grad_u L`` and of ``c`` along tangents of :attr:`tensors`."""
        ...
