"""Starts for a pose: solutions of three points each, by cost, and the direct linear transform."""

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
    bearings, scene = objective.bearings(), objective.scene
    index = chosen.flatten(1).unsqueeze(-1).expand(-1, -1, 3)
    picked = (tensor.gather(1, index).reshape(batch * count, 3, 3) for tensor in (bearings, scene))
    R, t, good = three_point_poses(*picked)
    return (
        Pose(R.reshape(batch, -1, 3, 3), t.reshape(batch, -1, 3)),
        good.reshape(batch, -1),
    )


def costs_of(objective: Objective, poses: Pose) -> torch.Tensor:
    """Of ``k`` poses for each element, ``(B, k, ...)``; shape ``(B, k)``."""
    batch, k = poses.t.shape[:2]
    wide = objective.rows(None)
    y = wide.scene @ poses.R.mT + poses.t.unsqueeze(-2)
    s = wide.residuals(y).square().sum(-1)
    cost = torch.where(wide.weights > 0, wide.weights * wide.rho(s)[0], 0.0).sum(-1)
    bad = wide.behind(y) | cost.isnan()
    return torch.where(bad, torch.inf, cost).reshape(batch, k)


def linear_pose(objective: Objective) -> Pose:
    """The direct linear transform: the projection matrix of least algebraic error.

    Hartley and Zisserman, "Multiple View Geometry" (2004), section 7.1, with the scene's points
    centred and scaled; of its left part the nearest rotation. For six points and more that are not
    in a plane.
    """
    weights = objective.weights.unsqueeze(-1)
    total = weights.sum(1, keepdim=True).clamp_min(1e-300)
    centre = (weights * objective.scene).sum(1, keepdim=True) / total
    X = objective.scene - centre
    size = ((weights * X.square()).sum((1, 2), keepdim=True) / total).sqrt().clamp_min(1e-300)
    X = torch.cat([X / size, torch.ones_like(X[..., :1])], -1)
    b = objective.bearings()
    zero = torch.zeros_like(X)
    x, y, z = (b[..., k : k + 1] * X for k in range(3))
    rows = torch.cat(
        [torch.cat([zero, -z, y], -1), torch.cat([z, zero, -x], -1), torch.cat([-y, x, zero], -1)],
        1,
    )
    weighted = weights.repeat(1, 3, 1) * rows
    # The eigenvector of the least eigenvalue, of which the sign puts the points in front.
    p = torch.linalg.eigh(rows.mT @ weighted).eigenvectors[..., 0].unflatten(-1, (3, 4))
    M, m = p[..., :3], p[..., 3]
    U, s, Vh = torch.linalg.svd(M)
    sign = torch.where(torch.linalg.det(U @ Vh) < 0, -1.0, 1.0)
    R = sign[:, None, None] * (U @ Vh)
    scale = s.mean(-1).clamp_min(1e-300)
    t = (sign / scale).unsqueeze(-1) * m * size.squeeze(-1)
    return Pose(R, t - (R @ centre.mT).squeeze(-1))
