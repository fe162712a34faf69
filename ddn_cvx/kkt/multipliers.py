"""Multipliers of a point that came without them."""

from __future__ import annotations

import torch

from ddn_cvx.cones.second_order import SecondOrder
from ddn_cvx.linalg.nonnegative_least_squares import nonnegative_least_squares
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance

# An inequality with a slack below this, relative to its row's size, may have a multiplier.
_ACTIVE = 1e-5


def recover_multipliers(program: NonlinearInstance, u: torch.Tensor) -> torch.Tensor:
    """``y`` in ``K*`` that brings ``grad f + J' y`` nearest to zero, shape ``(B, m)``.

    Least squares with nonnegative multipliers for active inequalities, so that a redundant set of
    active constraints still gives valid signs. A second-order cone whose slack ``(t, z)`` is on the
    boundary has a multiplier along ``(1, -z / |z|)``, one inside has none. Rows of a cone's apex
    and of semidefinite cones are first left free, then projected onto their cones.

    Args:
        u: shape ``(B, n)``.
    """
    cones = program.program.cones
    _, gradient, c, jacobian = program.first(u)
    if not cones.rows:
        return c
    size = 1 + (jacobian.abs() @ u.abs().unsqueeze(2)).squeeze(2)
    row = torch.arange(cones.rows, device=u.device)
    equality = (row < cones.zero) | (row >= cones.linear)
    free = equality.expand_as(c)
    allowed = free | (c >= -_ACTIVE * size)
    rays = None
    if cones.second_order:
        rays, free, allowed = _second_order_rays(program, c, free, allowed)
        jacobian = rays.mT @ jacobian
    sound = (gradient.sum(1) + jacobian.sum((1, 2))).isfinite()
    matrix = torch.where(sound[:, None, None], jacobian.mT, 0.0)
    right = torch.where(sound.unsqueeze(1), -gradient, 0.0)
    y = nonnegative_least_squares(matrix, right, free, allowed)
    if rays is not None:
        y = (rays @ y.unsqueeze(2)).squeeze(2)
    return cones.project_dual(y, torch.zeros_like(y))


def _second_order_rays(
    program: NonlinearInstance, c: torch.Tensor, free: torch.Tensor, allowed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A basis of the multipliers: columns ``(B, m, m)``, which are free, which may be nonzero."""
    cones = program.program.cones
    identity = torch.eye(cones.rows, dtype=c.dtype, device=c.device)
    basis = identity.expand(len(c), -1, -1).clone()
    free, allowed = free.clone(), allowed.clone()
    for group in cones.groups:
        if not isinstance(group, SecondOrder):
            continue
        index = group.index_on(c.device)  # (k, d)
        slack = -c[:, index]  # (B, k, d)
        t, z = slack[..., 0], slack[..., 1:]
        length = z.norm(dim=-1)
        scale = 1 + torch.maximum(t.abs(), length)
        apex = torch.maximum(t.abs(), length) <= _ACTIVE
        inside = (t - length > _ACTIVE * scale) & ~apex
        ray = -z / length.clamp_min(1e-300).unsqueeze(-1)
        ray = torch.cat([torch.ones_like(t).unsqueeze(-1), ray], -1)  # (B, k, d)
        heads, rest = index[:, 0], index[:, 1:]
        first = torch.zeros_like(ray)
        first[..., 0] = 1
        basis[:, index, heads.unsqueeze(1)] = torch.where(apex.unsqueeze(-1), first, ray)
        free[:, heads] = apex
        allowed[:, heads] = ~inside
        allowed[:, rest] = apex.unsqueeze(-1)
        free[:, rest] = apex.unsqueeze(-1)
    return basis, free, allowed
