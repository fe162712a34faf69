"""Poses of least cost near a start: Levenberg-Marquardt, then Newton, batched."""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.rotations import exponential

_STEPS = 60
_NEWTON_STEPS = 8
# Steps below this are rounding.
_EXACT = 1e-15
# Newton takes over once a step changes the cost by less than this, relatively.
_SETTLED = 1e-8
_FIRST_DAMPING = 1e-3
# Few rows are copied out of the batch once this share of it is still moving.
_COMPACT = 0.6


def moved(pose: Pose, step: torch.Tensor) -> Pose:
    """``exp([omega]) R``, ``t + tau`` for steps ``(B, 6)``."""
    return Pose(exponential(step[..., :3]) @ pose.R, pose.t + step[..., 3:])


def levenberg_marquardt(objective: Objective, start: Pose) -> tuple[Pose, torch.Tensor]:
    """Until the cost settles; the poses and their costs ``(B,)``.

    Madsen, Nielsen and Tingleff, "Methods for non-linear least squares problems" (2004), with the
    weights of the robust cost at each step.
    """
    R, t = start.R.clone(), start.t.clone()
    cost = objective.value(start)
    rows = torch.arange(len(R), device=R.device)
    part, pose, here = objective, start, cost.clone()
    damping = torch.full_like(cost, _FIRST_DAMPING)
    growth = torch.full_like(cost, 2.0)
    identity = torch.eye(6, dtype=R.dtype, device=R.device)
    for _ in range(_STEPS):
        gradient, normal = part.gauss_newton(pose)
        diagonal = normal.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12)
        system = normal + torch.diag_embed(damping.unsqueeze(-1) * diagonal) + 1e-300 * identity
        step = -torch.linalg.solve_ex(system, gradient.unsqueeze(-1)).result.squeeze(-1)
        step = torch.where(step.isfinite().all(-1, keepdim=True), step, 0.0)
        trial = moved(pose, step)
        there = part.value(trial)
        predicted = -(step * (gradient + 0.5 * (normal @ step.unsqueeze(-1)).squeeze(-1))).sum(-1)
        gain = (here - there) / predicted.clamp_min(1e-300)
        better = there < here
        settled = (predicted <= _SETTLED * here) | (predicted <= 1e-28)
        damping = torch.where(
            better, damping * (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 2.0), damping * growth
        ).clamp(1e-12, 1e12)
        growth = torch.where(better, 2.0, growth * 2).clamp_max(64.0)
        pose = Pose(
            torch.where(better[:, None, None], trial.R, pose.R),
            torch.where(better[:, None], trial.t, pose.t),
        )
        here = torch.where(better, there, here)
        R[rows], t[rows], cost[rows] = pose.R, pose.t, here
        live = (~settled & (damping < 1e11) & here.isfinite()).nonzero().squeeze(1)
        if len(live) == 0:
            break
        if len(live) < _COMPACT * len(rows):
            rows, part = rows[live], part.rows(live)
            pose, here = Pose(pose.R[live], pose.t[live]), here[live]
            damping, growth = damping[live], growth[live]
    return Pose(R, t), cost


def newton(objective: Objective, pose: Pose) -> tuple[Pose, torch.Tensor, torch.Tensor]:
    """The last digits: poses, Hessians there, and the length of the next step, ``(B,)``.

    A step's length is the larger of its angle and of its translation relative to the pose's.
    """
    cost, gradient, H = objective.value(pose), objective.gradient(pose), objective.hessian(pose)
    identity = torch.eye(6, dtype=H.dtype, device=H.device)
    length = torch.full_like(cost, torch.inf)
    for number in range(_NEWTON_STEPS + 1):
        factor, failed = torch.linalg.cholesky_ex(H)
        usable = (failed == 0) & gradient.isfinite().all(-1)
        factor = torch.where(usable[:, None, None], factor, identity)
        step = -torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        distance = pose.t.norm(dim=-1).clamp_min(1e-300)
        size = torch.maximum(step[:, :3].norm(dim=-1), step[:, 3:].norm(dim=-1) / distance)
        size = torch.where(usable & size.isfinite(), size, torch.inf)
        # From one step to the next the length falls, or rounding is all that is left.
        better = (size < length) & (size > _EXACT)
        length = torch.minimum(length, size)
        if number == _NEWTON_STEPS or not bool(better.any()):
            break
        trial = moved(pose, torch.where(better.unsqueeze(-1), step, 0.0))
        there = objective.value(trial)
        better = better & (there <= cost * (1 + 1e-9) + 1e-300)
        pose = Pose(
            torch.where(better[:, None, None], trial.R, pose.R),
            torch.where(better[:, None], trial.t, pose.t),
        )
        cost = torch.where(better, there, cost)
        gradient, H = objective.gradient(pose), objective.hessian(pose)
    return pose, H, length
