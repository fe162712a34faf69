"""KKT systems that are only multiplied, never formed: MINRES with Hessian-vector products."""

from __future__ import annotations

from typing import Any

import torch
from torch.func import grad

from ddn_cvx.linalg.dense import apply_policy
from ddn_cvx.linalg.minres import minres
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.programs.nonlinear.derivatives import Derivatives, directional

Tensors = tuple[torch.Tensor, ...]

_TOLERANCE = 1e-11


def krylov_solve(
    instance: NonlinearInstance,
    u: torch.Tensor,
    dual: torch.Tensor,
    right: torch.Tensor,
    on_failure: str,
) -> torch.Tensor:
    """``M^-1 right`` for the symmetric form of the KKT matrix of a program without curved cones.

    With the mask ``D`` of active rows, ``M = [[H, J' D], [D J, D - I]]``: an inactive row of the
    solution is minus the right-hand side's, which is zero in the adjoint.

    Args:
        right: shape ``(B, n + m)``.
    """
    tensors = right, u, dual, *instance.inputs
    solution: torch.Tensor = _KrylovSolve.apply(instance.derivatives, on_failure, *tensors)  # type: ignore[no-untyped-call]
    return solution


def multiply(
    derivatives: Derivatives,
    vector: torch.Tensor,
    u: torch.Tensor,
    dual: torch.Tensor,
    inputs: Tensors,
) -> torch.Tensor:
    """``M vector``, shape ``(B, n + m)``; one forward-over-reverse pass."""
    program = derivatives.program
    n = u.shape[1]
    a, b = vector[:, :n], vector[:, n:]
    if not program.rows:
        return derivatives.product(u, dual, a, *inputs)[0]
    zero = program.cones.zero
    active = (dual + program.constraints(u, *inputs))[:, zero:] > 0
    mask = torch.cat([torch.ones_like(dual[:, :zero]), active.to(dual)], 1).detach()

    def stationarity(u: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return derivatives.stationarity(u, y, *inputs)

    _, (top, bottom) = directional(stationarity, (u, dual), (a, mask * b))
    return torch.cat([top, mask * bottom + (mask - 1) * b], 1)


class _KrylovSolve(torch.autograd.Function):
    """``z = M(u, y, x)^-1 r``. With ``w = M^-1 g``: ``dr = w``, and ``-<w, M z>`` for the rest."""

    generate_vmap_rule = False

    @staticmethod
    def forward(
        derivatives: Derivatives,
        on_failure: str,
        right: torch.Tensor,
        u: torch.Tensor,
        dual: torch.Tensor,
        *inputs: torch.Tensor,
    ) -> torch.Tensor:
        def times(vector: torch.Tensor) -> torch.Tensor:
            return multiply(derivatives, vector, u, dual, inputs)

        with torch.no_grad():
            solution, residual = minres(times, right, tolerance=_TOLERANCE)
        return apply_policy(solution, residual, on_failure)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.derivatives, ctx.on_failure, _, *tensors = inputs
        ctx.save_for_backward(output, *tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        solution, u, dual, *inputs = ctx.saved_tensors
        derivatives = ctx.derivatives
        tensors = gradients[0], u, dual, *inputs
        w: torch.Tensor = _KrylovSolve.apply(derivatives, ctx.on_failure, *tensors)  # type: ignore[no-untyped-call]

        def pairing(u: torch.Tensor, dual: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
            return (w * multiply(derivatives, solution, u, dual, inputs)).sum()

        parts = grad(pairing, argnums=tuple(range(2 + len(inputs))))(u, dual, *inputs)
        return None, None, w, *(-part for part in parts)
