"""The solution map of a cone program as one differentiable function of its data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ddn_cvx.batch.inputs import fold_mapped, unfold_mapped
from ddn_cvx.engine.policy import warn_of_failures
from ddn_cvx.kkt.adjoint import tangent
from ddn_cvx.kkt.point import Adjoint, Factors, Point
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.cone.units import Units, natural_units
from ddn_cvx.solvers.cone.base import ConeSolver, Settings
from ddn_cvx.solvers.cone.ladder import Outcome, climb
from ddn_cvx.status import Status


@dataclass(frozen=True, eq=False)
class Engine:
    """A program with the solver and the adjoint that serve it, and what to do about failures.

    Attributes:
        rungs: solvers with their settings, tried in turn.
        on_failure: "raise", "nan" or "warn".
        limited: the user limited the work, so that stopping short is what was asked.
    """

    program: ConeProgram
    rungs: list[tuple[ConeSolver, Settings]]
    adjoint: Adjoint
    on_failure: str = "raise"
    limited: bool = False
    _factors: list[Factors] = field(default_factory=list, repr=False)

    def keep(self, factors: Factors | None) -> None:
        """For the backward pass of the call that is under way."""
        self._factors[:] = [] if factors is None else [factors]

    def kept(self) -> Factors | None:
        """What was kept, once."""
        return self._factors.pop() if self._factors else None

    def solve(self, data: ConeData, excluded: torch.Tensor, units: Units) -> Outcome:
        """Solve the elements that are not ``excluded`` (bool, shape ``(B,)``), in these units."""
        data = data.detach()
        if not bool(excluded.any()):
            return climb(self.program, data, self.rungs, units)
        kept = (~excluded).nonzero().squeeze(1)
        found = climb(self.program, data.select(kept), self.rungs, units.select(kept))
        batch = data.batch

        def scatter(values: torch.Tensor, fill: float) -> torch.Tensor:
            full = values.new_full((batch, *values.shape[1:]), fill)
            full[kept] = values
            return full

        return Outcome(
            scatter(found.primal, 0.0),
            scatter(found.dual, 0.0),
            scatter(found.status, int(Status.BAD_INPUT)),
            scatter(found.residual, torch.nan),
            scatter(found.iterations, 0),
            scatter(found.rung, 0),
        )

    def has_failed(self, status: torch.Tensor) -> torch.Tensor:
        """Which elements the failure policy applies to."""
        failed = status != Status.SOLVED
        if self.limited:
            failed = failed & (status != Status.INACCURATE)
        return failed


class ElementsFailed(Exception):
    """Carries the outcome of a batch with failures out of the solution map."""

    def __init__(self, outcome: Outcome, reason: Exception | None = None) -> None:
        super().__init__()
        self.outcome, self.reason = outcome, reason


class SolutionMap(torch.autograd.Function):
    """``(P, q, A, b) -> (x, y, status, residual, iterations)`` by an :class:`Engine`.

    Failed elements come out as NaN with zero gradient. Backward and forward mode are those of the
    engine's adjoint, in the units of each element, in which ``y - s`` tells what is active; two
    outputs more carry the units.
    """

    @staticmethod
    def forward(
        P: torch.Tensor,
        q: torch.Tensor,
        A: torch.Tensor,
        b: torch.Tensor,
        excluded: torch.Tensor,
        engine: Engine,
    ) -> tuple[torch.Tensor, ...]:
        data = ConeData(P, q, A, b)
        units = natural_units(engine.program, data)
        outcome = engine.solve(data, excluded, units)
        failed = engine.has_failed(outcome.status)
        if engine.on_failure == "raise" and not outcome.known_solved and bool(failed.any()):
            raise ElementsFailed(outcome)
        if engine.on_failure == "warn" or engine.limited:
            warn_of_failures(outcome.status)
        engine.keep(outcome.factors)
        mask = failed.unsqueeze(1)
        return (
            torch.where(mask, torch.nan, outcome.primal),
            torch.where(mask, torch.nan, outcome.dual),
            outcome.status,
            outcome.residual,
            outcome.iterations,
            *units,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *data, _, engine = inputs
        primal, dual, status, residual, iterations, *units = output
        ctx.engine = engine
        # Constants: where the backward pass is differentiated they are not used.
        factors, ctx.solve = engine.kept(), None
        kept: tuple[torch.Tensor | None, ...] = ()
        if factors is not None and not torch._C._are_functorch_transforms_active():
            kept, ctx.solve = factors
        ctx.mark_non_differentiable(status, residual, iterations, *units)
        ctx.save_for_backward(*data, primal, dual, status, *units, *kept)
        ctx.save_for_forward(*data, primal, dual, status, *units)
        ctx.set_materialize_grads(True)

    @staticmethod
    def _restore(ctx: Any) -> tuple[ConeData, Point, Units]:
        """Data and solution in the elements' units."""
        P, q, A, b, primal, dual, status, rho, sigma, *kept = ctx.saved_tensors
        units = Units(rho, sigma)
        failed = ctx.engine.has_failed(status)
        mask = failed.unsqueeze(1)
        return (
            units.scale(ConeData(P, q, A, b)),
            Point(
                torch.where(mask, 0.0, primal / units.rho),
                torch.where(mask, 0.0, dual / units.sigma),
                failed,
                None if ctx.solve is None or not kept else Factors(tuple(kept), ctx.solve),
            ),
            units,
        )

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> Any:
        data, point, units = SolutionMap._restore(ctx)
        engine = ctx.engine
        primal, dual = incoming[0] * units.rho, incoming[1] * units.sigma
        gradient = engine.adjoint(engine.program, data, point, primal, dual, engine.on_failure)
        result = units.scale(gradient)
        return result.P, result.q, result.A, result.b, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        data, point, units = SolutionMap._restore(ctx)
        given = [
            torch.zeros_like(value) if change is None else change
            for change, value in zip(tangents[:4], (data.P, data.q, data.A, data.b), strict=True)
        ]
        engine = ctx.engine
        change = units.scale(ConeData(*given))
        dx, dy = tangent(engine.program, data, point, change, engine.on_failure)
        return dx * units.rho, dy * units.sigma, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        folded = fold_mapped(info.batch_size, in_dims[:-1], inputs[:-1])
        output = SolutionMap.apply(*folded, inputs[-1])  # type: ignore[no-untyped-call]
        return unfold_mapped(info.batch_size, output)
