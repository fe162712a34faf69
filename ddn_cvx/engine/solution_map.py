"""The solution map of a program as one differentiable function of what its instance depends on."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ddn_cvx.batch.inputs import fold_mapped, unfold_mapped
from ddn_cvx.engine.plan import Plan
from ddn_cvx.engine.policy import enforce_on_answer
from ddn_cvx.kkt.point import Factors, Point
from ddn_cvx.programs.cone.units import Units


class SolutionMap(torch.autograd.Function):
    """``(plan, excluded, start, *tensors) -> (u, y, status, rho, sigma, factors)``.

    Failed elements come out as NaN with zero gradient. The start has none: the solution does not
    depend on it but for which of several it is. Backward and forward mode are those of the plan's
    adjoint, in the units of each element; ``rho`` and ``sigma`` are empty where it has none.
    """

    @staticmethod
    def forward(
        plan: Plan, excluded: torch.Tensor, start: torch.Tensor | None, *tensors: torch.Tensor
    ) -> tuple[Any, ...]:
        answer = plan.solve(plan.at(tensors, len(excluded)), excluded, start)
        failed = plan.has_failed(answer.status)
        enforce_on_answer(answer, failed, plan.on_failure, limited=plan.limited)
        mask = failed.unsqueeze(1)
        units = answer.units or (answer.primal.new_empty(len(failed), 0),) * 2
        return (
            torch.where(mask, torch.nan, answer.primal),
            torch.where(mask, torch.nan, answer.dual),
            answer.status,
            *units,
            Kept(answer.factors, answer.pull),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.plan, _, _, *tensors = inputs
        *solution, opaque = output
        ctx.mark_non_differentiable(*solution[2:])
        ctx.set_materialize_grads(True)
        # Constants of autograd: where the backward pass is differentiated they are not used.
        factors: Factors | None = opaque.factors
        mapped = torch._C._are_functorch_transforms_active()
        if factors is None or mapped:
            factors = Factors(())
        ctx.count, ctx.solve = len(tensors), factors.solve
        ctx.pull = None if mapped else opaque.pull
        ctx.save_for_backward(*solution, *tensors, *factors.tensors)
        ctx.save_for_forward(*solution, *tensors)

    @staticmethod
    def _restore(ctx: Any) -> tuple[Any, Point, Units | None]:
        """Instance and solution in the elements' units."""
        u, y, status, rho, sigma, *rest = ctx.saved_tensors
        tensors, kept = tuple(rest[: ctx.count]), tuple(rest[ctx.count :])
        failed = ctx.plan.has_failed(status)
        mask = failed.unsqueeze(1)
        instance = ctx.plan.at(tensors, len(failed))
        if not ctx.plan.program.has_pattern:
            instance = instance.harmless(failed)
        units = Units(rho, sigma) if rho.shape[1] else None
        if units is not None:
            instance, u, y = instance.in_units(units), u / rho, y / sigma
        # Kept factors are constants: a system that is differentiated again is formed anew.
        constant = not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active())
        usable = ctx.solve is not None or (kept and constant)
        factors = Factors(kept, ctx.solve) if usable else None
        u, y = torch.where(mask, 0.0, u), torch.where(mask, 0.0, y)
        return instance, Point(u, y, failed, factors, ctx.pull), units

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> Any:
        once = ctx.plan.adjoint.by_solver
        pulled = once_differentiable(_pulled_back) if once else _pulled_back
        return pulled(ctx, incoming[0], incoming[1])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        instance, point, units = SolutionMap._restore(ctx)
        given = tuple(
            torch.zeros_like(value) if change is None else change
            for change, value in zip(tangents[3:], instance.tensors, strict=True)
        )
        plan = ctx.plan
        if units is not None:
            given = units.scaled(*given)
        du, dy = plan.adjoint.push_forward(instance, point, given, plan.on_failure)
        if units is not None:
            du, dy = du * units.rho, dy * units.sigma
        return du, dy, *(None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        plan, excluded, start, *tensors = arguments
        own = len(tensors) - plan.shared
        if any(dim is not None for dim in in_dims[3 + own :]):
            return _one_by_one(info.batch_size, in_dims, arguments)
        parts = (excluded, start, *tensors[:own])
        folded = fold_mapped(info.batch_size, in_dims[1 : 3 + own], parts)
        *output, opaque = SolutionMap.apply(plan, *folded, *tensors[own:])  # type: ignore[no-untyped-call]
        unfolded, out_dims = unfold_mapped(info.batch_size, output)
        return (*unfolded, opaque), (*out_dims, None)


def _pulled_back(ctx: Any, g_u: torch.Tensor, g_y: torch.Tensor) -> tuple[Any, ...]:
    instance, point, units = SolutionMap._restore(ctx)
    if units is not None:
        g_u, g_y = g_u * units.rho, g_y * units.sigma
    plan = ctx.plan
    gradients = plan.adjoint.pull_back(instance, point, g_u, g_y, plan.on_failure)
    return None, None, None, *(gradients if units is None else units.scaled(*gradients))


class Kept:
    """Hands factors to ``setup_context`` past autograd, which would make their tensors outputs."""

    def __init__(self, factors: Factors | None, pull: Any) -> None:
        self.factors, self.pull = factors, pull


def _one_by_one(size: int, in_dims: Any, arguments: Any) -> Any:
    """Where a module's own parameters are mapped, each of their values is a program of its own."""
    parts = [
        SolutionMap.apply(  # type: ignore[no-untyped-call]
            *(
                argument if dim is None else argument.select(dim, index)
                for dim, argument in zip(in_dims, arguments, strict=True)
            )
        )[:-1]
        for index in range(size)
    ]
    columns = tuple(torch.stack(column) for column in zip(*parts, strict=True))
    return (*columns, Kept(None, None)), (*(0,) * len(columns), None)
