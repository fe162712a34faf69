"""The solution at which an adjoint differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Tensors = tuple[torch.Tensor | None, ...]


class Factors(NamedTuple):
    """A solver's last system, or its factors: the derivatives have the same system.

    Attributes:
        tensors: factors; or, without ``solve``, ``c``, its Jacobian and the Hessian of the
            Lagrangian at the solution.
        solve: maps the tensors and an incoming gradient, shapes ``(B, n)`` and ``(B, m)``, to the
            adjoint variables ``(a, b)``, shape ``(B, n + m)``, and their relative residual
            ``(B,)``; a constant of autograd.
    """

    tensors: Tensors
    solve: Callable[..., Any] | None = None


class Point(NamedTuple):
    """A solution at which to differentiate; failed elements hold zeros.

    Attributes:
        primal: ``u``, shape ``(B, n)``.
        dual: ``y``, shape ``(B, m)``.
        failed: elements without a solution, whose derivative is zero, shape ``(B,)``, bool.
        factors: those of the solver that found it, or None.
        pull: that solver's own derivative, see :class:`~ddn_cvx.solvers.answer.Answer`, or None.
    """

    primal: torch.Tensor
    dual: torch.Tensor
    failed: torch.Tensor
    factors: Factors | None = None
    pull: Callable[..., Any] | None = None

    def select(self, elements: torch.Tensor) -> Point:
        """The solution of some elements (an index tensor), without factors."""
        return Point(self.primal[elements], self.dual[elements], self.failed[elements])
