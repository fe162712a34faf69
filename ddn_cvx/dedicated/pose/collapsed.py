"""Starts for a pose from moments alone: an algebraic error over a grid of rotations.

    sum_i w_i |(u_i z_i - x_i, v_i z_i - y_i)|^2 / (1 + u_i^2 + v_i^2)

for the scene's points ``(x_i, y_i, z_i)`` in the camera's frame that are seen at ``(u_i, v_i)`` is
quadratic in ``(R, t)``, so that its n terms collapse to a matrix of 12 x 12, and with ``t``
eliminated of 9 x 9: Terzakis and Lourakis, "A consistently fast and globally optimal solution to
the perspective-n-point problem" (2020), equation 9. Its minima among the rotations are looked for
on a grid, and by Gauss-Newton steps from there, without the points and, as these are starts only,
in single precision.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from ddn_cvx.dedicated.pose.expansion import moments, products
from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.rotations import cayley, from_quaternion

# Rotations of the grid.
_GRID = 512
_STEPS = 2
# Starts with more than this multiple of the least error, and nearer to another than that angle,
# in radians, are dropped.
_WORSE = 30.0
_SAME = 0.02
_UPPER = [9 * a + b for a in range(9) for b in range(a, 9)]


class Starts(NamedTuple):
    """Poses of each element, ``(B, k, ...)``, and which of them are worth a look, ``(B, k)``."""

    pose: Pose
    usable: torch.Tensor


def collapsed_starts(objective: Objective) -> Starts:
    """At most two poses for each element; the scene must be centred."""
    omega, onto, spread = _eliminated(objective)
    grid, squares = _grid(omega.device)
    index = torch.tensor(_UPPER, device=omega.device)
    R = grid[(omega.flatten(1).index_select(1, index) @ squares).argmin(1)]
    # Seen from afar, what is behind the camera and turned by half a turn about the line of sight
    # looks the same, and so does a flat scene mirrored along that line.
    t = _translation(R, onto)
    sight = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-30)).unsqueeze(-1)
    mirror = torch.eye(3, dtype=R.dtype, device=R.device) - 2 * sight * sight.mT
    R = torch.where((t[:, 2] > 0)[:, None, None], R, -mirror @ R)
    normal = _thinnest(spread).unsqueeze(-1)
    turned = mirror @ R
    R = torch.stack([R, turned - 2 * (turned @ normal) * normal.mT], 1)
    R, error = _descended(R, omega)
    t = _translation(R, onto.unsqueeze(1))
    error = torch.where(t[..., 2] > 0, error, torch.inf)
    least = error.amin(1, keepdim=True)
    keep = error <= _WORSE * least + 1e-7
    cosine = ((R[:, 0] * R[:, 1]).sum((-1, -2)) - 1) / 2
    keep[:, 1] &= ~(keep[:, 0] & (cosine > math.cos(_SAME)))
    return Starts(Pose(R.double(), t.double()), keep)


def _eliminated(objective: Objective) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The 9 x 9 matrix, the 3 x 9 matrix that takes ``R`` to ``t``, and the scene's covariance."""
    plane = objective.image.float()
    if objective.cost != "cosine":
        plane = torch.linalg.inv_ex(objective.lens[:, :2, :2]).inverse.float() @ plane
    batch, _, n = plane.shape
    total = objective.weights.sum(-1, keepdim=True).clamp_min(1e-30)
    rows = plane.new_empty(batch, 4, n)
    far = (plane * plane).sum(1)
    # (u z - x)^2 + (v z - y)^2, by the square of the bearing's length.
    torch.div((objective.weights / total).float(), 1 + far, out=rows[:, 0])
    torch.mul(plane, -rows[:, :1], out=rows[:, 1:3])
    torch.mul(rows[:, 0], far, out=rows[:, 3])
    sums = rows @ products(objective.scene.float()).mT
    whole = sums.new_zeros(batch, 6, 10)
    whole[:, ::3] = sums[:, :1]
    whole[:, 2::2] = sums[:, 1:3]
    whole[:, 5] = sums[:, 3]
    M = moments(whole)
    spread = sums[:, 0, [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))
    size = spread.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-30)[:, None, None]
    at, mixed = M[:, 9:, 9:], M[:, 9:, :9]
    trace = at.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    at = at + 1e-6 * trace * torch.eye(3, dtype=M.dtype, device=M.device)
    onto = -(torch.linalg.inv_ex(at).inverse @ mixed)
    return (M[:, :9, :9] + mixed.mT @ onto) / size, onto, spread / size


def _translation(R: torch.Tensor, onto: torch.Tensor) -> torch.Tensor:
    t: torch.Tensor = (onto @ R.flatten(-2).unsqueeze(-1)).squeeze(-1)
    return t


@functools.cache
def _grid(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations ``(S, 3, 3)``, and their ``r r'`` as ``(45, S)``, off the diagonal doubled.

    Alexa, "Super-Fibonacci spirals: fast, low-discrepancy sampling of SO(3)" (2022), algorithm 1.
    """
    s = torch.arange(_GRID, dtype=torch.float64) + 0.5
    short, long = (s / _GRID).sqrt(), (1 - s / _GRID).sqrt()
    # The root of two, and the real root of x^4 = x + 4 above one.
    first, second = 2 * math.pi * s / math.sqrt(2), 2 * math.pi * s / 1.533751168755204
    parts = [short * first.sin(), short * first.cos(), long * second.sin(), long * second.cos()]
    R = from_quaternion(torch.stack(parts, -1))
    r = R.flatten(1)
    double = 2 - torch.eye(9, dtype=torch.float64)
    squares = (r.unsqueeze(2) * r.unsqueeze(1) * double).flatten(1)[:, _UPPER]
    return R.float().to(device), squares.T.float().contiguous().to(device)


def _descended(R: torch.Tensor, omega: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Newton steps that lower the error: rotations ``(B, k, 3, 3)`` and errors ``(B, k)``."""
    identity = 1e-7 * torch.eye(3, dtype=R.dtype, device=R.device)

    def applied(vectors: torch.Tensor) -> torch.Tensor:
        """``omega`` times vectors ``(B, k, m, 9)``."""
        return (vectors.flatten(1, 2) @ omega).view_as(vectors)

    def gone(R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r = R.flatten(-2).unsqueeze(-2)
        slope = applied(r)
        return slope, (r * slope).sum((-1, -2))

    slope, error = gone(R)
    for _ in range(_STEPS):
        J = _turning(R)  # (B, k, 3, 9)
        normal = applied(J) @ J.mT + identity
        step = -torch.linalg.solve_ex(normal, J @ slope.mT).result.squeeze(-1)
        # Beyond a radian the model says nothing.
        step = step / step.norm(dim=-1, keepdim=True).clamp_min(1.0)
        trial = cayley(step) @ R
        new_slope, new_error = gone(trial)
        better = (new_error < error)[..., None, None]
        R, slope = torch.where(better, trial, R), torch.where(better, new_slope, slope)
        error = torch.minimum(error, new_error)
    return R, error


def _turning(R: torch.Tensor) -> torch.Tensor:
    """How the rotation, row by row, changes along ``omega``: shape ``(..., 3, 9)``."""
    zero = torch.zeros_like(R[..., 0, :])
    x, y, z = R.unbind(-2)
    rows: torch.Tensor = torch.cat([zero, -z, y, z, zero, -x, -y, x, zero], -1)
    return rows.view(*R.shape[:-2], 3, 9)


def _thinnest(spread: torch.Tensor) -> torch.Tensor:
    """Nearly the direction of least spread: a column of a high power of the inverse."""
    identity = torch.eye(3, dtype=spread.dtype, device=spread.device)
    power = torch.linalg.inv_ex(spread + 1e-4 * identity).inverse
    power = power / power.abs().amax((-1, -2), keepdim=True).clamp_min(1e-30)
    for _ in range(3):
        power = power @ power
    best = power.square().sum(-2).argmax(-1)
    column = power.gather(2, best[:, None, None].expand(-1, 3, 1)).squeeze(2)
    direction: torch.Tensor = column / column.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return direction
