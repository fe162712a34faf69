"""The pose of least cost: starts, the best of what they lead to, and its status."""

from __future__ import annotations

import math
from typing import Any

import torch

from ddn_cvx.dedicated.pose.approach import approached
from ddn_cvx.dedicated.pose.collapsed import Starts, collapsed_starts
from ddn_cvx.dedicated.pose.expansion import Expander
from ddn_cvx.dedicated.pose.hypotheses import counting, different, poses_of_triples
from ddn_cvx.dedicated.pose.objective import ROBUST, Objective, Pose, once
from ddn_cvx.dedicated.pose.refine import Refined, refined
from ddn_cvx.dedicated.pose.rotations import orthonormal
from ddn_cvx.status import Status

# Triples of points whose poses are starts, and how many starts are refined.
_TRIPLES = 16
_REFINED = 3
# With fewer points than this triples are starts for every cost.
_FEW = 6
_SEED = 0
# A pose is stationary when the last Newton step to it, an angle or relative, is below this: the
# next would be its square.
_STATIONARY = 5e-6
# Starts within this angle of each other, in radians, mostly lead to the same pose.
_APART = 0.3
# An eigenvalue of the Hessian, scaled to a unit diagonal, that is below this counts as zero.
_SINGULAR = 1e-10


def least_cost(
    objective: Objective, initial: tuple[torch.Tensor, ...], search: bool = True
) -> tuple[torch.Tensor, ...]:
    """Pose, cost, Hessian, its inverse and status; all but the status of no interest where bad.

    Args:
        objective: of a scene that is centred.
        initial: a rotation ``(B, 3, 3)`` and a translation ``(B, 3)`` to start from, or nothing.
        search: look for other starts, too.
    """
    if not search:
        R, t = (tensor.unsqueeze(1) for tensor in initial)
        every = torch.ones(R.shape[:2], dtype=torch.bool, device=R.device)
        return _judged(_best(objective, Starts(Pose(R, t), every)))
    if objective.cost in ROBUST or objective.image.shape[2] < _FEW or initial:
        return _judged(_best(objective, _starts_of_triples(objective, initial)))
    found = _judged(_from_moments(objective))
    # Of fewer than three points nothing is asked, and _FEW stands for more.
    counts = (once(objective.weights) > 0).sum(-1).clamp_max(_FEW)
    again = (found[-1] == float(Status.FAILED)) | (counts < _FEW)
    if bool(again.any()):
        counts = torch.where(again, counts, 0)
        for count in range(3, _FEW + 1):
            rows = (counts == count).nonzero().squeeze(1)
            if len(rows) > 0:
                more = _of_triples(objective.rows(rows), count)
                for kept, new in zip(found, more, strict=True):
                    kept[rows] = new
    return found


def _of_triples(objective: Objective, count: int) -> tuple[torch.Tensor, ...]:
    """Of elements in which ``count`` points count, or ``_FEW`` and more, as :func:`least_cost`."""
    if count < _FEW:
        # Just as without the other points.
        objective = objective.picked(counting(objective.weights)[0][:, :count])
    return _judged(_best(objective, _starts_of_triples(objective, ())))


def _judged(best: Refined) -> tuple[torch.Tensor, ...]:
    """Pose, cost, Hessian, its inverse and status."""
    value, H = best.value, best.hessian
    scale = H.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    unit = H / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    identity = torch.eye(6, dtype=H.dtype, device=H.device)
    regular = torch.linalg.cholesky_ex(unit - _SINGULAR * identity).info == 0
    inverse = torch.linalg.inv_ex(torch.where(regular[:, None, None], unit, identity)).inverse
    inverse = inverse / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    status = torch.full_like(value, float(Status.SOLVED))
    status = torch.where(best.length <= _STATIONARY, status, float(Status.INACCURATE))
    status = torch.where(regular & value.isfinite(), status, float(Status.FAILED))
    return best.R, best.t, value, H, inverse, status


def _best(objective: Objective, starts: Starts) -> Refined:
    """The pose of least cost that the starts lead to."""
    batch = len(objective.image)
    # The first start of every element, and of the others those that are worth a look.
    starts.usable[:, 0] = True
    which, rows = starts.usable.T.nonzero(as_tuple=True)
    pose = Pose(orthonormal(starts.pose.R[rows, which]), starts.pose.t[rows, which])
    found = refined(Expander(objective).part(rows), pose)
    if len(rows) == batch:
        return found
    value = found.value.new_full(starts.usable.shape, torch.inf)
    value[rows, which] = found.value
    place = which.new_zeros(starts.usable.shape)
    place[rows, which] = torch.arange(len(rows), device=rows.device)
    best = value.argmin(1, keepdim=True)
    return found.picked(place.gather(1, best).squeeze(1))


def _from_moments(objective: Objective) -> Refined:
    """The pose of least cost that the starts from moments lead to."""
    expander = Expander(objective)
    single = expander.single()
    starts = collapsed_starts(single.objective)
    first = Pose(orthonormal(starts.pose.R[:, 0]), starts.pose.t[:, 0])
    approach = approached(expander, single, first)
    found, rest = approach.found, (~approach.settled).nonzero().squeeze(1)
    others = starts.usable[:, 1:].nonzero()[:, 0]
    rows = torch.cat([rest, others])
    if len(rows) > 0:
        R = torch.cat([approach.pose.R[rest], orthonormal(starts.pose.R[others, -1])])
        t = torch.cat([approach.pose.t[rest], starts.pose.t[others, -1]])
        more = refined(expander.part(rows), Pose(R, t))
        for kept, new in zip(found, more, strict=True):
            kept[rest] = new[: len(rest)]
        better = more.value[len(rest) :] < found.value[others]
        for kept, new in zip(found, more, strict=True):
            kept[others[better]] = new[len(rest) :][better]
    return found


def _starts_of_triples(objective: Objective, initial: tuple[Any, ...]) -> Starts:
    """The best few of the solutions of triples, of those from moments, and of what is given."""
    batch, _, n = objective.image.shape
    count = min(_TRIPLES, n * (n - 1) * (n - 2) // 6)
    generator = torch.Generator().manual_seed(_SEED)
    draws = torch.rand(count, 3, generator=generator, dtype=torch.float32, device="cpu").double()
    chosen = different(objective.weights, draws)
    poses, good = poses_of_triples(objective, chosen)
    moment = collapsed_starts(objective)
    rotations, translations = [poses.R, moment.pose.R], [poses.t, moment.pose.t]
    usable = [good, moment.usable]
    if initial:
        rotations.append(initial[0].unsqueeze(1))
        translations.append(initial[1].unsqueeze(1))
        usable.append(torch.ones_like(good[:, :1]))
    every = Pose(torch.cat(rotations, 1), torch.cat(translations, 1))
    cost = torch.where(torch.cat(usable, 1), objective.rows(None).value(every), torch.inf)
    picked = []
    for _ in range(min(_REFINED, cost.shape[1])):
        best = cost.argmin(1, keepdim=True)
        picked.append(best)
        R = every.R.gather(1, best[..., None, None].expand(-1, -1, 3, 3))
        cosine = ((every.R * R).sum((-1, -2)) - 1) / 2
        # What is near comes after all that is apart.
        cost = torch.where(cosine > math.cos(_APART), cost + 1e6 * (1 + cost.abs()), cost)
        cost = cost.scatter(1, best, torch.inf)
    chosen = torch.cat(picked, 1)
    each = torch.arange(batch, device=chosen.device).unsqueeze(1)
    return Starts(
        Pose(every.R[each, chosen], every.t[each, chosen]),
        torch.ones_like(chosen, dtype=torch.bool),
    )
