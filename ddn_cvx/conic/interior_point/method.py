"""The iteration: a homogeneous embedding of a quadratic cone program, batched.

    P x + A' z + q tau = 0,  A x + s - b tau = 0,  x'Px / tau + q'x + b'z + kappa = 0,
    s in K, z in K*, tau, kappa >= 0

has a solution whatever the program is: one with ``tau > 0`` is a solution of the program, times
``tau``, and one with ``kappa > 0`` proves that there is none. Goulart and Chen, "Clarabel: an
interior-point solver for conic programs with quadratic objectives" (2024); Mehrotra's predictor and
corrector in Nesterov and Todd's scaling.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.conic.interior_point.equilibrate import DenseProgram, Scales
from ddn_cvx.conic.interior_point.scaling import Scaling, SymmetricCones
from ddn_cvx.conic.interior_point.system import SaddlePoint
from ddn_cvx.status import Status

# How much of the way to the boundary a step goes.
_FRACTION = 0.99
_LAST_FRACTION = 0.9999
# A step shorter than this gets nowhere.
_SHORT = 1e-6
# So many iterations without progress are the last.
_PATIENCE = 3
_PROGRESS = 0.8
# As long as residuals are this multiple of the tolerance, progress need not be steady, nor steps
# exact.
_FAR = 1e5
# Rows that are done are left out once this share is still at work.
_COMPACT = 0.7


class Limits(NamedTuple):
    """When an element is done.

    Attributes:
        feasibility, gap: relative residuals below which it is solved.
        certificate: relative size below which a certificate's residual counts as zero.
        iterations: at most.
    """

    feasibility: float
    gap: float
    certificate: float
    iterations: int


class Iterate(NamedTuple):
    """``x`` ``(B, n)``, ``z, s`` ``(B, m)``, no ``s`` for equalities, ``tau, kappa`` ``(B, 1)``."""

    x: torch.Tensor
    z: torch.Tensor
    s: torch.Tensor
    tau: torch.Tensor
    kappa: torch.Tensor

    def rows(self, index: torch.Tensor) -> Iterate:
        """Those of some elements."""
        return Iterate(*(field[index] for field in self))


class Found(NamedTuple):
    """What the method found, in the units of the program it was given: ``x, z, s``, and status."""

    x: torch.Tensor
    z: torch.Tensor
    s: torch.Tensor
    status: torch.Tensor
    iterations: torch.Tensor


class _Residuals(NamedTuple):
    """Of the embedding, with what they are made of."""

    Px: torch.Tensor
    x: torch.Tensor
    z: torch.Tensor
    tau: torch.Tensor
    curvature: torch.Tensor
    cost: torch.Tensor
    mu: torch.Tensor
    status: torch.Tensor
    error: torch.Tensor


def solve(
    data: DenseProgram,
    scales: Scales,
    cones: SymmetricCones,
    limits: Limits,
    start: Iterate | None = None,
) -> Found:
    """Solve equilibrated programs.

    Args:
        data: what :func:`~ddn_cvx.conic.interior_point.equilibrate.equilibrated` returns.
        scales: likewise; residuals are those of the program without them.
        cones: of the rows that are not equalities.
        limits: when an element is done.
        start: an interior point to start from, in ``data``'s units.
    """
    batch, p = len(data.q), data.b.shape[1] - cones.rows
    point = _first(data, cones, p) if start is None else start
    rows = torch.arange(batch, device=data.q.device)
    status = torch.full((batch,), int(Status.FAILED), device=rows.device)
    best = Iterate(*(field.clone() for field in point))
    least = torch.full((batch,), torch.inf, dtype=data.q.dtype, device=rows.device)
    iterations = torch.zeros_like(status)
    stalled = torch.zeros_like(status)
    stuck = torch.zeros(batch, dtype=torch.bool, device=rows.device)
    done = torch.zeros_like(stuck)
    for number in range(limits.iterations + 1):
        residuals = _residuals(data, scales, cones, p, point, limits)
        ended = residuals.status >= 0
        better = ((residuals.error < least[rows]) | ended) & ~done
        progress = residuals.error < _PROGRESS * least[rows]
        stalled = torch.where(progress | (least[rows] > _FAR), 0, stalled + 1)
        stuck = stuck | (stalled > _PATIENCE)
        places = rows[better]
        for kept, field in zip(best, point, strict=True):
            kept[places] = field[better]
        least[places] = residuals.error[better]
        status[places] = residuals.status[better].clamp_min(-1)
        iterations[rows] = torch.where(done, iterations[rows], number)
        done = done | ended | stuck
        if number == limits.iterations:
            break
        live = (~done).nonzero().squeeze(1)
        if len(live) == 0:
            break
        if len(live) < _COMPACT * len(done):
            data, scales, point = data.rows(live), scales.select(live), point.rows(live)
            residuals = _Residuals(*(field[live] for field in residuals))
            rows, done, stalled = rows[live], done[live], stalled[live]
        point, length = _step(data, cones, p, point, residuals)
        stuck = ~(length > _SHORT)
    status = torch.where(status < 0, int(Status.FAILED), status)
    return _read(best, status, iterations)


def _first(data: DenseProgram, cones: SymmetricCones, p: int) -> Iterate:
    """The solution with a square of the slacks in place of the cones, moved inside these."""
    x, z = SaddlePoint(data.P, data.A, p).solve(-data.q.unsqueeze(2), data.b.unsqueeze(2), 0)
    x, z = x.squeeze(2), z.squeeze(2)
    inner = z[:, p:]
    s = torch.nn.functional.pad(_inside(-inner, cones), (p, 0))
    z = torch.cat([z[:, :p], _inside(inner, cones)], 1)
    one = torch.ones_like(x[:, :1])
    return Iterate(x, z, s, one, one)


def _inside(v: torch.Tensor, cones: SymmetricCones) -> torch.Tensor:
    outside = (cones.margin(v) <= 0).unsqueeze(1)
    return torch.where(outside, cones.moved_inside(v, 1.0), v)


def _residuals(
    data: DenseProgram,
    scales: Scales,
    cones: SymmetricCones,
    p: int,
    point: Iterate,
    limits: Limits,
) -> _Residuals:
    x, z, s, tau, kappa = point
    Atz, Ax = _product(data.A.mT, z), _product(data.A, x)
    Px = torch.zeros_like(x) if data.P is None else _product(data.P, x)
    slope = data.q * tau
    dual = Px + Atz + slope
    primal = Ax + s - data.b * tau
    sums = [(x * Px).sum(1), (data.q * x).sum(1), (data.b * z).sum(1), (s * z).sum(1)]
    xPx, qx, bz, sz = torch.stack(sums, 1).unsqueeze(2).unbind(1)
    curvature = xPx / tau
    gap = kappa + curvature + qx + bz
    mu = (sz + tau * kappa) / (cones.degree + 1)
    # Sizes in the units of the program that was given.
    columns, rows, cost = scales
    over = 1 / columns
    dual_sizes = torch.stack([dual, Px, Atz, slope], 1).abs().mul(over.unsqueeze(1)).amax(2) / cost
    under = 1 / rows
    primal_sizes = torch.stack([primal, Ax, s, Ax + s], 1).abs().mul(under.unsqueeze(1))
    primal_sizes = primal_sizes.amax(2) if p + cones.rows else torch.zeros_like(dual_sizes)
    size = tau.squeeze(1)
    dual_error = dual_sizes[:, 0] / (size + dual_sizes[:, 1:].amax(1))
    primal_error = primal_sizes[:, 0] / (size + primal_sizes[:, 1:3].amax(1))
    values = torch.cat([curvature, qx, bz], 1)
    gap_error = values.sum(1).abs() / (cost * tau).squeeze(1).add(values.abs().amax(1))
    error = torch.maximum(dual_error, primal_error) / limits.feasibility
    error = torch.maximum(error, gap_error / limits.gap).nan_to_num(nan=torch.inf)
    # Certificates, both in these units and in the equilibrated ones.
    small = limits.certificate
    proof = -bz.squeeze(1) / cost.squeeze(1)
    infeasible = (dual_sizes[:, 2] <= small * proof) & (
        Atz.abs().amax(1) <= small * z.abs().amax(1) if z.shape[1] else proof > 0
    )
    descent = -qx.squeeze(1) / cost.squeeze(1)
    far = torch.maximum(dual_sizes[:, 1], primal_sizes[:, 3])
    unbounded = (far <= small * descent) & (
        (Ax + s).abs().amax(1) <= small * x.abs().amax(1) if z.shape[1] else descent > 0
    )
    status = torch.full_like(error, -1.0)
    status = torch.where(unbounded, float(Status.UNBOUNDED), status)
    status = torch.where(infeasible, float(Status.INFEASIBLE), status)
    status = torch.where(error <= 1, float(Status.SOLVED), status).long()
    return _Residuals(Px, dual, primal, gap, curvature, qx + bz, mu, status, error)


def _step(
    data: DenseProgram, cones: SymmetricCones, p: int, point: Iterate, now: _Residuals
) -> tuple[Iterate, torch.Tensor]:
    """Predictor, corrector, and how far they go, shape ``(B,)``."""
    x, z, s, tau, kappa = point
    W = cones.scaling(s[:, p:], z[:, p:])
    A = torch.cat([data.A[:, :p], cones.rows_over(W, data.A[:, p:])], 1)
    system = SaddlePoint(data.P, A, p)

    def scaled(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows[:, :p], cones.over(W, rows[:, p:])], 1)

    b, primal = scaled(data.b), scaled(now.z)
    lam = torch.nn.functional.pad(W.point, (p, 0))
    right = torch.stack([-now.x, -data.q], 2), torch.stack([lam - primal, b], 2)
    refinements = int(bool((now.error < _FAR).any()))
    found_x, found_z = system.solve(*right, refinements)
    dx, constant_x = found_x.unbind(2)
    dz, constant_z = found_z.unbind(2)
    # The denominator is a sum of squares: see Goulart and Chen, section 4.1.
    ratio = x / tau
    away = constant_x - ratio
    bend = 0.0 if data.P is None else _dot(away, _product(data.P, away))
    divisor = bend + constant_z[:, p:].square().sum(1, keepdim=True) + kappa / tau
    slope = 2 * now.Px / tau + data.q

    def completed(
        dx: torch.Tensor, dz: torch.Tensor, gap: torch.Tensor, pull: torch.Tensor, cut: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """With ``tau``; ``pull`` is what the slacks, ``cut`` what kappa is to lose."""
        dtau = (gap - cut / tau + _dot(slope, dx) + _dot(b, dz)) / divisor
        dx, dz = dx + dtau * constant_x, dz + dtau * constant_z
        ds = -pull - dz[:, p:]
        return dx, dz, ds, dtau, -(cut + kappa * dtau) / tau

    affine = completed(dx, dz, now.tau, W.point, kappa * tau)
    length = _length(cones, W, affine, tau, kappa, p).clamp_max(1.0)
    centre = (1 - length) ** 3
    target = centre * now.mu
    keep = 1 - centre
    _, dz, ds, dtau, dkappa = affine
    # After a short predictor its own correction is too long: Colombo and Gondzio, "Further
    # development of multiple centrality correctors for interior point methods" (2008).
    weight = length.square()
    second = weight * cones.product(ds, dz[:, p:]) - target * cones.identity
    pull = W.point + cones.quotient(W.point, second)
    cut = kappa * tau + weight * dtau * dkappa - target
    right_z = torch.nn.functional.pad(pull, (p, 0)) - keep * primal
    right = (-keep * now.x).unsqueeze(2), right_z.unsqueeze(2)
    found_x, found_z = system.solve(*right, refinements)
    step = completed(found_x.squeeze(2), found_z.squeeze(2), keep * now.tau, pull, cut)
    longest = _length(cones, W, step, tau, kappa, p)
    fraction = length.clamp(_FRACTION, _LAST_FRACTION)
    length = fraction * longest.clamp_max(1.0)
    length = torch.where(length.isfinite() & (now.status.unsqueeze(1) < 0), length, 0.0)
    dx, dz, ds, dtau, dkappa = step
    inner = z[:, p:] + length * cones.over(W, dz[:, p:])
    slack = s[:, p:] + length * cones.times(W, ds)
    moved = Iterate(
        x + length * dx,
        torch.cat([z[:, :p] + length * dz[:, :p], inner], 1),
        torch.nn.functional.pad(slack, (p, 0)),
        tau + length * dtau,
        kappa + length * dkappa,
    )
    return moved, length.squeeze(1)


def _length(
    cones: SymmetricCones,
    W: Scaling,
    step: tuple[torch.Tensor, ...],
    tau: torch.Tensor,
    kappa: torch.Tensor,
    p: int,
) -> torch.Tensor:
    """To the boundary of the cones, shape ``(B, 1)``; may be infinite."""
    _, dz, ds, dtau, dkappa = step
    rate = torch.maximum(-dtau / tau, -dkappa / kappa).clamp_min(0.0)
    longest = rate.reciprocal().squeeze(1)
    for direction in (ds, dz[:, p:]):
        longest = torch.minimum(longest, cones.longest_step(W.point, direction))
    return longest.unsqueeze(1)


def _read(point: Iterate, status: torch.Tensor, iterations: torch.Tensor) -> Found:
    """A solution is divided by ``tau``; a certificate has any size."""
    tau = torch.where(is_certificate(status).unsqueeze(1), 1.0, point.tau)
    return Found(point.x / tau, point.z / tau, point.s / tau, status, iterations)


def is_certificate(status: torch.Tensor) -> torch.Tensor:
    """Which elements are proved to have no solution."""
    return (status == int(Status.INFEASIBLE)) | (status == int(Status.UNBOUNDED))


def _product(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return torch.bmm(matrix, vector.unsqueeze(2)).squeeze(2)


def _dot(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (u * v).sum(1, keepdim=True)
