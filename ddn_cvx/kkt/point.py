"""What an adjoint of cone programs is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from ddn_cvx.programs.cone.program import ConeData, ConeProgram

Tensors = tuple[torch.Tensor | None, ...]


class Factors(NamedTuple):
    """What a solver keeps of its last systems, which are those of the derivatives.

    Attributes:
        tensors: the factors.
        solve: takes them and a gradient, ``(B, n)`` and ``(B, m)`` in the units of the program that
            was solved, to ``(a, c)`` ``(B, n + m)`` and its relative residual ``(B,)``; constant.
    """

    tensors: Tensors
    solve: Callable[[Tensors, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Point(NamedTuple):
    """A solution at which to differentiate; failed elements hold zeros.

    Attributes:
        primal: ``x``, shape ``(B, n)``.
        dual: ``y``, shape ``(B, m)``.
        failed: elements without a solution, whose derivative is zero, shape ``(B,)``, bool.
        factors: those of the solver that found it, or None.
    """

    primal: torch.Tensor
    dual: torch.Tensor
    failed: torch.Tensor
    factors: Factors | None = None

    def select(self, elements: torch.Tensor) -> Point:
        """That of some elements (an index tensor)."""
        return Point(self.primal[elements], self.dual[elements], self.failed[elements])


class Adjoint(Protocol):
    """Vector-Jacobian product of the map from problem data to ``(x, y)``."""

    @property
    def name(self) -> str:
        """Name under which users ask for it."""
        ...

    def __call__(
        self,
        program: ConeProgram,
        data: ConeData,
        point: Point,
        primal_gradient: torch.Tensor,
        dual_gradient: torch.Tensor,
        on_failure: str,
    ) -> ConeData:
        """Gradients with respect to the data, in a :class:`ConeData` of the same shapes.

        Args:
            primal_gradient, dual_gradient: incoming gradient, shapes ``(B, n)`` and ``(B, m)``.
            on_failure: "raise", "nan" or "warn": what to do about elements whose linear residual
                misses its tolerance after the whole ladder.
        """
        ...
