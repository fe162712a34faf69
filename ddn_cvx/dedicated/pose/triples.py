"""Poses of random triples of points, drawn among the points of positive weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.three_points import three_point_poses


def distinct_points(weights: Tensor, draws: Tensor) -> Tensor:
    """Indices ``(B, T, k)`` of points of positive weight, uniform without replacement.

    All elements share the draws, so that none depends on its batch. Where fewer than ``k`` points
    have a positive weight, points of weight zero are drawn, too.

    Args:
        weights: shape ``(B, n)``.
        draws: uniform numbers in ``[0, 1)``, shape ``(T, k)``.
    """
    order, count = weighted_first(weights)
    k, n = draws.shape[1], weights.shape[1]
    count, draws = count.clamp_min(min(k, n)), draws.to(weights.device)
    places = order.new_empty(len(order), len(draws), 0)
    for j in range(k):
        # A rank among the points not yet drawn becomes one among all points: drawn ones before it
        # are skipped, in increasing order.
        place = (draws[:, j] * (count - j)).long().clamp_min(0)
        for other in places.sort(-1).values.unbind(-1):
            place = place + (place >= other)
        places = torch.cat([places, place.unsqueeze(-1)], -1)
    places = places.clamp_max(n - 1)
    return order.gather(1, places.flatten(1)).view_as(places)


def drawn_points(weights: Tensor, draws: Tensor) -> Tensor:
    """Indices ``(B, k)`` of points of positive weight, uniform with replacement.

    Args:
        weights: shape ``(B, n)``.
        draws: uniform numbers in ``[0, 1)``, shape ``(k,)``.
    """
    order, count = weighted_first(weights)
    return order.gather(1, (draws.to(weights.device) * count).long())


def weighted_first(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the points, positive weights first, ``(B, n)``, and how many: ``(B, 1)``."""
    counts = weights > 0
    order = counts.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return order, counts.sum(1, keepdim=True)


def poses_of_triples(objective: Objective, chosen: Tensor, steps: int = 4) -> tuple[Pose, Tensor]:
    """Up to four poses for each triple: poses ``(B, 4 T, ...)``, and which are solutions.

    Args:
        chosen: indices of the triples, ``(B, T, 3)``.
        steps: Newton steps that refine a solution.
    """
    batch, count, _ = chosen.shape
    index = chosen.flatten(1).unsqueeze(1).expand(-1, 3, -1)

    def triples(points: Tensor) -> Tensor:
        three = points.gather(2, index).view(batch, 3, count, 3)
        return three.permute(0, 2, 3, 1).reshape(batch * count, 3, 3)

    seen, places = triples(objective.bearings()), triples(objective.scene)
    R, t, good = three_point_poses(seen, places, steps)
    shape = (batch, 4 * count)
    return Pose(R.reshape(*shape, 3, 3), t.reshape(*shape, 3)), good.reshape(shape)
