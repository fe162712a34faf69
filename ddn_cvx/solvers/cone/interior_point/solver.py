"""The batched interior-point method in torch: all elements at once, on the data's own device."""

from __future__ import annotations

import torch

from ddn_cvx.batch.device import perhaps_any, places_of, read
from ddn_cvx.batch.elements import mapped, put, select, where
from ddn_cvx.cones.scaling import ConeProduct
from ddn_cvx.kkt.newton import ReducedSolution, newton_polish
from ddn_cvx.kkt.point import Factors
from ddn_cvx.kkt.reduced.equilibrate import ReducedData, Scales, equilibrated
from ddn_cvx.kkt.reduced.prepared import ReducedBatch, in_chunks
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.cone.base import ConeSolver, Settings, under_own_names
from ddn_cvx.solvers.cone.interior_point.active_set import (
    ActiveRows,
    may_apply,
    solve_by_active_set,
)
from ddn_cvx.solvers.cone.interior_point.homogeneous_embedding import (
    Iterate,
    Limits,
    first_point,
    solve,
)
from ddn_cvx.status import Status

# Iterations at most.
_MOST = 100
# Relative residuals, in double precision, at which Newton's method is tried.
_STAGES = (1e-4, 1e-7)
# Relative residual and iterations in single precision.
_SINGLE = 1e-2
_SINGLE_ITERATIONS = 20
# From a point that is only nearly feasible the way to a certificate can be longer than from afar.
_STAGE_ITERATIONS = 30


class InteriorPoint(ConeSolver):
    """Adapter to :mod:`ddn_cvx.solvers.cone.interior_point`; settings have Clarabel's names."""

    name = "INTERIOR"
    on_device = True
    warm_starts = True
    defaults: Settings = {
        "tol_feas": 1e-11,
        "tol_gap_rel": 1e-11,
        "tol_infeas_rel": 1e-9,
        "max_iter": _MOST,
    }
    # All that it has; "tol_gap_abs" is taken for the relative one, as both have a one added.
    known = frozenset({*defaults, "tol_gap_abs", "eps", "max_iters", "verbose", "warm_start"})

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> Answer:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        for key in settings.keys() - self.known:
            known = ", ".join(sorted(self.known))
            raise TypeError(f"{self.name} has no setting {key!r}; it has {known}.")
        options = {**self.defaults, **under_own_names(settings)}
        feasibility, relative, certificate = (
            float(options[key]) for key in ("tol_feas", "tol_gap_rel", "tol_infeas_rel")
        )
        gap = max(float(options.get("tol_gap_abs", relative)), relative)
        limits, most = Limits(feasibility, gap, certificate), int(options["max_iter"])
        warm = options.get("warm_start")
        if warm is not None and len(warm[0]) != data.batch:
            warm = None

        factors: list[Factors | None] = []

        def work(e: slice) -> tuple[torch.Tensor, ...]:
            found = _solve(program, data.select(e), limits, most, select(warm, e))
            factors.append(found.factors)
            fields = (found.primal, found.dual, found.status, found.iterations)
            return fields if found.products is None else (*fields, *found.products)

        x, y, status, iterations, *products = in_chunks(program, data.batch, work)
        whole = factors[0] if len(factors) == 1 else None
        made = (products[0], products[1]) if products else None
        return Answer(x, y, status, iterations, factors=whole, products=made)


def _solve(
    program: ConeProgram,
    data: ConeData,
    limits: Limits,
    most: int,
    warm: tuple[torch.Tensor, ...] | None,
) -> Answer:
    batch = ReducedBatch(program, data)
    start = None
    if warm is not None:
        # An element without a former solution starts at the origin.
        x, y, s = (part.nan_to_num(0.0, 0.0, 0.0) for part in warm)
        start = batch.frame.inside(x, y, s)
    # A user who limits the iterations gets those of the interior point.
    tried = may_apply(program) and most >= _MOST
    found, active = _found(batch, tried, limits, most, start)
    x, z, q, b = found.x, found.z, data.q, data.b
    if active is None:  # else all is solved
        infeasible = (found.status == int(Status.INFEASIBLE)).unsqueeze(1)
        unbounded = (found.status == int(Status.UNBOUNDED)).unsqueeze(1)
        # Half of a certificate is zero.
        x, z = torch.where(infeasible, 0.0, x), torch.where(unbounded, 0.0, z)
        proof = infeasible | unbounded
        q, b = torch.where(proof, 0.0, q), torch.where(proof, 0.0, b)
    x, y = batch.frame.outside(x, z, q, b)
    known = batch.frame.products(batch.program.matrices.A, x, y)
    factors = None if active is None else active.kept(batch.frame)
    return Answer(x, y, found.status, found.iterations, factors=factors, products=known)


def _found(
    batch: ReducedBatch,
    tried: bool,
    limits: Limits,
    most: int,
    start: tuple[torch.Tensor, ...] | None,
) -> tuple[ReducedSolution, ActiveRows | None]:
    """By the active set where that is tried; what it leaves by the interior point, in its units."""
    data, cones, whole = batch.program, batch.cones, None
    if tried:
        guess = None if start is None else start[1] > start[2]
        whole, active = solve_by_active_set(data, cones, limits.feasibility, guess)
        if active is not None:
            return whole, active
        near = whole.status == int(Status.INACCURATE)
        left = whole.status != int(Status.SOLVED)
        count, of_near = read(left.sum(), near.sum())
        if of_near:
            some = places_of(near, of_near)
            finished = _finished(data.select(some), cones, limits, select(whole, some))
            whole = put(whole, some, finished)
            left = whole.status != int(Status.SOLVED)
            (count,) = read(left.sum())
        if count == 0:
            return whole, None
        rows = places_of(left, count)
        data, budget = data.select(rows), most - whole.iterations[rows]
        start = select(start, rows)
    else:
        budget = torch.full((len(data.q),), most, device=data.q.device)
    data, scales = equilibrated(data, cones.groups)
    begin = None
    if start is not None and cones.is_symmetric:
        begin = _start(cones, *scales.inside(*start))
    found = _polished(data, scales, cones, limits, budget, begin)
    x, z, s = scales.outside(*found[:3])
    found = found._replace(x=x, z=z, s=s)
    if whole is None:
        return found, None
    found.iterations.add_(whole.iterations[rows])
    return put(whole, rows, found), None


def _finished(
    data: ReducedData, cones: ConeProduct, limits: Limits, found: ReducedSolution
) -> ReducedSolution:
    """The digits that the dual leaves out where P is nearly singular."""
    data, scales = equilibrated(data, cones.groups)
    exact = ReducedSolution(*scales.inside(*found[:3]), found.status.clone(), found.iterations)
    solved = newton_polish(data, cones, limits.feasibility, exact)
    x, z, s = scales.outside(*exact[:3])
    return where(solved, exact._replace(x=x, z=z, s=s), found)


def _polished(
    data: ReducedData,
    scales: Scales,
    cones: ConeProduct,
    limits: Limits,
    budget: torch.Tensor,
    start: Iterate | None,
) -> ReducedSolution:
    """Interior-point steps and, at some residuals, Newton's, which have all digits.

    The first steps are in single precision, but for cones that are not symmetric. Where Newton's
    do not converge the method goes on; near curved cones its last point is then not SOLVED.
    """
    whole: ReducedSolution | None = None
    rows = torch.arange(len(data.q), device=data.q.device)
    exact = torch.zeros_like(rows, dtype=torch.bool)
    for stage in (None, *_STAGES, 0.0) if cones.is_symmetric else (*_STAGES, 0.0):
        if stage is None:
            # Without certificates, and FAILED where far from a solution.
            rough = limits._replace(feasibility=_SINGLE, gap=_SINGLE, certificate=0.0)
            some, last, light = budget.clamp_max(_SINGLE_ITERATIONS), False, data.float()
            single, begun = mapped(torch.Tensor.float, (scales, start))
            found = solve(light, single, cones.like(light.q), rough, some, begun)
            found = found._replace(x=found.x.double(), z=found.z.double(), s=found.s.double())
        else:
            rough = limits._replace(
                feasibility=max(limits.feasibility, stage), gap=max(limits.gap, stage)
            )
            last = rough == limits
            some = budget if last else budget.clamp_max(_STAGE_ITERATIONS)
            found = solve(data, scales, cones, rough, some, start)
        budget = budget - found.iterations
        proved = (found.status == int(Status.INFEASIBLE)) | (found.status == int(Status.UNBOUNDED))
        exact[rows] = newton_polish(data, cones, limits.feasibility, found)
        left = ~(proved | exact[rows])
        if whole is None:
            whole = found
        else:
            found.iterations.add_(whole.iterations[rows])
            whole = put(whole, rows, found)
        left = left & (budget > 0)
        (count,) = read(left.sum())
        if count == 0 or last:
            break
        live = places_of(left, count)
        rows, scales, budget, found = select((rows, scales, budget, found), live)
        data = data.select(live)
        start = _onward(data, cones, found)
    assert whole is not None
    if not cones.groups:
        return whole
    near = (whole.status == int(Status.SOLVED)) & ~exact
    return whole._replace(status=torch.where(near, int(Status.INACCURATE), whole.status))


def _onward(data: ReducedData, cones: ConeProduct, found: ReducedSolution) -> Iterate:
    """The last point, as the start of the next stage; a new start where the last stage failed."""
    one = torch.ones_like(data.q[:, :1])
    mu = (found.z * found.s).sum(1, keepdim=True) / max(1, cones.degree)
    point = Iterate(found.x, found.z, found.s, one, mu)
    fresh = found.status != int(Status.SOLVED)
    return where(fresh, first_point(data, cones), point) if perhaps_any(fresh) else point


def _start(cones: ConeProduct, x: torch.Tensor, z: torch.Tensor, s: torch.Tensor) -> Iterate:
    """A former solution, moved into the cones."""
    z, s = (cones.moved_inside(part, _INSIDE) for part in (z, s * cones.inner))
    mu = (z * s).sum(1, keepdim=True) / max(1, cones.degree)
    one = torch.ones_like(x[:, :1])
    return Iterate(x, z, s, one, mu.clamp_min(1e-3 * _INSIDE**2))


# How far inside the cones a start is moved, for data of size one.
_INSIDE = 1e-2
