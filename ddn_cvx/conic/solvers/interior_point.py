"""The batched interior-point method in torch: all elements at once, on the data's own device."""

from __future__ import annotations

import torch

from ddn_cvx.conic.interior_point.active_set import solve_on_active_set
from ddn_cvx.conic.interior_point.equilibrate import DenseProgram, Scales, equilibrated
from ddn_cvx.conic.interior_point.method import Found, Iterate, Limits, solve
from ddn_cvx.conic.interior_point.reduction import Reduction, reduction_of
from ddn_cvx.conic.interior_point.scaling import SymmetricCones
from ddn_cvx.conic.program import ConeData, ConeProgram
from ddn_cvx.conic.solvers.base import RawSolution, Settings, nothing_found, under_own_names
from ddn_cvx.status import Status

# Relative residuals at which the active rows are looked at, and what a solution on them may have
# outside of the cones, in equilibrated units.
_STAGES = (1e-2, 1e-4, 1e-7)
# Rounds in which rows of a guessed active set change sides.
_EXCHANGES = 3
_OUTSIDE = 1e-10
# Entries of all elements' matrices that are worked on at a time: what they take has to fit.
_TOGETHER = 1 << 25


class InteriorPoint:
    """Adapter to :mod:`ddn_cvx.conic.interior_point`; settings have Clarabel's names."""

    name = "INTERIOR"
    on_device = True
    defaults: Settings = {
        "tol_feas": 1e-11,
        "tol_gap_rel": 1e-11,
        "tol_infeas_rel": 1e-9,
        "max_iter": 100,
    }
    # All that it has; "tol_gap_abs" is taken for the relative one, as both have a one added.
    known = frozenset({*defaults, "tol_gap_abs", "eps", "max_iters", "verbose", "warm_start"})

    @staticmethod
    def supports(program: ConeProgram) -> bool:
        """Zero, nonnegative and second-order cones."""
        cones = program.cones
        return not (cones.semidefinite or cones.exponential or cones.power)

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> RawSolution:
        """See :class:`~ddn_cvx.conic.solvers.base.ConeSolver`."""
        if not self.supports(program):
            return nothing_found(program, data.batch, data.q.device)
        for key in settings:
            if key not in self.known:
                known = ", ".join(sorted(self.known))
                raise TypeError(f"INTERIOR has no setting {key!r}; it has {known}.")
        options = {**self.defaults, **under_own_names(settings)}
        gap = float(options.get("tol_gap_abs", options["tol_gap_rel"]))
        limits = Limits(
            float(options["tol_feas"]), max(gap, float(options["tol_gap_rel"])),
            float(options["tol_infeas_rel"]), int(options["max_iter"]),
        )  # fmt: skip
        warm = options.get("warm_start")
        if warm is not None and len(warm[0]) != data.batch:
            warm = None
        columns, rows, _ = reduction_of(program).size
        size = max(1, _TOGETHER // max(1, columns * (columns + rows)))
        if data.batch <= size:
            return _solve(program, data, limits, warm)
        found = []
        for part in torch.arange(data.batch, device=data.q.device).split(size):
            some = None if warm is None else tuple(tensor[part] for tensor in warm)
            found.append(_solve(program, data.select(part), limits, some))
        fields = (
            torch.cat([getattr(each, name) for each in found])
            for name in ("primal", "dual", "status", "iterations")
        )
        return RawSolution(*fields)


def _solve(
    program: ConeProgram, data: ConeData, limits: Limits, warm: tuple[torch.Tensor, ...] | None
) -> RawSolution:
    reduction = reduction_of(program)
    matrices = reduction.matrices(data.P, data.A)
    cones = SymmetricCones(program.cones, reduction.zero, data.q.device)
    scaled, scales = equilibrated(reduction.program(matrices, data.q, data.b), cones.groups)
    start = None if warm is None else _start(reduction, cones, scales, warm)
    found = _polished(scaled, scales, cones, limits, start)
    columns, rows, cost = scales
    x, y = found.x * columns, found.z * rows / cost
    # The program whose solution a certificate is has neither q nor b, and half of it is zero.
    infeasible = (found.status == int(Status.INFEASIBLE)).unsqueeze(1)
    unbounded = (found.status == int(Status.UNBOUNDED)).unsqueeze(1)
    x, y = torch.where(infeasible, 0.0, x), torch.where(unbounded, 0.0, y)
    proof = infeasible | unbounded
    q, b = torch.where(proof, 0.0, data.q), torch.where(proof, 0.0, data.b)
    primal, dual = reduction.restored(matrices, q, b, x, y)
    return RawSolution(primal, dual, found.status, found.iterations)


def _polished(
    data: DenseProgram,
    scales: Scales,
    cones: SymmetricCones,
    limits: Limits,
    start: Iterate | None,
) -> Found:
    """The solution on the active set that the method comes to, where it is one.

    An interior point tells the active rows well before it has all digits; one linear system, with
    these as equations, has them. Where that is no solution the method goes on.
    """
    whole: Found | None = None
    rows = torch.arange(len(data.q), device=data.q.device)
    stages = () if cones.groups else _STAGES
    for stage in (*stages, 0.0):
        rough = limits._replace(
            feasibility=max(limits.feasibility, stage), gap=max(limits.gap, stage)
        )
        found = solve(data, scales, cones, rough, start)
        left = (found.status == int(Status.SOLVED)) | (found.status == int(Status.FAILED))
        if not cones.groups:
            found, solved = _on_active_set(data, cones, limits, found)
            left = left & ~solved
        if whole is None:
            whole = found
        else:
            found.iterations.add_(whole.iterations[rows])
            for kept, field in zip(whole, found, strict=True):
                kept[rows] = field
        live = left.nonzero().squeeze(1)
        if len(live) == 0 or rough == limits:
            break
        rows, data, scales = rows[live], data.rows(live), scales.select(live)
        one = torch.ones_like(scales.cost)
        x, z, s = (field[live] for field in found[:3])
        start = Iterate(x, z, s, one, (z * s).sum(1, keepdim=True) / max(1, cones.degree))
    assert whole is not None
    return whole


def _on_active_set(
    data: DenseProgram, cones: SymmetricCones, limits: Limits, found: Found
) -> tuple[Found, torch.Tensor]:
    """What was found, or the exact solution on its active rows where there is one, and where.

    Rows whose multiplier or slack comes out negative change sides, a few times: a primal-dual
    active set method (Hintermueller, Ito and Kunisch 2002).
    """
    solved = torch.zeros_like(found.status, dtype=torch.bool)
    proved = (found.status == int(Status.INFEASIBLE)) | (found.status == int(Status.UNBOUNDED))
    live = (~proved).nonzero().squeeze(1)
    z, s = found.z, found.s
    for _ in range(_EXCHANGES):
        if len(live) == 0:
            break
        whole = len(live) == len(solved)
        part, z, s = (data, z, s) if whole else (data.rows(live), z, s)
        active = (z > s) | (cones.inner == 0)
        x, z, residual, regular = solve_on_active_set(part.P, part.q, part.A, part.b, active)
        s = torch.where(active, 0.0, part.b - torch.bmm(part.A, x.unsqueeze(2)).squeeze(2))
        inside = torch.minimum(cones.margin(z), cones.margin(s)) >= -_OUTSIDE
        regular = regular & (residual <= limits.feasibility)
        good = regular & inside
        if bool(good.any()):
            places = live[good]
            found.x[places] = x[good]
            found.z[places] = torch.where(cones.inner == 0, z, z.clamp_min(0.0))[good]
            found.s[places] = s[good].clamp_min(0.0)
            found.status[places] = int(Status.SOLVED)
            solved[places] = True
        again = (regular & ~inside).nonzero().squeeze(1)
        live, z, s = live[again], z[again], s[again]
    return found, solved


def _start(
    reduction: Reduction, cones: SymmetricCones, scales: Scales, warm: tuple[torch.Tensor, ...]
) -> Iterate:
    """A former solution ``(x, y, s)``, moved into the cones."""
    # An element without a former solution starts at the origin.
    x, y, s = (part.nan_to_num(0.0, 0.0, 0.0) for part in reduction.kept(*warm))
    columns, rows, cost = scales
    x, z, s = x / columns, y * cost / rows, s * rows
    z, s = (cones.moved_inside(part, _INSIDE) for part in (z, s * cones.inner))
    mu = (z * s).sum(1, keepdim=True) / max(1, cones.degree)
    return Iterate(x, z, s, torch.ones_like(cost), mu.clamp_min(1e-3 * _INSIDE**2))


# How far inside the cones a start is moved, for data of size one.
_INSIDE = 1e-2
