"""The solution map of a nonlinear program as one differentiable function of its inputs."""

from __future__ import annotations

from typing import Any

import torch

from ddn_cvx.batch.inputs import fold_mapped, unfold_mapped
from ddn_cvx.engine.policy import warn_of_failures
from ddn_cvx.engine.solution_map import ElementsFailed
from ddn_cvx.engine.starts import Plan
from ddn_cvx.kkt.nonlinear_adjoint import Optimum, adjoint, tangent
from ddn_cvx.status import Status


class NonlinearMap(torch.autograd.Function):
    """``x -> (u, y, status, residual, iterations, c, J, H)`` by a ``Plan``.

    ``c``, its Jacobian and the Lagrangian's Hessian are handed to the backward pass; it forms them
    anew, differentiably, where it is to be differentiated itself.

    Failed elements come out as NaN with zero gradient. The start has none: the solution does not
    depend on it but for which of several it is.
    """

    @staticmethod
    def forward(
        plan: Plan, excluded: torch.Tensor, start: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        outcome = plan.solve(inputs, excluded, start)
        failed = outcome.status != Status.SOLVED
        if bool(failed.any()) and plan.on_failure == "raise":
            raise ElementsFailed(outcome)
        if plan.on_failure == "warn":
            warn_of_failures(outcome.status)
        mask = failed.unsqueeze(1)
        return (
            torch.where(mask, torch.nan, outcome.primal),
            torch.where(mask, torch.nan, outcome.dual),
            outcome.status,
            outcome.residual,
            outcome.iterations,
            *(outcome.system or (outcome.residual.new_zeros((len(failed), 0)),) * 3),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        plan, _, _, *tensors = inputs
        primal, dual, status, residual, iterations, *system = output
        ctx.plan = plan
        ctx.mark_non_differentiable(status, residual, iterations, *system)
        ctx.save_for_backward(primal, dual, status, *system, *tensors)
        ctx.save_for_forward(primal, dual, status, *system, *tensors)
        ctx.set_materialize_grads(True)

    @staticmethod
    def _restore(ctx: Any) -> tuple[Optimum, tuple[torch.Tensor, ...]]:
        primal, dual, status, constraint, jacobian, hessian, *inputs = ctx.saved_tensors
        failed = status != Status.SOLVED
        mask = failed.unsqueeze(1)
        # What is to be differentiated again, in whatever mode, is formed anew.
        differentiated = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        known = hessian.ndim == 3 and not differentiated
        optimum = Optimum(
            torch.where(mask, 0.0, primal),
            torch.where(mask, 0.0, dual),
            failed,
            (constraint, jacobian, hessian) if known else None,
        )
        return optimum, ctx.plan.harmless(failed, tuple(inputs))

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> Any:
        optimum, inputs = NonlinearMap._restore(ctx)
        plan = ctx.plan
        gradients = adjoint(
            plan.derivatives, optimum, inputs, incoming[0], incoming[1], plan.on_failure
        )
        own = len(inputs) - plan.program.shared
        kept = [
            torch.where(optimum.failed.reshape(-1, *[1] * (g.ndim - 1)), 0.0, g)
            for g in gradients[:own]
        ]
        return None, None, None, *kept, *gradients[own:]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        optimum, inputs = NonlinearMap._restore(ctx)
        given = tuple(
            torch.zeros_like(value) if change is None else change
            for change, value in zip(tangents[3:], inputs, strict=True)
        )
        plan = ctx.plan
        du, dy = tangent(plan.derivatives, optimum, inputs, given, plan.on_failure)
        return du, dy, *(None,) * 6

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        plan, *tensors = arguments
        shared = plan.program.shared
        own = len(tensors) - shared
        if any(dim is not None for dim in in_dims[1 + own :]):
            return _one_by_one(info.batch_size, in_dims, arguments)
        folded = fold_mapped(info.batch_size, in_dims[1 : 1 + own], tensors[:own])
        output = NonlinearMap.apply(plan, *folded, *tensors[own:])  # type: ignore[no-untyped-call]
        return unfold_mapped(info.batch_size, output)


def _one_by_one(size: int, in_dims: Any, arguments: Any) -> Any:
    """Where a module's own parameters are mapped, each of their values is a program of its own."""
    parts = [
        NonlinearMap.apply(  # type: ignore[no-untyped-call]
            *(
                argument if dim is None else argument.select(dim, index)
                for dim, argument in zip(in_dims, arguments, strict=True)
            )
        )
        for index in range(size)
    ]
    return tuple(torch.stack(column) for column in zip(*parts, strict=True)), (0,) * len(parts[0])
