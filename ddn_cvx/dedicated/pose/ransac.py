"""Pose among outliers by RANSAC: poses of triples, scored by MSAC, batched and seeded.

Fischler and Bolles, "Random sample consensus" (1981); Torr and Zisserman, "MLESAC: a new robust
estimator with application to estimating image geometry" (2000), for the truncated score; Chum,
Matas and Kittler, "Locally optimized RANSAC" (2003).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import where
from ddn_cvx.dedicated.common import (
    cached_chunks,
    check_positive,
    isolated,
    matvec,
    nondifferentiable,
    restored,
)
from ddn_cvx.dedicated.pose.damped_newton import damped_newton
from ddn_cvx.dedicated.pose.expansion import Expander
from ddn_cvx.dedicated.pose.inputs import checked
from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.perspective import PoseSolution, about_centre, solved
from ddn_cvx.dedicated.pose.rotations import orthonormal
from ddn_cvx.dedicated.pose.triples import distinct_points, drawn_points, poses_of_triples

# Triples of the first round; their number doubles every second round, up to a limit.
_FIRST_TRIPLES = 32
_MOST_TRIPLES = 256
# Points on which the poses of triples are ranked, and the share of best poses that is scored on all
# points.
_RANKING_POINTS = 24
_SCORED_SHARE = 1 / 16
# Newton steps on one set of inliers.
_INLIER_STEPS = 3
# Assumed probability that the pose of three inliers is good enough in spite of their noise.
_TRIPLE_SUCCESS = 0.7
# Triples of one chunk, whose work space stays in the processor's cache.
_CHUNK_TRIPLES = 4096
# Inliers that a pose needs where more than three points have a positive weight.
_LEAST_INLIERS = 4


class RansacSolution(NamedTuple):
    """The result of :func:`ransac_pose`.

    Attributes:
        pose: the pose of least cost over the inliers, differentiable; FAILED where no pose has four
            inliers.
        inliers: mask of the points in that cost, shape ``(*batch, n)``.
        score: ``sum_i w_i min(|r_i|^2 / threshold^2, 1)`` before the last fit, ``(*batch,)``.
        trials: number of triples that were tried, shape ``(*batch,)``.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import RansacSolution, ransac_pose
        >>> scene = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 2]])
        >>> placed = scene + torch.tensor([0.0, 0.0, 5.0])
        >>> result = ransac_pose(placed[:, :2] / placed[:, 2:], scene, threshold=1e-3)
        >>> isinstance(result, RansacSolution), result.inliers
        (True, tensor([True, True, True, True, True]))
    """

    pose: PoseSolution
    inliers: Tensor
    score: Tensor
    trials: Tensor


@isolated
def ransac_pose(
    image: Tensor,
    scene: Tensor,
    weights: Tensor | None = None,
    camera: Tensor | None = None,
    *,
    threshold: float,
    cost: str = "squared",
    scale: Tensor | float = 1.0,
    confidence: float = 0.9999,
    trials: int = 4096,
    seed: int = 0,
) -> RansacSolution:
    """The pose of least cost over the inliers of the pose of least truncated cost.

    The set of inliers is constant; given it, the derivatives are those of
    :func:`ddn_cvx.dedicated.pose.solve_pose`.

    Args:
        image, scene, weights, camera, cost, scale: as for
            :func:`ddn_cvx.dedicated.pose.solve_pose`.
        threshold: largest residual of an inlier, in the image's units; for the cost "cosine" an
            angle in radians.
        confidence: the search ends once a triple of inliers has been tried with this probability.
        trials: limit on the number of triples.
        seed: seed of the draws, which are the same for each element of the batch.

    Returns:
        The pose, the inliers, the score and the number of trials of each element.

    Raises:
        TypeError: ``image`` or ``scene`` is not floating-point.
        ValueError: as :func:`ddn_cvx.dedicated.pose.solve_pose`; a threshold or a number of trials
            that is not positive, a confidence that is not between 0 and 1.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import ransac_pose
        >>> scene = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
        >>> placed = scene + torch.tensor([0.1, -0.2, 5.0])
        >>> image = placed[:, :2] / placed[:, 2:]
        >>> image[:20] = image[:20].roll(1, dims=0)  # half of the matches are wrong
        >>> result = ransac_pose(image, scene, threshold=1e-3)
        >>> result.pose.t, int(result.inliers.sum())
        (tensor([ 0.1000, -0.2000,  5.0000]), 20)
    """
    check_positive("threshold", threshold)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence!r}.")
    check_positive("trials", trials)
    objective, valid, batch = checked(image, scene, weights, camera, cost, scale)
    plain = "cosine" if cost == "cosine" else "squared"

    def search(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, X, w, A, sigma, good = tensors
        data = Objective(x, X, w, A, sigma, plain)
        return _searched(data, good, threshold**2, confidence, trials, seed)

    # Relative to the scene's centre: single precision does not resolve a scene far from the origin.
    near, centre = about_centre(objective)
    R, t, inliers, score, tried = nondifferentiable(search, *near[:5], valid, chunked=False)
    t = t - matvec(R, centre)
    enough = inliers.sum(-1) >= torch.where((objective.weights > 0).sum(-1) == 3, 3, _LEAST_INLIERS)
    some = inliers | ~enough.unsqueeze(-1)
    fitted = objective.masked(some, valid)
    # Elements without enough inliers get weights of zero, and fail.
    fitted = fitted._replace(weights=torch.where(enough.unsqueeze(-1), fitted.weights, 0.0))
    return RansacSolution(
        solved(fitted, valid, batch, image.dtype, Pose(R, t), search=False),
        restored(inliers & enough.unsqueeze(-1), batch, torch.bool),
        restored(score, batch, image.dtype),
        tried.reshape(batch),
    )


def _searched(
    objective: Objective, valid: Tensor, square: float, confidence: float, trials: int,
    seed: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Pose, inliers, score and trials of each element."""
    generator = torch.Generator().manual_seed(seed)
    weights = objective.weights
    batch, device, double = len(weights), weights.device, torch.float64
    R = torch.eye(3, dtype=double, device=device).repeat(batch, 1, 1)
    t = torch.tensor([0.0, 0.0, 1.0], dtype=double, device=device).repeat(batch, 1)
    # The least scores of poses of triples, and after local optimisation; triples that are needed.
    raw, score, needed = torch.full((3, batch), torch.inf, dtype=double, device=device)
    tried = torch.zeros(batch, dtype=torch.long, device=device)
    live, left = valid.nonzero().squeeze(1), trials
    for number in itertools.count():
        count = min(_FIRST_TRIPLES << (number // 2), _MOST_TRIPLES, left)
        if len(live) == 0 or count == 0:
            break
        left -= count
        draws = torch.rand(
            count + 1, _RANKING_POINTS, generator=generator, dtype=torch.float64, device="cpu"
        )
        parts = cached_chunks(len(live), count, device, _CHUNK_TRIPLES)
        best = [_best_of_triples(objective.rows(live[part]), draws, square) for part in parts]
        poses_R, poses_t, there = (torch.cat(column) for column in zip(*best, strict=True))
        new = (there < raw[live]).nonzero().squeeze(1)
        rows = live[new]
        raw[rows] = there[new]
        some, pose = objective.rows(rows), Pose(poses_R[new], poses_t[new])
        pose, there = _locally_optimised(some, pose, square)
        better = there < score[rows]
        rows = rows[better]
        R[rows], t[rows], score[rows] = pose.R[better], pose.t[better], there[better]
        needed[rows] = _needed(_inliers(some, pose, square)[better], weights[rows], confidence)
        tried[live] += count
        live = live[tried[live] < needed[live]]
    pose, score = _locally_optimised(objective, Pose(R, t), square)
    return pose.R, pose.t, _inliers(objective, pose, square), score, tried


def _inliers(objective: Objective, pose: Pose, square: float) -> Tensor:
    return (objective.squares(pose) <= square) & (objective.weights > 0)


def _needed(inliers: Tensor, weights: Tensor, confidence: float) -> Tensor:
    """Triples after which one without outliers was tried with probability ``confidence``."""
    share = inliers.sum(-1).double() / (weights > 0).sum(-1).clamp_min(1)
    odds = (_TRIPLE_SUCCESS * share**3).clamp(1e-12, 1 - 1e-12)
    return math.log(1 - confidence) / torch.log1p(-odds)


def _best_of_triples(objective: Objective, draws: Tensor, square: float) -> tuple[Tensor, ...]:
    """Rotation and translation of least score among the poses of new triples, and their score."""
    chosen = distinct_points(objective.weights, draws[:-1, :3])
    poses, good = poses_of_triples(objective, chosen, steps=0)
    # For a first ranking, few points in single precision are enough.
    few = objective
    if objective.weights.shape[1] > _RANKING_POINTS:
        few = objective.with_points(drawn_points(objective.weights, draws[-1]))
    rough = Pose(poses.R.float(), poses.t.float())
    scores = _score(few.single().for_many_poses(), rough, square)
    scores = torch.where(good, scores, torch.inf)
    best = scores.topk(math.ceil(_SCORED_SHARE * scores.shape[1]), dim=1, largest=False).indices
    each = torch.arange(len(best), device=best.device).unsqueeze(1)
    R, t = poses.rows((each, best))
    poses = Pose(orthonormal(R), t)
    scores = _score(objective.for_many_poses(), poses, square)
    least, first = torch.where(good[each, best], scores, torch.inf).min(1)
    return *poses.rows((each.squeeze(1), first)), least


def _score(objective: Objective, pose: Pose, square: float) -> Tensor:
    """Torr and Zisserman's MSAC score ``sum_i w_i min(|r_i|^2 / threshold^2, 1)``."""
    return (objective.weights * (objective.squares(pose) / square).clamp_max(1.0)).sum(-1)


def _locally_optimised(objective: Objective, pose: Pose, square: float) -> tuple[Pose, Tensor]:
    """The poses after a fit to their inliers, where that lowers the score, and the scores."""
    score = _score(objective, pose, square)
    inliers = _inliers(objective, pose, square)
    enough = inliers.sum(-1) >= _LEAST_INLIERS
    keep, every = inliers | ~enough.unsqueeze(-1), torch.ones_like(enough)
    part = objective.masked(keep, every)
    refined = damped_newton(Expander(part), pose, steps=_INLIER_STEPS)
    fitted = Pose(refined.R, refined.t)
    there = _score(objective, fitted, square)
    better = (there < score) & enough
    return where(better, (fitted, there), (pose, score))
