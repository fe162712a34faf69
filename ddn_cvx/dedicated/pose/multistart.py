"""The pose of least cost from several starts, and its status."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddn_cvx.batch.elements import put, select
from ddn_cvx.dedicated.pose.damped_newton import LAST_LENGTH, Refined, damped_newton
from ddn_cvx.dedicated.pose.expansion import Expander
from ddn_cvx.dedicated.pose.moment_starts import Starts, moment_starts
from ddn_cvx.dedicated.pose.objective import ROBUST, Objective, Pose, collapse_broadcast
from ddn_cvx.dedicated.pose.rotations import orthonormal
from ddn_cvx.dedicated.pose.triples import distinct_points, poses_of_triples, weighted_first
from ddn_cvx.dedicated.pose.two_step_newton import two_step_newton
from ddn_cvx.status import Status

# Triples of points whose poses are starts, and starts of each element that are refined.
_TRIPLES = 16
_REFINED_STARTS = 3
# Points below which the poses of triples are starts for every cost, not for robust ones alone.
_FEW_POINTS = 6
_SEED = 0
# Angle in radians within which two starts mostly lead to the same pose.
_DISTINCT_ANGLE = 0.3
# Increase of the cost of starts that are near to a chosen one: they rank behind all distinct ones.
_NEAR_PENALTY = 1e6
# Eigenvalue of the Hessian, scaled to a unit diagonal, below which the Hessian is singular.
_SINGULAR_EIGENVALUE = 1e-10


def least_cost(
    objective: Objective, initial: tuple[Tensor, ...], search: bool = True
) -> tuple[Tensor, ...]:
    """Rotation, translation, cost, Hessian, inverse Hessian and status ``(B, ...)``.

    Args:
        objective: objective of a scene whose weighted mean is zero.
        initial: a further start, rotation ``(B, 3, 3)`` and translation ``(B, 3)``, or nothing.
        search: whether to use other starts than ``initial``.
    """
    expander = Expander(objective)
    if not search:
        R, t = (tensor.unsqueeze(1) for tensor in initial)
        every = torch.ones(R.shape[:2], dtype=torch.bool, device=R.device)
        return _best(expander, Starts(Pose(R, t), every))
    if objective.cost in ROBUST or objective.image.shape[2] < _FEW_POINTS or initial:
        return _best(expander, _starts_of_triples(objective, initial))
    single = expander.single()
    result = _best(expander, moment_starts(single.objective), single)
    # Elements with few points of positive weight, grouped by their number, are solved as if they
    # had no others; elements that failed get the starts of triples, too.
    counts = (collapse_broadcast(objective.weights) > 0).sum(-1).clamp_max(_FEW_POINTS)
    again = (result[-1] == float(Status.FAILED)) | (counts < _FEW_POINTS)
    if bool(again.any()):
        counts = torch.where(again, counts, 0)
        for count in range(3, _FEW_POINTS + 1):
            rows = (counts == count).nonzero().squeeze(1)
            if len(rows) > 0:
                part = objective.rows(rows)
                if count < _FEW_POINTS:
                    part = part.with_points(weighted_first(part.weights)[0][:, :count])
                more = _best(Expander(part), _starts_of_triples(part, ()))
                result = put(result, rows, more)
    return result


def _best(expander: Expander, starts: Starts, single: Expander | None = None) -> tuple[Tensor, ...]:
    """As :func:`least_cost`, from given starts.

    Args:
        single: the expander in single precision, if most starts are near their minima.
    """
    # The first start of each element is always used, so that each has a result.
    starts.usable[:, 0] = True
    which, rows = starts.usable.T.nonzero(as_tuple=True)
    R, t = starts.pose.rows((rows, which))
    pose, several = Pose(orthonormal(R), t), len(rows) > len(starts.usable)
    if several:
        expander, single = expander.rows(rows), None if single is None else single.rows(rows)
    if single is None:
        refined = damped_newton(expander, pose)
    else:
        refined = two_step_newton(expander, single, pose)
    if several:
        value = refined.value.new_full(starts.usable.shape, torch.inf)
        value[rows, which] = refined.value
        place = which.new_zeros(starts.usable.shape)
        place[rows, which] = torch.arange(len(rows), device=rows.device)
        best = value.argmin(1, keepdim=True)
        refined = select(refined, place.gather(1, best).squeeze(1))
    return _with_status(refined)


def _with_status(best: Refined) -> tuple[Tensor, ...]:
    """Rotation, translation, cost, Hessian, inverse Hessian and status."""
    value, H = best.value, best.hessian
    scale = H.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    unit = H / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    identity = torch.eye(6, dtype=H.dtype, device=H.device)
    regular = torch.linalg.cholesky_ex(unit - _SINGULAR_EIGENVALUE * identity).info == 0
    inverse = torch.linalg.inv_ex(torch.where(regular[:, None, None], unit, identity)).inverse
    inverse = inverse / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    status = torch.full_like(value, float(Status.SOLVED))
    status = torch.where(best.length <= LAST_LENGTH, status, float(Status.INACCURATE))
    status = torch.where(regular & value.isfinite(), status, float(Status.FAILED))
    return best.R, best.t, value, H, inverse, status


def _starts_of_triples(objective: Objective, initial: tuple[Tensor, ...]) -> Starts:
    """The few starts of least cost from triples, from moments, and ``initial``."""
    batch, _, n = objective.image.shape
    count = min(_TRIPLES, n * (n - 1) * (n - 2) // 6)
    generator = torch.Generator().manual_seed(_SEED)
    draws = torch.rand(count, 3, generator=generator, dtype=torch.float32, device="cpu").double()
    triples = distinct_points(objective.weights, draws)
    poses, good = poses_of_triples(objective, triples)
    moment = moment_starts(objective)
    parts: list[tuple[Tensor, ...]] = [(*poses, good), (*moment.pose, moment.usable)]
    if initial:
        parts.append((*(tensor.unsqueeze(1) for tensor in initial), torch.ones_like(good[:, :1])))
    R, t, usable = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    every = Pose(R, t)
    cost = torch.where(usable, objective.for_many_poses().value(every), torch.inf)
    each = torch.arange(batch, device=cost.device)
    picked = []
    for _ in range(min(_REFINED_STARTS, cost.shape[1])):
        best = cost.argmin(1)
        picked.append(best)
        cosine = ((every.R * every.R[each, best].unsqueeze(1)).sum((-1, -2)) - 1) / 2
        near = cosine > math.cos(_DISTINCT_ANGLE)
        cost = torch.where(near, cost + _NEAR_PENALTY * (1 + cost.abs()), cost)
        cost[each, best] = torch.inf
    chosen = torch.stack(picked, 1)
    every = every.rows((each.unsqueeze(1), chosen))
    return Starts(every, torch.ones_like(chosen, dtype=torch.bool))
