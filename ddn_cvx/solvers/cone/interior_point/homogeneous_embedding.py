"""The iteration: a homogeneous embedding of a quadratic cone program, batched.

    P x + A' z + q tau = 0,  A x + s - b tau = 0,  x'Px / tau + q'x + b'z + kappa = 0,
    s in K, z in K*, tau, kappa >= 0

has a solution whatever the program is: one with ``tau > 0`` is a solution of the program, times
``tau``, and one with ``kappa > 0`` proves that there is none. Goulart and Chen, "Clarabel: an
interior-point solver for conic programs with quadratic objectives" (2024); Mehrotra's predictor and
corrector in Nesterov and Todd's scaling.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from ddn_cvx.batch.device import perhaps_any, places_of, read
from ddn_cvx.batch.elements import put, select
from ddn_cvx.cones.scaling import ConeProduct, Scaling
from ddn_cvx.kkt.newton import ReducedSolution
from ddn_cvx.kkt.reduced.equilibrate import ReducedData, Scales
from ddn_cvx.status import Status

# A step goes at least this share of the way to the boundary, and more after a long predictor.
_FRACTION = 0.99
_LAST_FRACTION = 0.9999
# Stop when a step is shorter than this: the direction is rounding.
_SHORT = 1e-6
# Stop when tau < 1e-20 kappa: the program has no solution, and the certificate will not improve.
_VANISHED = 1e-20
# Stop after more than 3 consecutive iterations that do not lower the error to 0.8 of the least one.
_PATIENCE = 3
_PROGRESS = 0.8
# Above this relative residual progress need not be steady, and linear systems are not refined.
_FINE = 1e-6
# Finished elements leave the working set once at most this share of it is unfinished: a compaction
# copies all data, which pays from about there on.
_COMPACT = 0.7


class Limits(NamedTuple):
    """When an element is finished.

    Attributes:
        feasibility, gap: relative residuals below which it is solved.
        certificate: relative size below which a certificate's residual counts as zero.
    """

    feasibility: float
    gap: float
    certificate: float


class Iterate(NamedTuple):
    """``x`` ``(B, n)``, ``z, s`` ``(B, m)``, ``tau, kappa`` ``(B, 1)``; equations have no ``s``."""

    x: torch.Tensor
    z: torch.Tensor
    s: torch.Tensor
    tau: torch.Tensor
    kappa: torch.Tensor


class _Best(NamedTuple):
    """The best point so far, its status (-1 where it has none) and its iteration."""

    point: Iterate
    status: torch.Tensor
    iterations: torch.Tensor

    def updated(self, mask: torch.Tensor, point: Iterate, status: torch.Tensor, n: int) -> _Best:
        """With another point where the mask ``(B,)`` is set."""
        wide = mask.unsqueeze(1)
        pairs = zip(point, self.point, strict=True)
        return _Best(
            Iterate(*(torch.where(wide, new, old) for new, old in pairs)),
            torch.where(mask, status, self.status),
            self.iterations.masked_fill(mask, n),
        )


class _Residuals(NamedTuple):
    """Residuals of the embedding, and the stopping test.

    Attributes:
        Px, x, z, tau: ``P x`` and the three residuals.
        mu: mean complementarity, shape ``(B, 1)``.
        status: a finished element's status, -1 for others.
        error: the largest relative residual over its tolerance, shape ``(B,)``.
    """

    Px: torch.Tensor
    x: torch.Tensor
    z: torch.Tensor
    tau: torch.Tensor
    mu: torch.Tensor
    status: torch.Tensor
    error: torch.Tensor


def solve(
    data: ReducedData,
    scales: Scales,
    cones: ConeProduct,
    limits: Limits,
    budget: torch.Tensor,
    start: Iterate | None = None,
) -> ReducedSolution:
    """Solve equilibrated programs.

    Args:
        data: what :func:`~ddn_cvx.kkt.reduced.equilibrate.equilibrated` returns.
        scales: likewise; residuals are those of the program without them.
        cones: of the rows.
        limits: when an element is finished.
        budget: iterations of each element at most, shape ``(B,)``, int64.
        start: an interior point to start from, in ``data``'s units.
    """
    batch, device = len(data.q), data.q.device
    fine = _FINE / limits.feasibility
    point = first_point(data, cones) if start is None else start
    rows = torch.arange(batch, device=device)
    unknown = torch.full((batch,), int(Status.FAILED), device=device)
    best, whole = _Best(point, unknown, torch.zeros_like(unknown)), None
    least = torch.full((batch,), torch.inf, dtype=data.q.dtype, device=device)
    stalled = torch.zeros_like(unknown)
    stuck = done = torch.zeros(batch, dtype=torch.bool, device=device)
    for number in itertools.count():
        now = _residuals(data, scales, cones, point, limits)
        ended = now.status >= 0
        progress = now.error < _PROGRESS * least
        # On the way to a certificate the residual of a solution says nothing.
        proving = (point.tau < point.kappa).squeeze(1)
        stalled = torch.where(progress | proving | (least > fine), 0, stalled + 1)
        stuck = stuck | (stalled > _PATIENCE)
        last = ended | stuck | (number >= budget)
        # Far from the solution no point is worth keeping.
        better = (now.error < least) & (now.error < fine) | ended | (last & (least > fine))
        better = better & ~done
        least = torch.minimum(least, now.error)
        best = best.updated(better, point, now.status, number)
        done = done | last
        (left,) = read((~done).sum())
        few = left < _COMPACT * len(done)
        if left == 0 or few:
            whole = best if whole is None else put(whole, rows, best)
        if left == 0:
            break
        if few:
            live = places_of(~done, left)
            data = data.select(live)
            state = (scales, point, now, rows, done, budget, best, least, stalled)
            scales, point, now, rows, done, budget, best, least, stalled = select(state, live)
        point, length = _step(data, cones, point, now, done, fine)
        stuck = ~((length > _SHORT) & (point.tau > _VANISHED * point.kappa).squeeze(1))
    assert whole is not None
    return _divide_by_tau(whole)


def first_point(data: ReducedData, cones: ConeProduct) -> Iterate:
    """The start: the minimiser with squared slacks in the place of the cones, moved inside them.

    With cones that are not symmetric it is the point of the central path with ``mu = 1``.
    """
    if not cones.is_symmetric:
        one = torch.ones_like(data.q[:, :1])
        inside = one * cones.identity
        return Iterate(torch.zeros_like(data.q), inside, inside, one, one)
    system = data.matrices.system(cones, None)
    x, z = system.solve(-data.q.unsqueeze(2), data.b.unsqueeze(2), None)
    x, z = (torch.where(system.failed.unsqueeze(1), 0.0, v.squeeze(2)) for v in (x, z))
    s = _inside(-z * cones.inner, cones)
    one = torch.ones_like(x[:, :1])
    return Iterate(x, _inside(z, cones), s, one, one)


def _inside(v: torch.Tensor, cones: ConeProduct) -> torch.Tensor:
    outside = (cones.margin(v) <= 0).unsqueeze(1)
    return torch.where(outside, cones.moved_inside(v, 1.0), v)


def _residuals(
    data: ReducedData, scales: Scales, cones: ConeProduct, point: Iterate, limits: Limits
) -> _Residuals:
    x, z, s, tau, kappa = point
    matrices = data.matrices
    Px, Atz, Ax = matrices.times_P(x), matrices.times_At(z), matrices.times_A(x)
    slope, level = data.q * tau, data.b * tau
    held = Ax + s
    dual, primal = Px + Atz + slope, held - level
    xPx, qx, bz, sz = _dot(x, Px), _dot(x, data.q), _dot(z, data.b), _dot(s, z)
    curvature = xPx / tau
    gap = kappa + curvature + qx + bz
    mu = (sz + tau * kappa) / (cones.degree + 1)
    # Sizes in the units of the program that was given.
    dual_sizes = torch.stack([dual, Px, Atz, slope], 1).abs()
    dual_sizes = (dual_sizes / (scales.columns * scales.cost).unsqueeze(1)).amax(2)
    primal_sizes = torch.zeros_like(dual_sizes)
    if cones.rows:
        primal_sizes = torch.stack([primal, Ax, s, held], 1).abs()
        primal_sizes = (primal_sizes / scales.rows.unsqueeze(1)).amax(2)
    errors = dual_sizes[:, 0] / (tau.squeeze(1) + dual_sizes[:, 1:].amax(1))
    primal_error = primal_sizes[:, 0] / (tau.squeeze(1) + primal_sizes[:, 1:3].amax(1))
    values = torch.cat([curvature, qx, bz], 1)
    gap_error = values.sum(1).abs() / (values.abs().amax(1) + (scales.cost * tau).squeeze(1))
    error = torch.maximum(errors, primal_error) / limits.feasibility
    error = torch.maximum(error, gap_error / limits.gap).nan_to_num(nan=torch.inf)
    status = torch.where(error <= 1, int(Status.SOLVED), -1)
    if perhaps_any(tau < kappa):
        # A certificate's residual is small both in these units and in the equilibrated ones.
        small, cost = limits.certificate, scales.cost.squeeze(1)
        proof, descent = -bz.squeeze(1) / cost, -qx.squeeze(1) / cost
        far = torch.maximum(dual_sizes[:, 1], primal_sizes[:, 3])
        infeasible = (proof > 0) & (dual_sizes[:, 2] <= small * proof)
        infeasible = infeasible & (_size(Atz) <= small * _size(z))
        unbounded = (descent > 0) & (far <= small * descent)
        unbounded = unbounded & (_size(held) <= small * _size(x))
        proved = (tau < kappa).squeeze(1) & (error > 1)
        status = torch.where(infeasible & proved, int(Status.INFEASIBLE), status)
        status = torch.where(unbounded & proved & ~infeasible, int(Status.UNBOUNDED), status)
    return _Residuals(Px, dual, primal, gap, mu, status, error)


def _step(
    data: ReducedData,
    cones: ConeProduct,
    point: Iterate,
    now: _Residuals,
    done: torch.Tensor,
    fine: float,
) -> tuple[Iterate, torch.Tensor]:
    """The point after a predictor-corrector step, and its length ``(B,)``, zero where ``done``."""
    x, z, s, tau, kappa = point
    W = cones.scaling(s, z)
    system = data.matrices.system(cones, W)
    b, primal = cones.scale_slacks(W, data.b), cones.scale_slacks(W, now.z)
    right = torch.stack([-now.x, -data.q], 2), torch.stack([W.point - primal, b], 2)
    # A certificate is compared with the little that it proves, and needs the digits as well.
    refined = (now.error < fine) | (tau < kappa).squeeze(1)
    found_x, found_z = system.solve(*right, refined)
    dx, constant_x = found_x.unbind(2)
    dz, constant_z = found_z.unbind(2)
    # The denominator is a sum of squares: see Goulart and Chen, section 4.1.
    away = constant_x - x / tau
    divisor = (constant_z.square() * cones.inner).sum(1, keepdim=True) + kappa / tau
    divisor = divisor + _dot(away, data.matrices.times_P(away))
    slope = torch.addcdiv(data.q, now.Px, tau, value=2)
    product = kappa * tau

    def completed(
        dx: torch.Tensor, dz: torch.Tensor, gap: torch.Tensor, pull: torch.Tensor, cut: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The step with its ``tau``; ``pull`` and ``cut`` are residuals of complementarity."""
        dtau = (gap - cut / tau + _dot(slope, dx) + _dot(b, dz)) / divisor
        dz = torch.addcmul(dz, dtau, constant_z)
        ds = -(pull + dz) * cones.inner
        dkappa = -(cut + kappa * dtau) / tau
        return torch.addcmul(dx, dtau, constant_x), dz, ds, dtau, dkappa

    _, dz, ds, dtau, dkappa = completed(dx, dz, now.tau, W.point, product)
    length = 1 / _shrinking(cones, W, (ds, dz), dtau / tau, dkappa / kappa).clamp_min(1.0)
    centre = (1 - length) ** 3
    target, keep = centre * now.mu, 1 - centre
    # After a short predictor its own correction is too long: Colombo and Gondzio, "Further
    # development of multiple centrality correctors for interior point methods" (2008).
    weight = length.square()
    pull = cones.correction(W, (ds, dz), weight, target)
    cut = product + weight * dtau * dkappa - target
    right = (-keep * now.x).unsqueeze(2), (pull - keep * primal).unsqueeze(2)
    found_x, found_z = system.solve(*right, refined)
    found = found_x.squeeze(2), found_z.squeeze(2)
    dx, dz, ds, dtau, dkappa = completed(*found, keep * now.tau, pull, cut)
    if cones.is_symmetric:
        slacks = cones.unscale_slacks(W, ds)
    else:
        # W' ds has lost the digits of the least slacks, which would stay in the residual.
        slacks = (data.b * dtau - data.matrices.times_A(dx) - keep * now.z) * cones.inner
        ds = cones.scale_slacks(W, slacks)
    fraction = length.clamp(_FRACTION, _LAST_FRACTION)
    rate = _shrinking(cones, W, (ds, dz), dtau / tau, dkappa / kappa)
    length = fraction / rate.clamp_min(1.0)
    usable = length.isfinite() & ~(done | system.failed).unsqueeze(1)
    length = torch.where(usable, length, 0.0)
    moved = Iterate(
        x + length * dx,
        z + length * cones.unscale_multipliers(W, dz),
        s + length * slacks,
        tau + length * dtau,
        kappa + length * dkappa,
    )
    return moved, length.squeeze(1)


def _shrinking(
    cones: ConeProduct,
    W: Scaling,
    directions: tuple[torch.Tensor, torch.Tensor],
    of_tau: torch.Tensor,
    of_kappa: torch.Tensor,
) -> torch.Tensor:
    """One over the longest step, shape ``(B, 1)``."""
    rate = cones.step_rate(W, directions).unsqueeze(1)
    return torch.maximum(rate, -torch.minimum(of_tau, of_kappa))


def _divide_by_tau(best: _Best) -> ReducedSolution:
    """Solutions of the program from the embedding's; a certificate keeps its size."""
    point, status, iterations = best
    status = torch.where(status < 0, int(Status.FAILED), status)
    proved = (status == int(Status.INFEASIBLE)) | (status == int(Status.UNBOUNDED))
    tau = torch.where(proved.unsqueeze(1), 1.0, point.tau)
    return ReducedSolution(point.x / tau, point.z / tau, point.s / tau, status, iterations)


def _dot(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (u * v).sum(1, keepdim=True)


def _size(vector: torch.Tensor) -> torch.Tensor:
    return vector.abs().amax(1) if vector.shape[1] else vector.new_zeros(len(vector))
