"""Poses from three points each, drawn from the points that count, and their costs."""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.three_points import three_point_poses


def triples(weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Three different points that count, drawn evenly, ``count`` times: indices ``(B, count, 3)``.

    Where fewer than three count, others stand in.
    """
    batch, n = weights.shape
    draw = torch.rand((batch, count, n), generator=generator, dtype=torch.float64)
    draw = draw.to(weights.device) + (weights > 0).unsqueeze(1)
    return draw.topk(3, dim=-1).indices


def poses_of_triples(objective: Objective, chosen: torch.Tensor) -> tuple[Pose, torch.Tensor]:
    """The solutions of triples ``(B, T, 3)``: poses ``(B, 4 T, ...)``, and which are one."""
    batch, count, _ = chosen.shape
    index = chosen.flatten(1).unsqueeze(1).expand(-1, 3, -1)
    picked = (
        points.gather(2, index).unflatten(2, (count, 3)).permute(0, 2, 3, 1).flatten(0, 1)
        for points in (objective.bearings(), objective.scene)
    )
    R, t, good = three_point_poses(*picked)
    return (
        Pose(R.reshape(batch, -1, 3, 3), t.reshape(batch, -1, 3)),
        good.reshape(batch, -1),
    )
