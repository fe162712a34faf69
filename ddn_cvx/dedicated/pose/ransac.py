"""Pose among outliers: hypotheses from three points, scored by MSAC, batched and seeded.

Fischler and Bolles, "Random sample consensus" (1981); Torr and Zisserman, "MLESAC: a new robust
estimator with application to estimating image geometry" (2000), for the truncated score; Chum,
Matas and Kittler, "Locally optimized RANSAC" (2003).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch

from ddn_cvx.dedicated.constants import constant, eager, in_full_precision
from ddn_cvx.dedicated.pose.expansion import Expander
from ddn_cvx.dedicated.pose.hypotheses import different, drawn, poses_of_triples
from ddn_cvx.dedicated.pose.inputs import checked, masked
from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.perspective import PoseSolution, centre_of, solved
from ddn_cvx.dedicated.pose.refine import refined
from ddn_cvx.dedicated.pose.rotations import orthonormal

# Triples of the first two rounds, twice as many in the next two, and at most; of their poses,
# scored on so many points, the share that is kept for all points.
_TRIPLES = 32
_MOST_TRIPLES = 256
_SCORED = 24
_KEPT = 1 / 16
# Steps from one set of inliers to the next.
_STEPS = 3
# A triple without outliers that noise spoils counts for nothing: so much of the odds is assumed.
_TRUST = 0.7
# Triples that are scored together: what they take stays in the processor's cache.
_TOGETHER = 4096
# Inliers that a pose needs, where there are more points than three.
_LEAST = 4


class RansacSolution(NamedTuple):
    """What :func:`ransac_pose` finds, per element.

    Attributes:
        pose: of least cost over the inliers, differentiable; FAILED where no pose has four inliers.
        inliers: which points its cost is of, bool, shape ``(*batch, n)``.
        score: ``sum_i w_i min(|r_i|^2 / threshold^2, 1)`` before the last fit, ``(*batch,)``.
        trials: triples that were tried, shape ``(*batch,)``.
    """

    pose: PoseSolution
    inliers: torch.Tensor
    score: torch.Tensor
    trials: torch.Tensor


@eager
@in_full_precision
def ransac_pose(
    image: torch.Tensor,
    scene: torch.Tensor,
    weights: torch.Tensor | None = None,
    camera: torch.Tensor | None = None,
    *,
    threshold: float,
    cost: str = "squared",
    scale: torch.Tensor | float = 1.0,
    confidence: float = 0.9999,
    trials: int = 4096,
    seed: int = 0,
) -> RansacSolution:
    """The pose of least cost over the points that agree with the pose of least truncated cost.

    Inliers are constant; given them, the derivatives are those of
    :func:`ddn_cvx.dedicated.pose.perspective.solve_pose`.

    Args:
        image: see there, as are ``scene``, ``weights``, ``camera``, ``cost`` and ``scale``.
        threshold: residuals below it are inliers', in the image's units; for the cost "cosine" an
            angle in radians.
        confidence: the probability to have tried a triple of inliers, at which trying ends.
        trials: triples to try at most.
        seed: of the draws, which are the same for each element of the batch.

    Raises:
        TypeError, ValueError: as there; a threshold or a number of trials that is not positive, a
            confidence that is not between 0 and 1.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose.ransac import ransac_pose
        >>> scene = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
        >>> placed = scene + torch.tensor([0.1, -0.2, 5.0])
        >>> image = placed[:, :2] / placed[:, 2:]
        >>> image[:20] = image[:20].roll(1, dims=0)  # half of the matches are wrong
        >>> found = ransac_pose(image, scene, threshold=1e-3)
        >>> found.pose.t, int(found.inliers.sum())
        (tensor([ 0.1000, -0.2000,  5.0000]), 20)
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive; got {threshold!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence!r}.")
    if trials < 1:
        raise ValueError(f"trials must be positive; got {trials!r}.")
    objective, valid, batch = checked(image, scene, weights, camera, cost, scale)
    plain = "cosine" if cost == "cosine" else "squared"

    def find(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, X, w, A, sigma, good = tensors
        data = Objective(x, X, w, A, sigma, plain)
        return _searched(data, good, threshold**2, confidence, trials, seed)

    # About its centre: far from the origin single precision would not do.
    centre = centre_of(objective)
    near = objective._replace(scene=objective.scene - centre.unsqueeze(-1))
    R, t, inliers, score, tried = constant(find, *near[:5], valid, in_parts=False)
    t = t - (R @ centre.unsqueeze(-1)).squeeze(-1)
    enough = inliers.sum(-1) >= torch.where((objective.weights > 0).sum(-1) == 3, 3, _LEAST)
    some = inliers | ~enough.unsqueeze(-1)
    data = masked(objective.image, objective.scene, objective.weights, some, valid)
    fitted = objective._replace(image=data[0], scene=data[1], weights=data[2])
    # Without enough inliers there is nothing to fit: weights of zero have no pose.
    fitted = fitted._replace(weights=torch.where(enough.unsqueeze(-1), fitted.weights, 0.0))
    pose = solved(fitted, valid, Pose(R, t), search=False)
    n = image.shape[-2]
    return RansacSolution(
        pose.shaped(batch, image.dtype),
        (inliers & enough.unsqueeze(-1)).reshape((*batch, n)),
        score.reshape(batch).to(image.dtype),
        tried.reshape(batch),
    )


def _searched(
    objective: Objective, valid: torch.Tensor, square: float, confidence: float, trials: int,
    seed: int,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Pose, inliers, score and trials of each element."""
    generator = torch.Generator().manual_seed(seed)
    batch, n = objective.weights.shape
    device, double = objective.weights.device, torch.float64
    R = torch.eye(3, dtype=double, device=device).repeat(batch, 1, 1)
    t = torch.tensor([0.0, 0.0, 1.0], dtype=double, device=device).repeat(batch, 1)
    score = torch.full((batch,), torch.inf, dtype=double, device=device)
    tried = torch.zeros(batch, dtype=torch.long, device=device)
    inliers = torch.zeros(batch, n, dtype=torch.bool, device=device)
    raw = score.clone()
    live = valid.nonzero().squeeze(1)
    left = trials
    for number in itertools.count():
        count = min(_TRIPLES << (number // 2), _MOST_TRIPLES, left)
        if len(live) == 0 or count == 0:
            break
        left -= count
        draws = torch.rand(
            count + 1, _SCORED, generator=generator, dtype=torch.float64, device="cpu"
        )
        size = max(1, _TOGETHER // count) if device.type == "cpu" else len(live)
        found = [_hypothesis(objective.rows(rows), draws, square) for rows in live.split(size)]
        poses, there = (torch.cat([each[k] for each in found]) for k in (0, 1))
        new = (there < raw[live]).nonzero().squeeze(1)
        rows = live[new]
        raw[rows] = there[new]
        some, pose = objective.rows(rows), Pose(poses[new, :, :3], poses[new, :, 3])
        pose, there = _locally_optimised(some, pose, square)
        better = there < score[rows]
        rows = rows[better]
        R[rows], t[rows], score[rows] = pose.R[better], pose.t[better], there[better]
        inliers[rows] = _inliers(some, pose, square)[better]
        tried[live] += count
        live = live[tried[live] < _needed(inliers[live], objective.weights[live], confidence)]
    pose, score = _locally_optimised(objective, Pose(R, t), square)
    return pose.R, pose.t, _inliers(objective, pose, square), score, tried


def _inliers(objective: Objective, pose: Pose, square: float) -> torch.Tensor:
    return (objective.squares(pose) <= square) & (objective.weights > 0)


def _needed(inliers: torch.Tensor, weights: torch.Tensor, confidence: float) -> torch.Tensor:
    """Triples to try for one of inliers alone, at their present share."""
    share = inliers.sum(-1).double() / (weights > 0).sum(-1).clamp_min(1)
    odds = (_TRUST * share**3).clamp(1e-12, 1 - 1e-12)
    return math.log(1 - confidence) / torch.log1p(-odds)


def _hypothesis(
    objective: Objective, draws: torch.Tensor, square: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the poses of new triples that of least score, ``[R, t]``, and its score."""
    chosen = different(objective.weights, draws[:-1, :3])
    poses, good = poses_of_triples(objective, chosen, steps=0)
    # Ranks, not scores, count at first: few points and single precision do.
    few = objective
    if objective.weights.shape[1] > _SCORED:
        few = objective.picked(drawn(objective.weights, draws[-1]))
    x, X, w, A, sigma = (field.float() for field in few[:5])
    few = Objective(x, X, w, A, sigma, few.cost)
    scores = _score(few.rows(None), Pose(poses.R.float(), poses.t.float()), square)
    scores = torch.where(good, scores, torch.inf)
    best = scores.topk(math.ceil(_KEPT * scores.shape[1]), dim=1, largest=False).indices
    each = torch.arange(len(best), device=best.device).unsqueeze(1)
    poses, good = Pose(orthonormal(poses.R[each, best]), poses.t[each, best]), good[each, best]
    scores = torch.where(good, _score(objective.rows(None), poses, square), torch.inf)
    least, first = scores.min(1)
    each = each.squeeze(1)
    return torch.cat([poses.R[each, first], poses.t[each, first].unsqueeze(-1)], -1), least


def _score(objective: Objective, pose: Pose, square: float) -> torch.Tensor:
    """Torr and Zisserman's: ``sum_i w_i min(|r_i|^2 / threshold^2, 1)``."""
    return (objective.weights * (objective.squares(pose) / square).clamp_max(1.0)).sum(-1)


def _locally_optimised(
    objective: Objective, pose: Pose, square: float
) -> tuple[Pose, torch.Tensor]:
    """The pose of least cost over its own inliers, where that lowers the score; and the score."""
    score = _score(objective, pose, square)
    inliers = _inliers(objective, pose, square)
    enough = inliers.sum(-1) >= _LEAST
    keep, every = inliers | ~enough.unsqueeze(-1), torch.ones_like(enough)
    data = masked(objective.image, objective.scene, objective.weights, keep, every)
    part = objective._replace(image=data[0], scene=data[1], weights=data[2])
    found = refined(Expander(part), pose, steps=_STEPS)
    there = _score(objective, Pose(found.R, found.t), square)
    better = (there < score) & enough
    R = torch.where(better[:, None, None], found.R, pose.R)
    t = torch.where(better[:, None], found.t, pose.t)
    return Pose(R, t), torch.where(better, there, score)
