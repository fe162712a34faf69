"""Poses from three points each, drawn from the points that count, and their costs."""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.three_points import three_point_poses


def different(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Different points that count, evenly drawn: indices ``(B, T, k)``.

    Every element has the same draws, so that a batch changes nothing. Where fewer than ``k`` points
    count, others stand in.

    Args:
        weights: shape ``(B, n)``; points of positive weight count.
        draws: numbers from 0 to 1, without 1, shape ``(T, k)``.
    """
    order, count = counting(weights)
    k, n = draws.shape[1], weights.shape[1]
    count, draws = count.clamp_min(min(k, n)), draws.to(weights.device)
    picked: list[torch.Tensor] = []
    for j in range(k):
        # The j-th of what is left: past every smaller one that is taken already, in their order.
        place = (draws[:, j] * (count - j)).long().clamp_min(0)
        for other in torch.stack(picked, -1).sort(-1).values.unbind(-1) if picked else ():
            place = place + (place >= other)
        picked.append(place)
    places = torch.stack(picked, -1).clamp_max(n - 1)
    return order.gather(1, places.flatten(1)).view_as(places)


def drawn(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Points that count, evenly drawn, perhaps one more than once: indices ``(B, k)``.

    Args:
        weights: shape ``(B, n)``.
        draws: numbers from 0 to 1, without 1, shape ``(k,)``.
    """
    order, count = counting(weights)
    return order.gather(1, (draws.to(weights.device) * count).long())


def counting(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Points with those that count first, ``(B, n)``, and how many these are, ``(B, 1)``."""
    counts = weights > 0
    order = counts.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return order, counts.sum(1, keepdim=True)


def poses_of_triples(
    objective: Objective, chosen: torch.Tensor, steps: int = 4
) -> tuple[Pose, torch.Tensor]:
    """The solutions of triples ``(B, T, 3)``: poses ``(B, 4 T, ...)``, and which are one.

    Args:
        objective: with the points.
        chosen: their indices.
        steps: of Newton's method that polish a solution.
    """
    batch, count, _ = chosen.shape
    index = chosen.flatten(1).unsqueeze(1).expand(-1, 3, -1)

    def picked(points: torch.Tensor) -> torch.Tensor:
        three = points.gather(2, index).view(batch, 3, count, 3)
        return three.permute(0, 2, 3, 1).reshape(batch * count, 3, 3)

    seen, places = picked(objective.bearings()), picked(objective.scene)
    R, t, good = three_point_poses(seen, places, steps)
    return (
        Pose(R.reshape(batch, 4 * count, 3, 3), t.reshape(batch, 4 * count, 3)),
        good.reshape(batch, 4 * count),
    )
