"""A solve that stops short climbs a ladder before an element is reported.

Every element is solved in its own units (:mod:`ddn_cvx.programs.cone.units`). Its relative KKT
residual is computed here, from the data; a solver's own word is taken only for infeasibility and
unboundedness, and ends the climb only with a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ddn_cvx.batch.device import perhaps_any, places_of, read
from ddn_cvx.batch.elements import mapped
from ddn_cvx.kkt.refine import refine
from ddn_cvx.kkt.residuals import largest, relative_residual, strict_residual
from ddn_cvx.programs.cone.instance import ConeInstance, products
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.cone.units import Units, column_sizes, largest_units, natural_units, row_sizes
from ddn_cvx.solvers.answer import INACCURATE, SOLVED, TARGET, Answer, status_of
from ddn_cvx.solvers.cone.base import LIMITS, ConeSolver, Settings
from ddn_cvx.solvers.cone.clarabel import Clarabel
from ddn_cvx.solvers.cone.scs import SCS
from ddn_cvx.status import Status

# Relative KKT residual at which Newton refinement stops.
REFINED = 1e-14
# Below this a residual makes a solution, whatever its solver says.
_EXACT = 1e-12
# Residual of a certificate of infeasibility or unboundedness, relative to its size.
_CERTIFIED = 1e-6

_RESCALED_CLARABEL = {
    **Clarabel.defaults,
    "equilibrate_max_iter": 50,
    "max_iter": 500,
    "static_regularization_constant": 1e-10,
}


class Rung(NamedTuple):
    """A solver with its settings.

    Attributes:
        rescaled: it is given data whose largest entries are one: for unusual units, in which
            natural ones failed.
    """

    solver: ConeSolver
    settings: Settings
    rescaled: bool = False


@dataclass(frozen=True, eq=False)
class Ladder:
    """Solvers tried in turn on an instance of a cone program; :func:`ladder` gives the rungs."""

    rungs: list[Rung]

    def __call__(self, instance: ConeInstance, start: torch.Tensor | None = None) -> Answer:
        """All elements on the first rung, those that miss on the next, and so on.

        Args:
            instance: detached, float64, finite; numbers that a rung takes to the host come back.
            start: None; a start is given as the setting ``warm_start``.
        """
        program, data = instance.program, instance.data
        units = natural_units(program, data)
        batch, device = data.batch, data.q.device
        data = units.scale(data)
        waiting = torch.arange(batch, device=device)
        best: Answer | None = None
        for number, (solver, settings, rescaled) in enumerate(self.rungs):
            if len(waiting) == 0:
                break
            limited = bool(LIMITS & settings.keys()) and len(self.rungs) == 1
            accept = _accepted(settings)
            part = data if len(waiting) == batch else data.select(waiting)
            started = _with_starts(settings, units, waiting)
            raw = _solved(program, part, Rung(solver, started, rescaled))
            seen = _seen(program, part, raw, accept, limited)
            if best is None:
                if bool(((raw.status == int(Status.SOLVED)) & ~seen.unsure).all()):
                    rung = torch.zeros_like(raw.status)
                    best = replace(raw, residual=seen.residual, rung=rung, known_solved=True)
                    break
                best = _nothing(program, batch, device)
            # INFEASIBLE and UNBOUNDED replace no SOLVED, and without a certificate no INACCURATE.
            # Only a point that holds row by row replaces them.
            doubted = _is_claim(best.status[waiting])
            found = _judged(program, part, raw, seen, accept, limited, doubted)
            claimed = _is_claim(found.status)
            done = found.residual <= accept
            if solver.on_device and not program.cones.is_polyhedral and accept <= TARGET:
                # Near a face of a curved cone a small residual alone does not make a solution.
                done = done & ((raw.status == int(Status.SOLVED)) | (found.residual <= _EXACT))
            proven = claimed
            if perhaps_any(claimed):
                no_feasible, no_minimum = _proofs(program, part, found.primal, found.dual)
                is_infeasible = found.status == Status.INFEASIBLE
                proven = claimed & torch.where(is_infeasible, no_feasible, no_minimum)
            done = done | proven
            closer = found.residual < best.residual[waiting]
            better = torch.where(doubted, found.status == Status.SOLVED, closer)
            unfinished = best.residual[waiting] > torch.where(proven, accept, SOLVED)
            better = better | (claimed & unfinished)
            worse, left = read((~better).sum(), (~done).sum())
            if number == 0 and worse == 0:
                best = found
            else:
                some = places_of(better, len(waiting) - worse)
                for name in ("primal", "dual", "status", "residual", "iterations"):
                    getattr(best, name)[waiting[some]] = getattr(found, name)[some]
                best.rung[waiting[some]] = number
            waiting = waiting[places_of(~done, left)]
        if best is None:  # an empty batch
            best = _nothing(program, batch, device)
        factors = best.factors
        if factors is not None and not best.known_solved:
            other = (best.status != int(Status.SOLVED)) | (best.rung != 0)
            factors = None if bool(other.any()) else factors
        primal, dual = best.primal * units.rho, best.dual * units.sigma
        return replace(best, primal=primal, dual=dual, factors=factors, units=units, products=None)


def ladder(solver: ConeSolver, settings: Settings) -> list[Rung]:
    """The rungs that start with a solver and the user's settings.

    A limit that the user sets on iterations or time is kept: the ladder then has one rung.
    """
    first = Rung(solver, {**_without_tolerances(solver.defaults, settings), **settings})
    if LIMITS & settings.keys():
        return [first]
    clarabel = Rung(Clarabel(), Clarabel.defaults)
    if solver.patient:
        kept = {k: v for k, v in settings.items() if k not in ("eps", "eps_abs", "eps_rel")}
        return [first, Rung(solver, {**kept, **solver.patient}), clarabel]
    rungs = [first] if solver.name == Clarabel.name else [first, clarabel]
    rescaled = Rung(Clarabel(), _RESCALED_CLARABEL, rescaled=True)
    return [*rungs, rescaled, Rung(SCS(), SCS.patient)]


def _without_tolerances(defaults: Settings, settings: Settings) -> Settings:
    """A user's ``eps`` or ``tol`` replaces all of the defaults' tolerances."""
    if not any(key.startswith(("eps", "tol")) for key in settings):
        return defaults
    return {key: value for key, value in defaults.items() if not key.startswith(("eps", "tol"))}


def _nothing(program: ConeProgram, batch: int, device: torch.device) -> Answer:
    """The answers before the first rung."""
    return Answer(
        torch.zeros(batch, program.variables, dtype=torch.float64, device=device),
        torch.zeros(batch, program.rows, dtype=torch.float64, device=device),
        torch.full((batch,), int(Status.FAILED), device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
        residual=torch.full((batch,), torch.inf, dtype=torch.float64, device=device),
        rung=torch.zeros(batch, dtype=torch.int64, device=device),
    )


def _is_claim(status: torch.Tensor) -> torch.Tensor:
    return (status == Status.INFEASIBLE) | (status == Status.UNBOUNDED)


def _with_starts(settings: Settings, units: Units, elements: torch.Tensor) -> Settings:
    """Settings with the user's warm starts, ``(x, y, s)``, in the elements' units."""
    scales = (units.rho, units.sigma, units.rho)
    started = dict(settings)
    if settings.get("warm_starts") is not None:  # one for each element, or None
        given = [(element, settings["warm_starts"][element]) for element in elements.tolist()]
        started["warm_starts"] = [
            start
            and tuple(part / float(scale[e]) for part, scale in zip(start, scales, strict=True))
            for e, start in given
        ]
    if settings.get("warm_start") is not None and len(settings["warm_start"][0]) == len(units.rho):
        started["warm_start"] = tuple(
            (part.to(scale.device) / scale)[elements]
            for part, scale in zip(settings["warm_start"], scales, strict=True)
        )
    return started


def _proofs(
    program: ConeProgram, data: ConeData, x: torch.Tensor, y: torch.Tensor, least: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where ``y`` proves that no point is feasible, and where ``x`` that there is no minimum.

    ``A' y = 0``, ``y in K*``, ``b' y < 0`` leaves no feasible ``x``; with ``A' y`` not quite zero
    it leaves only large ones, and a solver that compares it with ``b' y`` takes large data for
    infeasible. Here it is compared with ``y``; and ``P x = 0``, ``-A x in K``, ``q' x < 0`` with
    ``x``.

    Args:
        least: how large ``b' y`` and ``q' x`` must be, relative to what the conditions miss; that
            is, how large a feasible ``x`` or ``y`` would be, relative to the data's own lengths.
    """
    of_rows, of_columns = row_sizes(program, data), column_sizes(program, data)
    Px, Ax, Aty = products(program, data, x, y)
    none = torch.zeros_like(y)
    outside = program.cones.violation(none, y)
    missed, proof = torch.maximum(largest(Aty), outside), -(data.b * y).sum(1)
    no_feasible = (
        (largest(Aty) <= _CERTIFIED * largest(of_rows * y))
        & (outside <= _CERTIFIED * largest(y))
        & (proof > least * missed * largest(data.b / of_rows).clamp_min(1.0))
    )
    outside = program.cones.violation(-Ax, none)
    missed, descent = torch.maximum(largest(Px), outside), -(data.q * x).sum(1)
    no_minimum = (missed <= _CERTIFIED * largest(of_columns * x)) & (
        descent > least * missed * largest(data.q / of_columns).clamp_min(1.0)
    )
    return no_feasible, no_minimum


def _solved(program: ConeProgram, data: ConeData, rung: Rung) -> Answer:
    """By a solver of the host, too, whatever the data's device."""
    solver, settings, rescaled = rung
    device = data.q.device
    units = largest_units(program, data) if rescaled else None
    data = data if units is None else units.scale(data)
    if solver.on_device or device.type == "cpu":
        raw = solver.solve(program, data, settings)
    else:
        raw = solver.solve(program, data.detach_to_host(), settings)
        raw = mapped(lambda field: field.to(device), raw)
    if units is None:
        return raw
    return replace(raw, primal=raw.primal * units.rho, dual=raw.dual * units.sigma)


def _accepted(settings: Settings) -> float:
    """A user who asks for less accuracy gets it without a ladder."""
    asked = [
        float(value)
        for key, value in settings.items()
        if key in ("eps", "eps_abs", "eps_rel", "tol", "tol_gap_abs", "tol_gap_rel", "tol_feas")
    ]
    return max([TARGET, *(10.0 * value for value in asked)])


class _Seen(NamedTuple):
    """Residuals of raw solutions and which need refinement, ``(B,)``, and its target."""

    residual: torch.Tensor
    unsure: torch.Tensor
    wanted: float


def _seen(program: ConeProgram, data: ConeData, raw: Answer, accept: float, limited: bool) -> _Seen:
    primal, dual = raw.primal, raw.dual
    if not program.cones.is_quadratic:
        # The missing half of a certificate is NaN, whose eigenvalues are an error.
        primal, dual = (value.nan_to_num(0.0, 0.0, 0.0) for value in (primal, dual))
    known = products(program, data, primal, dual, raw.products)
    residual = relative_residual(program, data, primal, dual, known)
    # Where the boundary of a cone is curved, an interior point's distance from it is what is left
    # of the error, and the residual does not show it: these are always refined.
    wanted = accept if program.cones.is_polyhedral or accept > TARGET else REFINED
    unsure = ~(residual <= wanted)
    if not program.cones.is_quadratic:
        unsure = unsure | ~(raw.primal.isfinite().all(1) & raw.dual.isfinite().all(1))
    if not limited and accept <= TARGET:
        unsure = unsure | (program.cones.linear_rows.overlap(data.b - known[1], dual) > TARGET)
    return _Seen(residual, unsure, wanted)


def _judged(
    program: ConeProgram,
    data: ConeData,
    raw: Answer,
    seen: _Seen,
    accept: float,
    limited: bool,
    doubted: torch.Tensor,
) -> Answer:
    """Refined where that is called for; what another rung took for infeasible, strictly."""
    residual, unsure, wanted = seen
    finite = raw.primal.isfinite().all(1) & raw.dual.isfinite().all(1)
    # A claim's certificate is kept: half of the pair, the other half may be missing.
    primal, dual = (value.nan_to_num(0.0, 0.0, 0.0) for value in (raw.primal, raw.dual))
    stated = _with_proofs(program, data, raw.status, residual, primal, dual)
    claimed = _is_claim(stated)
    usable = finite & ~claimed
    rough = usable & (unsure | doubted) & (residual < INACCURATE)
    count = 0 if limited else read(rough.sum())[0]
    if count:
        some = places_of(rough, count)
        refined = refine(program, data.select(some), primal[some], dual[some], target=wanted)
        primal[some], dual[some], residual[some] = refined
    if perhaps_any(doubted):
        strict = strict_residual(program, data, primal, dual)
        residual = torch.where(doubted, strict, residual)
    residual = torch.where(usable, residual, torch.inf)
    status = torch.where(usable, status_of(residual, max(SOLVED, accept), limited), stated)
    status = torch.where(finite | claimed, status, int(Status.FAILED))
    factors = None if count else raw.factors
    rung = torch.zeros_like(status)
    return Answer(
        primal, dual, status, raw.iterations, residual=residual, rung=rung, factors=factors
    )


def _with_proofs(
    program: ConeProgram,
    data: ConeData,
    status: torch.Tensor,
    residual: torch.Tensor,
    primal: torch.Tensor,
    dual: torch.Tensor,
) -> torch.Tensor:
    """Statuses; a solver that stops far from a solution may have found a proof all the same.

    Just outside of what is feasible, solvers get there and go on for a smaller residual than there
    is.
    """
    far = ~_is_claim(status) & ~(residual <= INACCURATE)
    if perhaps_any(far):
        none_feasible, no_minimum = _proofs(program, data, primal, dual, least=1 / _CERTIFIED)
        status = torch.where(far & no_minimum, int(Status.UNBOUNDED), status)
        status = torch.where(far & none_feasible, int(Status.INFEASIBLE), status)
    return status
