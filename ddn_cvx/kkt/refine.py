"""Refinement of a cone program's solution: from a solver's accuracy to rounding.

Without the rows that have no multiplier where that determines it, else by semismooth Newton on the
whole KKT system (:mod:`ddn_cvx.kkt.semismooth`). Never to a worse point.
"""

from __future__ import annotations

import math

import torch

from ddn_cvx.batch.device import places_of, read
from ddn_cvx.batch.elements import put, select
from ddn_cvx.cones.scaling import ConeProduct
from ddn_cvx.cones.second_order import SecondOrder
from ddn_cvx.kkt.newton import ReducedSolution, newton_polish
from ddn_cvx.kkt.reduced.equilibrate import equilibrated
from ddn_cvx.kkt.reduced.prepared import ReducedBatch, has_reduced_kkt, in_chunks
from ddn_cvx.kkt.residuals import largest, magnitudes, relative_residual, row_violation
from ddn_cvx.kkt.semismooth import NewtonPoint, semismooth_newton
from ddn_cvx.programs.cone.instance import ConeInstance, slack_at
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.status import Status

# Relative residual of the linear systems of a solution.
_EXACT = 1e-11
# Newton steps on the whole KKT system, at most: they start at a solver's solution, from where they
# converge quadratically or not at all.
_MOST_STEPS = 8
# With more unknowns than this, the whole system is not factored.
_WHOLE_UNKNOWNS = 600
# A relative KKT residual below this is rounding: nothing to compare. Neither is there with a row's
# violation in its own units below this, which a row that leaves the active set exceeds by far.
_ROUNDING = 1e-12
_ROW_ROUNDING = 1e-10


def refine(
    program: ConeProgram,
    data: ConeData,
    primal: torch.Tensor,
    dual: torch.Tensor,
    *,
    target: float = 1e-15,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take Newton steps and keep the best point; never returns a worse one.

    Args:
        primal, dual: a finite approximate solution, shapes ``(B, n)`` and ``(B, m)``.
        target: relative size of the residual map at which Newton's method on the whole KKT system,
            where that is needed, stops.

    Returns:
        Primal, dual and relative KKT residual, shapes ``(B, n)``, ``(B, m)``, ``(B,)``.
    """
    if not has_reduced_kkt(program):
        if program.variables + program.rows > _WHOLE_UNKNOWNS:
            return primal, dual, relative_residual(program, data, primal, dual)
        return _refine(program, data, primal, dual, target)

    def work(e: slice) -> tuple[torch.Tensor, ...]:
        return _refine_light(program, data.select(e), primal[e], dual[e], target)

    x, y, residual = in_chunks(program, data.batch, work)
    return x, y, residual


def _refine_light(
    program: ConeProgram, data: ConeData, primal: torch.Tensor, dual: torch.Tensor, target: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Without the rows that have no multiplier, where that has a solution of all digits."""
    batch = ReducedBatch(program, data)
    reduced, scales = equilibrated(batch.program, batch.cones.groups)
    point = batch.frame.inside(primal, dual, slack_at(program, data, primal))
    _, z, s = scales.inside(*point)
    s = s * batch.cones.inner
    unknown = torch.full((len(z),), int(Status.FAILED), device=z.device)
    found = ReducedSolution(
        torch.zeros_like(reduced.q), z.clone(), s.clone(), unknown, unknown.clone()
    )
    solved = newton_polish(reduced, batch.cones, _EXACT, found)
    has_apex = any(isinstance(group, SecondOrder) for group in batch.cones.groups)
    count = read((~solved).sum())[0] if has_apex else 0
    if count:
        rest = places_of(~solved, count)
        # Near the apex a multiplier's distance from the boundary, times a slack that is nearly
        # zero, is below every residual: it does not tell the active set.
        again = select(found, rest)
        for field, given in zip(again[1:3], (z, s), strict=True):
            field[:] = _onto_boundaries(batch.cones, given[rest])
        solved[rest] = newton_polish(reduced.select(rest), batch.cones, _EXACT, again)
        found = put(found, rest, again)
    x, z, _ = scales.outside(*found[:3])
    x, y = batch.frame.outside(x, z, data.q, data.b)
    primal, dual, residual, better = _better(program, data, (primal, dual), (x, y), solved)
    small = program.variables + program.rows <= _WHOLE_UNKNOWNS
    count = read((~better).sum())[0] if small else 0
    if count:
        rest = places_of(~better, count)
        part = _refine(program, data.select(rest), primal[rest], dual[rest], target)
        primal[rest], dual[rest], residual[rest] = part
    return primal, dual, residual


def _onto_boundaries(cones: ConeProduct, point: torch.Tensor) -> torch.Tensor:
    """A point of which the parts in second-order cones have the height of their boundaries."""
    moved = point.clone()
    for group in cones.groups:
        if isinstance(group, SecondOrder):
            group.of(moved)[..., 0] = group.of(point)[..., 1:].norm(dim=-1)
    return moved


def _refine(
    program: ConeProgram, data: ConeData, primal: torch.Tensor, dual: torch.Tensor, target: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """On the whole KKT system, dense.

    Progress is measured by ``F`` itself, not by the duality gap, which near the curved boundary of
    a cone is the square of the error.
    """
    # Each row is compared with its own terms: data of very different sizes are refined as well.
    sizes = torch.cat(magnitudes(program, data, primal, dual), 1)
    instance = ConeInstance(program, data)
    A, P = instance.system(primal, dual)

    def evaluate(x: torch.Tensor, v: torch.Tensor, slack: torch.Tensor) -> NewtonPoint:
        y = program.cones.project_dual(v, slack)
        stationarity, c = instance.stationarity(x, y)
        value = torch.cat([stationarity, c + y - v], 1)
        size = torch.nan_to_num(largest(value / sizes), nan=torch.inf)
        return NewtonPoint(x, v, y, y, A, P, value, size)

    slack = instance.slack(primal)
    best = semismooth_newton(
        program.cones,
        evaluate(primal, dual - slack, slack),
        evaluate,
        steps=_MOST_STEPS,
        target=target,
        patience=2,
        farthest=math.inf,
    )
    new = (best.u, best.dual)
    return _better(program, data, (primal, dual), new, best.size.isfinite())[:3]


def _better(
    program: ConeProgram,
    data: ConeData,
    old: tuple[torch.Tensor, torch.Tensor],
    new: tuple[torch.Tensor, torch.Tensor],
    usable: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The better of two points, its relative residual, and where that is the new one.

    A new point may not violate any row by more, in the row's own units: next to rows of 1e8 the
    residual does not see that one of 1e-8 has left the active set.
    """
    before, after = (relative_residual(program, data, *point) for point in (old, new))
    kept, moved = (row_violation(program, data, point[0]) for point in (old, new))
    better = (
        usable & (after <= before.clamp_min(_ROUNDING)) & (moved <= kept.clamp_min(_ROW_ROUNDING))
    )
    primal, dual = (
        torch.where(better.unsqueeze(1), changed, given)
        for given, changed in zip(old, new, strict=True)
    )
    return primal, dual, torch.where(better, after, before), better
