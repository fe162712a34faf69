"""The exact adjoint as users ask for it: "kkt" for cone programs, "implicit" for nonlinear ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ddn_cvx.kkt.adjoint import pull_back, push_forward
from ddn_cvx.kkt.point import Point

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Implicit:
    """Solves the KKT system of the solution; see :mod:`ddn_cvx.kkt.adjoint`.

    Attributes:
        name: under which the user asked for it.
    """

    name: str = "kkt"
    is_differentiable = True

    def pull_back(
        self,
        instance: Any,
        point: Point,
        primal_gradient: torch.Tensor,
        dual_gradient: torch.Tensor,
        on_failure: str,
    ) -> Tensors:
        """See :func:`ddn_cvx.kkt.adjoint.pull_back`."""
        return pull_back(instance, point, primal_gradient, dual_gradient, on_failure)

    def push_forward(
        self, instance: Any, point: Point, tangents: Tensors, on_failure: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`ddn_cvx.kkt.adjoint.push_forward`."""
        return push_forward(instance, point, tangents, on_failure)
