"""``adjoint="native"``: the backward pass that comes with a solver, unchecked, once only."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from ddn_cvx.kkt.point import Point


class Native:
    """Hands the incoming gradient to the solver's own derivative, which travels in the answer."""

    name = "native"
    is_differentiable = False
    described = "the solver's own, unchecked"
    form = "quadratic"

    def supports(self, program: Any) -> None:
        """What the solver takes, which says so itself."""
        return

    def pull_back(
        self,
        instance: Any,
        point: Point,
        primal_gradient: torch.Tensor,
        dual_gradient: torch.Tensor,
        on_failure: str,
    ) -> tuple[torch.Tensor, ...]:
        """The gradient of each of the instance's tensors; zero for failed elements."""
        failed = point.failed.unsqueeze(1)
        primal, dual = (
            torch.where(failed, 0.0, gradient) for gradient in (primal_gradient, dual_gradient)
        )
        if point.pull is None:
            raise NotImplementedError(
                'adjoint="native" has no derivative inside torch.func; adjoint="kkt" has.'
            )
        gradients = point.pull(primal, dual)
        return tuple(torch.where(failed, 0.0, gradient) for gradient in gradients)

    def push_forward(self, *_: Any) -> NoReturn:
        """Solvers bring no forward mode.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            'adjoint="native" has no forward mode; use adjoint="kkt", which has.'
        )
