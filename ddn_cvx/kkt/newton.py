"""From an interior point to all digits: Newton's method on the optimality conditions.

An interior point tells the active rows well before it has all digits. Semismooth Newton steps from
there are, for linear and quadratic programs, a primal-dual active set method: rows whose multiplier
or slack comes out negative change sides (Hintermueller, Ito and Kunisch, "The primal-dual active
set strategy as a semismooth Newton method", 2002); near the boundary of curved cones they converge
quadratically.
"""

from __future__ import annotations

import torch

from ddn_cvx.batch.device import places_of, read
from ddn_cvx.cones.scaling import ConeProduct
from ddn_cvx.kkt.point import Found
from ddn_cvx.kkt.reduced.active import Pieces, pieces_at
from ddn_cvx.kkt.reduced.dense import most
from ddn_cvx.kkt.reduced.equilibrate import Program
from ddn_cvx.status import Status

# Steps in which the active set may change, and more near a curved boundary.
_STEPS = 3
_MORE_STEPS = 3
# What multipliers and slacks of a solution may lie outside of the cones, relative to their size;
# for curved ones it is the square of the last step.
_OUTSIDE = 1e-10
_OUTSIDE_CURVED = 1e-14
# And the distance of a local projection from its cones, relative to its size: far above rounding,
# far below that of another stationary point.
_OUTSIDE_NONSYMMETRIC = 1e-8


def finish(data: Program, cones: ConeProduct, tolerance: float, found: Found) -> torch.Tensor:
    """Put exact solutions in the place of what was found, where steps come to one.

    Args:
        data: of the program.
        cones: of its rows.
        tolerance: relative residual of the linear systems of a solution.
        found: changed in place, with the status of what is solved.

    Returns:
        Which elements are solved, shape ``(B,)``, bool.
    """
    proved = (found.status == int(Status.INFEASIBLE)) | (found.status == int(Status.UNBOUNDED))
    solved = torch.zeros_like(proved)
    curved = bool(cones.groups)
    outside = _OUTSIDE_CURVED if curved else _OUTSIDE
    part, again, live = data, ~proved, torch.arange(len(proved), device=proved.device)
    z, s = found.z, found.s
    for _ in range(_STEPS + curved * _MORE_STEPS):
        pieces = pieces_at(cones, z, s)
        count, size = read(again.sum(), most(pieces.equations))
        if count == 0:
            break
        if count < len(live):
            left = places_of(again, count)
            live, z, s, part = live[left], z[left], s[left], part.rows(left)
            pieces = pieces_at(cones, z, s)
        x, z, s, gap, regular = _step(part, cones, z, s, pieces, size, tolerance)
        good = regular & (gap <= outside)
        for kept, field in zip(found[:3], (x, z, s), strict=True):
            kept[live] = torch.where(good.unsqueeze(1), field, kept[live])
        found.status[live] = torch.where(good, int(Status.SOLVED), found.status[live])
        solved[live] = good
        again = regular & ~good
    return solved


def _step(
    data: Program,
    cones: ConeProduct,
    z: torch.Tensor,
    s: torch.Tensor,
    pieces: Pieces,
    size: int,
    tolerance: float,
) -> tuple[torch.Tensor, ...]:
    """``x, z, s``, how far ``z`` is from what stationarity needs, and whether that is unique.

    No element has more active rows than ``size``.
    """
    matrices, q, b = data
    fixed, right = torch.zeros_like(z), b
    if cones.groups:
        held = torch.zeros_like(z)
        for group, part in zip(cones.groups, pieces.parts, strict=True):
            group.of(fixed)[:] = torch.where(part.curved, group.of(z), 0.0)
            group.of(held)[:] = torch.where(part.curved, group.of(s), 0.0)
        q, right = q + matrices.times_At(fixed), b - held
    x, y, residual, regular = matrices.linearised(cones, pieces, q, right, size)
    y = fixed + y
    slack = b - matrices.times_A(x)
    v = y - slack
    z = cones.projected(v, slack)
    gap = (z - y).abs().amax(1) / (1 + y.abs().amax(1)) if cones.rows else residual
    s = z - v
    if not cones.is_symmetric:
        gap = torch.where(cones.violation(z, s) <= _OUTSIDE_NONSYMMETRIC, gap, torch.inf)
    return x, z, s, gap, regular & (residual <= tolerance)
