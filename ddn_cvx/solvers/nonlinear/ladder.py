"""A nonlinear program from several starts, every point polished and judged by its residual.

Behind one batched solver stand a second try from beside a start that led nowhere, one downhill from
a saddle, and a fallback that takes elements one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ddn_cvx.batch.elements import put, select, where
from ddn_cvx.kkt.point import Factors
from ddn_cvx.kkt.polish import polish
from ddn_cvx.kkt.residuals import kkt_residual
from ddn_cvx.kkt.second_order import SecondOrder, second_order
from ddn_cvx.kkt.system import FORMED_UNKNOWNS
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.programs.nonlinear.start import further_starts, inside_bounds
from ddn_cvx.solvers.answer import SOLVED, Answer, status_of
from ddn_cvx.status import Degeneracy, Status

# Solves every element of an instance from a start, shape (B, n).
Solver = Callable[[NonlinearInstance, torch.Tensor], Answer]

# Newton's steps from a solver's accuracy to rounding.
_POLISH_STEPS = 4
# Seed of the perturbed start of an element whose own start led nowhere.
_RETRY_SEED = 1
# Objectives of two local solutions count as different above this, relative to one plus the lower.
_DISTINCT = 1e-9


@dataclass(frozen=True, eq=False)
class NonlinearLadder:
    """How a batch of nonlinear programs is solved.

    Attributes:
        solver: takes the whole batch.
        fallback: takes the elements that the solver could not solve; None for none.
        starts: number of starts for each element.
        seed: of the further starts.
    """

    solver: Solver
    fallback: Solver | None = None
    starts: int = 1
    seed: int = 0

    def __call__(self, instance: NonlinearInstance, start: torch.Tensor | None) -> Answer:
        """Solve from a start, shape ``(B, n)``; the lowest of the solutions is kept."""
        assert start is not None
        if not instance.batch:
            residual = start.new_zeros(0)
            dual = start.new_zeros(0, instance.program.rows)
            return _at_point(start, dual, torch.zeros_like(residual, dtype=torch.int64), residual)
        best = self._from(instance, inside_bounds(instance, start))
        if self.starts > 1:
            others = [
                self._from(instance, inside_bounds(instance, other))
                for other in further_starts(start, self.starts, self.seed)
            ]
            best = _lowest([best, *others])
        if self.fallback is not None:
            best = self._with_fallback(instance, start, best, self.fallback)
        return best

    def _with_fallback(
        self, instance: NonlinearInstance, start: torch.Tensor, best: Answer, fallback: Solver
    ) -> Answer:
        failed = (best.status != Status.SOLVED).nonzero().squeeze(1)
        if not len(failed):
            return best
        part = instance.select(failed)
        retried = _checked(part, fallback(part, start[failed]))
        retried = replace(retried, rung=torch.ones_like(retried.status))
        old = select(best, failed)
        return put(best, failed, where(retried.status < old.status, retried, old))

    def _from(self, instance: NonlinearInstance, start: torch.Tensor) -> Answer:
        found = _checked(instance, self.solver(instance, start))
        # A point where the constraints' gradients vanish, such as zero on a sphere, looks
        # infeasible from where it is: one more try from beside the start.
        stuck = (found.status == Status.INFEASIBLE) | (found.status == Status.FAILED)
        elements = stuck.nonzero().squeeze(1)
        if len(elements):
            (beside,) = further_starts(start[elements], 2, _RETRY_SEED)
            part = instance.select(elements)
            found = self._again(part, found, elements, inside_bounds(part, beside))
        saddle = (found.status == Status.SADDLE).nonzero().squeeze(1)
        if len(saddle):
            # Newton's method stops at a saddle it starts at: leave it downhill, once.
            part = instance.select(saddle)
            found = self._again(part, found, saddle, _beside_saddle(part, select(found, saddle)))
        return found

    def _again(
        self, part: NonlinearInstance, found: Answer, elements: torch.Tensor, start: torch.Tensor
    ) -> Answer:
        """The second try's answers where these are better, with the iterations of both."""
        again, old = _checked(part, self.solver(part, start)), select(found, elements)
        better = where(again.status < old.status, again, old)
        better = replace(better, iterations=again.iterations + old.iterations)
        return put(found, elements, better)


def _at_point(
    u: torch.Tensor, dual: torch.Tensor, status: torch.Tensor, residual: torch.Tensor
) -> Answer:
    zero, gap = torch.zeros_like(status), torch.full_like(residual, torch.inf)
    return Answer(
        u, dual, status, zero, residual=residual, rung=zero, degeneracy=zero, runner_up=gap
    )


def judged(instance: NonlinearInstance, u: torch.Tensor, dual: torch.Tensor) -> Answer:
    """The answer of a point that was found elsewhere, left as it is."""
    _, gradient, c, jacobian = instance.first(u)
    residual = kkt_residual(instance.program.cones, u, dual, gradient, c, jacobian)
    status = torch.where(residual <= SOLVED, int(Status.SOLVED), int(Status.FAILED))
    return _at_point(u, dual, status, residual)


def _beside_saddle(instance: NonlinearInstance, found: Answer) -> torch.Tensor:
    """A start downhill of a saddle."""
    u, dual = found.primal, found.dual
    direction = second_order(instance.program.cones, dual, *instance.second(u, dual)[2:]).direction
    # Both ways are downhill; the sign is fixed, so that the result is reproducible.
    largest = direction.gather(1, direction.abs().argmax(1, keepdim=True))
    size = u.abs().amax(1, keepdim=True).clamp_min(1.0)
    return u + 0.1 * size * direction * largest.sign()


def _checked(instance: NonlinearInstance, found: Answer) -> Answer:
    """Polish, compute the residual, and decide the status from it."""
    u, dual = torch.nan_to_num(found.primal), torch.nan_to_num(found.dual)
    status, cones = found.status, instance.program.cones
    if u.shape[1] + dual.shape[1] > FORMED_UNKNOWNS:
        objective, gradient, c, jacobian = instance.first(u)
        residual = kkt_residual(cones, u, dual, gradient, c, jacobian)
        flags = torch.zeros_like(status)
        saddle = torch.zeros_like(status, dtype=torch.bool)
        factors = None
    else:
        point, residual = polish(instance, u, dual, _POLISH_STEPS, found.evaluation)
        objective, _, c = point.rest
        u, dual, system = point.u, point.dual, (c, point.jacobian, point.hessian)
        kind = second_order(cones, dual, *system)
        flags, saddle, factors = _flags(kind), kind.saddle, Factors(system)
    # A claim that the problem has no solution stands unless the point is one.
    measured = (status == Status.SOLVED) | (status == Status.INACCURATE) | (status == Status.FAILED)
    measured = measured | (residual <= SOLVED)
    final = torch.where(measured, status_of(residual, SOLVED, limited=False), status)
    final = torch.where(saddle & (final == Status.SOLVED), int(Status.SADDLE), final)
    return replace(
        _at_point(u, dual, final, residual),
        iterations=found.iterations,
        objective=objective,
        degeneracy=torch.where(final == Status.SOLVED, flags, 0),
        factors=factors,
    )


def _flags(kind: SecondOrder) -> torch.Tensor:
    return (
        int(Degeneracy.WEAKLY_ACTIVE) * kind.weak.to(torch.int64)
        + int(Degeneracy.DEPENDENT_CONSTRAINTS) * kind.dependent.to(torch.int64)
        + int(Degeneracy.NO_CURVATURE) * kind.flat.to(torch.int64)
    )


def _lowest(runs: list[Answer]) -> Answer:
    """The lowest objective among the solved, and the gap to the next distinct one."""
    best, lowest = runs[0], runs[0].objective
    for run in runs[1:]:
        both = (run.status == Status.SOLVED) & (best.status == Status.SOLVED)
        better = torch.where(both, run.objective < lowest, run.status < best.status)
        best = where(better, run, best)
        lowest = torch.where(better, run.objective, lowest)
    gap = torch.full_like(lowest, torch.inf)
    for run in runs:
        above = (run.objective - lowest) / (1 + lowest.abs())
        distinct = (run.status == Status.SOLVED) & (above > _DISTINCT)
        gap = torch.where(distinct, torch.minimum(gap, above), gap)
    iterations = torch.stack([run.iterations for run in runs]).sum(0)
    return replace(best, iterations=iterations, runner_up=gap)
