"""A nonlinear program with the solver that serves it, and what to do about failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ddn_cvx.kkt.nonlinear_adjoint import DENSE_UNKNOWNS
from ddn_cvx.kkt.nonlinear_residuals import residuals
from ddn_cvx.kkt.polish import polish
from ddn_cvx.kkt.second_order import SecondOrder, second_order
from ddn_cvx.programs.nonlinear.at_inputs import BoundProgram
from ddn_cvx.programs.nonlinear.derivatives import Derivatives
from ddn_cvx.programs.nonlinear.program import NonlinearProgram
from ddn_cvx.programs.nonlinear.start import further_starts, inside_bounds
from ddn_cvx.solvers.cone.ladder import INACCURATE, SOLVED, Outcome
from ddn_cvx.solvers.nonlinear.iterate import Iterate
from ddn_cvx.status import Degeneracy, Status

Tensors = tuple[torch.Tensor, ...]
Solver = Callable[[BoundProgram, torch.Tensor], Iterate]
# Solves some elements one at a time: inputs and starts of these elements -> where they stopped.
Fallback = Callable[[BoundProgram, torch.Tensor], Iterate]

_POLISH_STEPS = 4

# Seed of the start beside a start that led nowhere.
_BESIDE = 1


@dataclass(frozen=True, eq=False)
class NonlinearOutcome(Outcome):
    """An :class:`Outcome` with what only nonlinear programs have.

    Attributes:
        degeneracy: :class:`~ddn_cvx.status.Degeneracy` flags, int64, shape ``(B,)``.
        runner_up: by how much the next best local solution's objective is higher, relative to one
            plus the best; infinite with one start, or if all starts agree; shape ``(B,)``.
        system: ``c``, its Jacobian and the Lagrangian's Hessian at the solution, from which a
            backward pass starts; empty where they are too large to keep.
    """

    degeneracy: torch.Tensor
    runner_up: torch.Tensor
    system: Tensors


class _Found(NamedTuple):
    """One run's answers, checked; first dimension ``B``."""

    u: torch.Tensor
    dual: torch.Tensor
    status: torch.Tensor
    residual: torch.Tensor
    iterations: torch.Tensor
    rung: torch.Tensor
    degeneracy: torch.Tensor
    objective: torch.Tensor
    constraint: torch.Tensor
    jacobian: torch.Tensor
    hessian: torch.Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """How a batch is solved.

    Attributes:
        derivatives: of the program.
        solver: the batched solver.
        fallback: for elements that it could not solve; None for none.
        starts: number of starts for each element.
        seed: of the further starts.
        on_failure: "raise", "nan" or "warn".
    """

    derivatives: Derivatives
    solver: Solver
    fallback: Fallback | None = None
    starts: int = 1
    seed: int = 0
    on_failure: str = "raise"

    @property
    def program(self) -> NonlinearProgram:
        """The program."""
        return self.derivatives.program

    @property
    def solver_name(self) -> str:
        """What a solution calls the solver."""
        return str(getattr(self.solver, "solver", "TORCH"))

    @property
    def fallback_name(self) -> str:
        """What a solution calls the fallback."""
        return str(getattr(self.fallback, "solver", ""))

    def harmless(self, failed: torch.Tensor, inputs: Tensors) -> Tensors:
        """Inputs whose failed elements cannot disturb the others: copies of a good element."""
        if len(failed) == 0:
            return inputs
        own = len(inputs) - self.program.shared
        good = (~failed).to(torch.int8).argmax(0)

        def replaced(tensor: torch.Tensor) -> torch.Tensor:
            mask = failed.reshape(-1, *[1] * (tensor.ndim - 1))
            return torch.where(mask, tensor.index_select(0, good.reshape(1)).detach(), tensor)

        return (*(replaced(tensor) for tensor in inputs[:own]), *inputs[own:])

    @torch.no_grad()
    def solve(
        self, inputs: Tensors, excluded: torch.Tensor, start: torch.Tensor
    ) -> NonlinearOutcome:
        """Solve the elements that are not ``excluded`` (bool, shape ``(B,)``).

        Args:
            inputs: of the program's functions.
            start: shape ``(B, n)``.
        """
        batch, n = start.shape
        inputs = tuple(tensor.detach() for tensor in inputs)
        whole = BoundProgram(self.derivatives, inputs, batch)
        bad = excluded | ~start.isfinite().all(1)
        kept = (~bad).nonzero().squeeze(1)
        program = whole if len(kept) == batch else whole.select(kept)
        options: dict[str, Any] = {"dtype": start.dtype, "device": start.device}
        outcome = NonlinearOutcome(
            primal=torch.full((batch, n), torch.nan, **options),
            dual=torch.full((batch, self.program.rows), torch.nan, **options),
            status=torch.full((batch,), int(Status.BAD_INPUT), device=start.device),
            residual=torch.full((batch,), torch.nan, **options),
            iterations=torch.zeros(batch, dtype=torch.int64, device=start.device),
            rung=torch.zeros(batch, dtype=torch.int64, device=start.device),
            degeneracy=torch.zeros(batch, dtype=torch.int64, device=start.device),
            runner_up=torch.full((batch,), torch.inf, **options),
            system=(),
        )
        if not len(kept):
            return outcome
        found, gap = self._from_all_starts(program, start[kept].detach())
        outcome.primal[kept], outcome.dual[kept] = found.u, found.dual
        outcome.status[kept], outcome.residual[kept] = found.status, found.residual
        outcome.iterations[kept], outcome.rung[kept] = found.iterations, found.rung
        outcome.degeneracy[kept], outcome.runner_up[kept] = found.degeneracy, gap
        system: Tensors = (found.constraint, found.jacobian, found.hessian)
        if len(kept) < batch:
            system = tuple(
                part.new_zeros((batch, *part.shape[1:])).index_copy(0, kept, part)
                for part in system
            )
        return replace(outcome, system=system)

    @torch.no_grad()
    def judge(
        self, u: torch.Tensor, dual: torch.Tensor, inputs: Tensors, excluded: torch.Tensor
    ) -> NonlinearOutcome:
        """The outcome of a point that was found elsewhere, left as it is."""
        program = BoundProgram(self.derivatives, tuple(t.detach() for t in inputs), len(u))
        _, gradient, c, jacobian = program.first(u)
        parts = residuals(self.program.cones, u, dual, gradient, c, jacobian)
        residual = torch.nan_to_num(parts.largest, nan=torch.inf)
        status = torch.where(residual <= SOLVED, int(Status.SOLVED), int(Status.FAILED))
        status = torch.where(excluded, int(Status.BAD_INPUT), status)
        zero = torch.zeros_like(status)
        gap = torch.full_like(residual, torch.inf)
        return NonlinearOutcome(u, dual, status, residual, zero, zero, zero, gap, ())

    # -------------------------------------------------------------------------------------------

    def _from_all_starts(
        self, program: BoundProgram, start: torch.Tensor
    ) -> tuple[_Found, torch.Tensor]:
        gap = torch.full_like(start[:, 0], torch.inf) if start.shape[1] else start.sum(1)
        best = self._from(program, inside_bounds(program, start))
        if self.starts > 1:
            others = [
                self._from(program, inside_bounds(program, other))
                for other in further_starts(start, self.starts, self.seed)
            ]
            best, gap = _best([best, *others])
        if self.fallback is not None:
            failed = (best.status != Status.SOLVED).nonzero().squeeze(1)
            if len(failed):
                part = program.select(failed)
                retried = self._check(part, self.fallback(part, start[failed]))
                retried = retried._replace(rung=torch.ones_like(retried.rung))
                old = _Found(*(field[failed] for field in best))
                better = retried.status < old.status
                best = _put(best, failed, _pick(better, retried, old))
        return best, gap

    def _from(self, program: BoundProgram, start: torch.Tensor) -> _Found:
        found = self._check(program, self.solver(program, start))
        # A point where the constraints' gradients vanish, such as zero on a sphere, looks
        # infeasible from where it is: one more try from beside the start.
        stuck = (found.status == Status.INFEASIBLE) | (found.status == Status.FAILED)
        elements = stuck.nonzero().squeeze(1)
        if len(elements):
            part = program.select(elements)
            (beside,) = further_starts(start[elements], 2, _BESIDE)
            again = self._check(part, self.solver(part, inside_bounds(part, beside)))
            found = _put(found, elements, _retried(again, found, elements))
        saddle = (found.status == Status.SADDLE).nonzero().squeeze(1)
        if len(saddle):
            # Newton's method stops at a saddle it starts at: leave it downhill, once.
            part = program.select(saddle)
            again = self._check(part, self.solver(part, self._left(part, found, saddle)))
            found = _put(found, saddle, _retried(again, found, saddle))
        return found

    def _left(self, program: BoundProgram, found: _Found, elements: torch.Tensor) -> torch.Tensor:
        u, dual = found.u[elements], found.dual[elements]
        _, _, c, jacobian, hessian = program.second(u, dual)
        direction = second_order(self.program.cones, dual, c, jacobian, hessian).direction
        # Both ways are downhill; the sign is fixed, so that the result is reproducible.
        largest = direction.gather(1, direction.abs().argmax(1, keepdim=True))
        size = u.abs().amax(1, keepdim=True).clamp_min(1.0)
        return u + 0.1 * size * direction * largest.sign()

    def _check(self, program: BoundProgram, iterate: Iterate) -> _Found:
        """Polish, compute the residual, and decide the status from it."""
        u, dual = torch.nan_to_num(iterate.point), torch.nan_to_num(iterate.dual)
        no_flags = torch.zeros_like(iterate.status)
        status = iterate.status
        if u.shape[1] + dual.shape[1] > DENSE_UNKNOWNS:
            objective, gradient, c, jacobian = program.first(u)
            parts = residuals(self.program.cones, u, dual, gradient, c, jacobian)
            residual, flags = torch.nan_to_num(parts.largest, nan=torch.inf), no_flags
            saddle = torch.zeros_like(status, dtype=torch.bool)
            system = (objective.new_zeros((len(u), 0)),) * 3
        else:
            point = polish(program, u, dual, _POLISH_STEPS, iterate.evaluation)
            u, dual, objective, residual = point.u, point.dual, point.objective, point.residual
            kind = second_order(
                self.program.cones, dual, point.constraint, point.jacobian, point.hessian
            )
            flags, saddle = _flags(kind), kind.saddle
            system = (point.constraint, point.jacobian, point.hessian)
        final = torch.where(residual <= SOLVED, int(Status.SOLVED), status)
        short = (residual > SOLVED) & (residual <= INACCURATE)
        claimed = (status == Status.SOLVED) | (status == Status.FAILED)
        final = torch.where(short & claimed, int(Status.INACCURATE), final)
        hopeless = (residual > INACCURATE) & (
            (status == Status.SOLVED) | (status == Status.INACCURATE)
        )
        final = torch.where(hopeless, int(Status.FAILED), final)
        final = torch.where(saddle & (final == Status.SOLVED), int(Status.SADDLE), final)
        solved = final == Status.SOLVED
        return _Found(
            u,
            dual,
            final,
            residual,
            iterate.iterations,
            torch.zeros_like(final),
            torch.where(solved, flags, 0),
            objective,
            *system,
        )


def _flags(kind: SecondOrder) -> torch.Tensor:
    return (
        int(Degeneracy.WEAKLY_ACTIVE) * kind.weak.to(torch.int64)
        + int(Degeneracy.DEPENDENT_CONSTRAINTS) * kind.dependent.to(torch.int64)
        + int(Degeneracy.NO_CURVATURE) * kind.flat.to(torch.int64)
    )


def _pick(better: torch.Tensor, new: _Found, old: _Found) -> _Found:
    return _Found(
        *(
            torch.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)
            for a, b in zip(new, old, strict=True)
        )
    )


def _put(found: _Found, elements: torch.Tensor, part: _Found) -> _Found:
    return _Found(
        *(whole.index_copy(0, elements, values) for whole, values in zip(found, part, strict=True))
    )


def _retried(again: _Found, found: _Found, elements: torch.Tensor) -> _Found:
    """The second try's answers where it did better, with the iterations of both."""
    old = _Found(*(field[elements] for field in found))
    chosen = _pick(again.status < old.status, again, old)
    return chosen._replace(iterations=again.iterations + old.iterations)


def _best(runs: list[_Found]) -> tuple[_Found, torch.Tensor]:
    """The lowest objective among the solved, and the gap to the next distinct one."""
    best = runs[0]
    for run in runs[1:]:
        solved, held = run.status == Status.SOLVED, best.status == Status.SOLVED
        lower = run.objective < best.objective
        better = torch.where(solved & held, lower, run.status < best.status)
        best = _pick(better, run, best)
    gap = torch.full_like(best.objective, torch.inf)
    size = 1 + best.objective.abs()
    for run in runs:
        above = (run.objective - best.objective) / size
        distinct = (run.status == Status.SOLVED) & (above > 1e-9)
        gap = torch.where(distinct, torch.minimum(gap, above), gap)
    iterations = torch.stack([run.iterations for run in runs]).sum(0)
    return best._replace(iterations=iterations), gap
